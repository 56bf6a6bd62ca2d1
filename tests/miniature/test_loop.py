"""The training loop: its schedule, and that a checkpoint is taken up exactly, or refused."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from srpo.miniature.loop import train, work_folder

UPDATES = 6


class Interrupted(Exception):
    """Stands for a kill: nothing is saved because of it."""


def run(*, updates=UPDATES, lr=0.1, seed=0, start=1.0, stop_before=None, checkpoint_every=2):
    """The weight and the curve after training one number towards targets that follow from the update's number."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, start)

    def step(update):
        if update == stop_before:
            raise Interrupted
        target = torch.rand((), generator=torch.Generator().manual_seed(update))
        return (module.weight - target).square().sum(), {"target": target.item()}

    curve = train(
        "test",
        {"part": module},
        step,
        settings={"seed": seed},
        updates=updates,
        lr=lr,
        warmup=2,
        log_every=1,
        checkpoint_every=checkpoint_every,
    )
    return module.weight.item(), curve


def run_with_matrix(*, updates, stop_before=None):
    """A (4, 8) matrix after training towards a fixed random one, from ones; the first update is at the rate 0.05."""
    module = nn.Linear(8, 4)
    nn.init.zeros_(module.bias)
    nn.init.ones_(module.weight)
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))

    def step(update):
        if update == stop_before:
            raise Interrupted
        return (module(torch.eye(8)) - target.T).square().sum(), {}

    matrices = {"matrices": [module.weight], "matrix_lr": 0.1}
    train(
        "matrix", {"part": module}, step, settings={}, updates=updates, lr=0.1, **matrices, warmup=2, checkpoint_every=1
    )
    return module.weight.detach().clone()


@pytest.mark.parametrize("stop_before", [1, 2, 3, 5])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_ends(stop_before, cache, tmp_path, monkeypatch):
    whole = run()
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted):
        run(stop_before=stop_before)
    assert run() == whole
    assert json.loads((work_folder("test") / "curve.json").read_text()) == whole[1]


@pytest.mark.parametrize("stop_before", [1, 3])
def test_a_training_whose_matrices_muon_moves_is_taken_up_exactly_too(stop_before, cache, tmp_path, monkeypatch):
    whole = run_with_matrix(updates=4)
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "other"))
    with pytest.raises(Interrupted):
        run_with_matrix(updates=4, stop_before=stop_before)
    assert torch.equal(run_with_matrix(updates=4), whole)


def test_muons_first_step_turns_every_direction_of_the_matrix_about_equally_far(cache):
    """Its step is the gradient's orthogonal factor, 0.2 sqrt(8) times the rate long in each of the 4 directions.

    Torch's coefficients bring singular values to 0.7 ... 1.2 within five steps.
    """
    step = run_with_matrix(updates=1) - torch.ones(4, 8) * (1 - 0.05 * 0.01)
    lengths = torch.linalg.svdvals(step) / (0.05 * 0.2 * 8**0.5)
    assert lengths.shape == (4,)
    assert 0.6 < lengths.min() <= lengths.max() < 1.3


def test_a_finished_training_is_only_read_back(cache):
    weight, curve = run()
    assert run(stop_before=0) == (weight, curve)  # no step is asked for


def test_the_first_update_moves_the_weight_by_its_share_of_the_warm_up(cache):
    """AdamW's first step is lr times the gradient's sign, after decay by lr wd; at update 0 the rate is lr / 2."""
    weight, _ = run(updates=1, checkpoint_every=1)
    assert weight == pytest.approx(1 * (1 - 0.05 * 0.01) - 0.05, abs=1e-6)


def test_the_rate_falls_as_a_cosine(cache):
    """With equal gradients each AdamW step is the rate: after warm-up lr (1 + cos(pi u / n)) / 2."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    places = []

    def step(update):
        places.append(module.weight.item())
        return -module.weight.sum(), {}

    train("test", {"part": module}, step, settings={}, updates=4, lr=1e-3, warmup=1, weight_decay=0.0)
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * update / 4)) for update in range(3)]
    assert [b - a for a, b in pairwise(places)] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"updates": 8}, "updates 6 there, 8 here"),
        ({"lr": 0.2}, "lr 0.1 there, 0.2 here"),
        ({"seed": 5}, "seed 0 there, 5 here"),
        ({"start": 2.0}, "start [0-9a-f]{16} there, [0-9a-f]{16} here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_with_the_difference_and_the_folder(change, sentence, cache):
    run()
    with pytest.raises(ValueError, match=sentence) as caught:
        run(**change)
    assert f"delete {work_folder('test')} " in str(caught.value)


def test_a_checkpoint_that_does_not_say_what_made_it_is_refused(cache):
    run()
    path = work_folder("test") / "last.pt"
    state = torch.load(path, weights_only=True)
    del state["made_with"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="updates unknown there, 6 here"):
        run()


def test_a_loss_that_is_not_finite_stops_the_training(cache):
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match=r"test: loss is nan at update 0; lower the learning rate \(0.1\)"):
        train("test", {"part": module}, lambda u: (module.weight.sum() * math.nan, {}), settings={}, updates=1, lr=0.1)
