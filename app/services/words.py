"""What a reward makes of control words: scores of pictures under every word, and whether it perceives a word at all.

Both are generators of snapshots that hold the device for as long as they work. What loads torch is imported where it is
needed: the page is built without.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image, PngImagePlugin
from pydantic import BeforeValidator, field_validator, model_validator

from app.services.compare import facts_of, narrate, prepare
from app.services.device import StopFlag, Stopped
from app.services.lending import by_the_call
from app.services.metadata import comparison_texts
from app.services.models import FULL_SIDE, Model
from app.services.requests import (
    MAX_WORD_CHARACTERS,
    BadInput,
    CompareRequest,
    ModelName,
    Prompt,
    Settings,
    parse,
    whole,
)
from app.services.studio import Studio
from app.services.uploads import read_picture
from app.services.word_sets import FORM_LABELS, Words, require_room
from srpo.evaluation.records import MAX_SEED, file_stem

if TYPE_CHECKING:
    from torch import Tensor

    from app.services.engine import Engine
    from srpo.policies.flux import FluxPolicy
    from srpo.rewards.clip import ClipReward
    from srpo.rewards.word_sets import WordSet

MAX_SEEN = 32  # pictures of one table
MAX_PAIRED = 8  # words of each side whose pairs are shown in every form
MAX_PAINTED = 640  # pictures of one check
MAX_OTHERS = 8  # words to compare with
PER_WORD = (8, 32)  # pictures
SHOWN_PER_WORD = 3
BATCH = 8  # pictures painted at once by a small model
PAPER_FORM_K = 0.9  # of the paper's form, where the set has another: it prefers the positive word above 0.5
FORMULAS = {
    "sgp": "f · C⁺",
    "srp": "f · (C⁺ − C⁻)",
    "cfg_like": "f · ((1 + k) C⁺ − C⁻), k = {k:.3g}",
    "cfg_like_paper": "f · ((1 − k) C⁻ + k C⁺), k = {k:.3g}",
}
NOISE_FORMULA = "r(x) − r(x + noise), no word at all"


# Requests


def _others(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, str):
        raise ValueError("Words to compare with must be text, set apart by commas.")
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in re.split(r"[\n,]", value) if word.strip()))
    if len(words) > MAX_OTHERS:
        raise ValueError(f"At most {MAX_OTHERS} words are compared with, not {len(words)}: take fewer.")
    if longest := [word for word in words if len(word) > MAX_WORD_CHARACTERS]:
        raise ValueError(f"The word {longest[0][:30]!r}… has {len(longest[0])} characters: a word is meant.")
    return words


def _lines(value: object) -> object:
    return [line for line in value.splitlines() if line.strip()] if isinstance(value, str) else value


Prompts = Annotated[tuple[Prompt, ...], BeforeValidator(_lines)]


class SeeRequest(Settings):
    """Pictures to score under every word: prompts x seeds of one model, or files under one prompt."""

    words: Words
    model: ModelName
    prompts: Prompts
    files: tuple[Path, ...] = ()

    @field_validator("files", mode="before")
    @classmethod
    def _no_files(cls, value: object) -> object:
        return value or ()

    @model_validator(mode="after")
    def _fits(self) -> SeeRequest:
        if not self.prompts:
            raise ValueError("There is no prompt: the words stand in front of one.")
        if self.files and len(self.prompts) > 1:
            raise ValueError("Pictures of your own are scored under one prompt: leave one line.")
        if self.num_pictures > MAX_SEEN:
            raise ValueError(f"That would be {self.num_pictures} pictures; at most {MAX_SEEN} are scored at once.")
        return self

    @property
    def num_pictures(self) -> int:
        return len(self.files) or len(self.prompts) * self.num_seeds


class PerceiveRequest(Settings):
    """Words to check by pictures painted with each of them and without."""

    words: Words
    model: ModelName
    others: Annotated[tuple[str, ...], BeforeValidator(_others)] = ()
    per_word: Annotated[int, BeforeValidator(whole("Pictures per word", *PER_WORD))] = 12

    @model_validator(mode="after")
    def _fits(self) -> PerceiveRequest:
        own = {word.casefold() for word, side in self.checked if side != "other"}
        if twice := [word for word in self.others if word.casefold() in own]:
            raise ValueError(f"{twice[0]!r} is in the set already: take it out of the words to compare with.")
        if self.num_pictures > MAX_PAINTED:
            raise ValueError(
                f"That would be {self.num_pictures} pictures; at most {MAX_PAINTED} are painted: take fewer per word."
            )
        return self

    @property
    def checked(self) -> list[tuple[str, str]]:
        """(word, side) of everything that is painted, the words to compare with last."""
        sides = [(word.word, side) for side in ("positive", "negative") for word in self.words.enabled(side)]
        return [*sides, *((word, "other") for word in self.others)]

    @property
    def num_pictures(self) -> int:
        return (len(self.checked) + 1) * self.per_word


# What the reward sees


@dataclass(frozen=True)
class Shown:
    """A picture of a table."""

    path: Path
    prompt: str
    label: str  # its seed, or the name of its file


@dataclass(frozen=True)
class FormRow:
    """A form of the reward, computed for every picture and pair of words."""

    label: str
    formula: str
    values: tuple[tuple[tuple[float, ...], ...], ...]  # by picture, positive word, negative word


@dataclass(frozen=True)
class Seen:
    """Everything the page can show of a table of scores at one moment."""

    phase: str  # "waiting", "running", "done" or "stopped"
    message: str
    share_done: float = 0.0
    left_s: float | None = None
    pictures: tuple[Shown, ...] = ()
    words: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    without: tuple[float, ...] = ()  # by picture
    under: tuple[tuple[float, ...], ...] = ()  # by picture and word
    difference: tuple[tuple[float, ...], ...] = ()
    rank: tuple[tuple[int, ...], ...] = ()
    paired: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())  # the words whose pairs `forms` has
    forms: tuple[FormRow, ...] = ()
    noise_formula: str = NOISE_FORMULA
    against_noise: tuple[float, ...] = ()  # by picture
    width: int = 1
    height: int = 1


@by_the_call
def see(studio: Studio, request: SeeRequest, stop: StopFlag) -> Iterator[Seen]:
    """Snapshots from the first wait to the table. BadInput for what cannot be scored; Stopped ends with a snapshot."""
    models = [] if request.files else [studio.catalogue.find(request.model)]
    uploaded = [read_picture(path, request.height, request.width) for path in request.files]
    view = Seen("waiting", "", width=request.width, height=request.height)
    try:
        for snapshot in _see(studio, request, models, uploaded, view, stop):
            view = snapshot
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message="Stopped.", left_s=None)


def _see(
    studio: Studio,
    request: SeeRequest,
    models: list[Model],
    uploaded: list[Image.Image],
    view: Seen,
    stop: StopFlag,
) -> Iterator[Seen]:
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, models, request, request.prompts, stop)
        engine, policies = yield from narrate(view, preparing)
        reward = require_reward(engine)
        require_room(reward, request.words, request.prompts)
        folder = studio.pictures.new_folder()
        if uploaded:
            view, images = _own(studio, request, uploaded, view, folder)
        else:
            view, images = yield from _painted(studio, engine, request, models[0], policies[0], view, folder, stop)
        stop.check()
        began_s = time.monotonic()
        view = _scored(view, reward, request.words, images)
        took_s = time.monotonic() - began_s
        message = f"{len(view.pictures)} pictures under {len(view.words)} words, scored in {took_s:.1f} s"
        yield replace(view, phase="done", message=message, share_done=1.0, left_s=None)


def _own(
    studio: Studio, request: SeeRequest, uploaded: Sequence[Image.Image], view: Seen, folder: Path
) -> tuple[Seen, Tensor]:
    """The view with the pictures that a visitor has brought, and the pictures (N, 3, H, W)."""
    import torch

    from srpo.rewards.base import image_tensor

    shown = tuple(
        Shown(keep(studio, folder, f"{number}-own", picture), request.prompts[0], path.name)
        for number, (picture, path) in enumerate(zip(uploaded, request.files, strict=True))
    )
    return replace(view, pictures=shown), torch.cat([image_tensor(picture) for picture in uploaded])


def _painted(
    studio: Studio,
    engine: Engine,
    request: SeeRequest,
    model: Model,
    policy: FluxPolicy,
    view: Seen,
    folder: Path,
    stop: StopFlag,
) -> Generator[Seen, None, tuple[Seen, Tensor]]:
    """Views with the pictures so far; returns the last and the pictures (N, 3, H, W)."""
    import torch

    asked = [(prompt, seed) for prompt in request.prompts for seed in request.seeds]
    facts, began_s, parts = facts_of(studio, engine, [model]), time.monotonic(), []
    for part in paint(engine, policy, *zip(*asked, strict=True), request, stop):
        parts.append(part)
        for image in part:
            prompt, seed = asked[len(view.pictures)]
            path = _keep_painted(studio, folder, request, model, prompt, seed, image, facts)
            view = replace(view, pictures=(*view.pictures, Shown(path, prompt, f"seed {seed}")))
        view = advanced(view, len(view.pictures), len(asked), began_s, "Picture")
        yield view
    return view, torch.cat(parts)


def _scored(view: Seen, reward: ClipReward, words: WordSet, images: Tensor) -> Seen:
    """The view with every score of its pictures (N, 3, H, W)."""
    import torch

    from srpo.evaluation.perception import word_table
    from srpo.rewards.control_words import under_noise

    prompts = [picture.prompt for picture in view.pictures]
    chosen = words.control_words
    names = (*chosen.positive, *chosen.negative)
    table = word_table(reward, images, prompts, names, chosen.apply)
    with torch.no_grad():
        noisy = reward.score(under_noise(images, seed=0), prompts).cpu()
    positive, negative = chosen.positive[:MAX_PAIRED], chosen.negative[:MAX_PAIRED]
    middle = sum(words.k_positive) / 2
    ks = {"cfg_like": middle, "cfg_like_paper": middle if words.form == "cfg_like_paper" else PAPER_FORM_K}
    forms = []
    for form, label in FORM_LABELS.items():
        k = ks.get(form, 0.0)
        pairs = [[table.form(form, plus, minus, k).tolist() for minus in negative] for plus in positive]
        values = tuple(tuple(tuple(pair[picture] for pair in row) for row in pairs) for picture in range(len(prompts)))
        forms.append(FormRow(label, FORMULAS[form].format(k=k), values))
    return replace(
        view,
        words=names,
        sides=("positive",) * len(chosen.positive) + ("negative",) * len(chosen.negative),
        without=tuple(table.without.tolist()),
        under=_rows(table.under),
        difference=_rows(table.difference),
        rank=_rows(table.rank),
        paired=(positive, negative),
        forms=tuple(forms),
        against_noise=tuple((table.without - noisy).tolist()),
    )


# Does it perceive the word?


@dataclass(frozen=True)
class WordRow:
    """A word, what was measured of it, and what to expect."""

    word: str
    side: str
    separation: tuple[float, float, float]  # AUC and its interval
    content: tuple[float, float, float]  # change of the content score and its interval
    kind: str
    verdict: str
    reason: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class Perceived:
    """Everything the page can show of a check of words at one moment."""

    phase: str
    message: str
    share_done: float = 0.0
    left_s: float | None = None
    rows: tuple[WordRow, ...] = ()
    without: tuple[Path, ...] = ()  # the same prompts and noise, without a word
    prompts: tuple[str, ...] = ()  # of the pictures that are shown
    correlation: tuple[tuple[float, ...], ...] = ()
    told_apart: tuple[tuple[float, ...], ...] = ()
    ratio: float = 1.0  # width / height


@by_the_call
def perceived(studio: Studio, request: PerceiveRequest, stop: StopFlag) -> Iterator[Perceived]:
    """Snapshots from the first wait to the verdicts. BadInput for what cannot be painted or scored."""
    models = [studio.catalogue.find(request.model)]
    view = Perceived("waiting", "", ratio=request.width / request.height)
    try:
        for snapshot in _perceived(studio, request, models, view, stop):
            view = snapshot
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message="Stopped.", left_s=None)


def _perceived(
    studio: Studio, request: PerceiveRequest, models: list[Model], view: Perceived, stop: StopFlag
) -> Iterator[Perceived]:
    chosen = request.words.control_words
    words, sides = zip(*request.checked, strict=True)
    prompts = prompts_for(studio, request.per_word)
    texts = [prompts, *([chosen.apply(word, prompt) for prompt in prompts] for word in words)]
    seeds = [(request.seed + number) % (MAX_SEED + 1) for number in range(len(prompts))]
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, models, request, [text for group in texts for text in group], stop)
        engine, policies = yield from narrate(view, preparing)
        import torch

        from srpo.evaluation.perception import perceive

        reward = require_reward(engine)
        require_room(reward, request.words, prompts)
        folder, facts = studio.pictures.new_folder(), facts_of(studio, engine, models)
        began_s, done, vectors, kept = time.monotonic(), 0, [], []
        for word, group in zip(("no word", *words), texts, strict=True):
            found: list[Tensor] = []
            paths_kept: list[Path] = []
            for part in paint(engine, policies[0], group, seeds, request, stop):
                with torch.no_grad():
                    found.append(reward.embed_image(part).cpu())
                for image in part[: SHOWN_PER_WORD - len(paths_kept)]:
                    number = len(paths_kept)
                    asked = group[number], seeds[number]
                    paths_kept.append(_keep_painted(studio, folder, request, models[0], *asked, image, facts))
                done += len(part)
                yield advanced(view, done, request.num_pictures, began_s, f"{word}: picture")
            vectors.append(torch.cat(found))
            kept.append(tuple(paths_kept))
        measured = perceive(reward, torch.stack(vectors), prompts, words, chosen.apply, sides)
        rows = tuple(
            WordRow(
                word,
                sides[w],
                tuple(measured.separation[w]),
                tuple(measured.content[w][:3]),
                *measured.verdicts[w][:3],
                kept[w + 1],
            )
            for w, word in enumerate(words)
        )
        yield replace(
            view,
            phase="done",
            message=f"{done} pictures in {time.monotonic() - began_s:.0f} s",
            share_done=1.0,
            left_s=None,
            rows=rows,
            without=kept[0],
            prompts=tuple(prompts[:SHOWN_PER_WORD]),
            correlation=_rows(measured.correlation),
            told_apart=_rows(measured.told_apart),
        )


def prompts_for(studio: Studio, count: int) -> list[str]:
    """So many prompts of those that come with the app and fit its model, evenly spread."""
    _, file = studio.finetune.prompt_sets()[0]
    every = file.read_text(encoding="utf-8").splitlines()
    return [every[place * len(every) // count] for place in range(count)]


# What they share


def require_reward(engine: Engine) -> ClipReward:
    """The reward of this page. BadInput, which says how to have one, where there is none."""
    if engine.scorer.reward is None:
        raise BadInput(f"Words are scored by a reward, and this page has none. {engine.scorer.note}".strip())
    return engine.scorer.reward


class _Watched:
    """A policy that looks at the stop flag before each evaluation; everything else is the policy's own."""

    def __init__(self, policy: FluxPolicy, stop: StopFlag) -> None:
        self._policy, self._stop = policy, stop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def velocity(self, *arguments: Any) -> Tensor:
        self._stop.check()
        return self._policy.velocity(*arguments)


def paint(
    engine: Engine, policy: FluxPolicy, texts: Sequence[str], seeds: Sequence[int], settings: Settings, stop: StopFlag
) -> Iterator[Tensor]:
    """Pictures (b, 3, H, W) of texts and seeds, some at a time; a large model paints them one by one."""
    from app.services.engine import memory_named
    from srpo.evaluation.sampling import sample_images

    batch = BATCH if engine.max_side <= FULL_SIDE else 1
    for start in range(0, len(texts), batch):
        part = slice(start, start + batch)
        with memory_named(f"draw {settings.width} × {settings.height} pixels", "choose a smaller size"):
            images = sample_images(
                _Watched(policy, stop),
                texts[part],
                seeds[part],
                num_steps=settings.steps,
                guidance=settings.guidance,
                height=settings.height,
                width=settings.width,
                batch=batch,
            )
        yield images


def keep(studio: Studio, folder: Path, name: str, picture: Image.Image) -> Path:
    return studio.pictures.save(folder, name, picture, PngImagePlugin.PngInfo())


def _keep_painted(
    studio: Studio,
    folder: Path,
    settings: Settings,
    model: Model,
    text: str,
    seed: int,
    image: Tensor,
    facts: dict[str, Any],
) -> Path:
    """The picture as a file that Compare can restore: both of its sides are this model."""
    from app.services.engine import to_pil

    shared = {name: getattr(settings, name) for name in ("steps", "guidance", "width", "height")}
    asked = parse(CompareRequest, {**shared, "prompt": text, "seed": seed, "left": model.id, "right": model.id})
    texts = comparison_texts(asked, seed, "left", {"left": model.label, "right": model.label}, facts)
    return studio.pictures.save(folder, file_stem(text, seed, model.label), to_pil(image[None]), texts)


def advanced(view: Any, done: int, total: int, began_s: float, what: str) -> Any:
    """The view with its progress and the time that is left, as what is done so far tells it."""
    elapsed_s = time.monotonic() - began_s
    return replace(
        view,
        phase="running",
        message=f"{what} {done} of {total}",
        share_done=done / total,
        left_s=elapsed_s * (total - done) / done,
    )


def _rows(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
