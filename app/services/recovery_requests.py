"""What the Recoveries tab may ask for: typed, bounded, and answered in one sentence where it does not fit."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from app.services.requests import Prompt, Seed, Settings, Word, between, model_name, whole
from srpo.evaluation.records import MAX_SEED

SIGMAS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)  # the paper's Figure 3
D_SIGMAS = (0.075, 0.025)
MAX_LEVELS = 12
MAX_D_SIGMAS = 4
MAX_MODELS = 2
MAX_NOISES = 16
MAX_STEP = 32.0  # of a push, in 255ths
DIGITS = 4  # of a noise level: nearer ones look the same and have the same name
RANGE = re.compile(r"(.+?)\s*(?:-|–|to)\s*(.+?)\s*/\s*(.+)")  # "0.95-0.5/10"

Source = Literal["generate", "upload", "example"]


def levels_of(value: object) -> tuple[float, ...]:
    """Noise levels, the noisiest first, of numbers and texts such as "0.85, 0.95-0.5/10" (ten evenly spaced ones).

    ValueError, one sentence, for none, too many, one that is no number in (0, 1), or one that comes twice.
    """
    parts = value if isinstance(value, list | tuple) else [value]
    levels = [level for part in parts for level in (_read(part) if isinstance(part, str) else [part])]
    if not levels:
        raise ValueError("There are no noise levels: choose one, or write some.")
    if len(levels) > MAX_LEVELS:
        raise ValueError(f"At most {MAX_LEVELS} noise levels are taken, not {len(levels)}.")
    levels = [_open_interval("A noise level")(level) for level in levels]
    if twice := [level for level in levels if levels.count(level) > 1]:
        raise ValueError(f"The noise level {twice[0]:g} is named twice: once is enough.")
    return tuple(sorted(levels, reverse=True))


def _read(text: str) -> list[object]:
    """The numbers of a text, as texts where they are not part of a range."""
    found: list[object] = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        match = RANGE.fullmatch(part)
        if match is None:
            found += part.split()
            continue
        first, last = (_open_interval("A noise level")(end) for end in match.groups()[:2])
        count = whole("The number of levels in a range", 2, MAX_LEVELS)(match[3])
        found += [first + (last - first) * place / (count - 1) for place in range(count)]
    return found


def d_sigmas_of(value: object) -> tuple[float, ...]:
    """Steps of Direct-Align, the longest first, of numbers or a text of them. ValueError as for `levels_of`."""
    parts = re.split(r"[,;\s]+", value.strip()) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not any(parts):
        raise ValueError("There is no step Δσ for Direct-Align: write one, such as 0.025.")
    if len(parts) > MAX_D_SIGMAS:
        raise ValueError(f"At most {MAX_D_SIGMAS} steps Δσ are taken, not {len(parts)}.")
    steps = [_open_interval("A step Δσ")(part) for part in parts]
    if twice := [step for step in steps if steps.count(step) > 1]:
        raise ValueError(f"The step Δσ {twice[0]:g} is named twice: once is enough.")
    return tuple(sorted(steps, reverse=True))


def _open_interval(name: str) -> Any:
    def check(value: object) -> float:
        number = between(name, 0.0, 1.0)(value)
        if not 0 < round(number, DIGITS) < 1:
            raise ValueError(f"{name} must be above 0 and below 1, not {number:g}.")
        return round(number, DIGITS)

    return check


def _models(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError("Choose at least one model that recovers the picture.")
    names = tuple(dict.fromkeys(model_name("the recovery")(name) for name in names))
    if len(names) > MAX_MODELS:
        raise ValueError(f"At most {MAX_MODELS} models are shown side by side, not {len(names)}.")
    return names


class RunRequest(Settings):
    """A sampling run: one prompt, one model, one seed."""

    prompt: Prompt
    painter: Annotated[str, BeforeValidator(model_name("the picture"))]


class RecoverRequest(RunRequest):
    """A picture, noise, and by which models and steps it is to be recovered from which levels."""

    source: Source
    models: Annotated[tuple[str, ...], BeforeValidator(_models)]
    sigmas: Annotated[tuple[float, ...], BeforeValidator(levels_of)]
    shifted: bool = False  # True: a level says how far a sampler has come, and is moved by the schedule's shift
    d_sigmas: Annotated[tuple[float, ...], BeforeValidator(d_sigmas_of)]
    own_noise: bool = False  # True: that of the run that made the picture, where it was generated
    noise_seed: Seed = 1
    num_noises: Annotated[int, BeforeValidator(whole("The number of noises", 1, MAX_NOISES))] = 1
    lpips: bool = False  # True: measured too, by the package of that name

    @model_validator(mode="after")
    def _fits(self) -> RecoverRequest:
        if self.d_sigmas[0] >= self.sigmas[0]:
            raise ValueError(
                f"The step Δσ {self.d_sigmas[0]:g} reaches the clean picture from every level, as the one-step "
                f"prediction does: take one below {self.sigmas[0]:g}."
            )
        return self

    @property
    def num_pictures(self) -> int:
        """The recoveries: by one step, by every step of Direct-Align, and by inversion."""
        return len(self.models) * len(self.sigmas) * (2 + len(self.d_sigmas)) * self.num_noises

    @property
    def noise_seeds(self) -> list[int]:
        """The seeds of the noises: consecutive, starting over at 0 after the largest."""
        first = self.seed if self.uses_own_noise else self.noise_seed
        return [(first + index) % (MAX_SEED + 1) for index in range(self.num_noises)]

    @property
    def uses_own_noise(self) -> bool:
        """Whether the noise is that of the picture's own run: one that was not generated here has none."""
        return self.own_noise and self.source == "generate"


class FilmRequest(RunRequest):
    """A sampling run to look into, and Direct-Align's step at each of its levels."""

    d_sigmas: Annotated[tuple[float, ...], BeforeValidator(d_sigmas_of)]


class PushRequest(BaseModel):
    """Where in the last grid, under which words, and how far."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Annotated[int, BeforeValidator(whole("The level's place", 0, MAX_LEVELS - 1))]
    model: Annotated[int, BeforeValidator(whole("The model's place", 0, MAX_MODELS - 1))] = 0
    text: Prompt
    word: Word = ""
    step: Annotated[float, BeforeValidator(between("The step", 0.5, MAX_STEP))] = 4.0  # in 255ths
