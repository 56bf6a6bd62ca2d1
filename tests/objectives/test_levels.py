"""The reference's table of noise levels, by hand, and our continuous draw."""

import pytest
import torch

from srpo.objectives.levels import StepLevels, TableLevels, UniformLevels, net_weight_axis, net_weight_curve
from srpo.rewards.control_words import PAPER_DISCOUNTS, PICKSCORE_DISCOUNTS


def test_the_table_ends_at_the_reference_levels():
    """Shifted by 3: 0.9 -> 2.7 / 2.8, 0.5 -> 1.5 / 2, 0.4 -> 1.2 / 1.8."""
    assert TableLevels().sigmas()[[0, -1]].tolist() == pytest.approx([2.7 / 2.8, 0.75])
    assert TableLevels(cleanest_step=30).sigmas()[-1].item() == pytest.approx(1.2 / 1.8)


def test_the_draw_is_uniform_over_5_to_995_with_both_ends():
    drawn = TableLevels().draw(40_000, torch.Generator().manual_seed(0))
    assert (drawn.min(), drawn.max()) == (5, 995)
    assert drawn.float().mean().item() == pytest.approx(500, abs=6)  # 4 standard errors of 286 / sqrt(40000)


def test_one_draw_for_many_prompts_takes_the_numbers_of_many_single_draws():
    for levels in (TableLevels(), UniformLevels(), StepLevels()):
        together = levels.draw(5, torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(1)
        assert torch.equal(together, torch.cat([levels.draw(1, generator) for _ in range(5)]))


@pytest.mark.parametrize(
    ("s", "denoise", "inversion"),
    [  # (table index of sigma, of sigma_target, discount index)
        (5, (990, 995, 5), (999, 994, 1)),  # span 5; m = max(0, 1) = 1, its step ends one index noisier
        (100, (800, 900, 100), (999, 899, 1)),
        (101, (799, 899, 101), (999, 899, 1)),
        (500, (400, 500, 500), (600, 500, 400)),
        (995, (0, 5, 995), (10, 5, 990)),  # span 1000 - 995 = 5
    ],
)
def test_steps_of_the_table_by_hand(s, denoise, inversion):
    levels, drawn = TableLevels(), torch.tensor([s])
    table = levels.sigmas()
    for steps, (start, end, index) in ((levels.denoise(drawn), denoise), (levels.inversion(drawn), inversion)):
        assert (steps.sigma.item(), steps.sigma_target.item()) == (table[start].item(), table[end].item())
        assert steps.index.item() == index
        assert steps.shortened.item() == (s < 100 or s > 900)


def test_the_cap_shortens_the_span_in_19_percent_of_the_draws():
    """s in 5 ... 99 and in 901 ... 995: 190 of 991."""
    shortened = TableLevels().denoise(torch.arange(5, 996)).shortened
    assert shortened.sum() == 190


@pytest.mark.parametrize(
    ("cleanest_step", "discounts", "first", "last"),
    [(25, PAPER_DISCOUNTS, -0.199, 0.237), (30, PICKSCORE_DISCOUNTS, -0.497, 0.483)],
)
def test_the_general_reward_is_subtracted_at_the_clean_end_and_added_at_the_noisy_one(
    cleanest_step, discounts, first, last
):
    """At s = 5 it is k+[5] - k-[1], at s = 995 k+[995] - k-[990]."""
    _, weights = net_weight_curve(TableLevels(cleanest_step=cleanest_step), discounts, num_points=991)
    assert weights[0].item() == pytest.approx(first, abs=1e-3)
    assert weights[-1].item() == pytest.approx(last, abs=1e-3)


def test_the_papers_curve_spans_sigma_0_751_to_0_963():
    sigmas, _ = net_weight_curve(TableLevels(), PAPER_DISCOUNTS)
    assert sigmas[[0, -1]].tolist() == pytest.approx([0.751, 0.963], abs=1e-3)


@pytest.mark.parametrize(
    ("cleanest_step", "discounts", "s", "sigma"),
    [(25, PAPER_DISCOUNTS, 520.0, 0.862), (30, PICKSCORE_DISCOUNTS, 564.2, 0.835)],
)
def test_the_net_weight_changes_its_sign_at_one_noise_level(cleanest_step, discounts, s, sigma):
    """Between the caps m = s - 100, so k+[s] = k-[m] at s / 999 (0.15 + 0.29) = 0.2 + 0.29 * 100 / 999: s = 520.0.

    There S = 0.9643 - 0.2143 * 480 / 999 = 0.8613. PickScore: s = 564.2, S = 0.8345.
    """
    levels = TableLevels(cleanest_step=cleanest_step)
    sigmas, weights = net_weight_curve(levels, discounts, num_points=991)
    assert (weights.diff() > 0).all()
    crossing = (weights < 0).sum().item()  # draws are 5, 6, 7 ...
    assert crossing + 5 == pytest.approx(s, abs=1)
    assert sigmas[crossing].item() == pytest.approx(sigma, abs=1e-3)


@pytest.mark.parametrize(
    ("levels", "ends"),
    [
        # S is a line over its index: from 0.75 at index 1 (S[999]) up to 0.9643 at index 1000 (S[0]).
        (TableLevels(), (0.75 - 0.2143 / 999, 0.9643 - 0.2143 / 999)),
        (UniformLevels(sigma_min=0.7, sigma_max=0.95, d_sigma=0.08), (0.54, 0.95)),  # 0.7 - 2 * 0.08
        (StepLevels(), (0.2 - 0.7 / 99, 0.9)),  # T - s for s = 0 would be one beyond the table; s = T is S[0]
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_lines_of_k_begin_and_end_at_the_levels_of_index_0_and_999(levels, ends):
    assert net_weight_axis(levels).ends == pytest.approx(ends, abs=1e-3)


def test_the_axis_holds_what_the_curve_is_made_of_and_without_inversion_k_minus_takes_no_part():
    axis = net_weight_axis(TableLevels(), 50)
    sigma, weights = net_weight_curve(TableLevels(), PAPER_DISCOUNTS, 50)
    by_hand = PAPER_DISCOUNTS.k_positive(axis.denoise_index) - PAPER_DISCOUNTS.k_negative(axis.inversion_index)
    assert torch.equal(axis.sigma, sigma) and torch.equal(by_hand, weights)
    assert net_weight_axis(StepLevels(), inversion=False).inversion_index is None
    _, alone = net_weight_curve(TableLevels(), PAPER_DISCOUNTS, 50, inversion=False)
    assert torch.equal(alone, PAPER_DISCOUNTS.k_positive(axis.denoise_index))


def test_continuous_branches_share_their_target_and_keep_the_whole_step():
    levels = UniformLevels(sigma_min=0.7, sigma_max=0.95, d_sigma=0.08)
    drawn = levels.draw(1000, torch.Generator().manual_seed(0))
    denoise, inversion = levels.denoise(drawn), levels.inversion(drawn)
    assert 0.7 <= drawn.min() < 0.705 and 0.945 < drawn.max() <= 0.95
    assert torch.equal(denoise.sigma_target, inversion.sigma_target)
    torch.testing.assert_close(denoise.sigma - denoise.sigma_target, torch.full((1000,), 0.08))
    torch.testing.assert_close(inversion.sigma_target - inversion.sigma, torch.full((1000,), 0.08))
    assert not denoise.shortened.any() and not inversion.shortened.any()


def test_discount_indices_of_continuous_levels_span_the_line():
    """As in the table, an index belongs to the cleaner end: 0 at sigma_min - 2 d_sigma, 999 would be sigma_max."""
    levels = UniformLevels(sigma_min=0.7, sigma_max=0.95, d_sigma=0.08)
    ends = torch.tensor([0.7, 0.95])
    assert levels.inversion(ends).index[0].item() == pytest.approx(0, abs=1e-3)
    expected = 999 * (0.87 - 0.54) / (0.95 - 0.54)
    assert levels.denoise(ends).index[1].item() == pytest.approx(expected, rel=1e-5)


def test_a_step_without_room_ends_at_zero_and_says_so():
    levels = UniformLevels(sigma_min=0.2, sigma_max=0.2, d_sigma=0.15)
    drawn = torch.tensor([0.2])
    inversion = levels.inversion(drawn)
    assert (inversion.sigma.item(), inversion.shortened.item()) == (0.0, True)
    assert not levels.denoise(drawn).shortened.item()
    assert UniformLevels(sigma_min=0.1, d_sigma=0.3).denoise(torch.tensor([0.1])).shortened.item()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma_min": 0.9, "sigma_max": 0.8}, "sigma_min is 0.9"),
        ({"sigma_max": 1.1}, "sigma_max 1.1"),
        ({"d_sigma": 0.0}, "d_sigma is 0.0"),
        ({"d_sigma": float("nan")}, "d_sigma is nan"),
        ({"sigma_max": 1.0, "d_sigma": 0.005}, "from sigma_max 1.0 ends above 0.99"),
    ],
)
def test_levels_outside_the_path_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UniformLevels(**wrong)


def test_a_table_in_the_wrong_order_is_refused():
    with pytest.raises(ValueError, match="expected 0 < noisiest < cleanest"):
        TableLevels(noisiest_step=30)


@pytest.mark.parametrize(("s", "span"), [(2, 2), (41, 41), (50, 41), (60, 40), (98, 2)])
def test_the_later_trainers_step_goes_from_s_plus_its_span_down_to_s(s, span):
    """S[100 - s - span] -> S[100 - s]; the place s / 100 of the discount, as an index of 0 ... 999."""
    levels = StepLevels()
    table = levels.sigmas()
    steps = levels.denoise(levels._with_span(torch.tensor([s])))
    assert (steps.sigma.item(), steps.sigma_target.item()) == (table[100 - s - span].item(), table[100 - s].item())
    assert steps.index.item() == pytest.approx(999 * s / 100)
    assert steps.shortened.item() == (span < 41)


def test_its_longest_step_is_0_29_and_its_range_0_9_to_0_2():
    steps = StepLevels().denoise(StepLevels().spread(200))
    assert (steps.sigma - steps.sigma_target).max().item() == pytest.approx(41 * 0.7 / 99)
    assert (steps.sigma.max().item(), StepLevels().sigmas()[-1].item()) == pytest.approx((0.9, 0.2))


def test_a_span_can_only_shrink_within_an_update():
    levels, generator = StepLevels(), torch.Generator().manual_seed(0)
    first = levels.draw(500, generator)
    second = levels.draw(500, generator, first)
    assert (second[:, 1] <= first[:, 1]).all()
    alone = torch.minimum(100 - second[:, 0], second[:, 0]).clamp(max=41)
    assert torch.equal(second[:, 1], torch.minimum(alone, first[:, 1]))
    assert (first[:, 0].min(), first[:, 0].max()) == (2, 98)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma_min": 0.9}, "expected 0 <= sigma_min < sigma_max"),
        ({"sigma_max": 1.0}, r"sigma_max <= 0\.99"),
        ({"num_levels": 3}, "at least 4"),
        ({"margin": 50}, r"expected 1 \.\.\. 49"),
        ({"max_span": 100}, r"and 1 \.\.\. 99"),
    ],
)
def test_settings_of_the_later_trainers_levels_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        StepLevels(**wrong)
