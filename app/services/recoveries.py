"""Recoveries of one picture as generators of snapshots: the grid, a sampling run looked into, and a reward's push."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from app import plots
from app.curves import Chart
from app.services.compare import facts_of, narrate, prepare, require_comparable
from app.services.device import StopFlag, Stopped
from app.services.lending import by_the_call
from app.services.models import Model
from app.services.pictures import data_uri
from app.services.recovery_charts import recovery_charts
from app.services.recovery_requests import FilmRequest, PushRequest, RecoverRequest
from app.services.requests import BadInput, Settings, sentence
from app.services.studio import Studio
from app.services.uploads import fit, fit_note, open_picture
from srpo.evaluation.records import file_stem
from srpo.evaluation.sheets import png_texts, sheet

if TYPE_CHECKING:
    import torch

    from app.services.engine import Engine
    from srpo.evaluation.recoveries import Cell, Method
    from srpo.evaluation.recovery_errors import Yardstick
    from srpo.evaluation.recovery_push import Push
    from srpo.policies.base import Conditioning
    from srpo.policies.flux import FluxPolicy

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"
MAX_SHEET_SIDE = 384  # pixels of a picture on a sheet
MAX_FRAME_SIDE, MAX_FRAMES = 256, 32  # of a film: the longer side of a picture, and the levels shown
FRAME_COST = 4  # what a level costs, in steps: one velocity and three pictures
NO_STEP = "no step fits"  # in place of a cell: above σ 0.99 nothing is noisier
NO_GRID = "There is no grid yet: recover a picture first, then ask where the reward would push it."
NO_REWARD = (
    "There is no reward here that knows these pictures: start the app with --reward FOLDER, the folder of a CLIPModel."
)


@dataclass
class Kept:
    """What a page remembers of its last grid, so that one of its cells can be looked into."""

    last: Start | None = None


@dataclass(frozen=True)
class Start:
    """What a grid was made from: everything that its cells follow from."""

    request: RecoverRequest
    models: tuple[Model, ...]
    sigmas: tuple[float, ...]  # as they are, shifted or not
    x0: torch.Tensor  # (1, C, H/8, W/8) on the CPU, as the noise
    noise: torch.Tensor
    original: torch.Tensor  # (1, 3, H, W), the clean latents as the VAE draws them


@dataclass(frozen=True)
class CellView:
    """One finished cell."""

    picture: Path
    note: str  # that the step was shortened, and where it ended
    psnr: float | None  # None for a picture equal to the original


@dataclass(frozen=True)
class RowView:
    """One method by one model; a cell is None where it is still to come, and NO_STEP where the method has none."""

    name: str
    model: str
    cells: tuple[CellView | str | None, ...]


@dataclass(frozen=True)
class Recoveries:
    """Everything the page can show of a grid at one moment."""

    phase: str  # "waiting", "running", "done" or "stopped"
    message: str
    prompt: str = ""
    width: int = 0
    height: int = 0
    levels: tuple[str, ...] = ()  # as they were asked for
    sigmas: tuple[float, ...] = ()  # as they are
    models: tuple[str, ...] = ()
    preview: str | None = None  # of the picture while it is painted, a data address
    original: Path | None = None
    rows: tuple[RowView, ...] = ()
    share_done: float = 0.0
    left_s: float | None = None  # seconds to go
    notice: str = ""
    charts: tuple[Chart, ...] = ()
    sheet: Path | None = None


@dataclass(frozen=True)
class Film:
    """A sampling run as one picture of many: columns are levels, rows what is shown of each."""

    phase: str
    message: str
    share_done: float = 0.0
    left_s: float | None = None
    sprite: Path | None = None
    rows: tuple[str, ...] = ("The run’s latents", "Predicted clean picture", "Direct-Align")
    sigmas: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()  # that begin there, from 1
    num_steps: int = 0
    d_sigma: float = 0.0
    prompt: str = ""
    width: int = 0  # of one picture in the sprite
    height: int = 0


@dataclass(frozen=True)
class PushColumn:
    """A reward's push of one picture."""

    name: str
    picture: Path
    heat: Path
    pushed: Path
    before: float
    after: float
    agreement: float | None  # with the push of the original; None for the original itself


@dataclass(frozen=True)
class Pushes:
    """Where the reward pushes the recoveries of one level, and the original."""

    phase: str
    message: str
    title: str = ""
    columns: tuple[PushColumn, ...] = ()


@dataclass(frozen=True)
class Example:
    """A picture that is shipped with the app, and what it shows."""

    name: str
    prompt: str
    path: Path


@cache
def examples() -> tuple[Example, ...]:
    """The shipped pictures, named after what they show."""
    paths = sorted(EXAMPLES.glob("*.png"))
    return tuple(Example(path.stem, path.stem.replace("-", " "), path) for path in paths)


def has_lpips() -> bool:
    """Whether the user has installed LPIPS; asks no library of ours, and so not for torch."""
    return importlib.util.find_spec("lpips") is not None


# The grid


@by_the_call
def recoveries(
    studio: Studio, request: RecoverRequest, file: str | None, example: str | None, kept: Kept, stop: StopFlag
) -> Iterator[Recoveries]:
    """Snapshots from the first wait to the last noise, one per cell; `kept` is given what the grid was made from.

    file: the uploaded picture's path, example: the name of a shipped one, for those sources. BadInput comes before any
    work. After `stop` is set nothing more is computed, and the last snapshot has a sheet of what there is.
    """
    models = tuple(studio.catalogue.find(name) for name in request.models)
    require_comparable(studio, models)
    names = tuple(model.label for model in models)
    if len(set(names)) < len(names):
        raise BadInput("Both models have the same name: choose two different ones.")
    if request.source == "generate":
        grid = _Grid(studio, request, models, stop, painter=studio.catalogue.find(request.painter))
        notice = studio.notice(request)
    else:
        picture = _opened(request.source, file, example)
        notice = " ".join(filter(None, (studio.notice(request), _notice(request, picture))))
        grid = _Grid(studio, request, models, stop, picture=fit(picture, request.height, request.width))
    view = Recoveries(
        "waiting",
        "",
        prompt=request.prompt,
        width=request.width,
        height=request.height,
        levels=tuple(f"{sigma:g}" for sigma in request.sigmas),
        models=names,
        notice=notice,
    )
    try:
        for snapshot in grid.run(view, kept):
            view = snapshot
            yield view
        phase, message = "done", view.message
    except Stopped:
        phase, message = "stopped", "Stopped."
    view = replace(view, phase=phase, message=message, left_s=None, preview=None)
    yield replace(view, sheet=grid.sheet(view))


class _Grid:
    """One grid under way: of a picture that is painted first, or of one that is there."""

    def __init__(
        self,
        studio: Studio,
        request: RecoverRequest,
        models: tuple[Model, ...],
        stop: StopFlag,
        painter: Model | None = None,
        picture: Image.Image | None = None,
    ) -> None:
        self.studio, self.request, self.models, self.stop = studio, request, models, stop
        self.painter, self.picture = painter, picture
        self.folder = studio.pictures.new_folder()
        self.facts: dict[str, Any] = {}
        self.clock = _Clock()

    def run(self, view: Recoveries, kept: Kept) -> Iterator[Recoveries]:
        request, studio = self.request, self.studio
        with studio.device.turn() as turn:
            involved = [*self.models, *([self.painter] if self.painter else [])]
            preparing = prepare(studio, turn, involved, request, [request.prompt], self.stop)
            engine, policies = yield from narrate(view, preparing)
            from app.services.engine import to_pil  # torch is loaded by now
            from srpo.evaluation.recoveries import grid_methods
            from srpo.evaluation.recovery_errors import Tally

            self.facts = facts_of(studio, engine, involved)
            sigmas, methods = self._sigmas(engine), grid_methods(request.d_sigmas)
            # The noisy input is the same for every model.
            own = [methods if number == 0 else methods[1:] for number in range(len(self.models))]
            count = len(sigmas) * sum(map(len, own))
            self.clock = _Clock((request.steps if self.painter else 1) + count * request.num_noises)
            view = replace(view, phase="running", sigmas=tuple(round(sigma, 6) for sigma in sigmas))

            cond = engine.encode(request.prompt)
            x0, original = yield from self._original(engine, policies[-1], cond, view)
            yardstick = self._yardstick(engine, original)
            rows = [
                RowView(
                    method.name,
                    self.models[number].label,
                    tuple(None if method.target(sigma) else NO_STEP for sigma in sigmas),
                )
                for method in methods
                for number in range(len(self.models))
                if method in own[number]
            ]
            view = replace(view, original=self._save(to_pil(original), "original", {}), preview=None, rows=tuple(rows))
            yield replace(view, **self.clock.read(), message="Adding noise …")

            tallies = [Tally() for _ in self.models]
            for number, seed in enumerate(request.noise_seeds):
                noise = engine.base.initial_noise(seed, request.height, request.width)
                if number == 0:
                    kept.last = Start(request, self.models, sigmas, x0.cpu(), noise.cpu(), original.cpu())
                for index, tally in enumerate(tallies):
                    for cell in self._cells(policies[index], x0, noise, cond, sigmas, own[index]):
                        (errors,) = yardstick(cell.image)
                        tally.add(cell, [errors])
                        if number == 0:
                            column = sigmas.index(cell.sigma)
                            drawn = self._cell(to_pil(cell.image), cell, errors.psnr, column, index)
                            view = replace(view, rows=_with(view.rows, view.models[index], column, cell, drawn))
                        self.clock.done += 1
                        noises = f"Noise {number + 1} of {request.num_noises}, " if request.num_noises > 1 else ""
                        view = replace(view, **self.clock.read(), message=f"{noises}σ {cell.sigma:.4g}")
                        if number == 0 or cell.method == methods[-1]:  # of the further noises only the curves are shown
                            yield view
                # With every further noise the curves' intervals get narrower.
                charts = recovery_charts(methods, view.sigmas, view.models, tallies, yardstick.reward_of_original)
                view = replace(view, charts=charts)
                yield view
            noises = f" and {request.num_noises} noises" if request.num_noises > 1 else ""
            yield replace(view, message=f"{count} cells{noises} in {self.clock.elapsed_s:.1f} s", share_done=1.0)

    def _sigmas(self, engine: Engine) -> tuple[float, ...]:
        """The noise levels as they are."""
        from srpo.evaluation.recoveries import schedule_shift, shifted

        if not self.request.shifted:
            return self.request.sigmas
        asked = self.request
        shift = schedule_shift(engine.base, asked.height, asked.width, asked.steps)
        return tuple(shifted(self.request.sigmas, shift))

    def _original(
        self, engine: Engine, painter: FluxPolicy, cond: Conditioning, view: Recoveries
    ) -> Generator[Recoveries, None, tuple[torch.Tensor, torch.Tensor]]:
        """Snapshots while the picture is made; returns its clean latents, and the image they are drawn as."""
        import torch

        from app.services.engine import Step, memory_named
        from srpo.rewards.base import image_tensor

        if self.painter is not None:
            for event in engine.paint([painter], cond, self.request, self.request.seed, self.stop):
                if not isinstance(event, Step):
                    return event.latents[0], event.images[0]
                self.clock.done += 1
                message = f"Painting, step {event.done} of {event.total}"
                yield replace(view, **self.clock.read(), message=message, preview=data_uri(event.previews[0]))
        self.stop.check()
        with torch.no_grad(), memory_named("encode the picture", "choose a smaller size"):
            x0 = engine.base.encode_image(image_tensor(self.picture, engine.base.device))
            self.clock.done += 1
            return x0, engine.base.decode(x0)

    def _cells(
        self,
        policy: FluxPolicy,
        x0: torch.Tensor,
        noise: torch.Tensor,
        cond: Conditioning,
        sigmas: Sequence[float],
        methods: Sequence[Method],
    ) -> Iterator[Cell]:
        """The cells of one model and one noise. Raises Stopped before the next one once the flag is set."""
        from app.services.engine import memory_named
        from srpo.evaluation.recoveries import recover

        self.stop.check()
        size = f"{self.request.width} × {self.request.height}"
        with memory_named(f"recover {size} pixels", "choose a smaller size"):
            for cell in recover(policy, x0, noise, cond, sigmas, methods, self.request.guidance):
                yield cell
                self.stop.check()

    def _yardstick(self, engine: Engine, original: torch.Tensor) -> Yardstick:
        from srpo.evaluation.recovery_errors import Yardstick, load_lpips

        lpips = None
        if self.request.lpips:
            try:
                lpips = load_lpips(engine.base.device)
            except (ValueError, OSError, RuntimeError, ImportError) as error:
                raise BadInput(f"LPIPS cannot be measured: {sentence(error)}") from None
        return Yardstick(original, engine.scorer.reward, self.request.prompt, lpips)

    def _cell(self, picture: Image.Image, cell: Cell, psnr: float, column: int, index: int) -> CellView:
        """The finished cell, its picture written to a file."""
        facts = {
            "method": cell.method.name,
            "model": self.models[index].label,
            "sigma": cell.sigma,
            "sigma_target": cell.sigma_target,
            "shortened": cell.shortened,
        }
        name = f"{self.request.sigmas[column]:g}-{cell.method.kind}-{cell.method.d_sigma:g}-{index + 1}"
        note = f"step cut short at σ {cell.sigma_target:.4g}" if cell.shortened else ""
        return CellView(self._save(picture, name, facts), note, psnr if math.isfinite(psnr) else None)

    def _save(self, image: Image.Image, name: str, cell: dict[str, Any]) -> Path:
        record = {"kind": "recovery", "cell": cell, "request": self.request.model_dump(), **self.facts}
        stem = file_stem(self.request.prompt, self.request.noise_seeds[0], name)
        return self.studio.pictures.save(self.folder, stem, image, png_texts(record))

    def sheet(self, view: Recoveries) -> Path | None:
        """The sheet of what was recovered, with every setting in its record; None where there is nothing."""
        drawn = [row for row in view.rows if any(isinstance(cell, CellView) for cell in row.cells)]
        if not drawn:
            return None
        heads = ["original", *(f"σ {sigma:.4g}" for sigma in view.sigmas)]
        cells: list[list[Image.Image | None]] = []
        notes: dict[tuple[int, int], str] = {}
        for place, row in enumerate(drawn):
            cells.append([_small(view.original)] if place == 0 else [None])
            for column, cell in enumerate(row.cells, 1):
                is_there = isinstance(cell, CellView)
                cells[-1].append(_small(cell.picture) if is_there else None)
                if is_there and cell.note:
                    notes[place, column] = cell.note
        request = self.request
        own = "the run’s own noise" if request.uses_own_noise else f"noise of seed {request.noise_seeds[0]}"
        shift = "shifted" if request.shifted else "as given"
        title = f"{request.prompt} · {own} · σ {shift} · guidance {request.guidance:g} · {', '.join(view.models)}"
        many = len(view.models) > 1
        rows = [f"{row.name}\n{row.model}" if many and place else row.name for place, row in enumerate(drawn)]
        record = {
            "kind": "recoveries",
            "request": request.model_dump(),
            "models": list(view.models),
            "sigmas": list(view.sigmas),
            "notes": {f"{rows[place]}, {heads[column]}": note for (place, column), note in notes.items()},
            **self.facts,
        }
        stem = file_stem(request.prompt, request.noise_seeds[0], "recoveries")
        return self.studio.pictures.save(self.folder, stem, sheet(rows, heads, cells, title, notes), png_texts(record))


def _opened(source: str, file: str | None, example: str | None) -> Image.Image:
    """The uploaded or the shipped picture. BadInput where there is none, or none that can be read."""
    if source == "upload":
        if not file:
            raise BadInput("No picture was uploaded: choose a file, or another way to start.")
        return open_picture(file)
    found = next((entry for entry in examples() if entry.name == example), None)
    if found is None:
        raise BadInput("There is no example of that name: choose one from the list.")
    return open_picture(found.path)


def _notice(request: RecoverRequest, picture: Image.Image) -> str:
    """What a visitor should know of a picture that was not generated here."""
    said = [fit_note(picture.size, request.height, request.width)]
    if request.own_noise:
        said.append(f"It has no run here, so its noise is that of seed {request.noise_seed}.")
    return " ".join(filter(None, said))


def _with(rows: Sequence[RowView], model: str, column: int, cell: Cell, drawn: CellView) -> tuple[RowView, ...]:
    """The rows, with the finished cell in its place."""
    return tuple(
        replace(row, cells=(*row.cells[:column], drawn, *row.cells[column + 1 :]))
        if (row.name, row.model) == (cell.method.name, model)
        else row
        for row in rows
    )


def _small(path: Path) -> Image.Image:
    """The picture of a file, no larger than a sheet shows it."""
    with Image.open(path, formats=["PNG"]) as image:
        image.thumbnail((MAX_SHEET_SIDE, MAX_SHEET_SIDE), Image.Resampling.LANCZOS)
        return image.copy()


class _Clock:
    """How much of the work is done, and how long the rest will take."""

    def __init__(self, total: int = 1) -> None:
        self.total, self.done, self._started_s = total, 0, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def read(self) -> dict[str, Any]:
        """`share_done` and `left_s` of a view."""
        share = min(1.0, self.done / self.total)
        return {"share_done": share, "left_s": self.elapsed_s * (1 - share) / share if share else None}


# A sampling run


@by_the_call
def film(studio: Studio, request: FilmRequest, stop: StopFlag) -> Iterator[Film]:
    """Snapshots from the first wait to the finished film. BadInput comes before any work."""
    painter = studio.catalogue.find(request.painter)
    view = Film("waiting", "", prompt=request.prompt, d_sigma=request.d_sigmas[-1], num_steps=request.steps)
    try:
        for snapshot in _film(studio, request, painter, view, stop):
            view = snapshot
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message="Stopped.", left_s=None)


def _film(studio: Studio, request: FilmRequest, painter: Model, view: Film, stop: StopFlag) -> Iterator[Film]:
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, [painter], request, [request.prompt], stop)
        engine, (policy,) = yield from narrate(view, preparing)
        from app.services.engine import memory_named, to_pil  # torch is loaded by now
        from srpo.evaluation.recovery_run import Frame, trajectory

        height, width = request.height, request.width
        cond, noise = engine.encode(request.prompt), engine.base.initial_noise(request.seed, height, width)
        sigmas = engine.base.schedule(request.steps, height, width)
        num_frames = min(request.steps, MAX_FRAMES)
        clock = _Clock(request.steps + FRAME_COST * num_frames)
        frames: list[tuple[Frame, list[Image.Image]]] = []
        stop.check()
        with memory_named(f"draw {width} × {height} pixels", "choose a smaller size"):
            running = trajectory(
                policy, cond, noise, sigmas, request.guidance, d_sigma=request.d_sigmas[-1], max_frames=MAX_FRAMES
            )
            for event in running:
                if isinstance(event, Frame):
                    pictures = [to_pil(image) for image in (event.noisy, event.predicted, event.recovered)]
                    for picture in pictures:
                        picture.thumbnail((MAX_FRAME_SIDE, MAX_FRAME_SIDE), Image.Resampling.LANCZOS)
                    frames.append((event, pictures))
                clock.done += FRAME_COST if isinstance(event, Frame) else 1
                what = f"Looking in, level {len(frames)}" if frames else f"Painting, step {event.index + 1}"
                total = num_frames if frames else request.steps
                view = replace(view, phase="running", message=f"{what} of {total}", **clock.read())
                yield view
                stop.check()
        sprite = _sprite([pictures for _, pictures in frames])
        record = {"kind": "recoveries", "request": request.model_dump(), **facts_of(studio, engine, [painter])}
        stem = file_stem(request.prompt, request.seed, "run")
        path = studio.pictures.save(studio.pictures.new_folder(), stem, sprite, png_texts(record))
        side = frames[0][1][0].size
        yield replace(
            view,
            phase="done",
            message=f"{len(frames)} levels in {clock.elapsed_s:.1f} s",
            share_done=1.0,
            left_s=None,
            sprite=path,
            sigmas=tuple(round(frame.sigma, 6) for frame, _ in frames),
            steps=tuple(frame.index + 1 for frame, _ in frames),
            width=side[0],
            height=side[1],
        )


def _sprite(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One picture of all: columns side by side, each from top to bottom."""
    width, height = columns[0][0].size
    page = Image.new("RGB", (width * len(columns), height * len(columns[0])))
    for across, column in enumerate(columns):
        for down, picture in enumerate(column):
            page.paste(picture, (across * width, down * height))
    return page


# A reward's push


@by_the_call(steps=40)
def pushes(studio: Studio, request: PushRequest, kept: Kept, stop: StopFlag) -> Iterator[Pushes]:
    """Snapshots from the first wait to the finished pictures, one per column. BadInput where there is no such cell."""
    start = kept.last
    if start is None:
        raise BadInput(NO_GRID)
    if request.level >= len(start.sigmas) or request.model >= len(start.models):
        raise BadInput("The grid has no such cell any more: choose a level of the one that is shown.")
    view = Pushes("waiting", "")
    try:
        for snapshot in _pushes(studio, request, start, view, stop):
            view = snapshot
            yield view
    except Stopped:
        yield replace(view, phase="stopped", message="Stopped.")


def _pushes(studio: Studio, request: PushRequest, start: Start, view: Pushes, stop: StopFlag) -> Iterator[Pushes]:
    model, sigma, made = start.models[request.model], start.sigmas[request.level], start.request
    text = f"{request.word}. {request.text}" if request.word else request.text
    with studio.device.turn() as turn:
        preparing = prepare(studio, turn, [model], made, [made.prompt], stop)
        engine, (policy,) = yield from narrate(view, preparing)
        from app.services.engine import memory_named  # torch is loaded by now
        from srpo.evaluation.recoveries import grid_methods, recover
        from srpo.evaluation.recovery_push import agreement, push

        reward = engine.scorer.reward
        if reward is None:
            raise BadInput(NO_REWARD)
        step = request.step / 255
        device = engine.base.device
        methods = [method for method in grid_methods(made.d_sigmas) if method.kind in ("one-step", "denoise")]
        name = f"{model.label}, σ {sigma:.4g}"
        view = replace(view, phase="running", title=f"“{text}” at σ {sigma:.4g}, by {model.label}", message=name)
        facts = {"push": request.model_dump(), "request": made.model_dump(), **facts_of(studio, engine, [model])}
        folder = studio.pictures.new_folder()

        def save(column: str, found: Push, other: Push | None) -> PushColumn:
            return _push_column(studio, folder, made, facts, column, found, other and agreement(found, other))

        with memory_named("push the picture", "choose a smaller size"):
            of_original = push(reward, start.original, text, step)
            cond = engine.encode(made.prompt)
            x0, noise = start.x0.to(device), start.noise.to(device)
            stop.check()
            for cell in recover(policy, x0, noise, cond, [sigma], methods, made.guidance):
                found = push(reward, cell.image.cpu(), text, step)
                view = replace(view, columns=(*view.columns, save(cell.method.name, found, of_original)))
                yield view
                stop.check()
        yield replace(
            view, phase="done", message="", columns=(*view.columns, save("The original itself", of_original, None))
        )


def _push_column(
    studio: Studio,
    folder: Path,
    made: Settings,
    facts: dict[str, Any],
    name: str,
    found: Push,
    agreement: float | None,
) -> PushColumn:
    """A finished column, its three pictures written to files."""
    from app.services.engine import to_pil
    from srpo.evaluation.recovery_push import heat

    picture = to_pil(found.image)
    pictures = {
        "picture": picture,
        "heat": plots.heat_over(picture, heat(found.gradient).cpu().numpy()),
        "pushed": to_pil(found.pushed),
    }
    paths = {
        key: studio.pictures.save(
            folder, file_stem(name, made.seed, key), image, png_texts({"kind": "recovery", "cell": name, **facts})
        )
        for key, image in pictures.items()
    }
    return PushColumn(name, **paths, before=found.before, after=found.after, agreement=agreement)
