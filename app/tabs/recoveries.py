"""The Recoveries tab: one picture, much noise, and what each method makes of it.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from app.blocks import told
from app.components.curves import curves, curves_value
from app.components.note import note_html
from app.components.recovery_film import film_value, recovery_film
from app.components.recovery_grid import recovery_grid, recovery_value
from app.components.recovery_push import push_html
from app.components.stage import error_value
from app.services import prompts
from app.services.device import RULE, StopFlag
from app.services.models import BASE, is_full_size
from app.services.recoveries import (
    NO_GRID,
    Film,
    Kept,
    Pushes,
    Recoveries,
    examples,
    film,
    has_lpips,
    pushes,
    recoveries,
)
from app.services.recovery_requests import (
    D_SIGMAS,
    MAX_LEVELS,
    MAX_MODELS,
    MAX_NOISES,
    MAX_STEP,
    SIGMAS,
    FilmRequest,
    PushRequest,
    RecoverRequest,
    d_sigmas_of,
    levels_of,
)
from app.services.requests import MAX_GUIDANCE, SIZE_MULTIPLE, BadInput, parse
from app.services.studio import Studio
from app.tabs.compare import UNEXPECTED, WORKING, account, visitor

log = logging.getLogger(__name__)

V = TypeVar("V", Recoveries, Film, Pushes)

JOB = "recoveries"
DEFAULT_NOISES = 4
PAPER_WORD = "Real"  # one of the paper's positive words: training scores pictures under them
CHIPS = (0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
# The fields of the form, in the order in which the handlers receive them.
RUN = ("prompt", "painter", "seed", "steps", "guidance", "width", "height")
FORM = (
    *RUN, "source", "file", "example", "models", "chips", "typed", "shifted", "d_sigmas", "own_noise", "noise_seed",
    "num_noises", "lpips",
)  # fmt: skip
PUSH = ("level", "model", "text", "word", "step")
PUSH_HEAD = (
    '<div class="panel-head"><h2>Where would the reward push?</h2><p>The gradient of the reward at each recovery, as '
    "a map of its strength, and the picture after one small step along it. On the blur of an early one-step prediction "
    "it points elsewhere than on the finished picture.</p></div>"
)
FILM_HEAD = (
    '<div class="panel-head"><h2>The sampling run, level by level</h2><p>What the model has, what it predicts, and '
    "what Direct-Align recovers, from pure noise to the picture of this prompt and seed.</p></div>"
)
LPIPS = (
    "LPIPS is measured too where the package <code>lpips</code> is installed. It brings torchvision, which must have "
    "been built for the same torch: <code>pip install lpips torchvision</code>, from the index that torch came from."
)


class Handlers:
    """What the tab's events do. Every work ends its outputs with the buttons: Recover, Look, Push and Stop.

    Its end is shown after it has left, so that whoever sees it can start again; `ready` gives the buttons back.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def recover(self, request: gr.Request, kept: Kept, *form: object) -> Iterator[tuple]:
        """(grid, curves, sheet, level, model, *buttons) at each step; bad input leaves everything but the banner."""
        drawn: object = None

        def show(view: Recoveries, is_last: bool) -> tuple:
            nonlocal drawn
            charts = gr.skip() if view.charts is drawn else curves_value(" ".join(view.levels), view.charts)
            drawn = view.charts
            return recovery_value(view), charts, *((_offer(view.sheet), *_places(view)) if is_last else [gr.skip()] * 3)

        def start(stop: StopFlag) -> Iterator[Recoveries]:
            raw = dict(zip(FORM, form, strict=True))
            file, example = raw.pop("file"), raw.pop("example")
            raw["sigmas"] = [*(raw.pop("chips") or []), raw.pop("typed") or ""]
            return recoveries(self.studio, parse(RecoverRequest, raw), file, example, kept, stop)

        yield from self._work(request, start, show, lambda text: (error_value(text), *[gr.skip()] * 4))

    def look(self, request: gr.Request, d_sigmas: str, *run: object) -> Iterator[tuple]:
        """(film, *buttons) at each step."""

        def start(stop: StopFlag) -> Iterator[Film]:
            raw = dict(zip(RUN, run, strict=True)) | {"d_sigmas": d_sigmas}
            return film(self.studio, parse(FilmRequest, raw), stop)

        yield from self._work(request, start, lambda view, _: (film_value(view),), lambda text: (error_value(text),))

    def push(self, request: gr.Request, kept: Kept, *cell: object) -> Iterator[tuple]:
        """(pushes, *buttons) at each step, of a cell of the last grid: the fields of PUSH."""

        def start(stop: StopFlag) -> Iterator[Pushes]:
            if kept.last is None:
                raise BadInput(NO_GRID)
            return pushes(self.studio, parse(PushRequest, dict(zip(PUSH, cell, strict=True))), kept, stop)

        yield from self._work(
            request, start, lambda view, _: (push_html(view),), lambda text: (note_html(text, "failed"),)
        )

    def _work(
        self,
        request: gr.Request,
        start: Callable[[StopFlag], Iterator[V]],
        show: Callable[[V, bool], tuple],
        show_error: Callable[[str], tuple],
    ) -> Iterator[tuple]:
        """The outputs of each snapshot that `start` yields, then the buttons; a page does one thing at a time."""
        as_they_are = (gr.skip(),) * 4
        try:
            with self.studio.jobs.flag(visitor(request, JOB), account(request)) as stop:
                for view in start(stop):
                    if view.phase in WORKING:
                        yield *show(view, False), *_busy(True)
            yield *show(view, True), *as_they_are
        except ValueError as error:
            yield *show_error(str(error)), *as_they_are
        except Exception:
            log.exception("A recovery failed.")
            yield *show_error(UNEXPECTED), *as_they_are

    def ready(self, request: gr.Request) -> tuple:
        """The buttons given back, unless the page is at work: a start that was refused ends before the work."""
        return (gr.skip(),) * 4 if self.studio.jobs.is_running(visitor(request, JOB)) else _busy(False)

    def stop(self, request: gr.Request) -> None:
        """The page's work ends, as it does where the page was closed."""
        self.studio.jobs.stop(visitor(request, JOB))

    def choose_source(self, source: str) -> tuple:
        """(file, example, painter) as far as that way to start has them."""
        return tuple(gr.update(visible=source == of) for of in ("upload", "example", "generate"))

    def choose_example(self, name: str | None) -> str:
        """What the example shows, as its prompt."""
        return next((entry.prompt for entry in examples() if entry.name == name), "")

    def choose_cell(self, event: gr.EventData) -> tuple:
        """(level, model) of the cell that the grid was asked about."""
        cell = told(event, "level"), told(event, "model")
        return cell if all(isinstance(place, int) for place in cell) else (gr.skip(),) * 2

    def model_choices(self) -> tuple:
        """(painter, models) pickers with every run that has finished by now."""
        choices = [(model.label, model.id) for model in self.studio.catalogue.models()]
        return (gr.update(choices=choices),) * 2

    def cost(self, chips: list[float], typed: str, d_sigmas: str) -> str:
        """What Recover says: how many cells it will make of each model."""
        try:
            num_levels = len(levels_of([*(chips or []), typed or ""]))
            num_rows = 3 + len(d_sigmas_of(d_sigmas))
        except ValueError:
            return "Recover"
        return f"Recover {num_levels * num_rows} cells"


def _busy(running: bool) -> tuple:
    """The three starts and Stop while work runs, or while none does."""
    return *(gr.update(interactive=not running),) * 3, gr.update(interactive=running)


def _offer(sheet: Path | None) -> dict[str, Any]:
    """The download of a grid's sheet, hidden where there is none."""
    return gr.update(value=str(sheet) if sheet else None, visible=sheet is not None)


def _places(view: Recoveries) -> tuple:
    """The pickers of a level and of a model for a push of this grid."""
    levels = [(f"σ {sigma:.4g}", place) for place, sigma in enumerate(view.sigmas)]
    models = [(name, place) for place, name in enumerate(view.models)]
    return gr.update(choices=levels, value=0 if levels else None), gr.update(choices=models, value=0)


def build(studio: Studio) -> None:
    """Lays out the tab inside the Blocks that are open, and wires it."""
    do = Handlers(studio)
    options = studio.options
    side = studio.catalogue.native_side
    choices = [(model.label, model.id) for model in studio.catalogue.models()]
    first_prompt = prompts.examples(is_full_size(options.model))[0]
    shipped = [(entry.prompt, entry.name) for entry in examples()]

    kept = gr.State(Kept())
    with gr.Row(elem_id="recoveries", equal_height=False):
        with gr.Column(elem_id="recover-ask", elem_classes="pane", scale=0, min_width=372):
            source = gr.Radio(
                [("New", "generate"), ("My own", "upload"), ("Example", "example")],
                value="generate",
                label="Start from",
                elem_id="recover-source",
            )
            file = gr.File(label="Picture", type="filepath", visible=False, height=88, elem_id="recover-file")
            example = gr.Dropdown(
                shipped,
                value=shipped[0][1] if shipped else None,
                label="Example",
                visible=False,
                elem_id="recover-example",
            )
            prompt = gr.Textbox(
                first_prompt, label="Prompt: what the model is told", lines=2, max_lines=6, elem_id="recover-prompt"
            )
            picker = {"allow_custom_value": options.local_paths, "min_width": 120}
            painter = gr.Dropdown(choices, value=BASE, label="Painted by", elem_id="recover-painter", **picker)
            models = gr.Dropdown(
                choices,
                value=[BASE],
                multiselect=True,
                max_choices=MAX_MODELS,
                label="Recovered by one model, or two side by side",
                elem_id="recover-models",
                **picker,
            )
            chips = gr.CheckboxGroup(
                [(f"{level:g}", level) for level in CHIPS],
                value=list(SIGMAS),
                label=f"Noise levels σ, at most {MAX_LEVELS}",
                elem_id="recover-chips",
            )
            with gr.Row():
                typed = gr.Textbox(
                    label="Further levels",
                    placeholder="0.45, 0.4-0.2/3",
                    max_lines=1,
                    min_width=150,
                    elem_id="recover-typed",
                )
                d_sigmas = gr.Textbox(
                    ", ".join(f"{step:g}" for step in D_SIGMAS),
                    label="Steps Δσ",
                    max_lines=1,
                    min_width=110,
                    elem_id="recover-d-sigmas",
                )
            with gr.Row(elem_id="recover-go"):
                label = do.cost(chips.value, "", d_sigmas.value)
                recover = gr.Button(label, variant="primary", elem_id="recover")
                stop = gr.Button("Stop", interactive=False, elem_id="recover-stop")
            own_noise = gr.Radio(
                [("Of a seed", False), ("That of the picture’s run", True)],
                value=False,
                label="Noise that is added",
                elem_id="recover-noise",
            )
            noise_seed = gr.Number(1, label="Noise seed", step=1, elem_id="recover-noise-seed")
            num_noises = gr.Slider(
                1, MAX_NOISES, value=DEFAULT_NOISES, step=1, label="Noises for the curves", elem_id="recover-noises"
            )
            shifted = gr.Radio(
                [("As given", False), ("Shifted, as the sampler’s are", True)],
                value=False,
                label="Levels",
                elem_id="recover-shifted",
            )
            lpips = gr.Checkbox(False, label="LPIPS too", visible=has_lpips(), elem_id="recover-lpips")
            if not has_lpips():
                gr.HTML(LPIPS, elem_classes="hint", apply_default_css=False)
            with gr.Accordion("Seed, steps, guidance, size", open=False, elem_id="recover-more"):
                with gr.Row():
                    seed = gr.Number(0, label="Seed", step=1, min_width=80, elem_id="recover-seed")
                    width = gr.Number(side, label="Width", step=SIZE_MULTIPLE, min_width=80, elem_id="recover-width")
                    height = gr.Number(side, label="Height", step=SIZE_MULTIPLE, min_width=80, elem_id="recover-height")
                steps = gr.Slider(1, studio.max_steps, value=28, step=1, label="Steps", elem_id="recover-steps")
                guidance = gr.Slider(0, MAX_GUIDANCE, value=3.5, step=0.1, label="Guidance", elem_id="recover-guidance")
            gr.HTML(RULE, elem_classes="hint", apply_default_css=False)
        with gr.Column(elem_id="recover-stage", min_width=320):
            with gr.Column(elem_classes="pane"):
                grid = recovery_grid(elem_id="recovery-grid")
                sheet = gr.DownloadButton(
                    "Download the sheet", visible=False, elem_id="recovery-sheet", scale=0, size="sm", min_width=180
                )
                charts = curves(studio.plotly, elem_id="recovery-curves")
            with gr.Column(elem_classes="pane", elem_id="push-panel"):
                gr.HTML(PUSH_HEAD, apply_default_css=False)
                with gr.Row():
                    level = gr.Dropdown([], label="Level", min_width=90, elem_id="push-level")
                    model = gr.Dropdown([], label="Model", min_width=130, elem_id="push-model")
                    word = gr.Dropdown(
                        prompts.control_words(),
                        value=PAPER_WORD,
                        label="Control word",
                        allow_custom_value=True,
                        min_width=130,
                        elem_id="push-word",
                    )
                    text = gr.Textbox(first_prompt, label="Text", max_lines=1, min_width=180, elem_id="push-text")
                with gr.Row():
                    step = gr.Slider(
                        0.5,
                        MAX_STEP,
                        value=4,
                        step=0.5,
                        label="Size of the step, in 255ths per value",
                        elem_id="push-step",
                    )
                    push = gr.Button("Show the push", elem_id="push", scale=0, min_width=170)
                pushed = gr.HTML(elem_id="pushed", apply_default_css=False)
            with gr.Column(elem_classes="pane", elem_id="film-panel"):
                gr.HTML(FILM_HEAD, apply_default_css=False)
                look = gr.Button("Show the run", elem_id="look", scale=0, min_width=140)
                scene = recovery_film(elem_id="recovery-film")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # See the Compare tab: only long work goes through the queue, and buttons come back in an event of their own.
    work: dict[str, Any] = quiet | {"trigger_mode": "multiple", "concurrency_limit": 8}
    press: dict[str, Any] = quiet | {"trigger_mode": "multiple", "queue": False}
    follow: dict[str, Any] = quiet | {"trigger_mode": "always_last", "queue": False}
    # In the order of RUN, FORM and PUSH.
    run = [prompt, painter, seed, steps, guidance, width, height]
    form = [
        *run, source, file, example, models, chips, typed, shifted, d_sigmas, own_noise, noise_seed, num_noises, lpips
    ]  # fmt: skip
    cell = [level, model, text, word, step]
    buttons = [recover, look, push, stop]

    recover.click(do.recover, [kept, *form], [grid, charts, sheet, level, model, *buttons], **work).then(
        do.ready, outputs=buttons, **press
    )
    look.click(do.look, [d_sigmas, *run], [scene, *buttons], **work).then(do.ready, outputs=buttons, **press)
    asked = grid.apply(do.choose_cell, outputs=[level, model], **press)
    for start in (push.click, asked.then):
        start(do.push, [kept, *cell], [pushed, *buttons], **work).then(do.ready, outputs=buttons, **press)
    stop.click(do.stop, **press)
    source.change(do.choose_source, source, [file, example, painter], **follow)
    example.input(do.choose_example, example, prompt, **follow)
    prompt.change(lambda said: said, prompt, text, **follow)
    counted = [chips, typed, d_sigmas]
    gr.on([field.change for field in counted], do.cost, counted, recover, **follow)
    page = gr.context.Context.root_block
    page.load(do.model_choices, outputs=[painter, models], **press)
    page.unload(do.stop)
