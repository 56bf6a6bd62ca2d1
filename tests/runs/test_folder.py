"""The run folder: what is written is read, nothing is half there, and a kill costs a line at most."""

import errno
import json
import os
import subprocess
import sys

import pytest

from srpo.runs import BestRecord, RunFolder, RunState, UpdateRecord, ValidationRecord, list_runs
from srpo.runs.atomic import write_file, write_folder, write_text


def record(update):
    return UpdateRecord(update, 0.5, 0.01, 1e-5, 1.5, {"denoise/plain": 0.25})


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", {"lr": 1e-5, "objective": {"height": 128}})


def test_what_is_written_is_read_back(run):
    run.write_state("failed", 3, "the disk is full", phase="saving", updates=9)
    for update in (1, 2, 3):
        run.append_progress(record(update))
    again = RunFolder.open(run.path)
    assert again.config() == {"lr": 1e-5, "objective": {"height": 128}}
    assert again.state() == RunState("failed", 3, "the disk is full", "saving", 9)
    assert again.progress() == [record(1), record(2), record(3)]
    assert again.environment()["torch"]


def test_a_new_run_is_starting_and_says_nothing_more(run):
    assert run.state() == RunState("starting", 0)
    assert (run.job(), run.heartbeat(), run.best()) == (None, None, None)
    assert (run.progress(), run.validation(), run.checkpoint_updates(), run.kept()) == ([], [], [], [])
    assert run.samples().pictures == {}
    assert run.log_tail() == ""
    assert not run.weights.exists()


def checkpoint(run, update, name="transformer.safetensors"):
    run.checkpoint(update).mkdir()
    for file in (name, "manifest.json"):
        (run.checkpoint(update) / file).write_text("x")


def test_cutting_back_forgets_everything_later_and_a_torn_line(run):
    for update in (1, 2, 3):
        run.append_progress(record(update))
        run.append_validation(ValidationRecord(update, {"photo": 0.5}, {"photo": (0.4, 0.6)}, 1.0))
        run.write_samples(update, ["a ball"], [7], lambda folder: (folder / "00.png").write_bytes(b"png"))
        checkpoint(run, update)
    with (run.path / "progress.jsonl").open("a") as log:
        log.write('{"update": 4')
    run.cut_back(2)
    run.append_progress(record(3))
    assert [line.update for line in run.progress()] == [1, 2, 3]
    assert [line.update for line in run.validation()] == [1, 2]
    assert list(run.samples().pictures) == run.checkpoint_updates() == [1, 2]


def test_validations_best_samples_and_kept_checkpoints_are_read_back(run):
    validation = ValidationRecord(5, {"photo": 0.5}, {"photo": (0.4, 0.6)}, 1.0)
    run.append_validation(validation)
    assert run.validation() == [validation]
    best = BestRecord(5, 0.5, "the highest photo share", None)
    run.write_best(best)
    assert run.best() == best
    run.write_best(None)
    assert run.best() is None
    for _ in range(2):  # a validation that is done again replaces its pictures
        run.write_samples(5, ["a ball"], [7], lambda folder: (folder / "00.png").write_bytes(b"png"))
    samples = run.samples()
    assert (samples.prompts, samples.seeds) == (["a ball"], [7])
    assert samples.pictures == {5: [run.path / "samples" / "update-000005" / "00.png"]}
    checkpoint(run, 5)
    checkpoint(run, 10, "lora.safetensors")
    for update in (10, 5, 10):
        run.keep(update)
    assert run.kept() == [5, 10]
    run.keep(10, False)
    assert run.kept() == [5]
    assert run.checkpoint_weights(10).name == "lora.safetensors"
    with pytest.raises(ValueError, match="no checkpoint of update 7; there are: 5, 10"):
        run.keep(7)


def test_on_a_full_disk_the_reserve_makes_room_for_the_state(run, monkeypatch):
    """Every write fails with ENOSPC until 64 kB have been given back."""
    real, reserve = os.replace, run.path / "reserve"
    assert reserve.stat().st_size == 65536

    def full(source, target):
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    run.write_state("failed", 3, "the disk is full")
    assert run.state().message == "the disk is full"
    run.tidy()
    assert reserve.exists()


def test_what_a_kill_left_unfinished_is_tidied_away(run):
    (run.checkpoints / "update-000005.abcd.tmp").mkdir()
    (run.path / "state.json.abcd.tmp").write_text("{")
    run.tidy()
    assert list(run.checkpoints.iterdir()) == []
    assert not list(run.path.glob("*.tmp"))


def test_the_tail_of_a_long_log_is_read_without_the_rest(run):
    run.log.write_bytes(b"x" * 200_000 + "\nvorletzte\nletzte ü\n".encode() + b"\xff")
    assert run.log_tail(3).splitlines()[:2] == ["vorletzte", "letzte ü"]


def test_a_prepared_folder_is_taken_for_the_new_run_and_only_once(tmp_path):
    assert RunFolder.prepare(tmp_path / "run").is_prepared()
    run = RunFolder.create(tmp_path / "run", {"lr": 1})
    assert run.config() == {"lr": 1} and not run.is_prepared()
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder.create(tmp_path / "run", {"lr": 2})


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"no run can be written to /proc/runs/a.* choose another folder"):
        RunFolder.prepare("/proc/runs/a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="file cannot be written, choose another folder"):
        RunFolder.prepare(tmp_path / "file" / "run")


def test_a_folder_with_something_in_it_is_not_taken_for_a_new_run(run, tmp_path):
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder.create(run.path, {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        RunFolder.create(tmp_path / "file", {})


def test_a_folder_without_a_run_or_with_a_broken_state_is_named(run, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        RunFolder.open(tmp_path)
    (run.path / "state.json").write_text('{"status": "asleep", "update": 0}')
    with pytest.raises(ValueError, match="'asleep'; expected one of starting, running"):
        run.state()
    (run.path / "state.json").write_text('{"pid": 1}')
    with pytest.raises(ValueError, match="is not what a run says there"):
        run.state()
    (run.path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        run.config()


def test_runs_are_listed_youngest_first_and_other_folders_left_out(tmp_path):
    for age, name in ((30, "b"), (20, "a"), (10, "c")):
        run = RunFolder.create(tmp_path / name, {})
        os.utime(run.path / "config.json", (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "notes").mkdir()
    (tmp_path / "a").rename(tmp_path / "a.12ab.tmp")  # on its way out
    RunFolder.prepare(tmp_path / "a")  # has no settings yet
    os.utime(tmp_path / "a" / "state.json", (1_000_000 - 20, 1_000_000 - 20))
    assert [run.name for run in list_runs(tmp_path)] == ["c", "a", "b"]
    assert list_runs(tmp_path / "missing") == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_file(path, fail)
    assert path.read_text() == "old"
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "folder", lambda temporary: fail(temporary / "part"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_never_written_over(tmp_path):
    write_folder(tmp_path / "a", lambda temporary: (temporary / "x").write_text("1"))
    with pytest.raises(FileExistsError):
        write_folder(tmp_path / "a", lambda temporary: None)
    assert (tmp_path / "a" / "x").read_text() == "1"


def test_runs_are_readable_without_torch():
    code = (
        "import sys, json, srpo.runs; print(json.dumps([name for name in ('torch', 'numpy') if name in sys.modules]))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(loaded) == []
