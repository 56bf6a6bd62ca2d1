"""The command line: a whole run, its stop by a signal, its ways on, and what it says to wrong settings."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srpo.runs import RunFolder, device_holder, liveness, resume_run, settle, start_run, stop_run
from srpo.runs.processes import is_alive
from srpo.training.__main__ import main
from srpo.training.presets import PRESETS
from tests.app.serving import PATIENCE_S


@pytest.fixture(autouse=True)
def locks_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "locks"))


@pytest.fixture
def changes(flux_folder, clip_folder, tmp_path):
    """What makes a preset train the tiny model."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue house\na green tree\n")
    return [
        f"model={flux_folder}",
        f"reward={clip_folder}",
        f"prompts={prompts}",
        "objective.height=32",
        "objective.width=32",
        "objective.rollout_steps=2",
        "prompts_per_update=2",
        "max_sequence_length=32",
        "validation.every=0",
    ]


@pytest.fixture
def settings(changes):
    """The same as the command line takes them."""
    return as_options(*changes)


def as_options(*changes):
    return [part for change in changes for part in ("--set", change)]


def finished_weights(path):
    return load_file(RunFolder.open(path).weights)


def assert_equal_weights(one, other):
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_a_run_leaves_its_whole_story_in_its_folder(settings, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*settings, "--set", "updates=2", "--out", str(out)]) == 0
    run = RunFolder.open(out)
    assert [record.update for record in run.progress()] == [1, 2]
    assert (run.state().status, run.state().update, run.state().updates) == ("finished", 2, 2)
    assert run.config()["objective"]["rollout_steps"] == 2
    assert run.job().pid == os.getpid() and run.heartbeat().update == 2
    assert {"torch", "sources", "commit", "model", "reward", "prompts"} <= run.environment().keys()
    assert len(load_file(run.weights)) > 10
    printed = capsys.readouterr().out
    assert "update 1/2" in printed and "update 2/2" in printed and str(run.weights) in printed
    assert liveness(run) == "ended" and device_holder("cpu") is None


def test_validations_add_their_curve_their_pictures_and_the_best(settings, tmp_path):
    looks = {"every": 1, "num_prompts": 2, "num_samples": 1, "num_steps": 1, "maximise": "sharpness"}
    validation = [f"validation.{name}={value}" for name, value in looks.items()]
    absent = ["validation.judge=none", "validation.prompts=none", "validation.limits={}"]
    more = as_options(*absent, *validation, "updates=2")
    assert main([*settings, *more, "--out", str(tmp_path / "run")]) == 0
    run = RunFolder.open(tmp_path / "run")
    assert [record.update for record in run.validation()] == [0, 1, 2]
    assert run.best().rule == "the most sharpness"
    assert {update: len(files) for update, files in run.samples().pictures.items()} == {0: 1, 1: 1, 2: 1}


def test_an_extended_run_equals_a_straight_one(settings, tmp_path):
    for name, updates in (("a", 1), ("b", 2)):
        assert main([*settings, "--set", f"updates={updates}", "--out", str(tmp_path / name)]) == 0
    assert main(["--resume", str(tmp_path / "a"), "--extend", "1"]) == 0
    assert_equal_weights(finished_weights(tmp_path / "a"), finished_weights(tmp_path / "b"))
    assert main(["--resume", str(tmp_path / "a"), "--from-update", "1"]) == 0
    assert_equal_weights(finished_weights(tmp_path / "a"), finished_weights(tmp_path / "b"))


def test_a_lora_is_stopped_resumed_and_finished_in_its_own_file(settings, tmp_path):
    lora = as_options("weights=lora", "lora.rank=2", "lora.alpha=2")
    for name, updates in (("a", 1), ("b", 2)):
        assert main([*settings, *lora, "--set", f"updates={updates}", "--out", str(tmp_path / name)]) == 0
    run = RunFolder.open(tmp_path / "a")
    assert run.weights.name == "pytorch_lora_weights.safetensors"
    assert run.checkpoint_weights(1).name == "lora.safetensors"
    assert main(["--resume", str(run.path), "--set", "updates=2"]) == 0
    assert_equal_weights(finished_weights(run.path), finished_weights(tmp_path / "b"))


def test_a_run_like_another_has_its_settings_but_for_the_changes(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*settings, "--set", "updates=1", "--set", "seed=7", "--name", "first"]) == 0
    assert main(["--like", "first", "--set", "lr=1e-6", "--name", "second"]) == 0
    first, second = (RunFolder.open(tmp_path / "runs" / name).config() for name in ("first", "second"))
    assert second == first | {"lr": 1e-6}


def test_a_run_that_cannot_go_on_as_asked_stays_as_it_was(settings, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*settings, "--set", "updates=1", "--out", str(out)]) == 0
    before = RunFolder.open(out).config()
    for how, message in (
        (["--set", "lr=1"], "not lr: start a new run for that"),
        (["--extend", "0"], "--extend is 0; expected at least 1"),
        (["--from-update", "7"], "cannot go back to update 7: choose one of 0, 1"),
        (["--set", "model=missing/folder/of/flux"], "model was"),
    ):
        capsys.readouterr()
        assert main(["--resume", str(out), *how]) == 2
        assert message in capsys.readouterr().err
        run = RunFolder.open(out)
        assert (run.state().status, run.config()) == ("finished", before)
        assert message in run.state().message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_0(number, settings, tmp_path):
    """Within ten seconds of its own: on a machine that is busy with other things, the clock may say more.

    And within the update that is under way, so that a slow model makes no difference.
    """
    out = tmp_path / "run"
    command = [sys.executable, "-m", "srpo.training", *settings, "--set", "updates=100000", "--out", str(out)]
    of_others = children_seconds()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests run in the background ignore it
    )
    try:
        for line in process.stdout:
            if line.startswith("update 2/"):
                break
        os.kill(process.pid, signal.SIGSTOP)  # so that nothing is done between what is read here and the signal
        before, seconds = len(RunFolder.open(out).progress()), cpu_seconds(process.pid)
        process.send_signal(number)
        os.kill(process.pid, signal.SIGCONT)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, rest
    assert children_seconds() - of_others - seconds < 10
    assert f"--resume {out}" in rest
    run = RunFolder.open(out)
    assert run.state().status == "stopped"
    assert run.state().update == run.progress()[-1].update == run.checkpoint_updates()[-1] >= 2
    assert run.state().update <= before + 1
    assert run.job().pid == process.pid


def children_seconds():
    """What all processes that were started here, and have ended, have worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_seconds(pid):
    """What a process has worked so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def wait_until(condition, run):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, run.log_tail()
        time.sleep(0.05)


def test_a_run_in_a_process_of_its_own_is_stopped_resumed_killed_and_goes_on(changes, tmp_path):
    """The whole way of a page's buttons, with the real job; and the end is that of a straight run."""
    run = start_run(tmp_path / "runs", "a", "studio", [*changes, "updates=100000", "checkpoint_every=1"])
    assert run.state().status == "starting"
    wait_until(lambda: run.progress(), run)
    state = stop_run(run, grace_s=PATIENCE_S)
    assert (state.status, state.update, state.message) == ("stopped", run.checkpoint_updates()[-1], "")
    assert "update 1/100000" in run.log_tail(1000)

    done = state.update
    resume_run(run)
    wait_until(lambda: len(run.progress()) >= done + 3, run)
    os.killpg(run.job().pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(run.job()), run)
    assert settle(run).status == "lost"
    assert f"it can go on from update {run.checkpoint_updates()[-1]}" in run.state().message
    assert run.checkpoint_updates()[-1] >= len(run.progress()) - 1  # at most one interval is lost

    updates = run.state().update + 2
    resume_run(run, updates=updates)
    wait_until(lambda: liveness(run) != "running", run)
    assert run.state().status == "finished", run.log_tail()
    assert [record.update for record in run.progress()] == list(range(1, updates + 1))
    assert main([*as_options(*changes, f"updates={updates}"), "--out", str(tmp_path / "straight")]) == 0
    assert_equal_weights(finished_weights(run.path), finished_weights(tmp_path / "straight"))


def test_what_is_wrong_with_an_announced_run_is_its_state(changes, tmp_path):
    run = start_run(tmp_path, "a", "studio", [*changes, "updats=3"])
    wait_until(lambda: liveness(run) != "running", run)
    assert run.state().status == "failed"
    assert "did you mean updates" in run.state().message


def test_presets_are_listed(capsys):
    assert main(["--list-presets"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "papper"], "no preset 'papper'"),
        (["--set", "updats=3"], "did you mean updates"),
        (["--set", "prompts=missing.txt"], "no prompts in 'missing.txt'"),
        (["--resume", "missing"], "holds no run"),
        (["--resume", "missing", "--preset", "plain"], "--preset does not go with --resume: choose one"),
        (["--out", "here", "--name", "there"], "--out does not go with --name"),
        (["--name", "../up"], "a run cannot be named"),
        (["--like", "missing"], "holds no run"),
        (["--extend", "5"], "for a run that is there: add --resume RUN"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=missing/folder/of/flux", "missing/folder/of/flux"),
        ("reward=missing/reward/folder", "no CLIP reward at"),
        ("objective.height=40", "multiples of 16"),
        ("device=cuda:99", "CUDA device"),
        ("device=gpu", "expected cpu, cuda"),
    ],
)
def test_what_cannot_run_is_said_before_a_folder_is_made(change, message, settings, tmp_path, capsys):
    assert main([*settings, "--set", change, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_empty_is_left_alone(settings, tmp_path, capsys):
    assert main([*settings, "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert not (tmp_path / "config.json").exists()


def test_prompts_that_will_be_cut_are_announced(settings, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red ball\n" + "x" * 200 + "\n")
    assert main([*settings, "--set", "updates=1", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "the model reads 32 tokens; 1 of 2 prompts" in printed
    assert "the reward, with its control word, reads 77 tokens; 1 of 2 prompts" in printed
