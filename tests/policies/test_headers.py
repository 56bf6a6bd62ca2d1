"""What a file is, by its first bytes: damaged, foreign and hostile ones are one sentence each, and cost no memory."""

import json
import pickle
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file

from srpo.policies.headers import GGML_TYPES, MAX_HEADER_BYTES, content_identity, read_header
from tests.policies.forms import write_gguf

GIB = 2**30


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(2, 2), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors=b"", settings=b"", counts=(0, 0), version=3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + settings + tensors


def gguf_tensor(name="w", sizes=(32, 2), kind=8, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def refused(tmp_path, content: bytes) -> str:
    """The one sentence about a file of these bytes."""
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError) as raised:
        read_header(file)
    said = str(raised.value)
    assert said.startswith(f"{file} is ") and said.endswith(".") and "\n" not in said and len(said) < 400
    return said


def test_a_safetensors_header_names_each_tensor_with_its_place(tmp_path):
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "any.name", metadata={"format": "pt"})
    header = read_header(tmp_path / "any.name")
    assert header.form == "safetensors" and header.metadata == {"format": "pt"}
    content = (tmp_path / "any.name").read_bytes()
    for name, weight in weights.items():
        entry = header.entries[name]
        assert entry.shape == tuple(weight.shape)
        stored = content[entry.start : entry.start + entry.num_bytes]
        assert stored == weight.view(torch.uint8).numpy().tobytes()


def test_a_gguf_header_says_what_the_package_gguf_reads(tmp_path):
    from gguf import GGUFReader

    weights = {"one": torch.randn(8, 64), "two": torch.randn(7), "three": torch.randn(3, 32)}
    file = write_gguf(weights, tmp_path / "any.gguf", "Q5_1")
    header, reader = read_header(file), GGUFReader(file)
    assert header.form == "gguf" and header.metadata["general.architecture"] == "flux"
    assert len(reader.tensors) == len(header.entries) == 3
    for theirs in reader.tensors:
        ours = header.entries[theirs.name]
        assert ours.dtype == theirs.tensor_type.name and ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.start, ours.num_bytes) == (theirs.data_offset, theirs.n_bytes)


def test_our_table_of_blocks_is_ggufs():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, (name, *sizes) in GGML_TYPES.items():
        assert GGMLQuantizationType(number).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == tuple(sizes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file", "is damaged, or no safetensors or GGUF file"),
        (b"\xff" * 64, "is damaged, or no safetensors or GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 47600000000\n", "is a pointer of Git LFS"),
        (b"\n <!DOCTYPE html><html><title>Sign in</title>", "is a web page"),
        (b"<html>502 Bad Gateway</html>", "is a web page"),
        (b'{"error": "Repository not found"}', "is JSON text"),
        (pickle.dumps({"a": 1}, protocol=2), "is a pickle of PyTorch"),
        (pickle.dumps([1, 2], protocol=4), "is a pickle of PyTorch"),
    ],
)
def test_what_else_a_file_may_be_is_told_by_its_content(tmp_path, content, said):
    assert said in refused(tmp_path, content)


def test_a_checkpoint_of_pytorch_is_refused_whatever_its_name(tmp_path):
    torch.save({"x_embedder.weight": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save({"x_embedder.weight": torch.zeros(2)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for file in ("a.pt", "b.pt"):
        assert "a pickle is a program" in refused(tmp_path, (tmp_path / file).read_bytes())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (safetensors(b"{notjson"), "its header makes no sense"),
        (safetensors(b"{" + b'"a":[' * 200_000), "its header makes no sense"),
        (safetensors(b'{"a": 1}'), "its header makes no sense"),
        (safetensors({}, length=2**63), "its header claims 9,223,372,036,854,775,808 bytes"),
        (safetensors({}, length=MAX_HEADER_BYTES + 1), "its header claims 10,000,001 bytes"),
        (safetensors({}, length=4096), "it ends within its header"),
        (safetensors({"w": tensor()}, bytes(15)), "it is cut short"),
        (safetensors({"w": tensor()}, bytes(17)), "it has 1 bytes too many"),
        (safetensors({"w": tensor(offsets=(0, 12))}, bytes(12)), "w has another length than its shape says"),
        (safetensors({"w": tensor(shape=(2**40, 2**40))}, bytes(16)), "w has another length"),
        (safetensors({"w": tensor(shape=(2**70,))}, bytes(16)), "w has no possible shape or place"),
        (safetensors({"w": tensor(shape=(-2, -2))}, bytes(16)), "w has no possible shape or place"),
        (safetensors({"w": tensor(shape=(True, 4))}, bytes(16)), "w has no possible shape or place"),
        (safetensors({"w": tensor(shape=(1,) * 9 + (4,))}, bytes(16)), "w has no possible shape or place"),
        (safetensors({"w": tensor(offsets=(16, 0))}, bytes(16)), "w has another length"),
        (safetensors({"w": tensor(dtype="P64")}, bytes(16)), "w is of the unknown type P64"),
        (safetensors({"v": tensor(), "w": tensor()}, bytes(16)), "does not lie where the tensor before it ends"),
        (safetensors({"w": tensor(offsets=(8, 24))}, bytes(24)), "does not lie where the tensor before it ends"),
        (safetensors(b'{"w": %b, "w": %b}' % ((json.dumps(tensor()).encode(),) * 2), bytes(16)), "repeats a name"),
        (safetensors({"__metadata__": {"a": 1}}), "its metadata are not text"),
    ],
)
def test_a_damaged_or_hostile_safetensors_file_is_refused_with_the_reason(tmp_path, content, said):
    assert f"is damaged: {said}" in refused(tmp_path, content) or said in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"GGUF", "it ends within its header"),
        (gguf(version=1), "its version is 1"),
        (gguf(version=3 << 24), "its version is 50331648"),
        (gguf(counts=(2**60, 0)), "it claims 1,152,921,504,606,846,976 tensors"),
        (gguf(counts=(0, 2**60)), "and 1,152,921,504,606,846,976 settings"),
        (gguf(counts=(0, 1), settings=struct.pack("<Q", 2**62)), "its header is longer than 10,000,000 bytes"),
        (gguf(counts=(0, 1), settings=text("k") + struct.pack("<IIQ", 9, 4, 2**61)), "its header is longer"),
        (gguf(counts=(0, 1), settings=text("k") + struct.pack("<IIQ", 9, 8, 2**61)), "it ends within its header"),
        (gguf(counts=(0, 1), settings=text("k") + struct.pack("<IIQ", 9, 9, 2**61)), "its header makes no sense"),
        (gguf(counts=(0, 1), settings=text("k") + struct.pack("<I", 77)), "its header makes no sense"),
        (gguf(counts=(0, 1), settings=text("general.alignment") + struct.pack("<II", 4, 0)), "its alignment"),
        (gguf(gguf_tensor(), counts=(1, 0)), "it is cut short"),
        (gguf(gguf_tensor(sizes=(2**40, 2**20)), counts=(1, 0)), "it is cut short"),
        (gguf(gguf_tensor(sizes=(2**63, 2)), counts=(1, 0)), "w has no possible shape or place"),
        (gguf(gguf_tensor(sizes=(31, 2)), counts=(1, 0)), "w has no possible shape or place"),
        (gguf(gguf_tensor(kind=24), counts=(1, 0)), "w is of type 24"),
        (gguf(text("w") + struct.pack("<I", 10**6), counts=(1, 0)), "w has 1,000,000 dimensions"),
        (gguf(gguf_tensor() * 2, counts=(2, 0)), "it repeats a name"),
        (gguf(gguf_tensor("v") + gguf_tensor("w"), counts=(2, 0)) + bytes(400), "does not lie where"),
    ],
)
def test_a_damaged_or_hostile_gguf_file_is_refused_with_the_reason(tmp_path, content, said):
    assert said in refused(tmp_path, content)


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_file_of_a_thousand_gigabytes_costs_only_its_header(tmp_path, form):
    """Sparse, so that it is there: 1,000 GiB in one tensor, and the most memory taken meanwhile is below 1 MB."""
    file = tmp_path / "giant"
    if form == "gguf":
        start = gguf(gguf_tensor(sizes=(1000 * GIB // 34 * 32, 1)), counts=(1, 0))
        size = 1001 * GIB
    else:
        start = safetensors({"w": tensor("F8_E4M3", (1000 * GIB,), (0, 1000 * GIB))})
        size = len(start) + 1000 * GIB
    with file.open("wb") as opened:
        opened.write(start)
        opened.truncate(size)
    tracemalloc.start()
    entry = read_header(file).entries["w"]
    content_identity([file])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert entry.num_bytes > 999 * GIB and peak < 1_000_000


def test_the_identity_follows_name_of_tensor_size_and_time_of_change(tmp_path):
    import os

    file = tmp_path / "a.safetensors"

    def identity(weights, time_ns=10**18):
        save_file(weights, file)
        os.utime(file, ns=(time_ns, time_ns))
        return content_identity([file])

    first = identity({"w": torch.zeros(2)})
    assert first == identity({"w": torch.zeros(2)})
    others = {identity({"v": torch.zeros(2)}), identity({"w": torch.zeros(3)}), identity({"w": torch.zeros(2)}, 5)}
    assert len({first, *others}) == 4
