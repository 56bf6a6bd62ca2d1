"""The sequential stop and the tables of how much is needed."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from scipy import stats

from srpo.studies.schema import SequentialStop
from srpo.studies.simulation import World, example_plan, simulate
from srpo.studies.stopping import (
    ALPHA,
    STAKES,
    binomial_power,
    complete_scores,
    e_values,
    evidence,
    power_table,
    prompts_for,
    prompts_needed,
    sequential_prompts,
    share_sd,
    votes_needed,
)
from srpo.studies.votes import duels


def test_the_game_is_fair_where_both_models_are_equal():
    """The mean capital over all 3^6 equally likely ways that six prompts can go is 1 after every prompt."""
    ways = np.array(list(product([0.0, 0.5, 1.0], repeat=6)))
    assert e_values(ways).mean(axis=0) == pytest.approx(np.ones(6))


def test_the_game_against_another_mean_is_fair_at_that_mean():
    ways = np.array(list(product([0.0, 1.0], repeat=8)))
    chance = np.prod(np.where(ways == 1, 0.7, 0.3), axis=1)
    assert chance @ e_values(ways, centre=0.7) == pytest.approx(np.ones(8))


def test_the_capital_is_the_mean_of_the_products():
    scores = np.array([1.0, 0.5, 0.8])
    expected = np.mean([np.prod(1 + 2 * stake * (scores - 0.5)) for stake in STAKES])
    assert e_values(scores)[-1] == pytest.approx(expected)
    assert pytest.approx(-STAKES[::-1]) == STAKES  # no side is favoured
    assert np.abs(STAKES).max() < 1


@pytest.mark.parametrize("sd", [0.0, 0.5, 1.0, 1.5])
def test_at_most_5_percent_of_studies_without_a_difference_end_with_a_winner(sd):
    """2,000 studies of 200 prompts with 3 votes each, looked at after every prompt.

    The same votes, tested one by one as if independent by the exact sign test at every prompt, go wrong far more often.
    """
    rng = np.random.default_rng(int(10 * sd))
    chances = 1 / (1 + np.exp(-sd * rng.standard_normal((2000, 200))))
    wins = rng.binomial(3, chances)
    assert (e_values(wins / 3).max(axis=1) >= 1 / ALPHA).mean() <= ALPHA
    total, votes = wins.cumsum(axis=1), 3 * np.arange(1, 201)
    naive = stats.binom.sf(np.maximum(total, votes - total) - 1, votes, 0.5) * 2 <= ALPHA
    assert naive.any(axis=1).mean() > 0.15


@pytest.mark.parametrize(("share", "winner"), [(0.8, 0), (0.2, 1)])
def test_a_clear_difference_is_found_and_the_winner_is_the_one_who_led_then(share, winner):
    found = evidence([share] * 60)
    assert found.winner == winner
    assert found.e_value >= found.needed == 20
    assert found.low < share < found.high
    assert not found.low <= 0.5 <= found.high
    turned = evidence([share] * 60 + [1 - share] * 200)
    assert turned.winner == winner  # the study had ended by then


def test_without_prompts_nothing_is_known():
    found = evidence([])
    assert (found.prompts, found.value, found.e_value, found.winner) == (0, None, 1.0, None)
    assert (found.low, found.high) == (0.0, 1.0)


def test_overwhelming_evidence_is_still_a_finite_number():
    assert np.isfinite(evidence([1.0] * 2000).e_value)


@pytest.mark.parametrize("truth", [0.5, 0.7])
def test_the_interval_of_a_study_that_stops_when_it_likes_holds_the_truth(truth):
    """300 studies that stop at their most extreme moment: an interval for a fixed size would miss far more."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        scores = (rng.random(60) < truth).astype(float)
        missed += e_values(scores, truth).max() >= 1 / ALPHA
    assert missed / 300 <= 0.05
    one = (rng.random(60) < truth).astype(float)
    found = evidence(one)
    assert (found.low <= truth <= found.high) == (e_values(one, truth).max() < 1 / ALPHA)


def test_a_prompt_counts_when_each_of_its_seeds_has_its_votes_and_does_not_move_afterwards():
    plan = example_plan(prompts=6, seeds=2, stop=SequentialStop(votes_per_item=2))
    votes = simulate(plan, 2, 3)
    all_scores = complete_scores(plan, votes)
    assert len(all_scores) == 6
    columns = duels(plan, votes, "overall")
    means = sorted(columns.score[columns.prompt == prompt].mean() for prompt in range(6))
    assert sorted(all_scores) == pytest.approx(means)
    mains = sorted((v for v in votes if v.trial.kind == "main"), key=lambda v: v.at_us)
    partial = [complete_scores(plan, mains[:count]) for count in range(len(mains) + 1)]
    assert [len(scores) for scores in partial] == sorted(len(scores) for scores in partial)
    assert all(after[: len(before)] == before for before, after in pairwise(partial))
    late = [replace(vote, rater=9, at_us=vote.at_us + 10**12) for vote in mains]
    assert complete_scores(plan, mains + late) == all_scores


# How many are needed


def test_the_power_table_has_the_published_numbers_of_votes():
    """Exact binomial, two-sided 5 %, 80 % power."""
    assert {row.win_rate: row.votes for row in power_table()} == {0.55: 807, 0.6: 210, 0.65: 92, 0.7: 54, 0.75: 35}


@pytest.mark.parametrize("count", [5, 6, 35, 210, 807])
def test_the_power_is_that_of_scipys_binomial_test(count):
    rejected = [hits for hits in range(count + 1) if stats.binomtest(hits, count).pvalue <= 0.05]
    assert binomial_power(count, 0.6) == pytest.approx(stats.binom.pmf(rejected, count, 0.6).sum(), abs=1e-12)


def test_a_share_too_near_to_one_half_is_refused():
    with pytest.raises(ValueError, match="more than 100,000"):
        prompts_for(0.001, 0.5)
    with pytest.raises(ValueError, match="above 0"):
        prompts_for(0.0, 0.5)
    assert votes_needed(0.9) < votes_needed(0.8)


@pytest.mark.parametrize(("sd", "votes"), [(0.0, 1), (0.0, 5), (1.5, 1), (1.5, 5)])
def test_a_prompts_share_spreads_as_simulated(sd, votes):
    """mu = 0.4 gives some win rate w; prompts drawn from that world have the sd that is computed for w."""
    rng = np.random.default_rng(2)
    chances = 1 / (1 + np.exp(-0.4 - sd * rng.standard_normal(400_000)))
    shares = rng.binomial(votes, chances) / votes
    assert share_sd(float(chances.mean()), sd, votes) == pytest.approx(shares.std(), rel=0.01)


def test_so_many_prompts_find_the_win_rate_in_four_of_five_simulated_studies():
    count = prompts_needed(0.6, 1.0, 5)
    rng = np.random.default_rng(4)
    sd = share_sd(0.6, 1.0, 5)
    world = simulate_shares(0.6, 1.0, (4000, count), rng)
    shares = rng.binomial(5, world) / 5
    assert shares.std() == pytest.approx(sd, rel=0.02)
    found = stats.ttest_1samp(shares, 0.5, axis=1)
    assert 0.77 < ((found.pvalue < 0.05) & (found.statistic > 0)).mean() < 0.83


def simulate_shares(win_rate, sd, shape, rng):
    """Chances of prompts whose mean is the win rate, by bisection of the middle on a large sample."""
    z = rng.standard_normal(200_000)
    low, high = -5.0, 5.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-middle - sd * z))).mean() < win_rate else (low, middle)
    return 1 / (1 + np.exp(-middle - sd * rng.standard_normal(shape)))


def test_prompts_that_differ_or_have_fewer_votes_need_more_of_them():
    assert prompts_needed(0.6, 1.0, 5) > prompts_needed(0.6, 0.0, 5)
    assert prompts_needed(0.6, 1.0, 1) > prompts_needed(0.6, 1.0, 5)
    assert abs(prompts_needed(0.6, 0.0, 1) - votes_needed(0.6)) < 25  # one vote a prompt: nearly the binomial's


def test_a_sequential_study_of_a_clear_difference_ends_early_mostly():
    median, late = sequential_prompts(0.7, 0.5, 5, studies=200, most=300)
    assert median <= late < 40
    assert sequential_prompts(0.51, 0.5, 1, studies=20, most=50)[1] is None


def test_a_study_by_evidence_ends_in_the_world_of_a_difference_and_not_without():
    plan = example_plan(prompts=60, stop=SequentialStop(votes_per_item=3))
    apart = evidence(complete_scores(plan, simulate(plan, 3, 0, World(strengths={"model-1": 1.5}))))
    assert apart.winner == 1
    level = evidence(complete_scores(plan, simulate(plan, 3, 0)))
    assert level.winner is None
