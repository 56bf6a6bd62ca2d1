"""Published files and hostile ones: each of these is refused in one sentence, and none of them runs or fills memory."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo.rewards.clip import ClipReward
from srpo.rewards.weights import Known, open_checkpoint, require_known, require_layout, write_safetensors
from tests.tiny import tiny_clip


class RunsCode:
    """A pickle of it runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write_pickle(file, program, name="archive/data.pkl", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, program)
        archive.writestr("archive/version", b"3\n")
    return file


def test_plain_weights_are_views_of_the_file(tmp_path):
    weights = OrderedDict(a=torch.rand(4, 5).half(), b=torch.arange(3))
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "nested.pt")
    torch.save(weights, tmp_path / "flat.pt")
    for file in ("nested.pt", "flat.pt"):
        opened = open_checkpoint(tmp_path / file)
        assert all(torch.equal(opened[name], weight) for name, weight in weights.items())
        assert opened.keys() == weights.keys()


def test_a_program_is_not_run(tmp_path):
    mark = tmp_path / "it-ran"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": RunsCode(f"touch {mark}")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"is a program that calls posix\.system, not plain weights"):
        open_checkpoint(tmp_path / "bad.pt")
    assert not mark.exists()


def test_names_put_together_while_a_program_runs_are_refused(tmp_path):
    """Protocol 4 takes names from the stack, where they cannot be read without running it; torch.save never does."""
    file = write_pickle(tmp_path / "bad.pt", pickle.dumps(OrderedDict(a=1), protocol=4))
    with pytest.raises(ValueError, match=r"calls pickle\.STACK_GLOBAL"):
        open_checkpoint(file)


def test_a_container_that_would_fill_the_memory_is_refused(tmp_path):
    """bytearray(2**40) is a call that PyTorch's own weights_only mode allows."""
    program = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85R."
    with pytest.raises(ValueError, match=r"is a program that calls __builtin__\.bytearray"):
        open_checkpoint(write_pickle(tmp_path / "bad.pt", program))


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.write_bytes(b"PK\x03\x04 and no archive"),
        lambda file: file.write_bytes(b""),
        lambda file: torch.save({"a": torch.zeros(1)}, file, _use_new_zipfile_serialization=False),
        lambda file: write_pickle(file, pickle.dumps({}, protocol=2), method=zipfile.ZIP_DEFLATED),  # a zip bomb's form
        lambda file: write_pickle(file, pickle.dumps({}, protocol=2), name="archive/other.pkl"),
        lambda file: write_pickle(file, bytes(5_000_000)),
        lambda file: write_pickle(file, b"\x80\x02 no pickle"),
    ],
    ids=["no archive", "empty", "old form", "compressed", "no names", "too many names", "no pickle"],
)
def test_what_torch_save_does_not_write_is_refused(tmp_path, make):
    make(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt is damaged, or no file that PyTorch 1\.6 or later has written"):
        open_checkpoint(tmp_path / "bad.pt")


def test_a_truncated_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for length in (len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pt is damaged"):
            open_checkpoint(tmp_path / "cut.pt")


def test_a_file_that_lies_about_its_numbers_is_refused(tmp_path):
    """Its names are in order, but they ask for more numbers than the file holds."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as archive:
        content = {entry: archive.read(entry) for entry in archive.namelist()}
    program = next(name for name in content if name.endswith("data.pkl"))
    lies = {**content, program: content[program].replace(b"M\xe8\x03", b"M\xff\xff")}  # 1000 -> 65535, as pickled
    for file, entries in (("honest.pt", content), ("lies.pt", lies)):
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
    assert open_checkpoint(tmp_path / "honest.pt")["a"].shape == (1000,)
    with pytest.raises(ValueError, match=r"lies\.pt is damaged"):
        open_checkpoint(tmp_path / "lies.pt")


def test_a_terabyte_that_lies_in_two_bytes_is_refused_by_its_shape(tmp_path):
    torch.save({"a": torch.zeros(1).half().expand(1_000_000, 1_000_000)}, tmp_path / "huge.pt")
    opened = open_checkpoint(tmp_path / "huge.pt")
    with pytest.raises(ValueError, match=r"a is \(1000000, 1000000\), not \(2, 2\)"):
        require_layout(tmp_path / "huge.pt", opened, {"a": (2, 2)}, torch.float16, what="a reward")


def test_what_is_no_mapping_of_tensors_is_refused(tmp_path):
    for content in (torch.zeros(2), {}, {"a": 1.0}, {"a": {"b": torch.zeros(1)}}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="holds no weights by name"):
            open_checkpoint(tmp_path / "other.pt")


def test_written_safetensors_are_read_by_the_library(tmp_path):
    weights = {"a": torch.rand(3, 5).half(), "b": torch.rand(()), "c": torch.rand(4, 2).bfloat16().T}
    write_safetensors(tmp_path / "w.safetensors", {name: lambda w=w: w for name, w in weights.items()})
    read = load_file(tmp_path / "w.safetensors")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weight) and read[name].dtype == weight.dtype for name, weight in weights.items())


def test_a_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "w.pt"
    file.write_bytes(b"one")
    known = require_known(file)
    assert known.sha256 == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # of "one"
    os.utime(file, ns=(1, 1))
    assert require_known(file) == known
    file.write_bytes(b"two")
    with pytest.raises(ValueError, match=r"has changed: .* remove .*w\.pt\.known\.json"):
        require_known(file)
    (tmp_path / "w.pt.known.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read: remove it"):
        Known.read(tmp_path / "w.pt.known.json")


# CLIPModel folders


@pytest.fixture
def folder(tmp_path):
    tiny_clip(tmp_path)
    return tmp_path


def change(folder, edit):
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


def test_a_folder_that_lacks_weights_is_refused_instead_of_filled_with_random_ones(folder):
    change(folder, lambda weights: weights.pop("visual_projection.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 of \d+ weights, first visual_projection\.weight"):
        ClipReward.from_pretrained(folder)


def test_weights_of_another_shape_or_type_or_too_many_are_refused(folder):
    change(folder, lambda weights: weights.update(more=torch.zeros(1)))
    with pytest.raises(ValueError, match="1 weights too many, first more"):
        ClipReward.from_pretrained(folder)
    change(folder, lambda weights: weights.pop("more"))
    change(folder, lambda weights: weights.update({"logit_scale": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"logit_scale is \(3,\), not \(\)"):
        ClipReward.from_pretrained(folder)
    change(folder, lambda weights: weights.update({"logit_scale": torch.tensor(1)}))
    with pytest.raises(ValueError, match="holds logit_scale as I64"):
        ClipReward.from_pretrained(folder)


def test_the_numbers_that_older_files_hold_are_no_weights_too_many(folder):
    change(folder, lambda w: w.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    assert ClipReward.from_pretrained(folder).name == folder.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_run_in_float32(folder, dtype):
    change(folder, lambda weights: weights.update({name: weight.to(dtype) for name, weight in weights.items()}))
    reward = ClipReward.from_pretrained(folder)
    assert {parameter.dtype for parameter in reward.model.parameters()} == {torch.float32}
    assert reward.score(torch.rand(1, 3, 32, 32), ["a"]).dtype == torch.float32


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors file",
        (2**40).to_bytes(8, "little") + b"{}",
        (64).to_bytes(8, "little")
        + json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode(),
    ],
    ids=["empty", "other", "huge header", "huge tensor"],
)
def test_safetensors_files_that_are_none_are_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, or no safetensors file"):
        ClipReward.from_pretrained(folder)


def test_a_truncated_safetensors_file_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged, or no safetensors file"):
        ClipReward.from_pretrained(folder)


def test_a_pickle_instead_of_safetensors_is_not_opened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "it-ran"
    torch.save(RunsCode(f"touch {mark}"), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no CLIP reward at"):
        ClipReward.from_pretrained(folder)
    assert not mark.exists()
