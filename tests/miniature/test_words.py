"""The check of the miniature's reward against other measures: its rule, on pictures and scores made by hand."""

import pytest
import torch

from srpo.evaluation.perception import verdicts
from srpo.miniature import words as module
from srpo.miniature.judge import Judge, new_judge
from srpo.miniature.words import NONSENSE, STYLE_OF, TONES, WORDS, Check, main, side_of, table, truth

N = 12


@pytest.fixture(scope="module")
def judge():
    return Judge(new_judge())


def score(words, **shown):
    """(W + 1, N, W) scores: `Photo=("Photo", "Dark")` says that pictures of Photo show Photo and Dark."""
    made = 0.1 * torch.randn(len(words) + 1, N, len(words), generator=torch.Generator().manual_seed(0))
    for group, seen in shown.items():
        for word in seen:
            made[words.index(group) + 1, :, words.index(word)] += 1
    return made


def check(words, by_reward, by_truth):
    sides = [side_of(word) for word in words]
    content = torch.rand(len(words) + 1, N)
    return Check(verdicts(by_reward, words, sides, content), verdicts(by_truth, words, sides), by_truth)


def test_words_stand_where_the_paper_has_them():
    assert [side_of(word) for word in ("Photo", "Natural-lighting", "Oil", "Flat", "Dark", "Florp")] == [
        *("positive", "positive", "negative", "negative", "other", "other")
    ]
    assert set(WORDS) == {*STYLE_OF, *TONES, *NONSENSE} and len(STYLE_OF) == 10


def test_the_other_measures_are_the_judges_styles_light_and_colour(judge):
    grey, red = torch.full((2, 3, 128, 128), 0.5), torch.zeros(2, 3, 128, 128)
    red[:, 0] = 0.9
    words = ("Photo", "Anime", "Dark", "Bright", "Vivid", "Muted", "Florp")
    found = truth(judge, [grey, red], words)
    assert found.shape == (2, 2, 7)
    styles = judge.probabilities(grey)["style"]
    for place, style in ((0, "photo"), (1, "anime")):
        torch.testing.assert_close(found[0, :, place], styles[:, judge.classes["style"].index(style)])
    assert found[:, 0, 2].tolist() == pytest.approx([-0.5, -0.9 * 0.2126], abs=1e-6)  # Dark: minus the luminance
    torch.testing.assert_close(found[..., 3], -found[..., 2])
    assert found[:, 0, 4].tolist() == pytest.approx([0.0, 0.9])
    torch.testing.assert_close(found[..., 5], -found[..., 4])
    assert not found[..., 6].any()


def test_verdicts_agree_where_both_are_weak_or_neither_is():
    words = ("Photo", "Oil", "Florp")
    both = score(words, Photo=["Photo"], Oil=["Oil"])
    blind = score(words, Photo=["Photo"])
    found = check(words, blind, both)
    assert [found.agrees(w) for w in range(3)] == [True, False, True]
    assert [verdict.kind for verdict in found.by_truth.verdicts] == ["perceived", "perceived", "weak"]
    assert all(check(words, both, both).agrees(w) for w in range(3))


def test_an_entanglement_agrees_where_the_other_words_pictures_do_show_it():
    words = ("Anime", "Dark")
    entangled = score(words, Anime=["Anime"], Dark=["Dark", "Anime"])
    found = check(words, entangled, entangled)
    assert found.by_reward.verdicts[0].entangled_with == ("Dark",) and found.agrees(0)
    imagined = check(words, entangled, score(words, Anime=["Anime"], Dark=["Dark"]))
    assert not imagined.agrees(0) and imagined.agrees(1)


def test_the_page_has_a_line_and_a_reason_for_every_word():
    words = ("Photo", "Oil", "Dark", "Florp")
    both = score(words, Photo=["Photo"], Oil=["Oil"], Dark=["Dark"])
    text = table(check(words, both, both))
    assert "12 neutral test prompts" in text
    assert "- style words: the verdicts agree for 2 of 2" in text
    assert "- words without meaning: the verdicts agree for 1 of 1" in text
    for word in words:
        assert f"| {word} | " in text and f"- **{word}**: In " in text


def test_the_command_writes_the_page_and_wants_two_prompts(tmp_path, monkeypatch, capsys):
    words = ("Photo", "Florp")
    seen = []

    def measure(prompts):
        seen.extend(prompts)
        both = score(words, Photo=["Photo"])
        return check(words, both, both)

    monkeypatch.setattr(module, "measure", measure)
    assert main(["--prompts", "3", "--out", str(tmp_path / "words.md")]) == 0
    assert len(set(seen)) == 3 and "# Does the miniature's reward" in (tmp_path / "words.md").read_text()
    with pytest.raises(SystemExit):
        main(["--prompts", "1"])
    assert "expected at least 2" in capsys.readouterr().err
