"""A LoRA out of two checkpoints: the best of its rank, all of the change at full rank, and every layer in it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo import extract_lora as command
from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.policies.lora_extraction import extract, factors
from tests.generators import finished
from tests.policies.forms import save, to_bfl
from tests.tiny import save_tiny_flux, tiny_flux_pipeline


@pytest.fixture
def both(tmp_path):
    """A base, and the same tuned a little in every weight, norms and biases too: as folder and as file."""
    base, tuned = tiny_flux_pipeline(), tiny_flux_pipeline()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in tuned.transformer.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    base.save_pretrained(tmp_path / "base")
    return base, tuned, tmp_path / "base", save(tuned.transformer.state_dict(), tmp_path / "tuned.safetensors")


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3, 6, 10])
def test_the_factors_are_the_truncated_singular_value_decomposition(shape, rank):
    """Eckart-Young: no matrix of that rank is nearer, and the kept energy is the share of the largest squares."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    down, up, energy = factors(matrix, rank)
    assert down.shape == (rank, shape[1]) and up.shape == (shape[0], rank)
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values[rank:] *= 0
    torch.testing.assert_close((up @ down).double(), left @ values.diag() @ right, atol=1e-5, rtol=1e-5)
    assert energy == pytest.approx(float(values.square().sum() / matrix.double().square().sum()), rel=1e-9)


def test_at_full_rank_the_lora_gives_the_tuned_model_back(both, tmp_path):
    base, tuned, folder, file = both
    layers, adapters = finished(extract(folder, file, rank=1000))
    save_file(adapters, tmp_path / "lora.safetensors")
    ours = load_transformer(tmp_path / "lora.safetensors", base.transformer).state_dict()
    for name, weight in tuned.transformer.state_dict().items():
        torch.testing.assert_close(ours[name], weight, atol=2e-6, rtol=0, msg=name)
    assert all(layer.energy == pytest.approx(1, abs=1e-9) for layer in layers)
    assert layers[-1].done == layers[-1].total == len(layers)


def test_diffusers_reads_the_extraction_with_its_biases_and_norms(both, tmp_path):
    base, tuned, folder, file = both
    _, adapters = finished(extract(folder, file, rank=1000))
    save_file(adapters, tmp_path / "pytorch_lora_weights.safetensors")
    pipe = tiny_flux_pipeline()
    pipe.load_lora_weights(tmp_path)
    wanted, ours, plain = (velocity(FluxPolicy(it, max_sequence_length=16)) for it in (tuned, pipe, base))
    torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-5)
    assert (plain - wanted).abs().max() > 0.01


def velocity(policy):
    x_t = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return policy.velocity(x_t, 0.7, policy.encode_prompts(["a red ball"]), 3.5)


def test_every_layer_that_changed_is_in_it_the_adalns_as_well(both):
    base, _, folder, file = both
    _, adapters = finished(extract(folder, file, rank=2))
    linear = {name for name, module in base.transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {name.removeprefix("transformer.").split(".lora_")[0] for name in adapters if ".lora_A." in name}
    assert found == linear and {"norm_out.linear", "transformer_blocks.0.norm1_context.linear"} <= found
    norms = {name for name in adapters if ".lora_" not in name}
    assert norms == {
        f"transformer.{it}" for it in base.transformer.state_dict() if ".norm_" in it and it.count("attn.norm")
    }
    assert {len(it) for name, it in adapters.items() if ".lora_A." in name} == {2}


def test_more_rank_keeps_more_and_comes_nearer(both, tmp_path):
    base, tuned, folder, file = both
    wanted = tuned.transformer.state_dict()
    kept, distances = [], []
    for rank in (1, 4, 16):
        layers, adapters = finished(extract(folder, file, rank))
        kept.append(sum(it.energy * it.squares for it in layers) / sum(it.squares for it in layers))
        save_file(adapters, tmp_path / "lora.safetensors")
        ours = load_transformer(tmp_path / "lora.safetensors", base.transformer).state_dict()
        distances.append(sum(float((ours[name] - wanted[name]).square().sum()) for name in wanted))
        lost = sum((1 - it.energy) * it.squares for it in layers)
        assert distances[-1] == pytest.approx(lost, rel=1e-3)  # the report is the distance
    assert kept == sorted(kept) and distances == sorted(distances, reverse=True)


def test_a_layer_that_did_not_change_is_left_out_and_the_forms_may_differ(both, tmp_path):
    base, _, folder, _ = both
    weights = to_bfl(base.transformer)
    weights["img_in.weight"] = weights["img_in.weight"] + torch.outer(torch.ones(32), torch.ones(64))
    file = save(weights, tmp_path / "bfl.safetensors")
    layers, adapters = finished(extract(folder, file, rank=1))
    assert {name.split(".lora_")[0] for name in adapters} == {"transformer.x_embedder"}
    changed = [layer.name for layer in layers if layer.squares]
    assert changed == ["x_embedder"] and next(it for it in layers if it.squares).energy == pytest.approx(1)


def test_what_cannot_be_compared_is_one_sentence(both, tmp_path):
    _, _, folder, file = both
    with pytest.raises(ValueError, match="The rank must be 1 or more, not 0"):
        next(extract(folder, file, 0))
    with pytest.raises(ValueError, match="there is nothing to extract"):
        finished(extract(folder, folder, 1))
    broken = load_file(file)
    broken["x_embedder.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"x_embedder\.weight is not finite in .*broken"):
        finished(extract(folder, save(broken, tmp_path / "broken.safetensors"), 1))
    smaller = load_file(file)
    del smaller["proj_out.bias"]
    with pytest.raises(ValueError, match=r"two architectures: only one of them has proj_out\.bias"):
        next(extract(folder, save(smaller, tmp_path / "small.safetensors"), 1))
    smaller = load_file(file) | {"proj_out.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"two architectures: proj_out\.bias is \(3,\) and \(64,\)"):
        next(extract(folder, save(smaller, tmp_path / "other.safetensors"), 1))


def test_the_command_reports_energy_and_fidelity_at_fixed_seeds(both, tmp_path, capsys):
    _, _, folder, file = both
    options = ["--steps", "2", "--size", "32", "--text-tokens", "16", "--seeds", "1", "2", "--prompt", "a red ball"]
    said = []
    for rank in ("2", "32"):
        out = tmp_path / f"rank-{rank}.safetensors"
        assert command.main([str(folder), str(file), "--rank", rank, "--out", str(out), *options]) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines()[0] == str(out) and out.is_file()
        assert (
            "x_embedder 32x64: changed by " in printed.err and "Kept of the energy of the whole change: " in printed.err
        )
        last = printed.out.splitlines()[-1]
        assert last.startswith("At 2 seeds of 1 prompts, against the tuned model: velocities ")
        said.append(
            (float(last.split("velocities ")[1].split("%")[0]), float(last.split("pictures ")[1].split(" dB")[0]))
        )
    (error, ratio), (full_error, full_ratio) = said
    assert full_error < error and full_ratio > ratio and full_error < 1


def test_the_command_refuses_in_one_sentence(tmp_path, capsys):
    save_tiny_flux(tmp_path / "base")
    out = ["--rank", "2", "--out", str(tmp_path / "lora.safetensors")]
    assert command.main([str(tmp_path / "base"), str(tmp_path / "nowhere"), *out]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: There is nothing at ")
    assert not (tmp_path / "lora.safetensors").exists()
