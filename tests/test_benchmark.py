"""The benchmark as a command: painted once, scored, killed and gone on with, and never silent about a picture."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.services.metadata import read_request
from srpo import benchmark
from srpo.evaluation.benchmark_folder import BenchmarkFolder
from srpo.evaluation.prompt_lists import plan
from srpo.miniature.judge import Judge, new_judge
from srpo.policies.checkpoints import save_transformer
from srpo.rewards.base import image_tensor
from srpo.rewards.clip import ClipReward
from srpo.runs import DeviceLock
from tests.policies.forms import save
from tests.tiny import tiny_flux_pipeline

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with SRPO weights, and prompts of two styles, one as JSON and one as text."""
    root = tmp_path_factory.mktemp("benchmark")
    save_transformer(tiny_flux_pipeline(seed=1).transformer, root / "srpo.safetensors", torch.float32)
    (root / "lists").mkdir()
    (root / "lists" / "anime.json").write_text(json.dumps(["a red ball", "a blue boat", "a green tree"]))
    (root / "lists" / "photo.txt").write_text("a white house\n\na  cube\n")
    return root


@pytest.fixture
def words(place, flux_folder, clip_folder):
    """The command line of this module's benchmark in that folder."""

    def words(folder, *more):
        named = ["--model", flux_folder, "--entry", "base", "--entry", f"srpo={place / 'srpo.safetensors'}"]
        small = ["--size", "32,32", "--steps", "2", "--prompts", place / "lists", "--reward", clip_folder]
        return [str(word) for word in (folder, *named, *small, *more)]

    return words


@pytest.fixture(scope="module")
def done(place, flux_folder, clip_folder):
    """The folder of a benchmark that ran through."""
    folder = place / "done"
    named = ["--model", flux_folder, "--entry", "base", "--entry", f"srpo={place / 'srpo.safetensors'}"]
    small = ["--size", "32,32", "--steps", "2", "--prompts", place / "lists", "--reward", clip_folder]
    assert benchmark.main([str(word) for word in (folder, *named, *small, "--seed", "5")]) == 0
    return folder


def run(capsys, arguments):
    status = benchmark.main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_every_prompt_is_painted_by_every_model_from_a_seed_of_its_own(done):
    files = sorted(str(path.relative_to(done / "pictures")) for path in done.rglob("*.png"))
    assert files == [
        f"{model}/{style}/{index:05d}.png"
        for model in ("base", "srpo")
        for style, count in (("anime", 3), ("photo", 2))
        for index in range(count)
    ]
    kept = json.loads((done / "plan.json").read_text())
    assert [picture["seed"] for picture in kept["pictures"]] == [5, 6, 7, 8, 9]
    assert [picture["prompt"] for picture in kept["pictures"]][-1] == "a cube"
    found = read_request(done / "pictures" / "base" / "photo" / "00001.png").settings
    assert (found.prompt, found.seed, found.steps, found.width) == ("a cube", 9, 2, 32)


def test_the_means_are_those_of_the_reward_on_the_written_pictures(done, clip_folder):
    found = json.loads((done / "benchmark.json").read_text())
    reward = ClipReward.from_pretrained(clip_folder)
    pictures = [Image.open(done / "pictures" / "srpo" / "anime" / f"{index:05d}.png") for index in range(3)]
    with torch.no_grad():
        scores = reward.score(
            torch.cat(list(map(image_tensor, pictures))), ["a red ball", "a blue boat", "a green tree"]
        )
    entry = next(each for each in found["means"] if (each["model"], each["style"]) == ("srpo", "anime"))
    assert entry["mean"] == pytest.approx(scores.mean().item(), abs=1e-6)
    table = (done / "benchmark.md").read_text()
    assert "| model | anime | photo | all |" in table and "| srpo − base |" in table and "5 to 9" in table


# Ends the process as SIGKILL would, in the middle of the n-th picture, or of the n-th line of scores.
KILLED = """
import os, sys
from srpo import benchmark
call, last = {call!r}, {last}
whole, count = getattr(benchmark, call), 0
def counted(*arguments, **more):
    global count
    count += 1
    if count == last:
        {torn}
        os._exit(9)
    return whole(*arguments, **more)
setattr(benchmark, call, counted)
sys.exit(benchmark.main(sys.argv[1:]))
"""
TORN_LINE = "arguments[0].open('ab').write(b'{\\\"start\\\": 0, \\\"pic')"


@pytest.mark.parametrize(("call", "last", "torn"), [("write_file", 7, "pass"), ("append_line", 2, TORN_LINE)])
def test_killed_and_gone_on_with_it_writes_the_same_files(words, done, tmp_path, capsys, call, last, torn):
    arguments = words(tmp_path / "again", "--seed", "5")
    script = KILLED.format(call=call, last=last, torn=torn)
    killed = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, timeout=300)
    assert killed.returncode == 9, killed.stderr.decode()
    assert not (tmp_path / "again" / "benchmark.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.png")}
    assert before
    status, _, _ = run(capsys, arguments)
    assert status == 0
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())  # nothing painted twice
    for name in ("benchmark.json", "benchmark.md", "plan.json"):
        assert (tmp_path / "again" / name).read_bytes() == (done / name).read_bytes()


def test_another_call_adds_a_model_whose_pictures_were_made_elsewhere(words, done, tmp_path, capsys):
    folder = tmp_path / "more"
    shutil.copytree(done, folder)
    shutil.copytree(folder / "pictures" / "base", folder / "pictures" / "other")
    (folder / "pictures" / "other" / "made_with.json").unlink()
    status, out, err = run(capsys, words(folder, "--seed", "5", "--entry", "other"))
    assert status == 0 and "made elsewhere" in out and "painted" not in err
    found = json.loads((folder / "benchmark.json").read_text())["differences"]
    zero = next(each for each in found if (each["model"], each["than"], each["style"]) == ("other", "base", "all"))
    assert zero["mean"] == 0
    # One missing and one broken: both are named, and no table is written.
    (folder / "benchmark.md").unlink()
    (folder / "pictures" / "other" / "photo" / "00000.png").unlink()
    status, _, err = run(capsys, words(folder, "--seed", "5", "--entry", "other"))
    assert (
        status == 2
        and "1 of 5 pictures of 'other' is missing" in err
        and "photo/00000" in err
        and not (folder / "benchmark.md").exists()
    )
    (folder / "pictures" / "other" / "photo" / "00000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    status, _, err = run(capsys, words(folder, "--seed", "5", "--entry", "other"))
    assert (
        status == 2
        and "1 of 5 pictures of 'other' is missing or unreadable" in err
        and not (folder / "benchmark.md").exists()
    )


def test_a_changed_picture_is_scored_anew(words, done, tmp_path, capsys):
    folder = tmp_path / "changed"
    shutil.copytree(done, folder)
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "pictures" / "srpo" / "anime" / "00001.png")
    status, _, _ = run(capsys, words(folder, "--seed", "5"))
    assert status == 0 and (folder / "benchmark.json").read_bytes() != (done / "benchmark.json").read_bytes()


def test_a_folder_that_was_begun_otherwise_is_left_alone(words, done, tmp_path, capsys):
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    for more, said in (
        (("--seed", "6"), "begun with other pictures"),
        (("--seed", "5", "--steps", "3"), "begun with other steps"),
        (("--seed", "5", "--first", "1"), "begun with other pictures"),
        (("--seed", "5", "--entry", f"srpo={tmp_path}"), "the name 'srpo' is taken"),
    ):
        status, out, err = run(capsys, words(done, *more))
        assert (status, out) == (2, "") and said in err and err.count("\n") == 1
    other = [word.replace("srpo=", f"srpo={tmp_path}") for word in words(done, "--seed", "5")]
    assert "made by other weights" in run(capsys, other)[2]
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_what_cannot_be_measured_is_one_sentence(words, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"a": 1}')
    for more, said in (
        (("--prompts", str(tmp_path / "empty")), "holds no list of prompts"),
        (("--prompts", str(tmp_path / "bad.json")), "is no list of prompts"),
        (("--prompts", str(tmp_path / "none.txt")), "cannot be read"),
        (("--first", "0"), "--first must be 1 or more"),
        (("--entry", "a/b=c"), "is not NAME=WEIGHTS"),
        (("--seed", str(2**32 - 2)), "seeds go from 0"),
        (("--num-seeds", "0"), "--num-seeds must be 1 or more"),
        (("--resume",), "holds no benchmark that has begun"),
        (("--judge", str(tmp_path)), "no judge at"),
        (("--entry", "ghost"), "5 of 5 pictures of 'ghost' are missing"),
    ):
        status, out, err = run(capsys, words(tmp_path / "out", *more))
        assert (status, out) == (2, "") and said in err and err.count("\n") == 1
        assert not list(tmp_path.rglob("*.png"))


def test_a_prompt_keeps_its_first_seed_however_often_it_is_painted():
    lists = {"anime": ["a", "b", "c"], "photo": ["d", "e"]}
    once, twice = plan(lists, 7), plan(lists, 7, num_seeds=2)
    assert {(task.style, task.prompt): task.seed for task in reversed(twice)} == {
        (task.style, task.prompt): task.seed for task in once
    }
    assert [(task.style, task.index, task.prompt) for task in twice[:6]] == [
        ("anime", place, prompt) for place, prompt in enumerate("abcabc")
    ]
    assert len({task.seed for task in twice}) == 10 == len({(task.style, task.index) for task in twice})
    assert {task.seed for task in plan(lists, 7, 1, 2)} <= {task.seed for task in twice}


def test_a_judge_is_a_column_and_a_call_is_repeated_by_its_folder_alone(words, tmp_path, capsys):
    """What `--resume` does after another model was added: the same files, but for what has been deleted."""
    new_judge().save_pretrained(tmp_path / "judge")
    folder = tmp_path / "judged"
    status, out, _ = run(capsys, words(folder, "--judge", str(tmp_path / "judge"), "--num-seeds", "2"))
    assert status == 0 and "Judged photo |" in out
    found = json.loads((folder / "benchmark.json").read_text())
    judge = Judge.from_pretrained(tmp_path / "judge")
    files = [folder / "pictures" / "base" / "photo" / f"{index:05d}.png" for index in range(4)]
    images = torch.cat([image_tensor(Image.open(file)) for file in files])
    photo = judge.probabilities(images)["style"][:, judge.classes["style"].index("photo")]
    means = {(each["reward"], each["model"], each["style"]): each for each in found["means"]}
    mean = means["judge", "base", "photo"]
    assert mean["mean"] == pytest.approx(photo.mean().item(), abs=1e-6)
    assert (mean["pictures"], mean["prompts"]) == (4, 2)

    state = BenchmarkFolder(folder).state()
    assert (state.status, state.done, state.total) == ("finished", 20, 20)
    before = {name: (folder / name).read_bytes() for name in ("benchmark.json", "benchmark.md", "benchmark.csv")}
    for file in (*before, "pictures/srpo/anime/00001.png"):
        (folder / file).unlink()
    missing = BenchmarkFolder(folder).missing("srpo", BenchmarkFolder(folder).tasks())
    assert [(task.style, task.index) for task in missing] == [("anime", 1)]
    status, again, _ = run(capsys, [str(folder), "--resume"])
    assert (status, again) == (0, out)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_the_sheet_holds_every_number_of_the_result(done):
    found = json.loads((done / "benchmark.json").read_text())
    rows = list(csv.DictReader((done / "benchmark.csv").open()))
    assert len(rows) == len(found["means"]) + len(found["differences"])
    for row, entry in zip(rows, [*found["means"], *found["differences"]], strict=True):
        assert float(row["mean"]) == entry["mean"] and row["than"] == entry.get("than", "")
        assert row["low"] == ("" if entry["low"] is None else str(entry["low"]))


def test_what_a_picture_costs_is_measured_and_nothing_is_written(words, tmp_path, capsys):
    status, out, _ = run(capsys, words(tmp_path / "none", "--measure"))
    cost = json.loads(out)
    assert status == 0 and cost["pictures"] == 10 and not (tmp_path / "none").exists()
    assert min(cost.values()) > 0 and cost["picture_bytes"] < 32 * 32 * 3 + 1000


def test_a_device_has_one_benchmark_at_a_time(words, tmp_path, capsys):
    lock = DeviceLock("cpu")
    lock.require("run first")
    try:
        status, _, err = run(capsys, words(tmp_path / "refused"))
    finally:
        lock.release()
    assert status == 2 and "in use by run first" in err and not list((tmp_path / "refused").iterdir())


def test_two_at_once_in_one_folder_are_one(words, done, capsys):
    from srpo.runs.locks import FileLock

    lock = FileLock(done)
    assert lock.acquire()
    try:
        status, _, err = run(capsys, words(done, "--seed", "5"))
    finally:
        lock.release()
    assert status == 2 and "another benchmark is at work" in err and os.path.exists(done / "benchmark.md")


def test_a_lora_at_two_weights_is_two_models_and_one_that_is_not_there_paints_nothing(
    capsys, place, flux_folder, clip_folder, tmp_path
):
    """At weight 0 it is the base, at 1 it is not; a bad name is told before a folder is made for it."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 64, generator=generator), 0.2 * torch.randn(32, 4, generator=generator)
    adapters = {"transformer.x_embedder.lora_A.weight": down, "transformer.x_embedder.lora_B.weight": up}
    lora = save(adapters, tmp_path / "style.safetensors")
    named = ["--model", flux_folder, "--size", "32,32", "--steps", "2", "--prompts", place / "lists"]
    named += ["--reward", clip_folder, "--first", "1", "--entry", "base"]

    def asked(*entries):
        more = [word for entry in entries for word in ("--entry", entry)]
        return [str(word) for word in (tmp_path / "out", *named, *more)]

    assert run(capsys, asked(f"none={lora}@0", f"whole={lora}"))[0] == 0
    pictures = tmp_path / "out" / "pictures"
    base, none, whole = (
        np.asarray(Image.open(pictures / model / "photo" / "00000.png")).astype(int)
        for model in ("base", "none", "whole")
    )
    assert np.abs(base - none).max() <= 1 < np.abs(base - whole).max()
    status, _, err = run(capsys, asked(f"none={lora}@0.5", f"whole={lora}"))
    assert status == 2 and "of 'none'" in err and "made by other weights" in err
    for bad, said in ((f"{lora}@7", "between -4 and 4"), ("nobody/nothing", "is not in"), ("gone.gguf", "nothing at")):
        status, _, err = run(capsys, asked(f"new={bad}"))
        assert status == 2 and said in err and err.count("\n") == 1 and not (pictures / "new").exists()
