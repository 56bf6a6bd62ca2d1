"""Word sets as files: what is written is read again, and what comes from elsewhere is judged in one sentence."""

import pytest

from srpo.miniature import paths
from srpo.rewards.control_words import PAPER_DISCOUNTS, PAPER_WORDS
from srpo.rewards.word_sets import (
    MAX_BYTES,
    Word,
    WordSet,
    load_word_set,
    read_word_set,
    word_set_of,
    word_set_text,
)

BUILT_IN = sorted((paths.REPOSITORY / "assets" / "words").glob("*.yaml"))
PLAIN = {"positive": ["Real"], "negative": ["Oil"]}


def raw(**changes):
    return PLAIN | changes


@pytest.mark.parametrize("path", BUILT_IN, ids=lambda path: path.stem)
def test_every_set_that_comes_along_can_be_read_and_trained(path):
    words = load_word_set(path)
    assert words.name and words.description
    assert words.control_words.positive and words.control_words.negative
    assert read_word_set(word_set_text(words)) == words


def test_the_papers_set_is_the_papers():
    words = load_word_set(paths.REPOSITORY / "assets" / "words" / "paper.yaml")
    assert words.control_words == PAPER_WORDS
    assert words.discounts == PAPER_DISCOUNTS
    assert words.form == "cfg_like"


def test_a_set_comes_back_as_it_was_written():
    words = WordSet(
        'Mine: "1" #2',
        (Word("Detail", 2.5), Word("On"), Word("null", enabled=False), Word("1980")),
        (Word("слово"), Word("Oil: & *paint", 0.1, False), Word("Flat")),
        description="A line: with a colon.",
        template="{prompt} -- {word}",
        form="srp",
        k_positive=(0.0, -1.5),
        k_negative=(1e-7, 3.0),
        levels="later",
    )
    assert read_word_set(word_set_text(words)) == words
    assert read_word_set(word_set_text(words).encode()) == words


def test_a_training_takes_the_enabled_words_with_their_weights():
    words = word_set_of(
        raw(positive=[{"word": "Real", "weight": 2}, "Detail", {"word": "Photo", "enabled": False}], negative=["Oil"])
    )
    assert words.control_words.positive == ("Real", "Detail")
    assert words.control_words.positive_weights == (2.0, 1.0)
    assert words.control_words.negative_weights == ()
    assert words.control_words.positive_for(1) == "Detail"  # turns 0, 1, 0 for weights 2 and 1


def test_spaces_in_a_word_are_set_right_and_every_default_is_the_papers():
    words = word_set_of(raw(positive=["  Natural   lighting "]))
    assert words.positive == (Word("Natural lighting"),)
    assert (words.template, words.discounts) == (PAPER_WORDS.template, PAPER_DISCOUNTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"positve": ["Real"]}, "has no 'positve'"),
        ({"positive": ["Real", "real"]}, "twice among the positive words"),
        ({"negative": ["REAL"]}, "on both sides"),
        ({"positive": ["Real", "  "]}, "word is empty"),
        ({"positive": ["x" * 61]}, "has 61 characters"),
        ({"positive": ["Re\u0000al"]}, "cannot be shown"),
        ({"positive": []}, "there are no positive words"),
        ({"positive": [{"word": "Real", "enabled": False}]}, "all positive words are switched off"),
        ({"positive": [f"w{number}" for number in range(41)]}, "41 positive words"),
        ({"positive": "Real"}, "expected a list"),
        ({"positive": [True]}, "put it in quotes"),
        ({"positive": [{"word": "Real", "wieght": 2}]}, "has no 'wieght'"),
        ({"positive": [{"word": "Real", "weight": -1}]}, "word's weight is -1"),
        ({"positive": [{"word": "Real", "weight": 0.25}]}, "in tenths"),
        ({"positive": [{"word": "Real", "weight": float("nan")}]}, "finite"),
        ({"positive": [{"word": "Real", "weight": None}]}, "expected a number"),
        ({"positive": [{"word": "Real", "enabled": "yes"}]}, "expected true or false"),
        ({"template": "{word}"}, "must contain"),
        ({"template": "{word} {prompt} {seed}"}, "braces other"),
        ({"template": "{word}{prompt}" + "x" * 200}, "may have 200"),
        ({"template": 3}, "expected text"),
        ({"name": ["x"]}, "the name"),
        ({"form": "plain"}, "expected sgp"),
        ({"levels": ["paper"]}, "expected studio"),
        ({"k_positive": [0.1]}, "cleanest and at the noisiest"),
        ({"k_positive": [0.1, None]}, "expected a number"),
        ({"k_negative": [0.1, float("inf")]}, "finite"),
        ({"k_negative": [0.1, 10**400]}, "finite"),
        ({"k_negative": [0.1, 11]}, "between -10 and 10"),
    ],
)
def test_a_value_that_does_not_fit_is_named(changes, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        word_set_of(raw(**changes))


def test_both_sides_are_needed():
    with pytest.raises(ValueError, match="needs negative words"):
        word_set_of({"positive": ["Real"]})


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join('*' + before for _ in range(9))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "aliases"),
        ("positive: [Real]\nnegative: !!python/object/apply:os.system ['true']", "tags"),
        ("positive: [Real]\nnegative: !!bool maybe", "tags"),
        ("positive: [Real]\npositive: [Oil]\nnegative: [Flat]", "comes twice"),
        ("positive: [Real\nnegative: [Oil]", "this is not"),
        ("[" * 20_000, "nested too deep"),
        ("- Real\n- Oil", "keys and values"),
        ("", "keys and values"),
        ("positive: [Real]\nnegative: [2001-99-99]", "cannot be read"),
        ("positive: [Real]\nnegative: [2001-09-09]", "put it in quotes"),
        ("positive: [Real]\nnegative: [On]", "put it in quotes"),
        ("positive: [Real]\nnegative: [{word: Oil, on: true}]", "has no True"),
        ("format: 2\npositive: [Real]\nnegative: [Oil]", "newer version"),
        ("format: x\npositive: [Real]\nnegative: [Oil]", "format is 'x'"),
        (b"positive: [\xff]", "byte 12"),
        ("positive: [Real]\nnegative: [" + "9" * 5_000 + "]", "cannot be read"),
        ("#" * (MAX_BYTES + 1), "bytes and may have"),
    ],
)
def test_yaml_from_elsewhere_is_refused_in_a_sentence(text, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_word_set(text)
    assert len(str(refused.value)) < 250 and "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml cannot be read"):
        load_word_set(tmp_path / "nothing.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="larger than"):
        load_word_set(tmp_path / "large.yaml")
