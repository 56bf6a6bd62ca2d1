"""Weights on disk: what fits is read exactly, what does not is refused before it is read."""

import json
import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from srpo.policies import checkpoints
from srpo.policies.checkpoints import load_transformer, save_transformer
from tests.tiny import tiny_flux_pipeline

NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def base():
    return tiny_flux_pipeline(seed=0).transformer


@pytest.fixture
def other():
    """The same architecture with other weights: what is to be loaded."""
    return tiny_flux_pipeline(seed=1).transformer


def assert_same_weights(transformer, expected):
    ours, theirs = transformer.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def change_file(path, change):
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def test_a_saved_file_is_all_that_load_state_dict_takes(base, other, tmp_path):
    path = save_transformer(other, tmp_path / "new" / NAME, torch.float32)
    base.load_state_dict(load_file(path))
    assert_same_weights(base, other)


@pytest.mark.parametrize("form", ["pipeline folder", "transformer folder", "bare folder", "file", "shards"])
def test_every_form_of_the_same_weights_loads_to_the_same_model(base, other, tmp_path, form):
    if form == "pipeline folder":
        path = tmp_path / "pipeline"
        tiny_flux_pipeline(seed=1).save_pretrained(path)
    elif form in ("transformer folder", "shards"):
        path = tmp_path / "transformer"
        other.save_pretrained(path, max_shard_size="100KB" if form == "shards" else "10GB")
        assert (len(list(path.glob("*.safetensors"))) > 1) == (form == "shards")
    else:
        file = save_transformer(other, tmp_path / "run" / NAME, torch.float32)
        path = file if form == "file" else file.parent
    loaded = load_transformer(path, base)
    assert isinstance(loaded, FluxTransformer2DModel)
    assert_same_weights(loaded, other)
    assert not loaded.training
    assert all(weight.requires_grad and weight.is_leaf for weight in loaded.parameters())


def test_the_base_keeps_its_own_weights(base, other, tmp_path):
    path = save_transformer(other, tmp_path / NAME, torch.float32)
    load_transformer(path, base)
    assert_same_weights(base, tiny_flux_pipeline(seed=0).transformer)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_any_stored_precision_comes_out_in_the_bases(base, other, tmp_path, stored, wanted):
    path = save_transformer(other, tmp_path / NAME, stored)
    assert all(weight.dtype == stored for weight in load_file(path).values())
    loaded = load_transformer(path, base.to(wanted))
    assert loaded.dtype == wanted
    assert_same_weights(loaded, other.to(stored).to(wanted))


def test_a_loaded_model_outlives_its_file(base, other, tmp_path):
    path = save_transformer(other, tmp_path / NAME, torch.float32)
    loaded = load_transformer(path, base)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_weights(loaded, other)


def test_missing_and_extra_weights_are_counted_and_named(base, other, tmp_path):
    path = save_transformer(other, tmp_path / NAME, torch.float32)

    def change(weights):
        weights["stranger.weight"] = torch.zeros(1)
        del weights["proj_out.bias"], weights["x_embedder.bias"]

    change_file(path, change)
    count = len(base.state_dict())
    with pytest.raises(
        ValueError, match=rf"lacks 2 of {count} weights \(first proj_out.bias\) and holds 1 that do not"
    ):
        load_transformer(path, base)


def test_another_size_is_refused_with_both_shapes(base, other, tmp_path):
    path = save_transformer(other, tmp_path / NAME, torch.float32)
    change_file(path, lambda weights: weights.update({"proj_out.bias": torch.zeros(32)}))
    with pytest.raises(ValueError, match=r"proj_out.bias is \(32,\), not \(64,\)"):
        load_transformer(path, base)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64])
def test_other_number_types_are_refused_by_name(base, other, tmp_path, dtype):
    path = save_transformer(other, tmp_path / NAME, torch.float32)
    change_file(path, lambda weights: weights.update({"proj_out.bias": torch.zeros(64).to(dtype)}))
    with pytest.raises(ValueError, match=r"holds proj_out\.bias as [FI]"):
        load_transformer(path, base)


def test_places_without_weights_are_refused(base, tmp_path):
    with pytest.raises(ValueError, match="There is nothing at"):
        load_transformer(tmp_path / "nowhere", base)
    with pytest.raises(ValueError, match=f"holds no {NAME}"):
        load_transformer(tmp_path, base)


def test_a_missing_shard_and_one_outside_the_folder_are_refused(base, other, tmp_path):
    folder = tmp_path / "transformer"
    other.save_pretrained(folder, max_shard_size="100KB")
    first, *_ = sorted(folder.glob("*.safetensors"))
    shutil.move(first, tmp_path / first.name)
    with pytest.raises(ValueError, match=rf"lacks 1 of \d+ files, first {first.name}"):
        load_transformer(folder, base)
    index = folder / f"{NAME}.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = {key: f"../{first.name}" for key in content["weight_map"]}
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="points outside its folder"):
        load_transformer(folder, base)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of weights"):
        load_transformer(folder, base)


def test_a_file_that_does_not_fit_is_refused_before_anything_is_allocated(base, tmp_path):
    """A sparse file that declares 64 GiB of the right name: reading it would not end well."""
    size = 64 * 2**30
    header = {"proj_out.bias": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    content = json.dumps(header).encode()
    with (tmp_path / NAME).open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + size)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_transformer(tmp_path / NAME, base)


def test_settings_that_no_shape_shows_must_agree_too(base, other, tmp_path):
    other.register_to_config(axes_dims_rope=(8, 4, 4))
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"axes_dims_rope is \[8, 4, 4\], but \(4, 6, 6\) is needed"):
        load_transformer(tmp_path, base)


def test_another_kind_of_model_is_refused_by_name(base, tmp_path):
    tiny_flux_pipeline().vae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds another model, AutoencoderKL; choose a FluxTransformer2DModel"):
        load_transformer(tmp_path, base)


def test_the_settings_of_a_run_beside_its_weights_are_not_taken_for_a_models(base, other, tmp_path):
    save_transformer(other, tmp_path / NAME, torch.float32)
    (tmp_path / "config.json").write_text(json.dumps({"learning_rate": 1e-5}))
    assert_same_weights(load_transformer(tmp_path, base), other)


def test_a_save_that_fails_leaves_the_old_file_and_no_other(base, other, tmp_path, monkeypatch):
    path = save_transformer(base, tmp_path / NAME, torch.float32)

    def fill_the_disk(weights, temporary, metadata):
        temporary.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_transformer(other, path, torch.float32)
    assert [file.name for file in tmp_path.iterdir()] == [NAME]
    assert_same_weights(load_transformer(path, other), base)


def test_weights_that_are_not_finite_in_the_stored_precision_are_not_saved(base, tmp_path):
    with torch.no_grad():
        base.proj_out.bias[0] = 1e5  # beyond float16's 65504
    with pytest.raises(ValueError, match=r"proj_out.bias is not finite in torch.float16: nothing was saved"):
        save_transformer(base, tmp_path / NAME, torch.float16)
    assert not list(tmp_path.iterdir())
    save_transformer(base, tmp_path / NAME, torch.bfloat16)


def test_other_names_and_precisions_are_not_written(base, tmp_path):
    with pytest.raises(ValueError, match=r"saved as .safetensors, not as 'model.pt'"):
        save_transformer(base, tmp_path / "model.pt", torch.float32)
    with pytest.raises(ValueError, match="not in torch"):
        save_transformer(base, tmp_path / NAME, torch.float64)
