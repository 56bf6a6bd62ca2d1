"""Intervals over prompts: closed forms, coverage where votes cluster, and what it takes to undo a result."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from srpo.studies.estimates import (
    MIN_PROMPTS,
    Estimate,
    Fragility,
    between_prompts_sd,
    binomial_tail,
    clustered,
    fragility,
    sign_test,
)
from srpo.studies.simulation import prompt_shares


def test_with_equally_many_votes_it_is_the_t_interval_of_the_prompts_means():
    rng = np.random.default_rng(0)
    scores = rng.choice([0.0, 0.5, 1.0], size=(12, 5))
    found = clustered(np.repeat(np.arange(12), 5), scores.ravel())
    means = scores.mean(axis=1)
    half = stats.t.ppf(0.975, 11) * means.std(ddof=1) / math.sqrt(12)
    assert (found.value, found.low, found.high) == pytest.approx(
        (means.mean(), means.mean() - half, means.mean() + half)
    )
    assert (found.votes, found.prompts) == (60, 12)


def test_with_unequal_numbers_of_votes_it_is_the_ratio_estimator():
    """By hand: 10 prompts with one win of one vote, 10 with one win of three. 20 wins of 40, so residuals of +-0.5."""
    prompts = np.repeat(np.arange(20), [1] * 10 + [3] * 10)
    scores = np.concatenate([[1.0]] * 10 + [[1.0, 0.0, 0.0]] * 10)
    half = stats.t.ppf(0.975, 19) * math.sqrt(20 / 19 * 20 * 0.25) / 40
    found = clustered(prompts, scores)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_unanimous_votes_give_the_exact_interval_of_so_many_prompts():
    """The low end is the share with which 30 prompts of one opinion come about in 2.5 % of the studies."""
    prompts = np.repeat(np.arange(30), 4)
    found = clustered(prompts, np.ones(120))
    assert found.high == 1.0
    assert found.low**30 == pytest.approx(0.025)
    lost = clustered(prompts, np.zeros(120))
    assert (lost.low, lost.high) == pytest.approx((0.0, 1 - found.low))


def test_few_prompts_give_no_interval_and_no_votes_no_estimate():
    few = clustered(np.arange(MIN_PROMPTS - 1), np.ones(MIN_PROMPTS - 1))
    assert few == Estimate(1.0, None, None, MIN_PROMPTS - 1, MIN_PROMPTS - 1)
    assert not few.is_enough and not few.excludes(0.5)
    with pytest.raises(ValueError, match="at least one vote"):
        clustered(np.array([]), np.array([]))


@pytest.mark.parametrize(("sd", "middle"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.5, 0.0), (1.0, 0.8)])
def test_the_95_percent_interval_covers_when_votes_cluster_by_prompt(sd, middle):
    """2,000 studies of 40 prompts with 1 to 9 votes; the truth is the mean over the world's prompts."""
    rng = np.random.default_rng(int(10 * sd + 100 * middle))
    truth = stats.norm.expect(lambda z: special.expit(middle + sd * z))
    covered = 0
    for _ in range(2000):
        chances = 1 / (1 + np.exp(-middle - sd * rng.standard_normal(40)))
        found = clustered(*prompt_shares(40, rng.integers(1, 10, 40), chances, rng))
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_the_sd_between_prompts_predicts_the_half_width():
    rng = np.random.default_rng(3)
    prompts, scores = prompt_shares(50, 4, rng.random(50), rng)
    found = clustered(prompts, scores)
    half = stats.t.ppf(0.975, 49) * between_prompts_sd(prompts, scores) / math.sqrt(50)
    assert (found.high - found.low) / 2 == pytest.approx(half)
    assert between_prompts_sd(prompts[:4], scores[:4]) == 0.0


@pytest.mark.parametrize(("hits", "cases"), [(0, 0), (0, 9), (3, 9), (9, 9), (500, 1000), (540, 1000)])
def test_the_sign_test_is_the_exact_binomial_test(hits, cases):
    expected = stats.binomtest(hits, cases, 0.5).pvalue if cases else 1.0
    assert sign_test(hits, cases) == pytest.approx(expected)


def test_the_binomial_tail_includes_its_edge():
    assert binomial_tail(0, 5, 0.3) == 1.0
    assert binomial_tail(5, 5, 0.3) == pytest.approx(0.3**5)


def test_as_many_votes_flip_a_result_as_its_lead_and_one_more():
    prompts, scores = np.repeat(np.arange(20), 5), np.repeat([1.0, 1, 1, 1, 0], 20)
    assert fragility(prompts, scores).to_flip == 80 - 20 + 1
    assert fragility(prompts, 1 - scores) == fragility(prompts, scores)
    level = np.tile([0.0, 1.0], 50)
    assert fragility(prompts, level) == Fragility(None, 1)


def test_so_many_removed_votes_bring_doubt_and_one_less_does_not():
    """The votes that the search takes away are taken away here as well, by brute force, one by one."""
    rng = np.random.default_rng(5)
    prompts, scores = prompt_shares(25, 3, np.full(25, 0.72), rng)
    found = fragility(prompts, scores)
    assert clustered(prompts, scores).low > 0.5
    for removed in range(1, found.to_doubt + 1):
        lows = {}
        for prompt in np.unique(prompts[scores == 1]):
            at = int(np.flatnonzero((prompts == prompt) & (scores == 1))[0])
            lows[at] = clustered(np.delete(prompts, at), np.delete(scores, at)).low
        at = min(lows, key=lows.get)
        prompts, scores = np.delete(prompts, at), np.delete(scores, at)
        assert (lows[at] <= 0.5) == (removed == found.to_doubt)
    assert found.to_doubt < found.to_flip


def test_unanimous_votes_fall_into_doubt_when_too_few_prompts_are_left():
    """12 prompts of 3 votes: three prompts must go before fewer than 10 are left."""
    assert fragility(np.repeat(np.arange(12), 3), np.ones(36)) == Fragility(9, 37)
    assert fragility(np.arange(10), np.zeros(10)) == Fragility(1, 11)
