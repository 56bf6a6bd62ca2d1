"""Warnings about a curve: a reward that does not move, and one that runs away."""

import pytest

from srpo.runs import UpdateRecord
from srpo.runs.watch import warning


def curve(rewards, norms=None):
    norms = norms or [0.1] * len(rewards)
    return [
        UpdateRecord(update, 0.5, norm, 1e-5, 1.0, {"denoise/reward": reward, "denoise/sigma": 0.8})
        for update, (reward, norm) in enumerate(zip(rewards, norms, strict=True), start=1)
    ]


@pytest.mark.parametrize("rewards", [[], [0.3], [0.3, 0.3], [0.30, 0.31, 0.29, -0.2, 0.3, 0.35, 0.2]])
def test_a_curve_that_moves_is_not_warned_of(rewards):
    assert warning(curve(rewards)) == ""


def test_three_equal_rewards_are_a_reward_that_does_not_see_its_pictures():
    assert "denoise/reward has been 0.3 for 3 updates" in warning(curve([0.1, 0.3, 0.3, 0.3]))
    assert warning(curve([0.3, 0.3, 0.3, 0.1])) == ""


def test_ten_times_the_largest_reward_before_is_an_explosion():
    before = [0.1, -0.3, 0.2, 0.25, 0.1]
    assert "denoise/reward is 3.1, 10 times" in warning(curve([*before, 3.1]))
    assert "denoise/reward is -3.1" in warning(curve([*before, -3.1]))
    assert warning(curve([*before, 2.9])) == ""
    assert warning(curve([*before[:-1], 3.1])) == ""  # too few to call anything large


def test_an_exploding_gradient_is_told_of_too():
    rewards = [0.1, 0.2, 0.1, 0.2, 0.1, 0.2]
    assert "the gradient's norm is 2, 20 times" in warning(curve(rewards, [0.1] * 5 + [2.0]))
