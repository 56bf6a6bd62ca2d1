"""What a visitor may ask of training, typed and bounded: the same gate for the page and for whoever posts to it.

Limits of single settings belong to the training's own configuration, which refuses them in a sentence; here are the
limits of what comes from a page: lengths, kinds, names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from app.services.requests import (
    MAX_NAME_CHARACTERS,
    MAX_PROMPT_CHARACTERS,
    MAX_WORD_CHARACTERS,
    BadInput,
    between,
    sentence,
    whole,
)
from srpo.policies.families import PIPELINES
from srpo.runs.atomic import write_text
from srpo.runs.control import require_name

MAX_UPDATES = 100_000
MAX_PROMPTS = 100_000
MAX_PROMPT_BYTES = 16 * 2**20
MAX_WORDS = 40
MAX_ASSIGNMENTS = 200
MAX_COMPARED = 6


def read_prompt_file(path: str | Path) -> str:
    """The text of a prompt file. BadInput for one that is too large, empty, or not UTF-8."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_PROMPT_BYTES:
            raise BadInput(f"The prompt file is larger than {MAX_PROMPT_BYTES // 2**20} MB: split it.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"The prompt file is not UTF-8 text (byte {error.start + 1:,} is not): save it as UTF-8."
        ) from None
    except OSError as error:
        raise BadInput(f"The prompt file cannot be read ({error.strerror}): choose it again.") from None
    if "\0" in text:
        raise BadInput("The prompt file is not a text file: choose one with one prompt per line.")
    return text


def lines_of(settings: Mapping[str, Any]) -> list[str]:
    """The settings as assignments, as the command line takes them."""
    return [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]


def with_lines(more: str, lines: Sequence[str]) -> str:
    """The text of settings with these ones, each where its name stood before, else at the end; other lines stay.

    A line that sets a whole group of settings has no say over one of them that is given here. ValueError for a line
    without a name or a "=".
    """
    kept = (more or "").splitlines()
    for line in lines:
        name = _name_of(line)
        if not name or "=" not in line:
            raise ValueError(f"{line[:60]!r} sets nothing: expected key=value")
        before = [place for place, old in enumerate(kept) if _name_of(old) == name]
        groups = [place for place, old in enumerate(kept) if name.startswith(f"{_name_of(old)}.")]
        if before and before[-1] > max(groups, default=-1):
            kept[before[-1]] = line
            del before[-1]
        else:
            kept.append(line)
        for place in reversed(before):
            del kept[place]
    return "\n".join(kept)


def _name_of(line: str) -> str:
    """What a line sets; "" for an empty line or a remark."""
    return "" if line.lstrip().startswith("#") else line.partition("=")[0].strip()


def _lines(value: object) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise ValueError("The prompts must be text, one per line.")
    if len(value.encode()) > MAX_PROMPT_BYTES:
        raise ValueError(f"The prompts are longer than {MAX_PROMPT_BYTES // 2**20} MB: take fewer.")
    lines = [" ".join(line.split()) for line in value.splitlines()]
    prompts = tuple(line for line in lines if line)
    if not prompts:
        raise ValueError("There are no prompts: write one per line.")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"At most {MAX_PROMPTS:,} prompts are taken, not {len(prompts):,}.")
    for number, line in enumerate(lines, start=1):
        if len(line) > MAX_PROMPT_CHARACTERS:
            raise ValueError(
                f"Line {number:,} of the prompts has {len(line):,} characters and may have {MAX_PROMPT_CHARACTERS:,}: "
                "shorten it, or check that every prompt is on a line of its own."
            )
    return prompts


def _words(side: str) -> Any:
    def check(value: object) -> tuple[str, ...]:
        if not isinstance(value, str):
            raise ValueError(f"The {side} words must be text, one per line.")
        words = tuple(dict.fromkeys(" ".join(word.split()) for word in value.splitlines() if word.strip()))
        if not words:
            raise ValueError(f"There are no {side} control words: write at least one.")
        if len(words) > MAX_WORDS:
            raise ValueError(f"At most {MAX_WORDS} {side} words are taken, not {len(words)}.")
        if longest := [word for word in words if len(word) > MAX_WORD_CHARACTERS]:
            raise ValueError(
                f"The {side} word {longest[0][:30]!r}… has {len(longest[0])} characters and may have "
                f"{MAX_WORD_CHARACTERS}: write one word or phrase per line."
            )
        return words

    return BeforeValidator(check)


def _run_name(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("A run's name must be text.")
    name = value.strip()
    try:
        return require_name(name) if name else ""
    except ValueError as error:
        raise ValueError(sentence(error)) from None


def _assignments(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str):
        raise ValueError("Other settings must be text, one key=value per line.")
    lines = tuple(line.strip() for line in value.splitlines() if line.strip() and not line.strip().startswith("#"))
    if len(lines) > MAX_ASSIGNMENTS:
        raise ValueError(f"At most {MAX_ASSIGNMENTS} settings are taken, not {len(lines)}.")
    if odd := [line for line in lines if "=" not in line]:
        raise ValueError(f"{odd[0][:60]!r} sets nothing: write key=value, one per line.")
    return tuple("=".join(part.strip() for part in line.split("=", 1)) for line in lines)


def _optional(check: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None or value == "" else check(value))


def _positive(name: str, high: float) -> Any:
    def check(value: object) -> float:
        number = between(name, 0.0, high)(value)
        if number == 0:
            raise ValueError(f"{name} must be above 0.")
        return number

    return check


def _model_folder(value: object) -> Path | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str | Path) or len(str(value)) > MAX_NAME_CHARACTERS or "\0" in str(value):
        raise ValueError("The model must be the path of a folder.")
    folder = Path(value).expanduser()
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"There is no pipeline in {str(value)[:80]!r}: give the folder of a {PIPELINES}.")
    return folder


RunName = Annotated[str, BeforeValidator(_run_name)]


class TrainRequest(BaseModel):
    """A run to start, or to measure: a preset and what is changed of it. What is None is as in the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Annotated[str, BeforeValidator(lambda value: value if isinstance(value, str) else "")]
    name: RunName = ""
    model: Annotated[Path | None, BeforeValidator(_model_folder)] = None  # a pipeline's folder
    prompts: Annotated[tuple[str, ...], BeforeValidator(_lines)] | None = None  # own ones
    prompt_set: Path | None = None  # or the file of a built-in set
    positive: Annotated[tuple[str, ...], _words("positive")] | None = None
    negative: Annotated[tuple[str, ...], _words("negative")] | None = None
    updates: Annotated[int | None, _optional(whole("The number of updates", 1, MAX_UPDATES))] = None
    prompts_per_update: Annotated[int | None, _optional(whole("Prompts per update", 1, 4096))] = None
    lr: Annotated[float | None, _optional(_positive("The learning rate", 1.0))] = None
    weights: Literal["full", "lora"] | None = None
    validate_every: Annotated[int | None, _optional(whole("Updates between validations", 0, MAX_UPDATES))] = None
    seed: Annotated[int | None, _optional(whole("The seed", 0, 2**31 - 1))] = None
    more: Annotated[tuple[str, ...], BeforeValidator(_assignments)] = ()
    sinks: tuple[Literal["tensorboard", "trackio"], ...] = ()

    def assignments(self, prompt_folder: Path) -> list[str]:
        """The changes as the command line takes them. Own prompts are named by the file that `keep_prompts` writes."""
        settings: dict[str, Any] = {
            "model": None if self.model is None else str(self.model.resolve()),
            "updates": self.updates,
            "prompts_per_update": self.prompts_per_update,
            "lr": self.lr,
            "weights": self.weights,
            "validation.every": self.validate_every,
            "seed": self.seed,
            "signal.words.positive": None if self.positive is None else list(self.positive),
            "signal.words.negative": None if self.negative is None else list(self.negative),
            "prompts": self._prompt_path(prompt_folder),
        }
        given = {name: value for name, value in settings.items() if value is not None}
        # What is written out has the last word, but for what a field has replaced.
        chosen = {name for name in ("model", "prompts") if name in given}
        return [*lines_of(given), *(line for line in self.more if line.partition("=")[0] not in chosen)]

    def keep_prompts(self, folder: Path) -> None:
        """Writes own prompts where the run will read them; the same prompts always to the same file."""
        if self.prompts is None:
            return
        path = Path(self._prompt_path(folder))
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, "\n".join(self.prompts) + "\n")

    def _prompt_path(self, folder: Path) -> str | None:
        if self.prompts is None:
            return None if self.prompt_set is None else str(self.prompt_set)
        text = "\n".join(self.prompts)
        return str((folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt").resolve())
