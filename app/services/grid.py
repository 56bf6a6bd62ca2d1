"""Prompts x seeds x models: a table of pictures that fills as it is drawn, and one sheet to take away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from app.services.compare import facts_of, narrate, prepare, require_comparable
from app.services.device import StopFlag, Stopped
from app.services.lending import by_the_call
from app.services.metadata import comparison_texts
from app.services.models import Model
from app.services.requests import CompareRequest, GridRequest
from app.services.studio import Studio
from srpo.evaluation.records import file_stem
from srpo.evaluation.sheets import png_texts, sheet


@dataclass(frozen=True)
class GridRow:
    """One prompt and seed; one picture per model, None where it is still to be drawn."""

    prompt: str
    seed: int
    pictures: tuple[Path | None, ...]


@dataclass(frozen=True)
class Grid:
    """Everything the page can show of a grid at one moment."""

    phase: str  # "waiting", "running", "done" or "stopped"
    message: str
    models: tuple[str, ...] = ()
    rows: tuple[GridRow, ...] = ()
    width: int = 0
    height: int = 0
    share_done: float = 0.0
    left_s: float | None = None
    sheet: Path | None = None


@by_the_call
def paint_grid(studio: Studio, request: GridRequest, stop: StopFlag) -> Iterator[Grid]:
    """Snapshots from the first wait to the sheet, at least one per step.

    BadInput comes before any work. Stopped early, the last snapshot has a sheet of what was drawn until then.
    """
    models = [studio.catalogue.find(name) for name in dict.fromkeys(request.models)]
    require_comparable(studio, models)
    rows = tuple(GridRow(prompt, seed, (None,) * len(models)) for prompt in request.prompts for seed in request.seeds)
    names = tuple(model.label for model in models)
    view = Grid("waiting", "", models=names, rows=rows, width=request.width, height=request.height)
    folder = studio.pictures.new_folder()
    try:
        for snapshot in _run(studio, request, models, view, folder, stop):
            view = snapshot
            yield view
        phase, message = "done", view.message
    except Stopped:
        phase, message = "stopped", "Stopped."
    yield replace(view, phase=phase, message=message, left_s=None, sheet=_sheet(studio, request, view, folder))


def _run(
    studio: Studio, request: GridRequest, models: list[Model], view: Grid, folder: Path, stop: StopFlag
) -> Iterator[Grid]:
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, models, request, request.prompts, stop)
        engine, policies = yield from narrate(view, preparing)
        from app.services.engine import Step, to_pil  # torch is loaded by now

        started_s = time.monotonic()
        facts = facts_of(studio, engine, models)
        total = len(view.rows)
        cond, encoded = None, None
        for number, row in enumerate(view.rows):
            if encoded != row.prompt:
                cond, encoded = engine.encode(request.text(row.prompt)), row.prompt
            for event in engine.paint(policies, cond, request, row.seed, stop):
                if isinstance(event, Step):
                    share = (number + event.done / event.total) / total
                    elapsed_s = time.monotonic() - started_s
                    view = replace(
                        view,
                        phase="running",
                        message=f"Row {number + 1} of {total}, step {event.done} of {event.total}",
                        share_done=share,
                        left_s=elapsed_s * (1 - share) / share,
                    )
                else:
                    images = [to_pil(image) for image in event.images]
                    pictures = tuple(
                        _save(studio, request, models, row, column, image, folder, facts)
                        for column, image in enumerate(images)
                    )
                    done = (*view.rows[:number], replace(row, pictures=pictures), *view.rows[number + 1 :])
                    view = replace(view, rows=done)
                yield view
        took_s = time.monotonic() - started_s
        yield replace(view, message=f"{total * len(models)} pictures in {took_s:.1f} s", share_done=1.0)


def _save(
    studio: Studio,
    request: GridRequest,
    models: list[Model],
    row: GridRow,
    column: int,
    image: Image.Image,
    folder: Path,
    facts: dict,
) -> Path:
    """A cell's file. Dropped back, it restores the comparison of the grid's first model with this one."""
    left, right = models[0], models[column] if column else models[min(1, len(models) - 1)]
    settings = request.model_dump(exclude={"prompts", "models"}) | {"seed": row.seed, "num_seeds": 1}
    single = CompareRequest(**settings, prompt=row.prompt, left=left.id, right=right.id)
    names = {"left": left.label, "right": right.label}
    texts = comparison_texts(single, row.seed, "right" if column else "left", names, facts)
    return studio.pictures.save(folder, file_stem(row.prompt, row.seed, models[column].label), image, texts)


def _sheet(studio: Studio, request: GridRequest, view: Grid, folder: Path) -> Path | None:
    """The sheet of the rows that were drawn; None where there are none."""
    drawn = [row for row in view.rows if any(row.pictures)]
    if not drawn:
        return None
    cells = [[Image.open(path) if path else None for path in row.pictures] for row in drawn]
    word = f" · “{request.control_word}.”" if request.control_word else ""
    title = f"{request.steps} steps · guidance {request.guidance:g} · {request.width} × {request.height}{word}"
    names = [f"{row.prompt}\nseed {row.seed}" for row in drawn]
    record = {"kind": "grid", "request": request.model_dump(), "models": list(view.models)}
    return studio.pictures.save(
        folder, f"grid_seed-{request.seed}", sheet(names, view.models, cells, title), png_texts(record)
    )
