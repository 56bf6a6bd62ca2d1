"""What a few updates with a set of words would do: a short run of the training itself, which leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, model_validator

from app.services.compare import narrate, prepare
from app.services.device import StopFlag, Stopped
from app.services.requests import BadInput, Settings, parse, sentence, whole
from app.services.run_view import Film
from app.services.studio import Studio
from app.services.training_requests import TrainRequest, lines_of
from app.services.word_sets import Words, WordShelf
from app.services.words import Prompts, advanced, keep
from srpo.evaluation.records import MAX_SEED

if TYPE_CHECKING:
    from torch import Tensor

    from srpo.rewards.base import EmbeddingReward
    from srpo.rewards.word_sets import WordSet
    from srpo.training.config import TrainConfig

MAX_UPDATES = 10
MAX_PICTURES = 4


class PreviewRequest(Settings):
    """A short run with a set of words."""

    words: Words
    prompts: Prompts
    updates: Annotated[int, BeforeValidator(whole("The number of updates", 1, MAX_UPDATES))] = 5

    @model_validator(mode="after")
    def _fits(self) -> PreviewRequest:
        if not 1 <= len(self.prompts) <= MAX_PICTURES:
            raise ValueError(f"A preview paints one to {MAX_PICTURES} prompts, one per line, not {len(self.prompts)}.")
        return self


@dataclass(frozen=True)
class Preview:
    """Everything the page can show of a short run at one moment."""

    phase: str
    message: str
    share_done: float = 0.0
    left_s: float | None = None
    film: Film | None = None
    said: str = ""  # what the scores of these pictures did


def preview(studio: Studio, request: PreviewRequest, stop: StopFlag) -> Iterator[Preview]:
    """Snapshots from the first wait to the last update, the pictures after each. Leaves nothing in the runs' folder.

    BadInput for settings that no run could have; what a run would say of them is said here.
    """
    config = preview_config(studio, request)
    view = Preview("waiting", "")
    try:
        for snapshot in _preview(studio, request, config, view, stop):
            view = snapshot
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message="Stopped.", left_s=None)


def preview_config(studio: Studio, request: PreviewRequest) -> TrainConfig:
    """The TrainConfig of the first preset that fits the model, with the set's words and settings."""
    from srpo.training.config import with_settings
    from srpo.training.presets import preset

    tune, words = studio.finetune, request.words
    name, chosen = next(iter(tune.presets)), words.control_words
    asked = {
        "preset": name,
        "prompt_set": tune.prompt_sets()[0][1],
        "positive": "\n".join(chosen.positive),
        "negative": "\n".join(chosen.negative),
        "updates": request.updates,
        "validate_every": 0,
        "seed": request.seed % 2**31,
        "more": "\n".join(lines_of(WordShelf(studio).settings(words))),
    }
    given = tune.check(parse(TrainRequest, asked))
    try:
        return with_settings(preset(name), [*given, f"device={studio.options.device}"])
    except ValueError as error:
        raise BadInput(sentence(error)) from None


def _preview(
    studio: Studio, request: PreviewRequest, config: TrainConfig, view: Preview, stop: StopFlag
) -> Iterator[Preview]:
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, [], request, request.prompts, stop)
        yield from narrate(view, preparing)
        from app.services.engine import memory_named, to_pil  # torch is loaded by now
        from srpo.training import preview as training
        from srpo.training.trainer import NonFiniteError

        seeds = [(request.seed + number) % (MAX_SEED + 1) for number in range(len(request.prompts))]
        folder = studio.pictures.new_folder()
        film = Film(f"preview {folder.name}", tuple(zip(request.prompts, seeds, strict=True)))
        yield replace(view, message="Loading a copy of the model …")
        began_s, first, last = time.monotonic(), (0.0, 0.0), (0.0, 0.0)
        try:
            with memory_named("train a copy of the model", "choose a smaller model, or close what else uses it"):
                for moment in training.preview(config, request.prompts, seeds, stop.check):
                    pictures = tuple(
                        keep(studio, folder, f"{number}-update-{moment.update}", to_pil(image[None]))
                        for number, image in enumerate(moment.images)
                    )
                    height, width = moment.images.shape[-2:]
                    film = replace(
                        film,
                        updates=(*film.updates, moment.update),
                        pictures=(*film.pictures, pictures),
                        ratio=width / height,
                    )
                    last = _scores(moment.reward, request.words, moment.images, request.prompts)
                    first = last if moment.update == 0 else first
                    view = replace(
                        advanced(view, moment.update + 1, request.updates + 1, began_s, "Moment"),
                        film=film,
                        message=f"Update {moment.update} of {request.updates}",
                        said=_said(first, last, moment.update),
                    )
                    yield view
        except (ValueError, NonFiniteError) as error:
            raise BadInput(sentence(error)) from None
        took_s = time.monotonic() - began_s
        yield replace(view, phase="done", message=f"{request.updates} updates in {took_s:.0f} s", left_s=None)


def _scores(reward: EmbeddingReward, words: WordSet, images: Tensor, prompts: Sequence[str]) -> tuple[float, float]:
    """(mean positive minus mean negative score, mean score of the prompt alone) of the pictures."""
    from srpo.evaluation.perception import word_table

    chosen = words.control_words
    table = word_table(reward, images, prompts, (*chosen.positive, *chosen.negative), chosen.apply)
    count = len(chosen.positive)
    difference = table.under[:, :count].mean() - table.under[:, count:].mean()
    return float(difference), float(table.without.mean())


def _said(first: tuple[float, float], last: tuple[float, float], update: int) -> str:
    if update == 0:
        return f"Before training: positive − negative words {_signed(first[0])}, the prompt alone {first[1]:.3f}."
    return (
        f"After {update} update{'s' if update > 1 else ''}: positive − negative words {_signed(first[0])} → "
        f"{_signed(last[0])}, the prompt alone {first[1]:.3f} → {last[1]:.3f}."
    )


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
