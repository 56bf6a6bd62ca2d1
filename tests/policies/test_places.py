"""One door: whatever place is given, what lies there is told by headers, and what does not is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo.policies import places
from srpo.policies.places import find, split_weight
from tests.policies.forms import COMFY, save, to_bfl, to_fp8, wide_flux, write_gguf
from tests.tiny import save_tiny_flux

ROOT = Path(__file__).resolve().parents[2]
NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model():
    return wide_flux(seed=1)


def test_each_place_is_told_in_words(model, tmp_path):
    weights, halves = model.state_dict(), {name: it.bfloat16() for name, it in to_bfl(model, COMFY).items()}
    pair = torch.ones(2, 64), torch.ones(256, 2)
    lora = {f"transformer.x_embedder.lora_{side}.weight": it for side, it in zip("AB", pair, strict=True)}
    kohya = {f"lora_unet_img_in.lora_{side}.weight": it for side, it in zip(("down", "up"), pair, strict=True)}
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5MB")
    shards = len(list((tmp_path / "sharded").glob("*.safetensors")))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"weights": "lora"}))
    save(lora, tmp_path / "run" / "pytorch_lora_weights.safetensors")
    scaled = to_fp8(weights, "scale_weight")
    said = {
        save_tiny_flux(tmp_path / "pipeline"): ("transformer in float32, named as by diffusers, ", "GB in one file"),
        tmp_path / "sharded": ("transformer in float32, named as by diffusers, 112 tensors", f" in {shards} files"),
        save(weights, tmp_path / NAME): ("transformer in float32, named as by diffusers, 112 tensors", "in one file"),
        save(halves, tmp_path / "b.safetensors"): ("transformer in bfloat16, named as by Black Forest Labs", ""),
        save(to_fp8(weights), tmp_path / "c.safetensors"): ("transformer in fp8 (e4m3fn), named as by diffusers", ""),
        save(scaled, tmp_path / "d.safetensors"): ("transformer in fp8 (e4m3fn) with scales, named", " 112 tensors"),
        write_gguf(to_bfl(model), tmp_path / "e.gguf", "Q4_K"): ("transformer in GGUF Q4_K, named as by Black", ""),
        tmp_path / "run": ("LoRA in float32, named as by diffusers, 2 tensors", ""),
        save(kohya, tmp_path / "f.safetensors"): ("LoRA in float32, named as by Black Forest Labs, 2 tensors", ""),
    }
    for place, (start, more) in said.items():
        words = str(find(place))
        assert words.startswith(start) and more in words, words


def test_a_folder_with_one_file_of_another_name_means_it_and_of_several_asks(model, tmp_path):
    file = save(model.state_dict(), tmp_path / "flux.1-dev-SRPO-bf16.safetensors")
    assert find(tmp_path).files == (file,)
    save(model.state_dict(), tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 files of weights; name one of them, such as .*flux\.1-dev-SRPO"):
        find(tmp_path)


def test_an_index_is_believed_within_its_folder_and_size_alone(tmp_path):
    index = tmp_path / f"{NAME}.index.json"
    for names, said in (
        (["../a.safetensors"], "points outside its folder"),
        ([3], "points outside"),
        ([], "is no index"),
    ):
        index.write_text(json.dumps({"weight_map": dict(enumerate(names))}))
        with pytest.raises(ValueError, match=said):
            find(tmp_path)
    index.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no index of weights"):
        find(tmp_path)
    with index.open("wb") as opened:
        opened.truncate(2**33)  # sparse: it is refused unread
    with pytest.raises(ValueError, match="is too long for an index"):
        find(tmp_path)


def test_two_shards_of_one_weight_and_a_file_of_none_are_refused(tmp_path):
    for name in ("a", "b"):
        save({"x_embedder.weight": torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    (tmp_path / f"{NAME}.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    with pytest.raises(ValueError, match=r"b\.safetensors repeats x_embedder\.weight of another file"):
        find(tmp_path)
    with pytest.raises(ValueError, match="holds no tensors"):
        find(save({}, tmp_path / "empty.safetensors"))


def test_a_model_of_another_kind_is_refused_for_what_it_lacks(tmp_path):
    from srpo.policies.checkpoints import load_transformer

    file = save(
        {"unet.conv_in.weight": torch.zeros(4, 4, 3, 3), "alphas": torch.zeros(())}, tmp_path / "sd.safetensors"
    )
    assert find(file).recipe().keys() == {"unet.conv_in.weight", "alphas"}
    with pytest.raises(ValueError, match=r"lacks 112 of 112 weights \(first .*\) and holds 2 that do not belong"):
        load_transformer(file, wide_flux())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors@0.8", ("a.safetensors", 0.8)),
        ("a.safetensors@-1", ("a.safetensors", -1.0)),
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("owner/name@0.5", ("owner/name", 0.5)),
        ("a@b.safetensors", ("a@b.safetensors", 1.0)),
        ("a@nan", ("a@nan", 1.0)),
        ("@0.5", ("@0.5", 1.0)),
        ("", (".", 1.0)),
    ],
)
def test_a_weight_is_what_follows_the_last_at_sign_where_that_is_a_number(text, expected):
    assert split_weight(text) == (Path(expected[0]), expected[1])


def test_a_file_whose_own_name_ends_like_a_weight_is_that_file(tmp_path):
    file = tmp_path / "lora@0.5"
    file.write_bytes(b"")
    assert split_weight(file) == (file, 1.0)
    with pytest.raises(ValueError, match="between -4 and 4, not at 99"):
        split_weight("a@99")


def test_looking_needs_neither_torch_nor_diffusers(model, tmp_path):
    """The page asks while it is built."""
    file = save(model.state_dict(), tmp_path / NAME)
    code = "import sys; from srpo.policies.places import find; print(not find(FILE).notice, 'torch' in sys.modules)"
    code = code.replace("FILE", repr(str(file)))
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "False"]


def test_everything_the_reader_knows_is_a_type_of_the_header():
    from srpo.policies import headers
    from srpo.policies.tensors import DTYPES

    assert set(DTYPES) | set(headers.QUANTISED) == set(places.READ)
    assert all(dtype.itemsize * 8 == headers.BITS[name] for name, dtype in DTYPES.items())
