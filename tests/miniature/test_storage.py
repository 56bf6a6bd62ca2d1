"""How parts are stored, and how contents are told apart."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from srpo.miniature.storage import content_hash, store_in_half

TENSORS = {"a": torch.tensor([1.0, 1 / 3]), "b": torch.arange(3)}


def test_weights_below_a_folder_are_rounded_to_half_precision_and_whole_numbers_stay(tmp_path):
    (tmp_path / "part").mkdir()
    path = tmp_path / "part" / "model.safetensors"
    save_file(TENSORS, path)
    store_in_half(tmp_path)
    with safe_open(path, "pt") as stored:
        assert stored.metadata() == {"format": "pt"}
        assert torch.equal(stored.get_tensor("a"), TENSORS["a"].half())
        assert torch.equal(stored.get_tensor("b"), TENSORS["b"])


def test_storing_twice_changes_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    store_in_half(tmp_path)
    once = path.read_bytes()
    store_in_half(tmp_path)
    assert path.read_bytes() == once


def test_the_hash_asks_for_values_and_not_for_order_or_memory_layout():
    image = torch.rand(1, 3, 4, 4)
    assert content_hash(TENSORS) == content_hash(dict(reversed(TENSORS.items())))
    assert content_hash({"i": image}) == content_hash({"i": image.to(memory_format=torch.channels_last)})


@pytest.mark.parametrize(
    "other",
    [
        {"a": TENSORS["a"]},
        {"a": TENSORS["b"], "b": TENSORS["a"]},
        TENSORS | {"a": TENSORS["a"].half()},
        TENSORS | {"a": TENSORS["a"][None]},
        TENSORS | {"a": torch.tensor([1.0, 1 / 3 + 1e-7])},
    ],
    ids=["fewer", "names", "type", "shape", "value"],
)
def test_any_other_name_type_shape_or_value_gives_another_hash(other):
    assert content_hash(TENSORS) != content_hash(other)
