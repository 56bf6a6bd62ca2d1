"""The pictures of a study: sampled here, both sides from the same noise, or brought; kept one by one, so that whatever
ends the work, it goes on where it was.

The strip that the page shows names the models: it is for whoever runs the study. Raters get the store's own files.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from app.services.compare import narrate, prepare, require_comparable
from app.services.device import StopFlag, Stopped
from app.services.grid import Grid, GridRow
from app.services.lending import by_the_call
from app.services.models import Model as Weights
from app.services.requests import BadInput, Settings, sentence
from app.services.studio import Studio
from app.services.study_plans import FOLDER, Sources, gathered_pictures, read_sources
from srpo.studies.images import bring, encode, keep, leaks, plain, remove_strangers
from srpo.studies.schedule import Shown
from srpo.studies.schedule import pictures as pictures_of
from srpo.studies.schema import Model, Plan
from srpo.studies.store import Picture, Refused, Study, Unavailable

SHOWN_ROWS = 6  # of the strip, the newest first
STEPS_S = 0.2  # from step to step that the page is told of: a small model takes hundreds in a second


@dataclass(frozen=True)
class Stock:
    """Which pictures of a study are there."""

    wanted: tuple[Shown, ...]
    there: frozenset[Shown]

    @property
    def lacking(self) -> list[Shown]:
        return [shown for shown in self.wanted if shown not in self.there]

    @property
    def is_whole(self) -> bool:
        return not self.lacking


def stock(studio: Studio, study: Study) -> Stock:
    """What is noted in the store and still lies in the study's folder."""
    folder = studio.studies.folder(study.id)
    known = studio.studies.store.pictures(study.id)
    here = {path.name for path in folder.glob("*.png")} if folder.is_dir() else set()
    return Stock(pictures_of(study.plan), frozenset(shown for shown, made in known.items() if made.file in here))


def is_brought(plan: Plan) -> bool:
    """True where the pictures are folders or files, not sampled here."""
    return plan.models[0].key.startswith(FOLDER)


def strip(studio: Studio, study: Study) -> Grid:
    """The pictures that are there, as many as the page shows."""
    found = stock(studio, study)
    away = study.state != "preparing" and not found.is_whole  # brought back from an export, which holds none
    said = "The pictures of this study do not lie here: its export holds their hashes alone." if away else _said(found)
    rows = _rows(studio, study, found)
    return replace(_blank(studio, study, "done", said), rows=rows, share_done=_share(found))


@by_the_call
def make_pictures(studio: Studio, identity: str, stop: StopFlag) -> Iterator[Grid]:
    """Snapshots while every picture that lacks is sampled; what is kept is not made again.

    All models of a prompt and seed start from the same noise and take each step together. BadInput comes before any
    work. Stopped early, the pictures of the scenes that were finished are kept.
    """
    study = _preparing(studio, identity)
    models = _weights(studio, study)
    require_comparable(studio, models)
    view = _blank(studio, study, "waiting", "")
    yield from _to_the_end(studio, study, view, _make(studio, study, models, view, stop), (Refused, Unavailable))


def bring_pictures(studio: Studio, identity: str, stop: StopFlag) -> Iterator[Grid]:
    """Snapshots while the pictures of the study's folders are checked once more, rewritten and noted."""
    study = _preparing(studio, identity)
    sources = read_sources(studio, identity)
    view = _blank(studio, study, "running", "")
    yield from _to_the_end(studio, study, view, _bring(studio, study, sources, view, stop), (ValueError, OSError))


def _to_the_end(
    studio: Studio, study: Study, view: Grid, work: Iterator[Grid], refusals: tuple[type[Exception], ...]
) -> Iterator[Grid]:
    """The snapshots of the work; where it is stopped, a last one that tells what is there. view: before the first.

    BadInput for refusals, one sentence.
    """
    try:
        for view in work:
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message=f"Stopped. {_said(stock(studio, study))}", left_s=None)
    except refusals as error:
        raise BadInput(sentence(error)) from None


# Sampling


def _make(studio: Studio, study: Study, models: list[Weights], view: Grid, stop: StopFlag) -> Iterator[Grid]:
    plan, settings = study.plan, _settings(study.plan)
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, models, settings, [prompt.text for prompt in plan.prompts], stop)
        engine, policies = yield from narrate(view, preparing)
        from app.services.engine import Step, to_pil  # torch is loaded by now

        found = stock(studio, study)
        folder, known = studio.studies.folder(study.id), dict(studio.studies.store.pictures(study.id))
        scenes = _scenes(found.lacking)
        total, done, started_s, encoded = len(found.wanted), len(found.there), time.monotonic(), None
        made, told_s = 0, -math.inf
        for (prompt, seed), lacking in scenes.items():
            wanted = list(dict.fromkeys(shown.model for shown in lacking))
            sides = [policy for model, policy in zip(plan.models, policies, strict=True) if model.key in wanted]
            text = plan.prompts[prompt].text
            if encoded != text:
                cond, encoded = engine.encode(text), text
            for event in engine.paint(sides, cond, settings, seed, stop):
                if isinstance(event, Step):
                    if time.monotonic() - told_s < STEPS_S:
                        continue
                    told_s = time.monotonic()
                    part = len(lacking) * event.done / event.total
                    view = replace(
                        view,
                        phase="running",
                        message=f"{done:,} of {total:,} pictures are kept; step {event.done} of {event.total}",
                        share_done=(done + part) / total,
                        left_s=(time.monotonic() - started_s) * (total - done - part) / max(made + part, 1e-9),
                    )
                else:
                    names = [model.key for model in plan.models if model.key in wanted]
                    images = {key: plain(to_pil(image)) for key, image in zip(names, event.images, strict=True)}
                    random.SystemRandom().shuffle(lacking)  # nor does the order of the files tell the models
                    hashes = {key: hashlib.sha256(encode(image)).hexdigest() for key, image in images.items()}
                    kept = [keep(folder, shown, images[shown.model], hashes[shown.model]) for shown in lacking]
                    studio.studies.store.add_pictures(study.id, kept, study.sha256)
                    made, done = made + len(kept), done + len(kept)
                    known |= {picture.shown: picture for picture in kept}
                    row = _row(studio, study, known, (prompt, seed))
                    view = replace(view, rows=(row, *view.rows)[:SHOWN_ROWS])
                yield view
        _finish(studio, study)
        said = f"All {total:,} pictures are there." + (f" {made:,} were made now." if made != total and made else "")
        yield replace(view, phase="done", message=said, share_done=1.0, left_s=None)


def _scenes(lacking: list[Shown]) -> dict[tuple[int, int], list[Shown]]:
    """What lacks by prompt and seed, in the order of the plan: a prompt is read once for all of its seeds."""
    scenes: dict[tuple[int, int], list[Shown]] = {}
    for shown in sorted(lacking, key=lambda shown: (shown.prompt, shown.seed)):
        scenes.setdefault((shown.prompt, shown.seed), []).append(shown)
    return scenes


def _settings(plan: Plan) -> Settings:
    """The settings of all sides; the seed is each scene's own."""
    names = ("steps", "guidance", "width", "height")
    return Settings(seed=0, **{name: plan.settings[name] for name in names if name in plan.settings})


def _weights(studio: Studio, study: Study) -> list[Weights]:
    """The plan's models. BadInput where one is gone, or is not what it was when the plan was made."""
    paths, found = read_sources(studio, study.id).weights, []
    for model in study.plan.models:
        weights = studio.catalogue.find(paths.get(model.key, model.key))
        now = studio.catalogue.sha256(weights)
        if model.weights_sha256 and now != model.weights_sha256:
            raise BadInput(
                f"The weights of {model.label} are not what they were when the plan was saved: edit the plan and save "
                "it anew."
            )
        found.append(weights)
    return found


# Bringing


def _bring(studio: Studio, study: Study, sources: Sources, view: Grid, stop: StopFlag) -> Iterator[Grid]:
    plan = study.plan
    if set(sources.folders) != {model.key for model in plan.models}:
        raise BadInput("Nobody knows any more where these pictures lie: edit the plan, name the folders and save it.")
    gathered = yield from narrate(view, gathered_pictures(sources, stop, [model.label for model in plan.models]))
    if (gathered.prompts, gathered.seeds) != (plan.prompts, plan.seeds):
        raise BadInput("The folders are not what they were when the plan was saved: edit the plan and save it anew.")
    began_s, before = time.monotonic(), len(stock(studio, study).there)
    shown_at_s = began_s
    for said in bring(studio.studies.store, study, gathered.files, studio.studies.folder(study.id)):
        stop.check()
        now_s = time.monotonic()
        left_s = (now_s - began_s) * (said.total - said.done) / max(said.done - before, 1)
        view = replace(view, message=said.text, share_done=said.done / said.total, left_s=left_s)
        if now_s - shown_at_s > 0.5:  # a thumbnail takes longer than the picture
            shown_at_s, view = now_s, replace(view, rows=_rows(studio, study, stock(studio, study)))
        yield view
    yield strip(studio, study)


# Both


def _preparing(studio: Studio, identity: str) -> Study:
    """The study, whose pictures may still change. BadInput for any other."""
    try:
        study = studio.studies.store.study(identity)
    except (ValueError, Unavailable) as error:
        raise BadInput(sentence(error)) from None
    if study.state != "preparing":
        raise BadInput("The pictures of a study cannot change after it has begun: make a new version of its plan.")
    return study


def _finish(studio: Studio, study: Study) -> None:
    """Removes what a kill left behind. BadInput where the files would tell the models."""
    store = studio.studies.store
    remove_strangers(store, study, studio.studies.folder(study.id))
    if told := leaks(study.plan, store.pictures(study.id).values()):
        raise BadInput(f"The models could be told apart: {told[0]}")


def _blank(studio: Studio, study: Study, phase: str, message: str) -> Grid:
    """A strip without pictures, in the proportions of the plan, or of the first picture that was brought."""
    settings = study.plan.settings
    size = settings.get("width") or 1, settings.get("height") or 1
    if size == (1, 1) and (first := next(iter(studio.studies.store.pictures(study.id).values()), None)):
        size = first.width, first.height
    return Grid(phase, message, tuple(model.label for model in study.plan.models), (), *size)


def _rows(studio: Studio, study: Study, found: Stock) -> tuple[GridRow, ...]:
    """The first scenes of which anything is there."""
    scenes = dict.fromkeys((shown.prompt, shown.seed) for shown in found.wanted if shown in found.there)
    known = studio.studies.store.pictures(study.id)
    return tuple(_row(studio, study, known, scene) for scene in list(scenes)[:SHOWN_ROWS])


def _row(studio: Studio, study: Study, known: Mapping[Shown, Picture], scene: tuple[int, int]) -> GridRow:
    """The scene's pictures as far as they are there, in copies that the page may show. known: all of the study."""
    folder = studio.studies.folder(study.id)
    thumbs = studio.pictures.root / f"study-{study.id}"  # one for all looks at it
    prompt, seed = scene

    def copy(model: Model) -> Path | None:
        made = known.get(Shown(prompt, seed, model.key))
        try:
            return made and studio.pictures.publish(thumbs, folder / made.file)
        except OSError:
            return None

    return GridRow(study.plan.prompts[prompt].text, seed, tuple(copy(model) for model in study.plan.models))


def _said(found: Stock) -> str:
    there, total = len(found.wanted) - len(found.lacking), len(found.wanted)
    if there == total:
        return f"All {total:,} pictures are there."
    return f"{there:,} of {total:,} pictures are there." if there else f"{total:,} pictures are to come."


def _share(found: Stock) -> float:
    return 1 - len(found.lacking) / len(found.wanted)
