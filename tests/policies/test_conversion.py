"""A large file is converted tensor by tensor, once, and a kill costs one shard at the most."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srpo import convert as command
from srpo.policies import conversion
from srpo.policies.checkpoints import load_transformer
from srpo.policies.conversion import cache_folder, convert, converted_folder, is_converted, is_worth_converting
from srpo.policies.places import find
from srpo.policies.tensors import is_finite
from tests.generators import finished
from tests.policies.forms import save, to_bfl, wide_flux

ROOT = Path(__file__).resolve().parents[2]
HALF = torch.bfloat16


@pytest.fixture
def published(tmp_path):
    return save(wide_flux(seed=1).state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("shard_bytes", [10**5, 10**6, 10**9])
def test_the_shards_hold_the_same_tensors_as_the_reference_loader_rounded_once(published, tmp_path, shard_bytes):
    said, folder = finished(convert(published, cache=tmp_path / "cache", shard_bytes=shard_bytes))
    theirs = wide_flux()
    theirs.load_state_dict(load_file(published))
    theirs = theirs.to(HALF)
    ours = load_transformer(folder, wide_flux(seed=0).to(HALF))
    assert all(torch.equal(it, theirs.state_dict()[name]) for name, it in ours.state_dict().items())
    shards = sorted(folder.glob("*.safetensors"))
    assert (len(shards) == 1) == (shard_bytes == 10**9)
    total = sum(it.nbytes for it in theirs.state_dict().values())
    assert said[-1].done_bytes == said[-1].total_bytes == total
    assert sum(step.new_bytes for step in said) == total
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total and index["weight_map"].keys() == theirs.state_dict().keys()


def test_diffusers_reads_the_folder_where_a_configuration_lay_beside_the_file(tmp_path):
    from diffusers import FluxTransformer2DModel

    model = wide_flux(seed=1)
    model.save_pretrained(tmp_path / "model")
    _, folder = finished(convert(tmp_path / "model", cache=tmp_path / "cache", shard_bytes=10**6))
    theirs = FluxTransformer2DModel.from_pretrained(folder, dtype=HALF, local_files_only=True)
    assert all(torch.equal(it, theirs.state_dict()[name]) for name, it in model.to(HALF).state_dict().items())


def test_other_layouts_come_out_in_that_of_diffusers(tmp_path):
    model = wide_flux(seed=1)
    file = save(to_bfl(model), tmp_path / "flux.safetensors")
    _, folder = finished(convert(file, cache=tmp_path / "cache"))
    assert find(folder).layout == "diffusers"
    ours = load_transformer(folder, wide_flux().to(HALF)).state_dict()
    assert all(torch.equal(it, ours[name]) for name, it in model.to(HALF).state_dict().items())


def test_a_second_conversion_writes_nothing_and_a_changed_file_is_converted_anew(published, tmp_path):
    _, folder = finished(convert(published, cache=tmp_path / "cache"))
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    said, again = finished(convert(published, cache=tmp_path / "cache"))
    assert again == folder and [step.new_bytes for step in said] == [0]
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    save(wide_flux(seed=2).state_dict(), published)
    _, other = finished(convert(published, cache=tmp_path / "cache"))
    assert other != folder
    assert converted_folder(find(published), torch.float16, tmp_path / "cache") not in (folder, other)


def test_a_conversion_that_was_stopped_goes_on_with_the_next_shard(published, tmp_path):
    options = {"cache": tmp_path / "cache", "shard_bytes": 10**6}
    steps = convert(published, **options)
    while not list((tmp_path / "cache").rglob("*-00003-of-*.safetensors")):
        next(steps)
    next(steps)  # into the fourth
    steps.close()
    folder = converted_folder(find(published), HALF, tmp_path / "cache")
    left = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix == ".safetensors"}
    assert len(left) == 3 and not is_converted(folder) and not list(folder.glob("*.tmp"))
    finished(convert(published, **options))
    assert is_converted(folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in left} == left


def test_a_killed_conversion_is_finished_by_the_next_one(tmp_path):
    """kill -9 while shards are written: no shard is half there, and the next run gives what a straight one gives."""
    weights = {"x_embedder.weight": torch.zeros(4)}
    weights |= {f"layer.{number}.weight": torch.full((1000, 1000), float(number)) for number in range(24)}
    file = save(weights, tmp_path / "model.safetensors")
    code = (
        "import sys; from srpo.policies.conversion import convert\n"
        "for step in convert(sys.argv[1], shard_bytes=4_000_000): print(step.done_bytes, flush=True)"
    )
    environment = {**os.environ, "SRPO_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    for _ in range(9):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = converted_folder(find(file), HALF, tmp_path / "cache" / "weights")
    assert not is_converted(folder) and list(folder.glob("*.safetensors"))
    for shard in folder.glob("*.safetensors"):
        find(shard)
    finished(convert(file, cache=tmp_path / "cache" / "weights", shard_bytes=4_000_000))
    assert is_converted(folder) and not list(folder.glob("*.tmp"))
    converted = {}
    for shard in folder.glob("*.safetensors"):
        converted |= load_file(shard)
    assert converted.keys() == weights.keys()
    assert all(torch.equal(converted[name], it.to(HALF)) for name, it in weights.items())


def test_two_conversions_at_once_are_told_apart(published, tmp_path):
    options = {"cache": tmp_path / "cache", "shard_bytes": 10**6}
    first = convert(published, **options)
    next(first)
    with pytest.raises(ValueError, match="being converted by another process"):
        next(convert(published, **options))
    finished(first)
    assert is_converted(converted_folder(find(published), HALF, tmp_path / "cache"))


def test_the_memory_of_a_conversion_is_that_of_a_tensor_not_of_the_file(tmp_path):
    """600 MB of float32 in 40 tensors of 15 MB: the peak above the empty program stays below 90 MB."""
    rows, count = 1000, 40
    size = rows * 3750 * 4
    header = {"x_embedder.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header |= {
        f"layer.{number}.weight": {
            "dtype": "F32",
            "shape": [rows, 3750],
            "data_offsets": [4 + number * size, 4 + (number + 1) * size],
        }
        for number in range(count)
    }
    text = json.dumps(header).encode()
    file = tmp_path / "large.safetensors"
    with file.open("wb") as opened:  # its numbers are zeros that take no room on the disk
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + 4 + count * size)
    code = (
        "import resource, sys\n"
        "from srpo.policies.conversion import convert\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for step in convert(sys.argv[1]): pass\n"
        "print((peak() - before) * 1024, step.total_bytes)"
    )
    environment = {**os.environ, "SRPO_CACHE": str(tmp_path / "cache")}
    said = subprocess.run(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    grown, written = map(int, said.stdout.split())
    assert written == 2 + count * size // 2
    assert grown < 90e6, f"{grown / 1e6:.0f} MB"


def test_a_number_that_is_not_finite_in_the_new_precision_is_named(tmp_path):
    file = save({"x_embedder.weight": torch.tensor([1e5])}, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match=r"x_embedder.weight is not finite in torch.float16"):
        finished(convert(file, torch.float16, cache=tmp_path / "cache"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_one_odd_number_among_many_is_found(dtype, odd):
    weight = torch.randn(50, 70).to(dtype)
    assert is_finite(weight) and is_finite(weight[:0])
    weight[31, 4] = odd
    assert not is_finite(weight)


def test_too_small_a_disk_is_said_before_anything_is_written(published, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: _Usage(free=1000))
    with pytest.raises(ValueError, match=r"need 0.0 GB below .* and 0.0 GB are free; make room"):
        finished(convert(published, cache=tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


class _Usage:
    def __init__(self, free):
        self.free = free


def test_only_large_float32_transformers_are_worth_it(published, tmp_path, monkeypatch):
    assert not is_worth_converting(find(published), HALF)  # small
    monkeypatch.setattr(conversion, "SHARD_BYTES", 1000)
    assert is_worth_converting(find(published), HALF)
    assert not is_worth_converting(find(published), torch.float32)
    half = save({"x_embedder.weight": torch.zeros(2000, dtype=HALF)}, tmp_path / "half.safetensors")
    lora = save({"transformer.x_embedder.lora_A.weight": torch.zeros(2000)}, tmp_path / "lora.safetensors")
    assert not is_worth_converting(find(half), HALF) and not is_worth_converting(find(lora), HALF)


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("SRPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder() == tmp_path / "user" / "srpo-studio" / "weights"


def test_the_command_says_what_lies_there_and_how_fast_it_was(published, tmp_path, capsys):
    assert command.main([str(published), "--to", "bfloat16", "--cache", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr()
    assert is_converted(Path(said.out.strip()))
    assert "transformer in float32, named as by diffusers, " in said.err and " GB/s" in said.err
    assert command.main([str(published), "--to", "bfloat16", "--cache", str(tmp_path / "cache")]) == 0
    assert "It was there already." in capsys.readouterr().err
    assert command.main([str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: There is nothing at ")
