"""Parts of an update side by side: the same update, one memory of weights, and stops and failures that reach all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from srpo.runs import RunFolder
from srpo.training import lanes
from srpo.training.assemble import assemble
from srpo.training.config import OfflineConfig, config_dict
from srpo.training.presets import direct, paper_miniature, studio
from srpo.training.session import train
from srpo.training.store import sampled, store_rollouts
from srpo.training.trainer import NonFiniteError
from tests.training.test_trainer import on_disk, small, without_seconds  # noqa: F401 a fixture


@pytest.fixture
def shared(monkeypatch):
    """A function that says whether trainers assembled from now on share their updates."""
    return lambda on: monkeypatch.setattr(lanes, "are_worth_it", lambda count: on)


@pytest.fixture
def use_threads():
    """torch.set_num_threads, until the end of the test: tests after it compare bits."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def flat(trainer):
    return torch.cat([value.flatten() for value in trainer.weights().values()])


@pytest.mark.parametrize(
    "make, changes",
    [
        (studio, {}),
        (studio, {"weights": "lora"}),
        (paper_miniature, {}),  # one noise for all, prefixes that cycle
        (direct, {"updates_per_rollout": 2}),  # two draws per picture
    ],
    ids=["studio", "lora", "paper", "direct"],
)
def test_an_update_in_parts_is_the_update(make, changes, on_disk, shared):  # noqa: F811
    config = replace(small(make(), **on_disk), prompts_per_update=4, **changes)
    records, weights, numbers = [], [], []
    for on in (False, True):
        shared(on)
        trainer = assemble(config)
        numbers.append(len(trainer.lanes))
        records.append([trainer.run_update(), trainer.run_update()])
        weights.append(flat(trainer))
    assert numbers == [1, 2]
    for plain, parted in zip(*records, strict=True):
        assert parted.loss == pytest.approx(plain.loss, abs=2e-6)
        assert parted.grad_norm == pytest.approx(plain.grad_norm, rel=2e-4)
        assert parted.scores == pytest.approx(plain.scores, abs=2e-5)
    # A step of Adam's has the size of its rate whatever the gradient, so rounding may turn those that are all but 0.
    assert (weights[0] - weights[1]).abs().mean() < 0.01 * config.lr


def test_stored_pictures_are_shared_out_as_they_were_sampled(on_disk, shared, tmp_path):  # noqa: F811
    config = replace(small(studio(), **on_disk), prompts_per_update=4)
    shared(False)
    store_rollouts(sampled(assemble(config), 1), tmp_path / "stored")
    offline = replace(config, offline=OfflineConfig(folder=str(tmp_path / "stored")))
    losses = []
    for on in (False, True):
        shared(on)
        losses.append(assemble(offline).run_update().loss)
    assert losses[1] == pytest.approx(losses[0], abs=2e-6)


def test_a_state_between_updates_that_share_a_rollout_is_taken_up_bit_for_bit(on_disk, shared):  # noqa: F811
    shared(True)
    config = replace(small(studio(), **on_disk), prompts_per_update=4, updates=3, updates_per_rollout=3)
    straight = assemble(config)
    stopped, resumed = assemble(config), assemble(config)
    expected = list(straight.updates())
    records = [stopped.run_update()]
    resumed.load_weights(stopped.weights())
    resumed.load_state_dict(stopped.state_dict())
    records += resumed.updates()
    assert without_seconds(records) == without_seconds(expected)
    assert torch.equal(flat(resumed), flat(straight))


def test_a_state_is_the_same_whether_parts_were_side_by_side_or_not(on_disk, shared):  # noqa: F811
    config = replace(small(studio(), **on_disk), prompts_per_update=4, updates_per_rollout=2)
    rollouts = []
    for on in (False, True):
        shared(on)
        trainer = assemble(config)
        trainer.run_update()
        rollouts.append(trainer.state_dict()["rollout"])
    assert rollouts[0]["prompts"] == rollouts[1]["prompts"]
    assert torch.equal(rollouts[0]["noise"], rollouts[1]["noise"])
    torch.testing.assert_close(*(rollout["x0"] for rollout in rollouts), atol=2e-5, rtol=1e-4)


def test_a_second_module_has_the_same_memory_and_gradients_of_its_own(on_disk, shared):  # noqa: F811
    shared(True)
    first, second = assemble(small(studio(), **on_disk)).transformers
    for own, other in zip(first.parameters(), second.parameters(), strict=True):
        assert own is not other
        assert own.data_ptr() == other.data_ptr()
    assert list(first.state_dict()) == list(second.state_dict())
    next(second.parameters()).sum().backward()
    assert next(first.parameters()).grad is None
    with torch.no_grad():
        next(first.parameters()).fill_(7)
    assert (next(second.parameters()) == 7).all()


def test_a_stop_reaches_every_part_before_its_next_pass(on_disk, shared, tmp_path):  # noqa: F811
    shared(True)
    config = replace(small(studio(), **on_disk), prompts_per_update=4)
    run, trainer, stop = RunFolder.create(tmp_path / "run", config_dict(config)), assemble(config), threading.Event()
    passes = [0, 0]

    def count(number):
        passes[number] += 1
        stop.set()

    for number, transformer in enumerate(trainer.transformers):
        transformer.register_forward_hook(lambda *_, number=number: count(number))
    assert list(train(run, trainer, stop=stop)) == []
    assert run.state().status == "stopped"
    assert max(passes) <= 1  # of the four that an update has here


@pytest.mark.parametrize("part", [0, 1])
def test_what_fails_in_one_part_ends_the_update_and_leaves_weights_and_no_gradient(part, on_disk, shared):  # noqa: F811
    shared(True)
    trainer = assemble(replace(small(studio(), **on_disk), prompts_per_update=4))
    before, lane = flat(trainer), trainer.lanes[part]
    plain = lane.objective.rollout

    def spoiled(*arguments):
        rollout = plain(*arguments)
        return replace(rollout, x0=rollout.x0 * float("nan"))

    lane.objective.rollout = spoiled
    with pytest.raises(NonFiniteError, match="in update 1 "):
        trainer.run_update()
    assert torch.equal(flat(trainer), before)
    lane.objective.rollout = plain
    record = trainer.run_update()  # what the other part had is forgotten
    shared(False)
    assert record.grad_norm == pytest.approx(assemble(trainer.config).run_update().grad_norm, rel=2e-4)


@pytest.mark.parametrize(
    "changes", [{"prompts_per_update": 3}, {"numerics": "bf16_stochastic", "optimizer": "adamw"}, {"bounded": True}]
)
def test_odd_prompts_other_numerics_and_less_memory_stay_whole(changes, on_disk, use_threads, monkeypatch):  # noqa: F811
    use_threads(2)
    monkeypatch.setattr(lanes, "_num_cores", lambda: 2)
    config = replace(small(studio(), **on_disk), prompts_per_update=4)
    assert len(assemble(config).lanes) == 2
    if changes.pop("bounded", False):
        changes["objective"] = replace(config.objective, prompts_per_forward=1)
    assert len(assemble(replace(config, **changes)).lanes) == 1


@pytest.mark.parametrize("cores, threads", [(1, 2), (2, 1)])
def test_nothing_is_shared_where_only_one_core_may_be_used(cores, threads, use_threads, monkeypatch):
    use_threads(threads)
    monkeypatch.setattr(lanes, "_num_cores", lambda: cores)
    assert not lanes.are_worth_it(8)


def test_threads_take_their_share_of_the_cores_and_others_what_they_had(use_threads):
    use_threads(4)
    assert lanes.Threads(2).run([torch.get_num_threads] * 2) == [2, 2]
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 4
    assert torch.get_num_threads() == 4
