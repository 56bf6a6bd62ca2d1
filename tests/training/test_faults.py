"""Every row of the table of faults that concerns a training: what breaks, what is whole afterwards, what is said."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
from dataclasses import replace

import pytest
import torch

from srpo.objectives.base import Loss
from srpo.runs import Busy, DeviceLock, RunFolder, device_holder, liveness
from srpo.runs.claim import Claim, Handover
from srpo.runs.processes import this_job
from srpo.runs.stopping import Stopped, StopSignals
from srpo.training import checkpoints, faults, job, session
from srpo.training.checkpoints import is_whole, load_checkpoint, save_checkpoint, snapshot
from srpo.training.devices import require_device
from srpo.training.job import Order, ready, train_here
from srpo.training.session import resume, train
from srpo.training.trainer import NonFiniteError
from tests.breaking import Steps, fail, in_child, kill
from tests.training.small import SmallPolicy, new_run, small_config, small_trainer

FAILED, DONE = 7, 0


@pytest.fixture(autouse=True)
def locks_here(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "locks"))


@pytest.fixture
def config():
    return small_config(updates=3)


@pytest.fixture
def run(tmp_path, config):
    """A run that was stopped after update 2, with two checkpoints: the third will remove the first."""
    run, stop = new_run(tmp_path / "run", config), threading.Event()
    for record in train(run, small_trainer(config), stop=stop):
        if record.update == 2:
            stop.set()
    assert run.checkpoint_updates() == [1, 2]
    return run


def go_on(run, config):
    """Loads the newest checkpoint and trains to the end; the exit status of a child that does."""
    trainer = small_trainer(config)
    resume(run, trainer)
    try:
        list(train(run, trainer, stop=threading.Event()))
    except Exception:
        return FAILED
    return DONE


def armed_in_saves(steps, monkeypatch):
    """Lets the steps count only within `save_checkpoint` and the pruning after it."""

    def within(function):
        def armed(*arguments):
            steps.armed = True
            try:
                return function(*arguments)
            finally:
                steps.armed = False

        return armed

    monkeypatch.setattr(session, "save_checkpoint", within(save_checkpoint))
    monkeypatch.setattr(session, "prune", within(checkpoints.prune))


@pytest.fixture
def broken_save(run, config, monkeypatch, tmp_path):
    """Saves update 3 of a copy of the run in a child, broken at step `at`; returns the child's end and the copy.

    Without `at`, returns the number of steps. The update itself is done here: a child may not calculate gradients where
    its parent has threads for them.
    """
    trainer = small_trainer(config)
    resume(run, trainer)
    run.append_progress(trainer.run_update())

    def go(at=None, act=lambda: None):
        copy = RunFolder(tmp_path / f"copy-{at}")
        shutil.copytree(run.path, copy.path)

        def work():
            steps = Steps(at, act)
            armed_in_saves(steps, monkeypatch)
            saving = session._Session(copy, trainer, None)
            try:
                saving.stop()
            except Exception as error:
                saving.fail(error)
                return FAILED
            return DONE if at is not None else steps.count

        return in_child(work), copy

    return go


def final_weights(config):
    trainer = small_trainer(config)
    list(trainer.updates())
    return trainer.weights()


def assert_goes_on_to_the_same_end(run, config):
    assert go_on(run, config) == DONE
    trainer = small_trainer(config)
    assert load_checkpoint(run, trainer).update == 3
    assert all(torch.equal(trainer.weights()[name], value) for name, value in final_weights(config).items())
    assert [record.update for record in run.progress()] == [1, 2, 3]


# Killed


def test_a_kill_at_any_step_of_a_save_leaves_every_checkpoint_readable(broken_save, config):
    """At each step: the newest checkpoint loads without any being refused, at most one interval is lost, and the
    resumed run ends at the very weights of an undisturbed one."""
    steps, _ = broken_save()
    assert steps > 15  # opened, synced, renamed, removed: the counting works
    for at in range(1, steps + 1):
        ended, copy = broken_save(at, kill)
        assert ended == -signal.SIGKILL
        loaded = load_checkpoint(copy, small_trainer(config))
        assert loaded.update in (2, 3) and loaded.passed_over == []
        copy.tidy()
        assert not list(copy.checkpoints.glob("*.tmp"))
        assert_goes_on_to_the_same_end(copy, config)


def test_a_kill_within_the_writing_of_a_file_leaves_the_older_checkpoint(run, config, tmp_path):
    """The system kills at the first byte beyond a size, in the midst of the library's own writing."""
    trainer = small_trainer(config)
    load_checkpoint(run, trainer)
    trainer.run_update()
    taken = snapshot(trainer)
    for number, limit in enumerate((1, 100, 300, 600)):
        copy = RunFolder(tmp_path / f"copy-{number}")
        shutil.copytree(run.path, copy.path)

        def work(copy=copy, limit=limit):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            save_checkpoint(copy, taken)
            return DONE

        assert in_child(work) == -signal.SIGXFSZ
        assert load_checkpoint(copy, small_trainer(config)) == checkpoints.Loaded(2)
        assert_goes_on_to_the_same_end(copy, config)


def test_a_killed_run_in_a_process_of_its_own_is_lost_and_its_locks_are_free(run):
    def work():
        with Claim(run, Handover(), is_new=False) as claim:
            run.write_job(this_job("cpu"))
            DeviceLock("cpu").require("run")
            claim.begins()
            run.write_state("running", 2, phase="training")
            kill()
        return DONE

    assert in_child(work) == -signal.SIGKILL
    assert liveness(run) == "lost"
    assert device_holder("cpu") is None
    with Claim(run, Handover(), is_new=False):
        assert run.state().status == "starting"


# The disk


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_an_error_at_any_step_of_a_save_leaves_the_older_checkpoint_and_is_said(number, broken_save, config):
    steps, _ = broken_save()
    failures = 0
    for at in range(1, steps + 1):
        ended, copy = broken_save(at, fail(number))
        state = copy.state()
        if ended == DONE:  # a removal that is tried again later
            assert state.status == "stopped" and is_whole(copy.checkpoint(3))
            continue
        failures += 1
        assert (ended, state.status) == (FAILED, "failed")
        assert "the checkpoint of update 2 is as it was" in state.message
        assert is_whole(copy.checkpoint(2))
        said = "the disk is full: it needs 1.0 MB and" if number == errno.ENOSPC else os.strerror(number)
        assert said in state.message
        copy.tidy()
        assert_goes_on_to_the_same_end(copy, config)
    assert failures > 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("looked_at_before", [True, False])
def test_a_disk_that_is_really_full_is_said_with_the_space_needed(looked_at_before, small_disk, config, monkeypatch):
    """The second checkpoint of 3 MB does not fit: seen before it is begun, or only when the library's write fails."""
    config = replace(config, updates=4)
    monkeypatch.setattr(SmallPolicy, "trained_weights", lambda self: {**self.transformer.state_dict(), "rest": rest})
    rest = torch.zeros(700_000)
    if not looked_at_before:
        monkeypatch.setattr(checkpoints, "_require_space", lambda *_: None)
    run, trainer = new_run(small_disk / "run", config), small_trainer(config)
    with pytest.raises(checkpoints.SaveError, match="update 2 could not be saved, the disk is full: it needs 3"):
        list(train(run, trainer, stop=threading.Event()))
    state = run.state()
    assert (state.status, state.update) == ("failed", 2)
    assert "it needs 3" in state.message and "the checkpoint of update 1 is as it was" in state.message
    assert is_whole(run.checkpoint(1))
    assert [entry.name for entry in run.checkpoints.iterdir()] == ["update-000001"]


def test_a_log_that_cannot_be_written_fails_the_run_and_says_so(tmp_path, config, monkeypatch):
    run = new_run(tmp_path / "run", config)

    def refuse(self, record):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(RunFolder, "append_progress", refuse)
    with pytest.raises(OSError, match="Input/output"):
        list(train(run, small_trainer(config), stop=threading.Event()))
    assert "the run folder could not be written" in run.state().message


def test_where_nothing_at_all_can_be_written_the_first_error_comes_out(tmp_path, config, monkeypatch):
    run = new_run(tmp_path / "run", config)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    session_of = train(run, small_trainer(config), stop=threading.Event())
    next(session_of)
    monkeypatch.setattr(session, "save_checkpoint", refuse)
    monkeypatch.setattr(RunFolder, "write_state", refuse)
    with pytest.raises(OSError, match="Read-only"):
        next(session_of)


# Memory and numbers


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "cpu, other words", "python"],
)
def test_out_of_memory_is_one_sentence_with_the_settings_to_lower(error, run, config):
    trainer = small_trainer(config)
    resume(run, trainer)
    trainer.objective.rollout = lambda *_: (_ for _ in ()).throw(error)
    trainer.parameters[0].grad = torch.ones_like(trainer.parameters[0])
    with pytest.raises(type(error)):
        list(train(run, trainer, stop=threading.Event()))
    state = run.state()
    assert (state.status, state.update) == ("failed", 2)
    assert state.message.startswith("out of memory on cpu: start a new run with objective.prompts_per_forward=1, or ")
    for setting in ("checkpoint_decode=true", "gradient_checkpointing=true", "weights=lora", "objective.height=64"):
        assert setting in state.message
    assert trainer.parameters[0].grad is None  # given back
    assert go_on(run, config) == DONE


def test_settings_that_are_low_already_are_not_proposed():
    config = small_config(prompts_per_update=1, checkpoint_decode=True, gradient_checkpointing=True, weights="lora")
    assert faults._smaller(config) == ["objective.height=64 and objective.width=64"]


def test_another_error_is_no_lack_of_memory():
    assert not faults.is_out_of_memory(RuntimeError("the sizes do not match"))
    assert faults.sentence(KeyError("x"), small_config()) == "KeyError: 'x'"


def spoiled(trainer, what):
    """From update 2 on, the trainer's loss, score or gradient is not finite."""
    plain = trainer.objective.losses

    def losses(policy, rollout, reward, generator, update):
        for loss in plain(policy, rollout, reward, generator, update):
            if update == 1:
                yield loss
            elif what == "loss":
                yield Loss(loss.value * float("nan"), loss.record)
            elif what == "score":
                yield Loss(loss.value, loss.record | {"denoise/reward": float("inf")})
            else:  # the gradient of sqrt at 0 is infinite, and 0 times it NaN
                yield Loss(loss.value + (policy.transformer.bias * 0).abs().sqrt().sum(), loss.record)

    trainer.objective.losses = losses
    return trainer


@pytest.mark.parametrize("what", ["loss", "score", "gradient"])
def test_nan_or_inf_stops_before_the_update_keeps_the_last_good_weights_and_dumps_the_batch(what, tmp_path):
    config = small_config(checkpoint_every=100)
    run, trainer = new_run(tmp_path / "run", config), spoiled(small_trainer(config), what)
    with pytest.raises(NonFiniteError):
        list(train(run, trainer, stop=threading.Event()))
    state = run.state()
    assert (state.status, state.update) == ("failed", 1)
    assert "in update 2" in state.message and "dump/update-000002.json" in state.message
    dump = json.loads((run.path / "dump" / "update-000002.json").read_text())
    assert (dump["update"], dump["seed"], len(dump["prompts"])) == (2, 0, 2)
    assert dump["settings"]["lr"] == config.lr
    good, kept = small_trainer(config), small_trainer(config)
    good.run_update()
    assert load_checkpoint(run, kept).update == 1
    assert all(torch.equal(kept.weights()[name], value) for name, value in good.weights().items())


def test_a_reward_that_stays_the_same_is_warned_of_on_the_curve_and_in_the_state(tmp_path):
    config = small_config(updates=5)
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config)
    plain = trainer.objective.losses
    trainer.objective.losses = lambda *arguments: (
        Loss(loss.value, loss.record | {"denoise/reward": 0.3}) for loss in plain(*arguments)
    )
    seen = list(train(run, trainer, stop=threading.Event()))
    assert [bool(record.warning) for record in seen] == [False, False, True, False, False]  # marked once
    assert run.progress() == seen
    assert "denoise/reward has been 0.3 for 3 updates" in run.state().message


def test_a_reward_that_explodes_is_warned_of(tmp_path):
    config = small_config(updates=8)
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config)
    plain = trainer.objective.losses

    def losses(policy, rollout, reward, generator, update):
        for loss in plain(policy, rollout, reward, generator, update):
            yield Loss(loss.value, loss.record | {"denoise/reward": 1000.0 if update == 7 else 0.1 * update})

    trainer.objective.losses = losses
    seen = list(train(run, trainer, stop=threading.Event()))
    assert [record.update for record in seen if record.warning] == [7]
    assert "go back to a checkpoint and lower lr" in seen[6].warning


# Before the start


@pytest.fixture
def no_models(monkeypatch, tmp_path):
    """Orders are of the small model; what they read are small files."""
    monkeypatch.setattr(job, "_assemble", small_trainer)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\n")
    return small_config(updates=2, prompts=str(prompts), model=str(tmp_path / "flux"), reward=str(tmp_path / "clip"))


def started(run_path, config, **how):
    """Does the whole order, from looking at it to its last update."""
    with ready(Order(RunFolder(run_path), config, **how), Handover()) as work:
        return list(work.updates(threading.Event()))


def test_an_order_leaves_a_run_with_its_job_and_environment(no_models, tmp_path):
    assert len(started(tmp_path / "run", no_models)) == 2
    run = RunFolder.open(tmp_path / "run")
    assert (run.state().status, run.job().pid, run.job().device) == ("finished", os.getpid(), "cpu")
    assert run.environment()["model"] == no_models.model
    assert device_holder("cpu") is None and not list(run.path.glob("*.tmp"))


def test_a_device_that_is_in_use_is_refused_before_anything_is_made(no_models, tmp_path):
    other = DeviceLock("cpu")
    other.acquire("the pictures of the page")
    with pytest.raises(Busy, match="the device cpu is in use by the pictures of the page"):
        started(tmp_path / "run", no_models)
    assert not (tmp_path / "run").exists()


def test_prompts_that_have_changed_are_refused_with_their_name(no_models, tmp_path):
    started(tmp_path / "run", no_models)
    (tmp_path / "prompts.txt").write_text("a blue ball\n")
    longer = replace(no_models, updates=4)
    with pytest.raises(ValueError, match=r"run would not be the same run: prompts was \w+ and is \w+ now\. Put that"):
        started(tmp_path / "run", longer, resumes=True)
    run = RunFolder(tmp_path / "run")
    assert run.state().status == "finished" and run.weights.is_file()
    assert len(started(run.path, longer, resumes=True, despite_changes=True)) == 2
    assert "from update 2: prompts was" in run.environment()["despite"]
    assert started(run.path, longer, resumes=True) == []  # the new prompts are the run's now


def test_another_version_is_refused_with_both_numbers(no_models, tmp_path):
    started(tmp_path / "run", no_models)
    run = RunFolder(tmp_path / "run")
    run.write_environment(run.environment() | {"torch": "1.0"})
    with pytest.raises(ValueError, match=r"torch was 1\.0 and is \d"):
        started(run.path, no_models, resumes=True)


def test_what_keeps_an_announced_run_from_beginning_is_its_state(no_models, tmp_path):
    run = RunFolder.prepare(tmp_path / "run")
    with (
        pytest.raises(ValueError, match="no prompts in"),
        Claim(run, Handover(), is_new=True) as claim,
        ready(Order(run, replace(no_models, prompts="missing.txt")), Handover(), claim),
    ):
        pass
    assert run.state().status == "failed" and "no prompts in" in run.state().message


def test_what_keeps_a_run_from_going_on_leaves_it_as_it_was(no_models, tmp_path):
    started(tmp_path / "run", no_models)
    run = RunFolder(tmp_path / "run")
    for error, message in ((ValueError("one sentence"), "one sentence"), (KeyError("x"), "KeyError: 'x'")):
        with pytest.raises(type(error)), Claim(run, Handover(), is_new=False):
            assert (run.state().status, run.state().update) == ("starting", 2)
            raise error
        assert (run.state().status, run.state().message) == ("finished", message)
    with pytest.raises(Stopped), Claim(run, Handover(), is_new=False):
        raise Stopped
    assert run.state().message == "it was stopped before it had begun"


def test_too_little_disk_is_said_before_there_is_a_folder(no_models, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"3 checkpoints of 1\.0 MB .* 1 kB free: free some space"):
        started(tmp_path / "run", no_models)
    assert not (tmp_path / "run").exists()


def test_models_that_do_not_fit_into_the_memory_are_one_sentence(no_models, tmp_path, monkeypatch):
    from srpo.training import assemble

    def too_large(config):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.undo()
    monkeypatch.setenv("SRPO_RUNTIME_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(assemble, "assemble", too_large)
    with pytest.raises(ValueError, match="out of memory on cpu: start a new run with"):
        started(tmp_path / "run", no_models)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "expected cpu, cuda, cuda:1 ... or mps"),
        ("cuda", "no CUDA device is available here: set device=cpu"),
        ("mps", "there is no such device here"),
    ],
)
def test_a_device_that_is_not_here_is_one_sentence(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        require_device(device)


def test_a_card_beyond_those_that_are_here_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    require_device("cuda:1")
    with pytest.raises(ValueError, match="'cuda:2', but 2 CUDA devices are here"):
        require_device("cuda:2")


# In a page's own process


def test_a_run_in_this_process_is_the_same_run_and_stops_with_its_generator(no_models, tmp_path):
    run, other = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    updates = train_here(Order(run, no_models, in_process=True), stop=threading.Event())
    first = next(updates)
    assert first.update == 1 and run.job().in_process
    assert liveness(run) == "running" and device_holder("cpu").startswith("run here")
    updates.close()
    assert (run.state().status, run.checkpoint_updates()) == ("stopped", [1])
    assert device_holder("cpu") is None
    again = train_here(Order(run, no_models, resumes=True, in_process=True), stop=threading.Event())
    assert [record.update for record in again] == [2]
    started(other.path, no_models)
    assert run.weights.read_bytes() == other.weights.read_bytes()


def test_of_two_that_begin_at_once_in_one_process_the_second_is_refused(no_models, tmp_path):
    first = train_here(Order(RunFolder(tmp_path / "a"), no_models, in_process=True), stop=threading.Event())
    next(first)
    second = train_here(Order(RunFolder(tmp_path / "b"), no_models, in_process=True), stop=threading.Event())
    with pytest.raises(Busy, match="in use by run a"):
        next(second)
    assert not (tmp_path / "b").exists()
    first.close()


# Signals


def test_while_things_are_loaded_a_signal_interrupts_and_later_it_only_raises_a_flag():
    stop = StopSignals()
    with pytest.raises(Stopped), stop.at_once():
        stop.receive(signal.SIGTERM, None)
    assert stop.is_set()
    stop.clear()
    stop.receive(signal.SIGTERM, None)
    assert stop.is_set()
    with pytest.raises(Stopped), stop.at_once():
        pytest.fail("it was asked to stop before")
