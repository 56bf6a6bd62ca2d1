"""The memory modes: which one is chosen, what is said of it, and that those which lose nothing draw the very same."""

import weakref

import pytest
import torch

from srpo import rounding
from srpo.evaluation.sampling import sample_images
from srpo.policies import acceleration, residency
from srpo.policies.acceleration import Acceleration, choose_acceleration, manner, require_alike
from srpo.policies.blocks import pack
from srpo.policies.checkpoints import save_transformer
from srpo.policies.difference import Difference, change_of
from srpo.policies.flux import FluxPolicy
from srpo.policies.placement import (
    DIFFERENCE,
    OFFLOAD,
    PINNED,
    QUANTIZED,
    RESIDENT,
    SWAP,
    Memory,
    Placement,
    Sizes,
    choose,
    needs,
    require_room,
)
from srpo.policies.places import find
from srpo.policies.tensors import read_weight
from tests.policies.forms import save, to_bfl, to_fp8, write_gguf
from tests.tiny import save_tiny_flux, tiny_flux_pipeline

GB = 10**9
FLUX_DEV = Sizes(transformer=23_800_000_000, layer=700_000_000, encoders=9_800_000_000, vae=170_000_000, work=4 * GB)
CPU = torch.device("cpu")


def named(placement):
    return f"{placement.mode} {placement.form}".strip()


WITHOUT_LOSS = [Placement(RESIDENT), Placement(SWAP, DIFFERENCE), Placement(SWAP, PINNED), Placement(OFFLOAD)]


# The decision


@pytest.mark.parametrize(
    ("free", "host", "mode", "form"),
    [
        (139, 200, RESIDENT, ""),
        (62, 200, RESIDENT, ""),  # 2 x 23.8 + 9.8 + 0.17 + 4 = 61.57
        (61, 200, SWAP, DIFFERENCE),
        (50, 64, SWAP, DIFFERENCE),  # 1.5 x 23.8 + 13.97 = 49.67
        (49, 64, SWAP, PINNED),
        (38, 48, SWAP, PINNED),  # 23.8 + 13.97 = 37.77, and 47.6 in the machine
        (38, 58, SWAP, PINNED),
        (37, 58, OFFLOAD, ""),  # two layers, VAE and work: 5.57; 57.4 in the machine
        (6, 58, OFFLOAD, ""),
        (61, 8, SWAP, DIFFERENCE),  # the machine's own memory is not asked for
    ],
)
def test_auto_takes_the_fastest_mode_that_fits_and_says_what_it_needs(free, host, mode, form):
    placed = choose("auto", FLUX_DEV, Memory("cuda", free * GB, host * GB))
    assert (placed.mode, placed.form) == (mode, form)
    assert f"{free}.0 GB are free" in placed.reason and "GB are needed" in placed.reason
    assert ("(estimate)" in placed.price) == (mode != RESIDENT)
    assert placed.takes_turns == (form == PINNED or mode == OFFLOAD)
    assert placed.is_faithful


def test_auto_never_rounds_but_names_the_mode_that_would_fit():
    """Where no mode that loses nothing fits, for lack of the machine's memory here, auto refuses."""
    small = Memory("cuda", 20 * GB, 57 * GB)
    with pytest.raises(ValueError, match=r"Two models take 5\.6 GB on the device and 57\.4 GB in the machine with any"):
        choose("auto", FLUX_DEV, small)
    assert choose("quantized", FLUX_DEV, Memory("cuda", 20 * GB, 58 * GB)).form == "Q4_0"
    assert choose("quantized", FLUX_DEV, Memory("cuda", 30 * GB, 58 * GB)).form == "Q8_0"
    assert not choose("quantized", FLUX_DEV, Memory("cuda", 30 * GB, 58 * GB)).is_faithful


def test_a_mode_that_does_not_fit_is_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"61\.6 GB on the device .* 64\.0 GB are free: start with --memory swap"):
        choose("resident", FLUX_DEV, Memory("cuda", 48 * GB, 64 * GB))
    with pytest.raises(ValueError, match="free some, or use a larger device"):
        choose("resident", FLUX_DEV, Memory("cuda", 4 * GB, 4 * GB))
    with pytest.raises(ValueError, match="is one of auto, resident, swap, offload, quantized, not 'best'"):
        choose("best", FLUX_DEV, Memory("cuda", 139 * GB, 200 * GB))


def test_where_there_is_one_memory_both_needs_come_out_of_it():
    cpu = Memory("cpu", 60 * GB, 60 * GB)
    placed = choose("auto", FLUX_DEV, cpu)
    assert (placed.mode, placed.form) == (SWAP, DIFFERENCE)
    assert needs(OFFLOAD, "", FLUX_DEV, cpu).device == pytest.approx(2 * 23.8e9 + 9.8e9 + 4.17e9 + 1.4e9)
    wide = Sizes(2 * FLUX_DEV.transformer, 1, 0, 0, 0, bytes_per_number=4)
    assert wide.difference == wide.transformer  # float32's difference is no shorter


def test_another_model_is_refused_before_it_takes_memory():
    require_room("SRPO", 5 * GB, 5 * GB)
    with pytest.raises(ValueError, match=r"load SRPO beside .*: 23\.8 GB are needed and 4\.0 GB are free; free"):
        require_room("SRPO", FLUX_DEV.transformer, 4 * GB)


def test_sizes_are_read_off_the_headers(tmp_path):
    pipe = tiny_flux_pipeline()
    sizes = Sizes.of(save_tiny_flux(tmp_path), bytes_per_number=2, side=32)
    count = {
        name: sum(weight.numel() for weight in getattr(pipe, name).parameters()) for name in ("transformer", "vae")
    }
    assert sizes.transformer == 2 * count["transformer"] and sizes.vae == 2 * count["vae"]
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    assert sizes.encoders == 2 * sum(weight.numel() for part in encoders for weight in part.parameters())
    assert Sizes.of(tmp_path / "nothing", 2, 32).transformer == 0


def test_what_is_free_on_the_cpu_is_the_machines():
    memory = residency.measure(CPU)
    assert memory.kind == "cpu" and memory.is_one and 0 < memory.free == memory.host < 2**50


# The exact difference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", ["near", "far", "signs", "unchanged", "special"])
def test_a_difference_turns_one_weight_into_the_other_and_back_bit_for_bit(dtype, case):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(37, 53, generator=generator).to(dtype)
    after = {
        "near": (before.float() * (1 + 1e-3 * torch.randn(before.shape, generator=generator))).to(dtype),
        "far": torch.randn(before.shape, generator=generator).to(dtype),
        "signs": -before,
        "unchanged": before.clone(),
        "special": before.clone(),
    }[case]
    if case == "special":  # what arithmetic on the numbers would lose
        after[0, :5] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0], dtype=dtype)
        before[1, :2] = torch.tensor([float("nan"), -float("inf")], dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32}[before.itemsize]
    change = change_of(before, after)
    if case == "unchanged":
        assert change is None
        return
    weight = before.clone()
    change.apply(weight)
    assert torch.equal(weight.view(bits), after.view(bits))
    change.apply(weight, undo=True)
    assert torch.equal(weight.view(bits), before.view(bits))
    assert change.nbytes <= before.nbytes
    if case == "near" and dtype == torch.bfloat16:  # one byte each, and a few that moved far
        assert before.numel() <= change.nbytes < 1.05 * before.numel()
    if case == "far":  # no shorter than all bits
        assert change.nbytes == before.nbytes


def test_a_difference_that_breaks_off_leaves_the_weights_as_they_were():
    before = {name: torch.randn(5, 4).bfloat16() for name in "abc"}
    after = {name: (weight.float() * 1.01).bfloat16() for name, weight in before.items()}
    difference = Difference.between(before, after.items())
    weights = {name: weight.clone() for name, weight in before.items()}
    weights["c"] = weights["c"].T.contiguous().T  # has gaps: its bits cannot be written
    with pytest.raises(RuntimeError):
        difference.apply(weights)
    assert all(torch.equal(weights[name], before[name]) for name in "abc")


def test_two_weights_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="one shape and precision"):
        change_of(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="one shape and precision"):
        change_of(torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))


# What is drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Two models over it, near it as a tuning is."""
    root, places = tmp_path_factory.mktemp("others"), []
    for seed in (1, 2):
        transformer = tiny_flux_pipeline().transformer
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in transformer.parameters():
                weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=generator))
        places.append(save_transformer(transformer, root / f"{seed}.safetensors", torch.bfloat16))
    return places


def models_in(folder, placement, dtype=torch.bfloat16):
    base = FluxPolicy.from_pretrained(folder, dtype=dtype, max_sequence_length=16)
    return residency.residency(base, placement, Acceleration(), CPU)


def picture(policy):
    return sample_images(policy, ["a red ball"], [3], num_steps=2, height=32, width=32)


@pytest.fixture(scope="module")
def resident(folder, others):
    """Pictures of the base and the two others, each by its own weights."""
    models = models_in(folder, Placement(RESIDENT))
    drawn = [picture(policy) for policy in (models.base, *map(models.load, others))]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    return drawn


@pytest.mark.parametrize("placement", WITHOUT_LOSS, ids=named)
def test_pictures_are_the_same_to_the_bit_in_whatever_order_models_are_called(folder, others, resident, placement):
    models = models_in(folder, placement)
    policies = [models.base, *map(models.load, others)]
    for number in (0, 1, 2, 1, 0, 2, 2, 0):
        assert torch.equal(picture(policies[number]), resident[number])


def test_float32_weights_used_where_they_lie_in_a_file_draw_the_same_in_every_mode(folder, others):
    """In a file they begin anywhere, and the CPU's order of summing depends on that."""
    drawn = []
    for placement in WITHOUT_LOSS:
        models = models_in(folder, placement, torch.float32)
        drawn.append([picture(policy) for policy in (models.base, models.load(others[0]))])
    assert all(torch.equal(ours, theirs) for one in drawn[1:] for ours, theirs in zip(one, drawn[0], strict=True))


@pytest.mark.parametrize("placement", WITHOUT_LOSS[1:3], ids=lambda placement: placement.form)
def test_a_swap_exchanges_the_tensors_of_one_set_and_is_timed(folder, others, placement):
    models = models_in(folder, placement)
    base, other = models.base, models.load(others[0])
    assert models.change_seconds is None
    slot = base.transformer.x_embedder.weight.data_ptr()
    with other.staged():
        brought = other.transformer.x_embedder.weight
        assert brought.data_ptr() == slot  # the memory of the one is the other's now
        expected = find(others[0]).recipe()["x_embedder.weight"]
        assert torch.equal(brought, read_weight(expected))
    assert models.change_seconds > 0
    with base.staged():
        assert base.transformer.x_embedder.weight.data_ptr() == slot


def test_the_difference_of_a_tuning_is_about_half_as_long_as_the_model(folder, others):
    models = models_in(folder, Placement(SWAP, DIFFERENCE))
    whole = sum(weight.nbytes for weight in models.base.transformer.parameters())
    other = models.load(others[0])
    assert 0.45 < other.transformer.difference.nbytes / whole < 0.6
    assert models.num_bytes(others[0]) == whole // 2


def test_models_that_are_forgotten_give_their_memory_back(folder, others):
    for placement in WITHOUT_LOSS[:3]:
        models = models_in(folder, placement)
        first = models.load(others[0])
        picture(first)
        second = models.load(others[1])
        gone = weakref.ref(first.transformer)
        picture(second)
        del first
        assert gone() is None, placement


@pytest.mark.parametrize("placement", WITHOUT_LOSS[:3], ids=named)
def test_weights_in_blocks_stay_beside_those_that_take_turns(folder, others, resident, placement, tmp_path):
    file = write_gguf(to_bfl(tiny_flux_pipeline(seed=1).transformer), tmp_path / "other.gguf", "Q8_0")
    models = models_in(folder, placement)
    blocks = models.load(file)
    alone = picture(models_in(folder, Placement(RESIDENT)).load(file))
    tuned = models.load(others[0])
    for policy, expected in ((blocks, alone), (tuned, resident[1]), (models.base, resident[0]), (blocks, alone)):
        assert torch.equal(picture(policy), expected)
    with pytest.raises(ValueError, match="not moved layer by layer: start with --memory quantized"):
        models_in(folder, Placement(OFFLOAD)).load(file)


def test_a_lora_takes_turns_as_whole_weights_do(folder, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, 64, generator=generator),
        "transformer.x_embedder.lora_B.weight": 0.1 * torch.randn(32, 4, generator=generator),
    }
    lora = save(weights, tmp_path / "style.safetensors")
    drawn = []
    for placement in WITHOUT_LOSS:
        models = models_in(folder, placement)
        first, second = models.load(lora, 0.5), models.load(lora, 1.0)
        assert not torch.equal(picture(first), picture(second))
        drawn.append((picture(first), picture(second), picture(models.base)))
    assert all(torch.equal(ours, theirs) for one in drawn[1:] for ours, theirs in zip(one, drawn[0], strict=True))


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 0.005), ("Q4_0", 0.1)])
def test_quantized_rounds_the_blocks_matrices_and_draws_nearly_the_same(folder, others, resident, kind, most):
    models = models_in(folder, Placement(QUANTIZED, kind))
    linear = models.base.transformer.transformer_blocks[0].attn.to_q
    assert type(linear).__name__ == "GGUFLinear" and linear.weight.quant_type.name == kind
    assert type(models.base.transformer.x_embedder).__name__ == "Linear"
    for policy, expected in zip((models.base, models.load(others[0])), resident, strict=False):
        gap = (picture(policy) - expected).abs().mean()
        assert 0 < gap < most


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_blocks_are_packed_as_the_package_packs_them(kind):
    import gguf

    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    weight[3, :32] = 0  # a block without a scale
    weight[4, :32] = torch.linspace(-1, 1, 32)  # its largest number twice
    weight[5, 0] = 1e5
    for dtype in (torch.float32, torch.bfloat16):
        values = weight.to(dtype)
        expected = gguf.quants.quantize(values.float().numpy(), gguf.GGMLQuantizationType[kind])
        assert torch.equal(pack(values, kind), torch.from_numpy(expected))
    with pytest.raises(ValueError, match="a multiple of 32 numbers"):
        pack(weight[:, :40], kind)
    with pytest.raises(ValueError, match="Q8_0 or Q4_0, not as 'Q6_K'"):
        pack(weight, "Q6_K")


# How they are run


def test_all_models_of_a_process_are_run_alike_and_one_that_is_not_is_refused(folder, others):
    for placement in WITHOUT_LOSS:
        models = models_in(folder, placement)
        policies = [models.base, models.load(others[0])]
        assert len({manner(policy) for policy in policies}) == 1
        require_alike(policies)
    narrow = FluxPolicy.from_pretrained(folder, dtype=torch.float32, max_sequence_length=16)
    with pytest.raises(RuntimeError, match="run in different ways"):
        require_alike([policies[0], narrow])
    odd = models_in(folder, Placement(RESIDENT))
    odd.base.transformer.transformer_blocks[0].attn.processor._attention_backend = None
    with pytest.raises(RuntimeError, match="run in different ways"):
        require_alike([models_in(folder, Placement(RESIDENT)).base, odd.base])


def test_compiling_is_regional_shared_by_all_and_seen(folder, others):
    base = FluxPolicy.from_pretrained(folder, max_sequence_length=16)
    models = residency.residency(base, Placement(SWAP, PINNED), Acceleration(compiles=True), CPU)
    other = models.load(others[0])
    assert manner(base).is_compiled and manner(other).is_compiled
    assert base.transformer._compiled_call_impl is None  # its blocks alone
    plain = FluxPolicy.from_pretrained(folder, max_sequence_length=16)
    with pytest.raises(RuntimeError, match="run in different ways"):
        require_alike([base, plain])


@pytest.mark.slow
def test_compiled_blocks_draw_nearly_what_eager_ones_draw_and_the_same_in_every_swap(folder, others):
    """Compiling takes a compiler of C++ and half a minute; it may move roundings, and nothing else."""
    drawn = {}
    for compiles in (False, True):
        for placement in WITHOUT_LOSS[:3]:
            base = FluxPolicy.from_pretrained(folder, dtype=torch.float32, max_sequence_length=16)
            models = residency.residency(base, placement, Acceleration(compiles=compiles), CPU)
            other = models.load(others[0])
            drawn[compiles, placement.form] = picture(base), picture(other), picture(base)
    for compiles in (False, True):
        for form in (DIFFERENCE, PINNED):
            pairs = zip(drawn[compiles, form], drawn[compiles, ""], strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs), (compiles, form)
    for eager, compiled in zip(drawn[False, ""], drawn[True, ""], strict=True):
        assert (eager - compiled).abs().max() < 1e-3
    assert (drawn[True, ""][0] - drawn[True, ""][1]).abs().max() > 0.01  # two models


def test_the_kernels_that_are_here_can_be_chosen_and_others_are_named():
    chosen = choose_acceleration(False, "auto", CPU, Placement(RESIDENT))
    assert chosen == Acceleration(False, "native")
    with pytest.raises(ValueError, match="There is no attention 'flash' on cpu here: choose native, or auto"):
        choose_acceleration(False, "flash", CPU, Placement(RESIDENT))
    with pytest.raises(ValueError, match="one of auto, native, cudnn, flash, flash3, not 'fast'"):
        choose_acceleration(False, "fast", CPU, Placement(RESIDENT))
    for mode in (OFFLOAD, QUANTIZED):
        with pytest.raises(ValueError, match=f"--compile needs weights that stay .* --memory {mode}"):
            choose_acceleration(True, "auto", CPU, Placement(mode))


@pytest.mark.parametrize(
    ("capability", "packages", "chosen"),
    [
        ((9, 0), (), "cudnn"),
        ((9, 0), ("flash_attn_interface",), "flash3"),
        ((8, 0), ("flash_attn_interface", "flash_attn"), "native"),
        ((12, 0), (), "native"),
    ],
)
def test_auto_pins_cudnn_on_hopper_alone(monkeypatch, capability, packages, chosen):
    monkeypatch.setattr(acceleration.importlib.util, "find_spec", lambda name: name in packages or None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    cuda = torch.device("cuda")
    assert choose_acceleration(False, "auto", cuda, Placement(RESIDENT)).attention == chosen
    assert ("flash3" in acceleration.available(cuda)) == ("flash_attn_interface" in packages)


# Which forms are too coarse for pairs


def test_fp8_and_less_than_eight_bits_are_coarse_and_q8_and_floats_are_not(tmp_path):
    tuned = tiny_flux_pipeline(seed=1).transformer
    plain = save(to_bfl(tuned), tmp_path / "plain.safetensors")
    fp8 = save(to_fp8(to_bfl(tuned)), tmp_path / "fp8.safetensors")
    assert find(plain).rounding == ""
    assert find(fp8).rounding == "fp8 (e4m3fn)"
    for kind, form in (("Q8_0", ""), ("Q5_1", "GGUF Q5_1"), ("Q4_0", "GGUF Q4_0")):
        assert find(write_gguf(to_bfl(tuned), tmp_path / f"{kind}.gguf", kind)).rounding == form


def test_the_command_measures_every_form_beside_what_srpo_changed(folder, others, capsys):
    arguments = [str(folder), str(others[0]), "--steps", "2", "--size", "32", "--seeds", "0", "--text-tokens", "16"]
    assert rounding.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {
        cells[1].strip(): [float(cell) for cell in cells[2:5]] for cells in (line.split("|") for line in lines[2:])
    }
    assert table["bfloat16"][0] == 0  # they are stored so
    weights = {name: row[0] for name, row in table.items()}
    assert 0 < weights["GGUF Q8_0"] < weights["fp8 e4m3fn"] < weights["GGUF Q4_0"]
    assert rounding.main([str(folder), str(folder)]) == 2
    assert "Both are the same weights" in capsys.readouterr().err
