"""Every bad input is answered by one sentence, whoever sends it."""

import math

import pytest

from app.services.requests import (
    MAX_GRID_PICTURES,
    MAX_PROMPT_CHARACTERS,
    BadInput,
    CompareRequest,
    GridRequest,
    Settings,
    parse,
)
from app.state import Session
from srpo.evaluation.records import MAX_SEED

GOOD = {
    "prompt": "a red ball on a beach at sunset",
    "seed": 7,
    "num_seeds": 2,
    "steps": 28,
    "guidance": 3.5,
    "width": 128,
    "height": 96,
    "control_word": "none",
    "left": "base",
    "right": "srpo",
}


def test_a_good_request_is_typed():
    request = parse(CompareRequest, GOOD | {"seed": "7", "steps": 28.0, "prompt": "  a red\n ball "})
    assert (request.seed, request.steps, request.prompt) == (7, 28, "a red ball")
    assert isinstance(request.steps, int)
    assert request.control_word == ""


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", "", "The prompt is empty"),
        ("prompt", " \n\t", "The prompt is empty"),
        ("prompt", None, "The prompt is empty"),
        ("prompt", "x" * (MAX_PROMPT_CHARACTERS + 1), "please shorten"),
        ("prompt", "x" * 1_000_000, "please shorten"),
        ("width", 100, "multiple of 16, not 100: 96 or 112"),
        ("height", 128.5, "multiple of 16"),
        ("width", 4096, "at most 2048"),
        ("width", 2056, "multiple of 16"),
        ("height", 0, "multiple of 16"),
        ("height", -128, "multiple of 16"),
        ("width", math.inf, "finite"),
        ("width", None, "Width must be a number"),
        ("guidance", math.nan, "finite"),
        ("guidance", "NaN", "finite"),
        ("guidance", -0.1, "between 0 and 20"),
        ("guidance", 1e9, "between 0 and 20"),
        ("guidance", "much", "Guidance must be a number"),
        ("steps", 0, "whole number from 1 to 100"),
        ("steps", 101, "whole number from 1 to 100"),
        ("steps", 2.5, "whole number from 1 to 100"),
        ("steps", math.inf, "finite"),
        ("steps", True, "Steps must be a number"),
        ("steps", [28], "Steps must be a number"),
        ("steps", "9" * 400, "finite"),
        ("seed", -1, "The seed must be a whole number"),
        ("seed", MAX_SEED + 1, "The seed must be a whole number"),
        ("seed", None, "The seed must be a number"),
        ("num_seeds", 17, "from 1 to 16"),
        ("control_word", "w" * 61, "at most 60 characters"),
        ("control_word", 3, "must be text"),
        ("left", "", "Choose a model for the left side"),
        ("right", None, "Choose a model for the right side"),
        ("left", "a\0b", "not a name of a model"),
        ("colour", "red", "'colour' that means nothing here"),
    ],
)
def test_a_bad_field_is_answered_by_one_sentence(field, value, says):
    with pytest.raises(BadInput) as error:
        parse(CompareRequest, GOOD | {field: value})
    message = str(error.value)
    assert says in message
    assert "\n" not in message and len(message) < 220 and message.endswith(".")


def test_a_missing_field_is_named():
    with pytest.raises(BadInput, match="lacks 'seed'"):
        parse(CompareRequest, {key: value for key, value in GOOD.items() if key != "seed"})


def test_seeds_are_consecutive_and_start_over_after_the_largest():
    assert parse(Settings, {"seed": MAX_SEED, "num_seeds": 3}).seeds == [MAX_SEED, 0, 1]


def test_a_control_word_stands_before_the_prompt_as_the_paper_writes_it():
    assert Settings(seed=0, control_word="Photo.").text("a ball") == "Photo. a ball"
    assert Settings(seed=0, control_word="None").text("a ball") == "a ball"


GRID = {key: GOOD[key] for key in ("seed", "steps", "guidance", "width", "height")} | {"num_seeds": 2}


def test_a_grid_takes_one_prompt_per_line():
    request = parse(GridRequest, GRID | {"prompts": "a ball\n\n  a tree \n", "models": ["base", "srpo"]})
    assert request.prompts == ("a ball", "a tree")
    assert request.num_pictures == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": "\n \n"}, "no prompts"),
        ({"models": []}, "no models"),
        ({"models": None}, "no models"),
        ({"prompts": "\n".join("abcdefghijklm")}, "at most 12 prompts"),
        ({"models": list("abcdefg")}, "at most 6 models"),
        ({"prompts": "\n".join("abcdefgh"), "num_seeds": 16}, f"may have {MAX_GRID_PICTURES}"),
        ({"prompts": ["a", ""]}, "The prompt is empty"),
    ],
)
def test_a_grid_out_of_bounds_is_answered_by_one_sentence(change, says):
    with pytest.raises(BadInput, match=says):
        parse(GridRequest, GRID | {"prompts": "a ball", "models": ["base", "srpo"]} | change)


def test_the_seed_modes_take_the_typed_a_new_or_the_last_one():
    session = Session()
    assert session.choose_seed("fixed", "7") == "7"
    with pytest.raises(ValueError, match="No seed has been used yet"):
        session.choose_seed("last", 7)
    session.last_seed = 12
    assert session.choose_seed("last", 7) == 12
    drawn = {session.choose_seed("random", 7) for _ in range(20)}
    assert len(drawn) > 15 and all(0 <= seed <= MAX_SEED for seed in drawn)
    with pytest.raises(ValueError, match="Seed mode"):
        session.choose_seed("best", 7)
