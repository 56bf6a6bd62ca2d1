"""Identities of the relative rewards, their gradients, and the lines of their discounts."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from srpo.rewards.control_words import (
    PAPER_DISCOUNTS,
    PAPER_WORDS,
    PICKSCORE_DISCOUNTS,
    ControlWords,
    Discounts,
    cfg_like,
    cfg_like_paper,
    net_weight,
    relative_to_noise,
    sgp,
    srp,
    turns,
    under_noise,
)


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    return tuple(F.normalize(torch.randn(3, 16, generator=generator), dim=-1) for _ in range(3))


def test_a_word_stands_before_the_prompt_and_braces_of_a_prompt_stay():
    assert PAPER_WORDS.apply("Photo", "a {word} on a {prompt}") == "Photo. a {word} on a {prompt}"
    assert ControlWords(("A",), ("B",), template="{prompt}, {word}").apply("oil", "a ball") == "a ball, oil"


def test_words_are_taken_in_turn_from_update_one():
    assert [PAPER_WORDS.positive_for(u) for u in (1, 2, 3, 4)] == ["Detail", "Detailed", "Real", "Natural-lighting"]
    assert [PAPER_WORDS.negative_for(u) for u in (1, 4, 5, 6)] == ["Painting", "Oil", "Concept art", "Painting"]


@pytest.mark.parametrize("words", [((), ("a",)), (("a",), ()), (("a", " "), ("b",))])
def test_an_empty_word_or_list_is_refused(words):
    with pytest.raises(ValueError, match="expected at least one, none empty"):
        ControlWords(*words)


def test_a_template_without_the_prompt_is_refused():
    with pytest.raises(ValueError, match=r"must contain \{word\} and \{prompt\}"):
        ControlWords(("a",), ("b",), template="{word}.")


@pytest.mark.parametrize(
    "template", ["{word}. {prompt} {word}", "{prompt}. {prompt}", "{word}{prompt}{}", "{{word}}. {prompt}"]
)
def test_a_template_with_a_part_twice_or_other_braces_is_refused(template):
    with pytest.raises(ValueError, match=r"once each|braces other"):
        ControlWords(("a",), ("b",), template=template)


@pytest.mark.parametrize("weights", [(), (1.0,) * 4, (2.5,) * 4])
def test_equal_weights_give_the_very_turns_of_no_weights(weights):
    words = ControlWords(PAPER_WORDS.positive, PAPER_WORDS.negative, positive_weights=weights)
    for update in range(1, 50):
        assert words.positive_for(update) == PAPER_WORDS.positive[update % 4]


def test_a_words_turn_comes_as_often_as_it_weighs_and_the_turns_are_spread():
    words = ControlWords(("A", "B", "C"), ("n",), positive_weights=(2.0, 1.0, 1.0))
    taken = [words.positive_for(update) for update in range(40)]
    assert Counter(taken) == {"A": 20, "B": 10, "C": 10}
    assert taken[:8] == ["A", "B", "C", "A"] * 2  # of five in a row never more than three are the heavy word
    assert Counter(turns((0.1, 10.0))) == {1: 100, 0: 1}
    assert turns((0.3, 0.6)) == turns((1.0, 2.0))


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.25, 10.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="word's weight"):
        ControlWords(("a", "b"), ("c",), positive_weights=(1.0, weight))


def test_a_weight_is_needed_for_each_word():
    with pytest.raises(ValueError, match="negative control words have 1 weights for 2 words"):
        ControlWords(("a",), ("b", "c"), negative_weights=(1.0,))


class Brightness:
    """A reward without a text branch: the square of an image's mean, halved."""

    name = "brightness"

    def score(self, image, texts):
        return image.mean(dim=(1, 2, 3)).square() / 2


def test_without_text_the_reward_is_relative_to_the_image_under_noise():
    """d r/dx = mean / n, so the gradient of the difference is (mean - mean under noise) / n = -std mean(noise) / n."""
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = relative_to_noise(Brightness(), image, ["", ""], seed=3, std=0.1)
    torch.testing.assert_close(found.difference, found.clean - found.noisy)
    (gradient,) = torch.autograd.grad(found.difference.sum(), image)
    noise = under_noise(torch.zeros(1, 3, 8, 8), 3, 0.1)[0]
    torch.testing.assert_close(gradient, (-noise.mean() / 192).expand_as(gradient))


def test_noise_belongs_to_the_seed_and_not_to_the_neighbours():
    image = torch.rand(3, 3, 4, 4)
    assert torch.equal(under_noise(image, 5)[1:2], under_noise(image[1:2], 5))
    assert not torch.equal(under_noise(image, 5), under_noise(image, 6))


@pytest.mark.parametrize("form", [srp, cfg_like])
def test_at_k_zero_without_a_negative_vector_the_reward_is_the_plain_one(form, vectors):
    f_img, c_pos, c_neg = vectors
    assert torch.equal(form(f_img, c_pos, torch.zeros_like(c_neg), 0.0), (f_img * c_pos).sum(-1))


@pytest.mark.parametrize("form", [srp, cfg_like])
def test_at_k_zero_swapping_the_words_flips_the_sign(form, vectors):
    f_img, c_pos, c_neg = vectors
    torch.testing.assert_close(form(f_img, c_pos, c_neg, 0.0), -form(f_img, c_neg, c_pos, 0.0))


def test_the_papers_form_ends_at_the_two_words_and_a_swap_mirrors_k(vectors):
    f_img, c_pos, c_neg = vectors
    assert torch.equal(cfg_like_paper(f_img, c_pos, c_neg, 1.0), (f_img * c_pos).sum(-1))
    assert torch.equal(cfg_like_paper(f_img, c_pos, c_neg, 0.0), (f_img * c_neg).sum(-1))
    torch.testing.assert_close(cfg_like_paper(f_img, c_pos, c_neg, 0.3), cfg_like_paper(f_img, c_neg, c_pos, 0.7))


def test_the_reference_form_is_the_relative_preference_plus_k_times_the_general_reward(vectors):
    f_img, c_pos, c_neg = vectors
    k = torch.tensor([0.1, 0.2, 0.5])
    expected = srp(f_img, c_pos, c_neg, k) + k * sgp(f_img, c_pos, c_neg, k)
    torch.testing.assert_close(cfg_like(f_img, c_pos, c_neg, k), expected)


def test_a_common_part_of_both_words_cancels_in_the_relative_preference(vectors):
    """What the reward likes whatever the text says is the same shift of both text vectors."""
    f_img, c_pos, c_neg = vectors
    shift = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    shifted = srp(f_img, c_pos + shift, c_neg + shift, 0.0)
    torch.testing.assert_close(shifted, srp(f_img, c_pos, c_neg, 0.0), atol=1e-6, rtol=0)


def test_gradients_of_the_forms_are_the_guided_text_vectors(vectors):
    f_img, c_pos, c_neg = (v.clone().requires_grad_() for v in vectors)
    (gradient,) = torch.autograd.grad(cfg_like(f_img, c_pos, c_neg, 0.25).sum(), f_img)
    torch.testing.assert_close(gradient, 1.25 * c_pos - c_neg)
    (gradient,) = torch.autograd.grad(cfg_like_paper(f_img, c_pos, c_neg, 0.25).sum(), f_img)
    torch.testing.assert_close(gradient, 0.75 * c_neg + 0.25 * c_pos)


@pytest.mark.parametrize("discounts", [PAPER_DISCOUNTS, PICKSCORE_DISCOUNTS])
def test_discounts_are_the_reference_lines_over_a_thousand_indices(discounts):
    index = torch.arange(1000)
    torch.testing.assert_close(discounts.k_positive(index), torch.linspace(*discounts.positive, 1000))
    torch.testing.assert_close(discounts.k_negative(index), torch.linspace(*discounts.negative, 1000))


def test_the_net_weight_is_the_difference_of_the_two_lines():
    assert net_weight(0, 0, Discounts((0.1, 0.2), (0.3, 0.0))) == pytest.approx(-0.2)
    assert net_weight(999, 999, Discounts((0.1, 0.2), (0.3, 0.0))) == pytest.approx(0.2)
