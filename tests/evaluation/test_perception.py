"""The measures of a word: each held against what it must be where the pictures' vectors are made by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from srpo.evaluation.perception import auc, perceive, verdicts, word_table
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS, cfg_like, srp
from tests.tiny import tiny_clip

PROMPTS = ["a red ball", "a blue house", "a tree"]
WORDS = ("Photo", "Oil", "Dark")
N = 16


@pytest.fixture(scope="module")
def reward():
    return ClipReward(*tiny_clip(), scale=5.0)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_table_holds_the_rewards_own_scores(reward, images):
    table = word_table(reward, images, PROMPTS, WORDS, PAPER_WORDS.apply, batch=2)
    torch.testing.assert_close(table.without, reward.score(images, PROMPTS))
    for place, word in enumerate(WORDS):
        expected = reward.score(images, [f"{word}. {prompt}" for prompt in PROMPTS])
        torch.testing.assert_close(table.under[:, place], expected)
    torch.testing.assert_close(table.difference, table.under - table.without[:, None])
    ranked = table.difference.gather(1, table.rank.argsort(dim=1))  # the words in the order of their ranks
    assert (ranked.diff(dim=1) <= 0).all() and table.rank.sort().values.tolist() == [[1, 2, 3]] * 3


def test_each_image_and_each_text_is_embedded_once(reward, images, monkeypatch):
    seen = {"images": 0, "texts": []}
    embed_image, embed_text = reward.embed_image, reward.embed_text

    def count_images(image):
        seen["images"] += len(image)
        return embed_image(image)

    def count_texts(texts):
        seen["texts"] += texts
        return embed_text(texts)

    monkeypatch.setattr(reward, "embed_image", count_images)
    monkeypatch.setattr(reward, "embed_text", count_texts)
    word_table(reward, images, ["a ball", "a ball", "a tree"], WORDS, PAPER_WORDS.apply)
    assert seen["images"] == 3
    assert len(seen["texts"]) == len(set(seen["texts"])) == 2 * (1 + len(WORDS))


def test_the_forms_are_the_methods(reward, images):
    table = word_table(reward, images, PROMPTS, WORDS, PAPER_WORDS.apply)
    f_img = reward.embed_image(images)
    c_pos, c_neg = (reward.embed_text([f"{word}. {prompt}" for prompt in PROMPTS]) for word in ("Photo", "Oil"))
    torch.testing.assert_close(table.form("srp", "Photo", "Oil", 0.0), 5.0 * srp(f_img, c_pos, c_neg, 0.0))
    torch.testing.assert_close(table.form("cfg_like", "Photo", "Oil", 0.3), 5.0 * cfg_like(f_img, c_pos, c_neg, 0.3))


def test_the_table_wants_a_prompt_for_each_image(reward, images):
    with pytest.raises(ValueError, match="got 3 images and 1 prompts"):
        word_table(reward, images, ["a ball"], WORDS, PAPER_WORDS.apply)


def test_the_auc_counts_pairs_and_half_of_the_ties():
    assert auc(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).auc == pytest.approx((0.5 + 2) / 4)
    assert auc(torch.zeros(4), torch.zeros(5)).auc == 0.5


@pytest.mark.parametrize("hits", [0, 1, 9, 15, 16])
def test_the_auc_interval_ends_where_the_standard_error_reaches_to_it(hits):
    """Newcombe's method 5: |found - end| = z SE(end), SE by Hanley and McNeil with (m + n) / 2 - 1 for both sizes."""
    first = torch.cat([torch.ones(hits), -torch.ones(N - hits)])
    found = auc(first, torch.zeros(N))
    assert found.auc == hits / N and 0 <= found.low <= found.auc <= found.high <= 1

    def error(value):
        q1, q2, more = value / (2 - value), 2 * value**2 / (1 + value), N - 1
        return math.sqrt((value * (1 - value) + more * (q1 - value**2) + more * (q2 - value**2)) / N**2)

    for end, other in ((found.low, 0.0), (found.high, 1.0)):
        if found.auc != other:
            assert abs(found.auc - end) == pytest.approx(1.959964 * error(end), rel=1e-6)
        else:
            assert end == other


def test_the_auc_interval_of_two_halves_that_do_not_differ_holds_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    draws = [auc(*torch.randn(2, 12, generator=generator)) for _ in range(400)]
    held = sum(found.low <= 0.5 <= found.high for found in draws) / 400
    assert 0.92 <= held <= 0.99


def test_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="both groups"):
        auc(torch.ones(3), torch.ones(0))


def shown(*rows, spread=0.3):
    """(W + 1, N, W) scores: what each group's pictures show of each word, with noise and an offset of each prompt."""
    generator = torch.Generator().manual_seed(4)
    means = torch.tensor(rows, dtype=torch.float32)  # (W + 1, W)
    noise = spread * torch.randn(len(rows), N, means.shape[1], generator=generator)
    offset = 20 * torch.randn(1, N, means.shape[1], generator=generator)  # larger than any word's effect
    return means[:, None] + noise + offset


def test_a_word_that_its_pictures_show_is_perceived_and_one_that_they_do_not_is_weak():
    found = verdicts(shown([0, 0], [2, 0], [0, 0]), ["Photo", "Florp"])
    assert [verdict.kind for verdict in found.verdicts] == ["perceived", "weak"]
    assert found.separation[0].low > 0.8 and found.verdicts[1].text == "weak: expect little"
    assert "chance" in found.verdicts[1].reason
    assert found.verdicts[0].reason.startswith("In 100% (")


def test_a_word_that_works_the_wrong_way_round_is_weak_and_says_so():
    (found,) = verdicts(shown([0.0], [-2.0]), ["Photo"]).verdicts
    assert found.kind == "weak" and "wrong way round" in found.reason


@pytest.mark.parametrize(("side", "kind"), [("positive", "weak"), ("negative", "perceived"), ("other", "perceived")])
def test_a_look_that_pictures_have_anyway_is_known_but_no_aim(side, kind):
    """Pictures without a word show the first word already; those of the others do not."""
    score = shown([2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2])
    found = verdicts(score, ["Painting", "Photo", "Anime"], [side, "positive", "positive"])
    assert found.verdicts[0].kind == kind and "knows the look" in found.verdicts[0].reason
    assert [verdict.text for verdict in found.verdicts[1:]] == ["perceived"] * 2


def test_a_word_whose_pictures_anothers_cannot_be_told_from_is_entangled_or_means_the_same():
    """Both groups show both words alike."""
    score = shown([0, 0], [2, 2], [2, 2])
    apart = verdicts(score, ["Cyberpunk", "Dark"], ["positive", "other"]).verdicts
    assert apart[0].text == "entangled with Dark" and apart[0].entangled_with == ("Dark",)
    opposed = verdicts(score, ["Cyberpunk", "Dark"], ["positive", "negative"]).verdicts
    assert opposed[1].kind == "entangled"
    same = verdicts(score, ["Cyberpunk", "Dark"], ["positive", "positive"]).verdicts
    assert same[0].kind == "perceived" and "much the same as Dark" in same[0].reason


def test_correlation_is_of_scores_without_what_the_prompt_does_to_them():
    found = verdicts(shown([0, 0], [2, 2], [2, 2], spread=0.01), ["a", "b"])
    assert found.correlation[0, 1] > 0.99
    found = verdicts(shown([0, 0], [2, -2], [-2, 2], spread=0.01), ["a", "b"])
    assert found.correlation[0, 1] < -0.99


def test_content_that_suffers_is_told():
    content = torch.ones(2, N)
    content[1] = 0.7 + 0.01 * torch.randn(N, generator=torch.Generator().manual_seed(0))
    found = verdicts(shown([0.0], [2.0]), ["Dark"], content=content)
    assert found.content[0].high < -0.2 and "content suffers" in found.verdicts[0].reason
    unharmed = verdicts(shown([0.0], [2.0]), ["Dark"], content=torch.ones(2, N))
    assert "content" not in unharmed.verdicts[0].reason


class Axes:
    """A dual encoder whose texts are their own axes: the first for "Photo. ", the others for the prompts."""

    name, scale = "axes", 1.0
    prompts = ("one", "two", "three")

    def embed_text(self, texts):
        vectors = torch.zeros(len(texts), 4)
        for row, text in enumerate(texts):
            vectors[row, 1 + self.prompts.index(text.removeprefix("Photo. "))] = 1
            vectors[row, 0] = float(text.startswith("Photo. "))
        return F.normalize(vectors, dim=-1)

    def embed_image(self, image):
        raise NotImplementedError("vectors are given")

    def score(self, image, texts):
        raise NotImplementedError("vectors are given")


def test_the_perception_of_vectors_made_by_hand():
    """Pictures show their own prompt; those with the word lie on its axis too, and a third less on their prompt's."""
    plain = torch.eye(4)[1:]
    photo = F.normalize(plain + torch.tensor([0.9, 0, 0, 0]), dim=-1)
    found = perceive(Axes(), torch.stack([plain, photo]), Axes.prompts, ["Photo"], PAPER_WORDS.apply)
    assert found.separation[0].auc == 1.0
    assert found.content[0].mean == pytest.approx(1 / math.sqrt(1.81) - 1)  # own 1 before, others 0 in both
    with pytest.raises(ValueError, match="expected one for each of 1 words"):
        perceive(Axes(), torch.stack([plain]), Axes.prompts, ["Photo"], PAPER_WORDS.apply)


def test_a_measure_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"got scores of shape \(3, 16, 2\)"):
        verdicts(torch.zeros(3, 16, 2), ["a"])
    with pytest.raises(ValueError, match="2 or more"):
        verdicts(torch.zeros(2, 1, 1), ["a"])
