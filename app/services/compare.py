"""One prompt, two models, the same noise: the comparison as a generator of snapshots of what is known so far."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from app import plots
from app.services.device import StopFlag, Stopped, Turn, wait_for_device
from app.services.lending import by_the_call
from app.services.metadata import comparison_texts
from app.services.models import Model
from app.services.pictures import data_uri
from app.services.requests import BadInput, CompareRequest, Settings
from app.services.studio import Studio
from srpo.evaluation.records import file_stem
from srpo.policies.families import is_flux1
from srpo.policies.placement import QUANTIZED

if TYPE_CHECKING:
    from app.services.engine import Engine, Finished
    from app.services.scores import Row
    from srpo.policies.flux import FluxPolicy

V = TypeVar("V")  # a view with a message
T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """The finished pictures of one seed."""

    seed: int
    left: Path
    right: Path
    difference: Path
    mean_difference: float  # of |right - left|, 0 ... 1
    scale_end: float  # the difference at the bright end of the map
    rows: tuple[Row, ...]

    @property
    def id(self) -> str:
        """A name that no other pair has: the folder of its pictures cannot be guessed."""
        return f"{self.left.parent.name}-{self.seed}"


@dataclass(frozen=True)
class Comparison:
    """Everything the page can show of a comparison at one moment."""

    phase: str  # "waiting", "running", "done", "stopped" or "error"
    message: str
    names: tuple[str, str] = ("", "")
    is_one_model: bool = False  # on both sides
    prompt: str = ""
    width: int = 0
    height: int = 0
    num_seeds: int = 1
    seed: int | None = None  # the one under way
    previews: tuple[str, str] | None = None  # data addresses
    share_done: float = 0.0
    left_s: float | None = None  # seconds to go
    pairs: tuple[Pair, ...] = ()
    notice: str = ""
    scores_note: str = ""  # which scores are off, and how to have them


@by_the_call
def compare(studio: Studio, request: CompareRequest, stop: StopFlag) -> Iterator[Comparison]:
    """Snapshots from the first wait to the last picture, at least one per step.

    BadInput comes before any work. After `stop` is set, the next evaluation of a model does not happen, and the last
    snapshot holds the pairs that were finished.
    """
    models = studio.catalogue.find(request.left), studio.catalogue.find(request.right)
    require_comparable(studio, models)
    view = Comparison(
        "waiting",
        "",
        names=side_names(*models),
        is_one_model=models[0] == models[1],
        prompt=request.text(request.prompt),
        width=request.width,
        height=request.height,
        num_seeds=request.num_seeds,
        notice=" ".join(dict.fromkeys(filter(None, (studio.notice(request), *map(studio.catalogue.notice, models))))),
    )
    try:
        for snapshot in _run(studio, request, models, view, stop):
            view = snapshot
            yield view
    except Stopped:
        finished = f" after {len(view.pairs)} of {request.num_seeds} seeds" if view.pairs else ""
        yield replace(view, phase="stopped", message=f"Stopped{finished}.", left_s=None)


def require_comparable(studio: Studio, models: Sequence[Model]) -> None:
    """Nothing for one model, or for several whose differences can be SRPO's; else BadInput, one sentence."""
    different = list(dict.fromkeys(models))
    if len(different) < 2:
        return
    alone = "choose one model for both sides, or alone in the grid, for single pictures"
    if studio.memory == QUANTIZED:
        raise BadInput(
            "With --memory quantized all weights are rounded by several times what SRPO changed, so a pair would show "
            f"the rounding: start with --memory offload, which loses nothing, or {alone}."
        )
    for model in different:
        if form := studio.catalogue.rounding(model):
            raise BadInput(
                f"{model.label} is stored in {form}, which rounds weights by several times what SRPO changed, so a "
                f"pair would show the rounding: compare bfloat16 weights, or {alone}."
            )


def prepare(
    studio: Studio,
    turn: Turn,
    models: Sequence[Model],
    settings: Settings,
    prompts: Sequence[str],
    stop: StopFlag,
) -> Generator[str, None, tuple[Engine, list[FluxPolicy]]]:
    """Messages until the device and the models are ours; returns the engine and one policy per model.

    BadInput for what is beyond a public page's limits or the visitor's device time (its owners have neither), before
    anything is waited for, and for what only a loaded model can tell: too many tokens, a size it cannot draw, a foreign
    checkpoint.
    """
    if studio.limits is not None and not studio.options.is_owner(stop.user):
        studio.limits.check(settings, prompts)
    turn.bill(stop.user)
    while ahead := turn.wait(timeout_s=0.25):
        stop.check()
        yield f"Waiting for the device: {ahead} ahead of you."
    yield from wait_for_device(turn, stop)
    engine = yield from studio.engine_when_ready(stop)
    engine.check(settings, prompts)
    yield from engine.convert(models, stop)
    yield "Preparing …"
    return engine, engine.policies(models)


def narrate(view: V, messages: Generator[str, None, T]) -> Generator[V, None, T]:
    """The view under each message in turn; returns what `messages` returns."""
    try:
        while True:
            yield replace(view, message=next(messages))
    except StopIteration as end:
        return end.value


def side_names(left: Model, right: Model) -> tuple[str, str]:
    """The labels of both sides, told apart where both have the same."""
    if left.label != right.label:
        return left.label, right.label
    return f"{left.label} (left)", f"{right.label} (right)"


def _run(
    studio: Studio, request: CompareRequest, models: tuple[Model, Model], view: Comparison, stop: StopFlag
) -> Iterator[Comparison]:
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, models, request, [request.prompt], stop)
        engine, policies = yield from narrate(view, preparing)
        from app.services.engine import Step  # torch is loaded by now

        facts = facts_of(studio, engine, models)
        view = replace(view, scores_note=engine.scorer.note)
        folder = studio.pictures.new_folder()
        cond = engine.encode(request.text(request.prompt))

        sides = policies[:1] if view.is_one_model else policies  # one picture, which both sides show
        started_s = time.monotonic()
        for number, seed in enumerate(request.seeds):
            view = replace(view, phase="running", seed=seed, message=f"Seed {seed}")
            for event in engine.paint(sides, cond, request, seed, stop):
                if not isinstance(event, Step):
                    pair = _pair(studio, engine, request, view, seed, event, folder, facts)
                    view = replace(view, pairs=(*view.pairs, pair), previews=None)
                    continue
                share = (number + event.done / event.total) / request.num_seeds
                elapsed_s = time.monotonic() - started_s
                view = replace(
                    view,
                    message=f"Step {event.done} of {event.total}",
                    previews=(data_uri(event.previews[0]), data_uri(event.previews[-1])),
                    share_done=share,
                    left_s=elapsed_s * (1 - share) / share,
                )
                yield view
            yield view
        took_s = time.monotonic() - started_s
        plural = "s" if request.num_seeds > 1 else ""
        yield replace(
            view,
            phase="done",
            message=f"{request.num_seeds} pair{plural} in {took_s:.1f} s",
            share_done=1.0,
            left_s=None,
        )


def _pair(
    studio: Studio,
    engine: Engine,
    request: CompareRequest,
    view: Comparison,
    seed: int,
    finished: Finished,
    folder: Path,
    facts: dict[str, Any],
) -> Pair:
    """The pair of one seed, scored and written to files that carry their settings."""
    from app.services.engine import to_pil  # loaded by now

    sides = finished.images[0], finished.images[-1]
    left, right = (to_pil(image) for image in sides)
    rows = tuple(engine.scores(*sides, request.prompt))
    scores = {row.name: {"left": row.left, "right": row.right} for row in rows}
    difference, mean_difference, scale_end = plots.difference(left, right)
    names = dict(zip(("left", "right"), view.names, strict=True))

    def save(side: str, image: Image.Image, name: str) -> Path:
        texts = comparison_texts(request, seed, side, names, {**facts, "scores": scores})
        return studio.pictures.save(folder, file_stem(request.prompt, seed, name), image, texts)

    return Pair(
        seed,
        save("left", left, view.names[0]),
        save("right", right, view.names[1]),
        save("difference", difference, "difference"),
        mean_difference,
        scale_end,
        rows,
    )


def facts_of(studio: Studio, engine: Engine, models: Sequence[Model]) -> dict[str, Any]:
    """What a picture should remember beyond its settings: weights by hash, precision, device, text tokens, versions."""
    from app.services.engine import versions

    hashes = {model.id: studio.catalogue.sha256(model) for model in models}
    # The miniature's pictures are for no other tool: it has text encoders of its own. ComfyUI's workflow is FLUX.1's.
    is_foreign = studio.options.is_miniature or not is_flux1(studio.options.model)
    files = {} if is_foreign else {model.id: studio.catalogue.file_of(model) for model in models}
    return {
        **studio.made_with(),
        "dtype": str(engine.base.dtype).removeprefix("torch."),
        **engine.run_facts(),
        "device": str(engine.base.device),
        "versions": versions(),
        "weights_sha256": {name: value for name, value in hashes.items() if value},
        **({"files": files} if files else {}),
    }
