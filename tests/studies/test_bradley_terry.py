"""Bradley-Terry against closed forms, two libraries and scipy's minimiser."""

from __future__ import annotations

import math
import warnings

import choix
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize

from srpo.studies.bradley_terry import (
    PRIOR_SD,
    board,
    boards_by_prompt,
    fit,
    is_connected,
    resample,
    strengths,
    wins_to_dethrone,
)
from srpo.studies.simulation import World, example_plan, simulate
from srpo.studies.votes import duels


def random_board(number):
    """A connected board of whole wins, of 3 to 8 models."""
    rng = np.random.default_rng(number)
    while True:
        theta = rng.standard_normal(rng.integers(3, 9))
        chance = 1 / (1 + np.exp(theta[None, :] - theta[:, None]))
        met = rng.integers(0, 40, chance.shape)
        wins = np.triu(rng.binomial(met, chance), 1)
        wins = wins + np.triu(met - wins, 1).T
        if is_connected(wins):
            return wins.astype(float)


BOARDS = [random_board(number) for number in range(50)]


def test_without_a_prior_it_is_choix_on_50_simulated_boards():
    for wins in BOARDS:
        data = [(i, j) for i, j in np.argwhere(wins > 0) for _ in range(int(wins[i, j]))]
        theirs = choix.ilsr_pairwise(len(wins), data, alpha=0.0, max_iter=10_000, tol=1e-10)
        assert fit(wins, prior_sd=None) == pytest.approx(theirs - theirs.mean(), abs=1e-6)


def test_without_a_prior_it_is_statsmodels_logistic_regression_on_50_simulated_boards():
    """One row for each pair: +1 for the first model, -1 for the second; the last model's strength is 0."""
    for wins in BOARDS:
        pairs = [(i, j) for i in range(len(wins)) for j in range(i) if wins[i, j] + wins[j, i] > 0]
        design = np.zeros((len(pairs), len(wins)))
        for row, (i, j) in enumerate(pairs):
            design[row, i], design[row, j] = 1, -1
        outcome = np.array([(wins[i, j], wins[j, i]) for i, j in pairs])
        model = sm.GLM(outcome, design[:, :-1], family=sm.families.Binomial())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a chance of 0 or 1 at a step on the way
            found = model.fit(tol=1e-13, maxiter=200).params
        theirs = np.append(found, 0.0)
        assert fit(wins, prior_sd=None) == pytest.approx(theirs - theirs.mean(), abs=1e-6)


def penalised(theta, wins, sd):
    """(minus the penalised log likelihood, its slope), written anew."""
    value, slope = (theta @ theta) / (2 * sd**2), theta / sd**2
    for i, j in np.argwhere(wins > 0):
        value += wins[i, j] * math.log1p(math.exp(theta[j] - theta[i]))
        lost = 1 / (1 + math.exp(theta[i] - theta[j]))
        slope = slope - wins[i, j] * lost * (np.eye(len(theta))[i] - np.eye(len(theta))[j])
    return value, slope


@pytest.mark.parametrize("sd", [PRIOR_SD, 0.5])
def test_with_the_prior_it_is_scipys_minimum_of_the_same_penalised_likelihood(sd):
    one_sided = np.array([[0, 30, 0], [0, 0, 0], [0, 0, 0]], float)
    for wins in [*BOARDS, one_sided]:
        start = np.zeros(len(wins))
        theirs = optimize.minimize(
            penalised, start, args=(wins, sd), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}
        ).x
        assert fit(wins, sd) == pytest.approx(theirs, abs=1e-6)


def test_two_models_without_a_prior_are_the_logit_of_the_win_rate():
    theta = fit(np.array([[0, 30], [10, 0]]), prior_sd=None)
    assert theta == pytest.approx([math.log(3) / 2, -math.log(3) / 2])


def test_30_to_0_is_finite_with_the_prior_and_refused_without():
    """At the maximum 30 expit(-d) = d / (2 * 9), where d is the difference of the two."""
    wins = np.array([[0, 30], [0, 0]], float)
    theta = fit(wins)
    d = theta[0] - theta[1]
    assert 30 / (1 + math.exp(d)) == pytest.approx(d / (2 * PRIOR_SD**2))
    assert 3 < d < 8
    with pytest.raises(ValueError, match="without a prior"):
        fit(wins, prior_sd=None)


def test_a_circle_of_wins_is_level_and_models_that_never_met_stay_at_0():
    circle = np.array([[0, 5, 0], [0, 0, 5], [5, 0, 0]], float)
    assert fit(circle, prior_sd=None) == pytest.approx([0, 0, 0], abs=1e-9)
    assert fit(np.zeros((3, 3))) == pytest.approx([0, 0, 0])
    assert is_connected(circle) and not is_connected(np.triu(circle))


def test_a_stack_of_boards_is_fitted_like_each_of_them():
    stack = np.stack([board for board in BOARDS if len(board) == 5])
    assert len(stack) > 2
    assert fit(stack) == pytest.approx(np.stack([fit(wins) for wins in stack]), abs=1e-8)


def test_huge_and_lopsided_boards_settle():
    wins = np.array([[0, 1e6, 1], [1, 0, 1e6], [0, 1, 0]], float)
    assert np.isfinite(fit(wins)).all()
    assert np.isfinite(fit(wins, 100.0)).all()


def votes_of(prompts=30, models=3, raters=4, seed=1, **world):
    plan = example_plan(prompts, models)
    return plan, duels(plan, simulate(plan, raters, seed, World(**world)), "overall")


def test_boards_by_prompt_add_up_to_the_board_and_ties_are_halves():
    _, votes = votes_of(ties=0.3)
    whole, parts = board(votes, 3), boards_by_prompt(votes, 3)
    assert parts.sum(axis=0) == pytest.approx(whole)
    assert whole.sum() == len(votes)
    assert (whole % 1 == 0.5).any()


def test_strengths_are_ordered_with_intervals_that_do_not_change_from_call_to_call():
    plan, votes = votes_of(strengths={"model-1": 1.0, "model-2": 0.5})
    found = strengths(votes, 3, plan.seed)
    assert [strength.model for strength in found] == [1, 2, 0]
    assert sum(strength.value for strength in found) == pytest.approx(0, abs=1e-9)
    assert all(strength.low < strength.value < strength.high for strength in found)
    assert all(strength.best_rank <= rank <= strength.worst_rank for rank, strength in enumerate(found, 1))
    assert strengths(votes, 3, plan.seed) == found


def test_the_bootstrap_by_prompt_is_wider_than_the_curvature_where_prompts_differ():
    plan, votes = votes_of(prompts=60, raters=12, prompt_sd=2.0, ties=0.0)
    for strength in strengths(votes, 3, plan.seed):
        independent = strength.high_independent - strength.low_independent
        assert strength.high - strength.low > 1.3 * independent


def test_where_votes_are_independent_both_intervals_are_alike():
    plan, votes = votes_of(prompts=200, raters=3, prompt_sd=0.0, ties=0.0)
    for strength in strengths(votes, 3, plan.seed):
        ratio = (strength.high - strength.low) / (strength.high_independent - strength.low_independent)
        assert 0.8 < ratio < 1.2


def test_few_prompts_have_no_bootstrap_and_no_votes_no_strengths():
    plan, votes = votes_of(prompts=4)
    assert all(s.low is s.best_rank is None and s.low_independent < s.value for s in strengths(votes, 3, plan.seed))
    with pytest.raises(ValueError, match="at least one vote"):
        strengths(votes.where(np.zeros(len(votes), bool)), 3, plan.seed)


def test_resampling_one_prompt_gives_its_own_strengths():
    _, votes = votes_of(prompts=1, raters=9)
    boards = boards_by_prompt(votes, 3)
    assert resample(boards, seed=0, count=3) == pytest.approx(np.tile(fit(boards[0]), (3, 1)))


def test_the_wins_that_dethrone_are_the_fewest_that_do():
    for wins in BOARDS[:20]:
        first, second = np.argsort(-fit(wins))[:2]
        needed = wins_to_dethrone(wins)
        for removed in range(int(wins[first, second]) + 1):
            left = wins.copy()
            left[first, second] -= removed
            theta = fit(left)
            assert (theta[second] > theta[first]) == (needed is not None and removed >= needed)
