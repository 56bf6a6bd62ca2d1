"""A session in its run folder: stops and resumes change nothing, and the folder tells everything."""

import shutil
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srpo.objectives.base import Shard
from srpo.runs import RunFolder
from srpo.training.checkpoints import read_weights
from srpo.training.session import resume, train
from tests.training.small import SmallValidation, new_run, small_config, small_trainer


def run_all(run, trainer, stop_after=None):
    """Trains, and sets the stop flag once that update was yielded (0: before the first)."""
    stop = threading.Event()
    if stop_after == 0:
        stop.set()
    for record in train(run, trainer, stop=stop):
        if record.update == stop_after:
            stop.set()
    return run.state()


def straight(path, config, validation=None):
    run, trainer = new_run(path, config), small_trainer(config, validation)
    assert run_all(run, trainer).status == "finished"
    return run, trainer


def without_seconds(records):
    return [replace(record, seconds=0.0) for record in records]


def assert_same_run(run, trainer, other, other_trainer):
    """Weights, optimiser, place in the random stream, log and finished file."""
    for name, value in other_trainer.weights().items():
        assert torch.equal(trainer.weights()[name], value)
    ours, theirs = trainer.optimizer.state_dict(), other_trainer.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for index, moments in theirs["state"].items():
        assert all(torch.equal(ours["state"][index][name], value) for name, value in moments.items())
    for update, place in trainer.objective.places.items():
        assert torch.equal(place, other_trainer.objective.places[update])
    assert without_seconds(run.progress()) == without_seconds(other.progress())
    assert run.weights.read_bytes() == other.weights.read_bytes()


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
def test_stop_at_k_and_resume_to_n_equal_a_straight_run_bit_for_bit(stop_after, tmp_path):
    config = small_config(checkpoint_every=100)
    run = new_run(tmp_path / "stopped", config)
    state = run_all(run, small_trainer(config), stop_after)
    assert (state.status, state.update) == ("finished" if stop_after == 4 else "stopped", stop_after)

    trainer = small_trainer(config)
    assert resume(run, trainer).update == stop_after
    assert run_all(run, trainer).status == "finished"
    assert_same_run(run, trainer, *straight(tmp_path / "straight", config))


def test_a_rollout_that_several_updates_share_survives_a_stop_between_them(tmp_path):
    config = small_config(updates_per_rollout=3)
    run = new_run(tmp_path / "stopped", config)
    run_all(run, small_trainer(config), stop_after=2)
    trainer = small_trainer(config)
    resume(run, trainer)
    run_all(run, trainer)
    assert_same_run(run, trainer, *straight(tmp_path / "straight", config))


def test_a_stop_in_the_middle_of_an_update_drops_it(tmp_path):
    """An update is a pass of the rollout and one of the loss: the stop comes with the third pass, in update 2."""
    config = small_config()
    run, trainer, stop, passes = new_run(tmp_path / "stopped", config), small_trainer(config), threading.Event(), []

    def stop_with_the_third(*_):
        passes.append(1)
        if len(passes) == 3:
            stop.set()

    trainer.policy.transformer.register_forward_hook(stop_with_the_third)
    assert [record.update for record in train(run, trainer, stop=stop)] == [1]
    assert (run.state().status, run.state().update, len(passes)) == ("stopped", 1, 3)
    trainer = small_trainer(config)
    resume(run, trainer)
    run_all(run, trainer)
    assert_same_run(run, trainer, *straight(tmp_path / "straight", config))


def test_after_a_kill_the_log_is_cut_back_to_the_checkpoint_and_each_update_is_logged_once(tmp_path):
    """Checkpoint at 2, killed after 3 with half a line of 4."""
    config = small_config(checkpoint_every=2)
    run = new_run(tmp_path / "run", config)
    session = train(run, small_trainer(config), stop=threading.Event())
    for _ in range(3):
        next(session)
    killed = RunFolder(tmp_path / "as it was")
    shutil.copytree(run.path, killed.path)  # what a kill would have left here: closing would save
    session.close()
    with (killed.path / "progress.jsonl").open("a") as log:
        log.write('{"update": 4, "lo')
    trainer = small_trainer(config)
    assert resume(killed, trainer).update == 2
    run_all(killed, trainer)
    assert_same_run(killed, trainer, *straight(tmp_path / "straight", config))


def test_closing_the_generator_saves_and_stops(tmp_path):
    config = small_config(checkpoint_every=100)
    run = new_run(tmp_path / "run", config)
    session = train(run, small_trainer(config), stop=threading.Event())
    next(session), next(session)
    session.close()
    assert (run.state().status, run.checkpoint_updates()) == ("stopped", [2])


def test_a_reader_that_fails_stops_the_run_in_order(tmp_path):
    config = small_config(checkpoint_every=100)
    run = new_run(tmp_path / "run", config)
    with pytest.raises(BrokenPipeError):
        for record in train(run, small_trainer(config), stop=threading.Event()):
            if record.update == 2:
                raise BrokenPipeError
    assert (run.state().status, run.checkpoint_updates()) == ("stopped", [2])


def test_the_state_says_phase_and_update_all_the_way(tmp_path, monkeypatch):
    config, told = small_config(updates=2), []
    run = new_run(tmp_path / "run", config)
    write = RunFolder.write_state

    def listen(self, status, update, message="", **details):
        told.append((status, update, details.get("phase", "")))
        write(self, status, update, message, **details)

    monkeypatch.setattr(RunFolder, "write_state", listen)
    run_all(run, small_trainer(config, SmallValidation(every=2, best_at=2)))
    assert told[:4] == [("running", 0, phase) for phase in ("training", "validating", "training")] + [
        ("running", 1, "training")
    ]
    assert ("running", 2, "saving") in told and ("running", 2, "validating") in told
    assert told[-1] == ("finished", 2, "")
    assert run.state().updates == 2
    assert run.heartbeat().update == 2


def test_an_extended_run_equals_a_longer_one(tmp_path):
    config = small_config(updates=2)
    run, _ = straight(tmp_path / "run", config)
    longer = replace(config, updates=4)
    trainer = small_trainer(longer)
    assert resume(run, trainer).update == 2
    run_all(run, trainer)
    assert_same_run(run, trainer, *straight(tmp_path / "straight", longer))


def test_going_back_forgets_what_came_later_and_repeats_it_bit_for_bit(tmp_path):
    config = small_config()
    run, first = straight(tmp_path / "run", config, SmallValidation(every=1, best_at=1))
    assert run.checkpoint_updates() == [1, 3, 4]  # the best and the last two
    for back_to, kept in ((1, [1]), (0, [])):
        trainer = small_trainer(config, SmallValidation(every=1, best_at=1))
        assert resume(run, trainer, from_update=back_to).update == back_to
        assert run.checkpoint_updates() == kept
        assert [record.update for record in run.progress()] == kept
        assert [record.update for record in run.validation()] == [0, *kept]
        assert list(run.samples().pictures) == [0, *kept]
        assert not run.weights.exists()
        run_all(run, trainer)
        assert all(torch.equal(trainer.weights()[name], value) for name, value in first.weights().items())


def test_the_finished_file_holds_the_weights_alone(tmp_path):
    run, trainer = straight(tmp_path / "run", small_config())
    weights = load_file(run.weights)
    assert weights.keys() == trainer.policy.transformer.state_dict().keys()
    assert all(torch.equal(value, trainer.weights()[name]) for name, value in weights.items())


# Validation


def test_validations_are_kept_with_their_pictures_and_the_best_checkpoint_survives(tmp_path):
    config = small_config(updates=8, checkpoint_every=100)
    run, _ = straight(tmp_path / "run", config, SmallValidation(every=2, best_at=2))
    assert [record.update for record in run.validation()] == [0, 2, 4, 6, 8]
    assert (run.best().update, run.best().rule) == (2, "the highest photo share")
    assert run.checkpoint_updates() == [2, 6, 8]
    samples = run.samples()
    assert (samples.prompts, samples.seeds) == (["a red ball", "a blue house"], [7, 8])
    assert {update: len(files) for update, files in samples.pictures.items()} == dict.fromkeys((0, 2, 4, 6, 8), 2)
    assert Image.open(samples.pictures[6][1]).getpixel((3, 3)) == (6, 6, 6)


def test_a_run_that_only_gets_worse_is_ended_with_the_best_weights(tmp_path):
    config = small_config(updates=100, checkpoint_every=100)
    run, trainer = straight(tmp_path / "run", config, SmallValidation(every=2, best_at=2, over_at=6))
    assert run.state().update == 6
    assert run.state().message == "ended by validation after update 6; its weights are those of update 2"
    best, finished = read_weights(run, 2), load_file(run.weights)
    assert all(torch.equal(finished[name], value) for name, value in best.items())
    assert not torch.equal(finished["weight"], trainer.weights()["weight"])


def test_a_stop_during_a_validation_drops_it_and_the_resumed_run_makes_it_up(tmp_path):
    config = small_config()
    validation, stop = SmallValidation(every=2, best_at=2), threading.Event()
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config, validation)
    plain = validation.validate

    def interrupted(policy, update):
        if update == 2:
            stop.set()
        return plain(policy, update)

    validation.validate = interrupted
    list(train(run, trainer, stop=stop))
    assert (run.state().status, run.state().update) == ("stopped", 2)
    assert [record.update for record in run.validation()] == [0]
    trainer = small_trainer(config, SmallValidation(every=2, best_at=2))
    resume(run, trainer)
    run_all(run, trainer)
    assert [record.update for record in run.validation()] == [0, 2, 4]


def test_the_first_record_does_not_wait_for_the_validation_of_the_start(tmp_path):
    """What is validated then are the weights of the start all the same."""
    config, seen = small_config(), []
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config, SmallValidation(every=2, best_at=2))
    start, plain = trainer.weights(), trainer.validation.validate

    def look(policy, update):
        logged = [record.update for record in run.progress()]
        seen.append((update, logged, all(torch.equal(trainer.weights()[name], start[name]) for name in start)))
        return plain(policy, update)

    trainer.validation.validate = look
    run_all(run, trainer)
    assert seen == [(0, [1], True), (2, [1, 2], False), (4, [1, 2, 3, 4], False)]
    assert_same_run(run, trainer, *straight(tmp_path / "straight", config))  # one that validates nothing


@pytest.mark.parametrize("fails", [False, True])
def test_what_ends_the_validation_of_the_start_leaves_a_run_that_has_done_nothing(tmp_path, fails):
    config, validation, stop = small_config(), SmallValidation(every=2, best_at=2), threading.Event()
    run, plain = new_run(tmp_path / "run", config), validation.validate

    def interrupted(policy, update):
        if fails:
            raise RuntimeError("the sky fell")
        stop.set()
        return plain(policy, update)

    validation.validate = interrupted
    session = train(run, small_trainer(config, validation), stop=stop)
    if fails:
        with pytest.raises(RuntimeError, match="sky"):
            list(session)
    else:
        assert list(session) == []
    assert (run.state().status, run.state().update) == ("failed" if fails else "stopped", 0)
    assert list(run.progress()) == list(run.validation()) == run.checkpoint_updates() == []

    def again(path):
        trainer = small_trainer(config, SmallValidation(every=2, best_at=2))
        resume(path, trainer)
        run_all(path, trainer)
        return path, trainer

    assert_same_run(*again(run), *again(new_run(tmp_path / "straight", config)))
    assert [record.update for record in run.validation()] == [0, 2, 4]


def test_a_kept_checkpoint_is_not_pruned(tmp_path):
    config = small_config()
    run = new_run(tmp_path / "run", config)
    for record in train(run, small_trainer(config), stop=threading.Event()):
        if record.update == 2:
            run.keep(1)
    assert run.checkpoint_updates() == [1, 3, 4]


# Several processes


class TwoProcesses:
    """As seen by one of two: `others` and `mains` say what the other one answers, and what the main one does."""

    size, others, mains = 2, False, False

    def __init__(self, is_main):
        self.is_main = is_main
        self.asked = 0

    def agree(self, flag):
        self.asked += 1
        return flag or self.others

    def gather(self, value):
        return [value if self.is_main else self.mains, value]

    def mean(self, values):
        return values

    @property
    def shard(self):
        return Shard(0 if self.is_main else 1, self.size)


def test_a_process_that_is_not_the_main_one_writes_nothing_and_stops_when_another_does(tmp_path):
    config = small_config(updates=100)
    trainer = small_trainer(config)
    trainer.world = world = TwoProcesses(is_main=False)
    updates = []
    for record in train(None, trainer, stop=threading.Event()):
        updates.append(record.update)
        world.others = record.update == 2
    assert updates == [1, 2]
    assert world.asked >= 4
    assert list(tmp_path.iterdir()) == []


def test_what_the_main_process_has_validated_before_a_resume_no_other_validates_again(tmp_path):
    """The others know none of the records: alone they would enter a validation in which nobody joins them."""
    config = small_config()
    for owed in (False, True):
        trainer = small_trainer(config, SmallValidation(every=2, best_at=2))
        trainer.world, trainer.update, validated = TwoProcesses(is_main=False), 2, []
        trainer.world.mains = owed
        trainer.validation.validate = lambda policy, update, validated=validated: validated.append(update)
        session = train(None, trainer, stop=threading.Event())
        trainer.world.others = True  # ends it before another update
        assert list(session) == [] and validated == ([2] if owed else [])


def test_of_several_processes_one_that_is_told_to_stop_finishes_its_update(tmp_path):
    """The others are in the middle of it and wait for their parts."""
    config = small_config()
    run, trainer, stop = new_run(tmp_path / "run", config), small_trainer(config), threading.Event()
    trainer.world = TwoProcesses(is_main=True)
    trainer.policy.transformer.register_forward_hook(lambda *_: stop.set())
    assert [record.update for record in train(run, trainer, stop=stop)] == [1]
    assert (run.state().status, run.state().update) == ("stopped", 1)
