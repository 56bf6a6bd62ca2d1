"""The one gate every request passes: typed, bounded, and answered in one sentence where it does not fit.

Sliders and dropdowns of a page are suggestions; a client can send anything. Limits are therefore stated here and
nowhere else. What needs a loaded model (token counts, whether a file is a FLUX checkpoint) is checked by the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from srpo.evaluation.records import MAX_SEED
from srpo.policies.sizes import MAX_SIDE, SIZE_MULTIPLE

MAX_STEPS = 100
MAX_GUIDANCE = 20.0
MAX_SEEDS = 16
MAX_PROMPT_CHARACTERS = 4000  # a first fence; the limit that matters is counted in tokens by the engine
MAX_WORD_CHARACTERS = 60
MAX_GRID_PROMPTS = 12
MAX_GRID_MODELS = 6
MAX_GRID_PICTURES = 96
MAX_NAME_CHARACTERS = 1000

PLAIN = "none"  # the control-word picker's way to say: no prefix


class BadInput(ValueError):
    """A request that cannot be run; the message is one sentence that says what to do."""


def sentence(error: Exception | str) -> str:
    """A message of the library as a sentence of the page: a capital first, a full stop last."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{name} must be a number: enter one and try again.")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a number, not {str(value)[:40]!r}.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {number}.")
    return number


def whole(name: str, low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        number = _number(value, name)
        if number != int(number) or not low <= number <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high:,}, not {number:,.15g}.")
        return int(number)

    return check


def between(name: str, low: float, high: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        number = _number(value, name)
        if not low <= number <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, not at {number:g}.")
        return number

    return check


def _side(name: str) -> Callable[[object], int]:
    def check(value: object) -> int:
        number = _number(value, name)
        if number != int(number) or number % SIZE_MULTIPLE or number < SIZE_MULTIPLE:
            low = max(SIZE_MULTIPLE, int(number) // SIZE_MULTIPLE * SIZE_MULTIPLE)
            raise ValueError(
                f"{name} must be a multiple of {SIZE_MULTIPLE}, not {number:g}: "
                f"{min(low, MAX_SIDE)} or {min(low + SIZE_MULTIPLE, MAX_SIDE)} would do."
            )
        if number > MAX_SIDE:
            raise ValueError(f"{name} may be at most {MAX_SIDE} pixels, not {number:g}.")
        return int(number)

    return check


def _prompt(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("The prompt is empty: describe a picture, or choose an example.")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(
            f"The prompt has {len(value):,} characters and may have {MAX_PROMPT_CHARACTERS:,}: please shorten it."
        )
    return " ".join(value.split())


def _word(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError("A control word must be text.")
    word = " ".join(value.split()).rstrip(".")
    if len(word) > MAX_WORD_CHARACTERS:
        raise ValueError(f"A control word may have at most {MAX_WORD_CHARACTERS} characters, not {len(word)}.")
    return "" if word.casefold() == PLAIN else word


def model_name(name: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"Choose a model for {name}.")
        if len(value) > MAX_NAME_CHARACTERS or "\0" in value:
            raise ValueError(f"The name of the model for {name} is not a name of a model or a path.")
        return value.strip()

    return check


R = TypeVar("R", bound=BaseModel)
Prompt = Annotated[str, BeforeValidator(_prompt)]
ModelName = Annotated[str, BeforeValidator(model_name("the pictures"))]
Seed = Annotated[int, BeforeValidator(whole("The seed", 0, MAX_SEED))]
Word = Annotated[str, BeforeValidator(_word)]


class Settings(BaseModel):
    """What both sides of a comparison share: everything but the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Seed
    num_seeds: Annotated[int, BeforeValidator(whole("The number of seeds", 1, MAX_SEEDS))] = 1
    steps: Annotated[int, BeforeValidator(whole("Steps", 1, MAX_STEPS))] = 28
    guidance: Annotated[float, BeforeValidator(between("Guidance", 0.0, MAX_GUIDANCE))] = 3.5
    width: Annotated[int, BeforeValidator(_side("Width"))] = 128
    height: Annotated[int, BeforeValidator(_side("Height"))] = 128
    control_word: Word = ""

    @property
    def num_pictures(self) -> int:
        """How many are painted."""
        return self.num_seeds

    @property
    def seeds(self) -> list[int]:
        """The seeds of the run: consecutive, starting over at 0 after the largest."""
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_seeds)]

    def text(self, prompt: str) -> str:
        """What the text encoders see of a prompt: the control word in front, as the paper writes it."""
        return f"{self.control_word}. {prompt}" if self.control_word else prompt


class CompareRequest(Settings):
    """One prompt, two models."""

    prompt: Prompt
    left: Annotated[str, BeforeValidator(model_name("the left side"))]
    right: Annotated[str, BeforeValidator(model_name("the right side"))]

    @property
    def num_pictures(self) -> int:
        return 2 * self.num_seeds


class GridRequest(Settings):
    """Prompts x seeds x models."""

    prompts: tuple[Prompt, ...]
    models: tuple[Annotated[str, BeforeValidator(model_name("each column"))], ...]

    @model_validator(mode="before")
    @classmethod
    def _from_lines(cls, raw: Any) -> Any:
        """Prompts may come as one text, one prompt per line."""
        if isinstance(raw, dict) and isinstance(raw.get("prompts"), str):
            raw = {**raw, "prompts": [line for line in raw["prompts"].splitlines() if line.strip()]}
        if isinstance(raw, dict) and raw.get("models") is None:
            raw = {**raw, "models": []}
        return raw

    @model_validator(mode="after")
    def _fits(self) -> GridRequest:
        if not self.prompts:
            raise ValueError("The grid has no prompts: write one per line.")
        if len(self.prompts) > MAX_GRID_PROMPTS:
            raise ValueError(f"A grid takes at most {MAX_GRID_PROMPTS} prompts, not {len(self.prompts)}.")
        if not self.models:
            raise ValueError("The grid has no models: choose at least one.")
        if len(set(self.models)) > MAX_GRID_MODELS:
            raise ValueError(f"A grid takes at most {MAX_GRID_MODELS} models, not {len(set(self.models))}.")
        if self.num_pictures > MAX_GRID_PICTURES:
            raise ValueError(
                f"The grid would have {self.num_pictures} pictures and may have {MAX_GRID_PICTURES}: "
                "take fewer prompts, seeds or models."
            )
        return self

    @property
    def num_pictures(self) -> int:
        return len(self.prompts) * self.num_seeds * len(dict.fromkeys(self.models))


def parse(kind: type[R], raw: dict[str, Any]) -> R:
    """The request, typed and in bounds. BadInput with one sentence about the first thing that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise BadInput(str(first["ctx"]["error"])) from None
        field = ".".join(str(part) for part in first["loc"]) or "The request"
        if first["type"] == "missing":
            raise BadInput(f"The request lacks {field!r}: fill it in and try again.") from None
        if first["type"] == "extra_forbidden":
            raise BadInput(f"The request has a field {field!r} that means nothing here.") from None
        raise BadInput(f"{field!r} has a form that cannot be read: {first['msg']}.") from None
