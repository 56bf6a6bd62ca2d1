"""What a study will do, said before it begins: prompts x models x seeds x criteria, and how it will be analysed.

Both sides of a pair show one prompt from one seed under the plan's one set of settings: a plan cannot say otherwise.
A frozen plan has a content hash; a changed plan is a new version with another one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from srpo.studies.criteria import OVERALL, WHOLE, Criterion

FORMAT = 1  # of the plan as text
MAX_PROMPTS = 2000
MAX_PROMPT_CHARACTERS = 4000
MAX_MODELS = 12
MAX_SEEDS = 16
MAX_CRITERIA = 8
MAX_SETTINGS = 64
MAX_TRIALS = 2000  # of one rater, repeats and gold pairs left out
MAX_SEED = 2**32 - 1
MAX_SCHEDULE_SEED = 2**53 - 1  # the largest that any reader of JSON reads as it is
MAX_TEXT_CHARACTERS = 4000  # of a rubric's line or the instructions
MAX_NAME_CHARACTERS = 200

Scalar = str | int | float | bool | None
Lane = tuple[str, ...]  # the models shown together: two in a pair, one where pictures are rated


def one_line(name: str, most: int, *, empty: bool = False):
    """A check that gives one line of text without surrounding space, which any database and file can hold."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text.")
        text = " ".join(value.split())
        if not text and not empty:
            raise ValueError(f"{name} is empty: write something there.")
        if len(text) > most:
            raise ValueError(f"{name} has {len(text):,} characters and may have {most:,}: please shorten it.")
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name} has characters that cannot be stored: type it anew.")
        return text

    return check


def _between(name: str, low: float, high: float, *, whole: bool = False):
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a number.")
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:,.10g}, not at {value:,.10g}.")
        if whole and value != int(value):
            raise ValueError(f"{name} must be a whole number, not {value:g}.")
        return int(value) if whole else float(value)

    return check


def _optional(check):
    return lambda value: None if value is None else check(value)


def _share(name: str, most: float = 1.0):
    return BeforeValidator(_between(name, 0.0, most))


Seed = Annotated[int, BeforeValidator(_between("A seed", 0, MAX_SEED, whole=True))]
Name = Annotated[str, BeforeValidator(one_line("A name", MAX_NAME_CHARACTERS))]
VotesPerItem = Annotated[int, BeforeValidator(_between("The number of votes on each pair", 1, 1000, whole=True))]


class Part(BaseModel):
    """A part of a plan: it cannot change, and knows no fields but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Prompt(Part):
    """What a picture was asked to show."""

    text: Annotated[str, BeforeValidator(one_line("A prompt", MAX_PROMPT_CHARACTERS))]
    category: Annotated[str, BeforeValidator(one_line("A category", MAX_NAME_CHARACTERS, empty=True))] = ""


class Model(Part):
    """Where one side's pictures come from. Raters never see any of it."""

    key: Name  # "base", "run:first", "folder:1": unique within the plan
    label: Name  # as it is called when the study is over
    weights_sha256: Annotated[str, BeforeValidator(one_line("A hash", 64, empty=True))] = ""


class FixedStop(Part):
    """The study is complete when each item has so many votes."""

    kind: Literal["fixed"] = "fixed"
    votes_per_item: VotesPerItem = 5


class SequentialStop(Part):
    """The study may end after any prompt whose items all have so many votes, as soon as the evidence suffices.

    At most `alpha` of the studies without a true difference end with a winner, whenever and however often one looks.
    """

    kind: Literal["sequential"] = "sequential"
    votes_per_item: VotesPerItem = 1
    alpha: Annotated[float, BeforeValidator(_between("Alpha", 0.001, 0.2))] = 0.05


class Filters(Part):
    """Whose votes, and which, are left out of the filtered results. Declared beforehand, or they are a choice."""

    min_gold: Annotated[float | None, BeforeValidator(_optional(_between("The least gold share", 0, 1)))] = 0.5
    min_repeats: Annotated[float | None, BeforeValidator(_optional(_between("The least repeat share", 0, 1)))] = None
    min_dwell_s: Annotated[float | None, BeforeValidator(_optional(_between("The shortest look", 0, 600)))] = 0.5


class Plan(Part):
    """A whole study, with its analysis. An item is a prompt with a seed and the models that are shown together."""

    title: Annotated[str, BeforeValidator(one_line("The title", MAX_NAME_CHARACTERS))]
    instructions: Annotated[str, BeforeValidator(one_line("The instructions", MAX_TEXT_CHARACTERS, empty=True))] = ""
    mode: Literal["pairwise", "rating"] = "pairwise"
    prompts: tuple[Prompt, ...]
    models: tuple[Model, ...]
    seeds: tuple[Seed, ...] = (0,)
    settings: dict[str, Scalar] = Field(default_factory=dict)  # of the pictures, on all sides: steps, width ...
    criteria: tuple[Criterion, ...] = (WHOLE,)  # the first one decides a sequential study
    trials_per_rater: (
        Annotated[int, BeforeValidator(_between("The trials of a rater", 1, MAX_TRIALS, whole=True))] | None
    ) = None  # None: each rater sees every item; repeats and gold pairs come on top
    repeats: Annotated[float, _share("The share of repeats", 0.3)] = 0.10  # of all that a rater sees
    gold: Annotated[float, _share("The share of gold pairs", 0.2)] = 0.05
    stop: Annotated[FixedStop | SequentialStop, Field(discriminator="kind")] = FixedStop()
    filters: Filters = Filters()
    smallest_win_rate: Annotated[float, BeforeValidator(_between("The smallest win rate", 0.51, 0.99))] = 0.6
    # Of the schedule and of the bootstrap. Whoever knows the whole plan knows what stands on which side, so it is drawn
    # at random, and told with the results.
    seed: Annotated[int, BeforeValidator(_between("The seed of the schedule", 0, MAX_SCHEDULE_SEED, whole=True))] = 0

    @model_validator(mode="after")
    def _fits(self) -> Plan:
        _count("prompts", self.prompts, 1, MAX_PROMPTS)
        _count("models", self.models, 2 if self.mode == "pairwise" else 1, MAX_MODELS)
        _count("seeds", self.seeds, 1, MAX_SEEDS)
        _count("criteria", self.criteria, 1, MAX_CRITERIA)
        _count("settings", self.settings, 0, MAX_SETTINGS)
        _distinct("prompt", [prompt.text.casefold() for prompt in self.prompts])
        _distinct("model", [model.key for model in self.models])
        _distinct("label of a model", [model.label for model in self.models])
        _distinct("seed", self.seeds)
        _distinct("criterion", [criterion.key for criterion in self.criteria])
        for criterion in self.criteria:
            _check_criterion(criterion)
        if self.mode == "rating" and any(criterion.key == OVERALL for criterion in self.criteria):
            raise ValueError("Overall is derived from the other ratings: leave it out of a rating study.")
        if self.mode == "rating" and self.stop.kind == "sequential":
            raise ValueError("Only a pairwise study can stop by its evidence: choose a fixed number of votes.")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.settings.values()):
            raise ValueError("A setting of the pictures is no finite number: correct it.")
        for name, value in self.settings.items():
            one_line("The name of a setting", MAX_NAME_CHARACTERS)(name)
            if isinstance(value, str):
                one_line(f"The setting {name!r}", MAX_TEXT_CHARACTERS, empty=True)(value)
        if self.trials_per_rater is None and self.num_items > MAX_TRIALS:
            raise ValueError(
                f"Each rater would see {self.num_items:,} items, more than {MAX_TRIALS:,}: limit the trials of a rater."
            )
        return self

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and other.sha256 == self.sha256

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """The models shown together: all pairs, or one at a time. The first lane decides a sequential study."""
        keys = [model.key for model in self.models]
        return tuple(combinations(keys, 2)) if self.mode == "pairwise" else tuple((key,) for key in keys)

    @property
    def num_scenes(self) -> int:
        """How many (prompt, seed) there are."""
        return len(self.prompts) * len(self.seeds)

    @property
    def num_items(self) -> int:
        return self.num_scenes * len(self.lanes)

    @property
    def num_main(self) -> int:
        """Trials of one rater without repeats and gold pairs.

        A number just short of all items becomes all of them, as `schedule` can then keep every pair from coming twice.
        """
        wanted = self.num_items if self.trials_per_rater is None else self.trials_per_rater
        return wanted if wanted <= len(self.lanes) * (self.num_scenes - 1) else self.num_items

    @property
    def num_repeats(self) -> int:
        return round(self.repeats * self._unrounded) if self.num_main > 1 else 0

    @property
    def num_gold(self) -> int:
        """No more than there are pictures: each of them has one spoiled partner."""
        return min(round(self.gold * self._unrounded), self.num_scenes * len(self.models))

    @property
    def num_trials(self) -> int:
        """All that one rater sees."""
        return self.num_main + self.num_repeats + self.num_gold

    @cached_property
    def sha256(self) -> str:
        """The hash of the plan's text: two plans have one hash where they say the same."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()

    def as_text(self) -> str:
        """The plan as JSON in one fixed form, which is what is hashed and stored."""
        content = {"format": FORMAT, **self.model_dump(mode="json")}
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The plan that `as_text` wrote. ValueError, one sentence, for anything else."""
        try:
            content = json.loads(text)
            found = content.pop("format")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise ValueError("This is no plan of a study: it is not in the form that is exported here.") from None
        if found != FORMAT:
            raise ValueError(f"The plan has format {found!r} and this program reads {FORMAT}: update it.")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or "the whole"
            raise ValueError(f"This is no plan of a study: {field}: {first['msg']}.") from None

    def criterion(self, key: str) -> Criterion:
        """KeyError where there is none of that name."""
        return {criterion.key: criterion for criterion in self.criteria}[key]

    def label(self, model: str) -> str:
        """What a model is called when the study is over. KeyError where there is none of that key."""
        return {known.key: known.label for known in self.models}[model]

    @property
    def _unrounded(self) -> float:
        return self.num_main / (1 - self.repeats - self.gold)


@dataclass(frozen=True)
class Version:
    """A plan as it stands in a series of versions of one study."""

    number: int  # from 1
    plan: Plan
    sha256: str

    @classmethod
    def first(cls, plan: Plan) -> Version:
        return cls(1, plan, plan.sha256)

    def changed_to(self, plan: Plan) -> Version:
        """The next version. ValueError where nothing has changed."""
        if plan.sha256 == self.sha256:
            raise ValueError("The plan has not changed, so there is no new version of it.")
        return Version(self.number + 1, plan, plan.sha256)


def changes(before: Plan, after: Plan) -> dict[str, tuple[Any, Any]]:
    """(before, after) of every field in which two plans differ."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {name: (old[name], new[name]) for name in old if old[name] != new[name]}


def _count(name: str, values, low: int, high: int) -> None:
    if not low <= len(values) <= high:
        raise ValueError(f"A study takes {low} to {high:,} {name}, not {len(values):,}.")


def _distinct(name: str, values) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"The {name} {str(value)[:80]!r} is there twice: keep one of them.")
        seen.add(value)


def _check_criterion(criterion: Criterion) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", criterion.key):
        raise ValueError(
            f"A criterion's key is a short word of small letters, digits and _, not {criterion.key[:40]!r}."
        )
    one_line("A criterion's title", MAX_NAME_CHARACTERS)(criterion.title)
    one_line("A criterion's question", MAX_NAME_CHARACTERS)(criterion.question)
    for line in criterion.rubric:
        one_line("A line of a rubric", MAX_TEXT_CHARACTERS)(line)
