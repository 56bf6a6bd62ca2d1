"""The Compare tab: one prompt, two models, the same noise.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them.
"""

from __future__ import annotations

import html
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app.blocks import told
from app.components.grid_table import grid_table, grid_value
from app.components.note import note_html
from app.components.stage import error_value, stage, stage_value, voted
from app.services import prompts
from app.services.compare import compare
from app.services.device import RULE
from app.services.grid import paint_grid
from app.services.metadata import differences, read_request
from app.services.models import BASE, SRPO, Model, is_full_size
from app.services.requests import (
    MAX_GRID_PICTURES,
    MAX_GUIDANCE,
    MAX_PROMPT_CHARACTERS,
    MAX_SEEDS,
    PLAIN,
    SIZE_MULTIPLE,
    BadInput,
    CompareRequest,
    GridRequest,
    Settings,
    parse,
)
from app.services.studio import Studio
from app.services.study_quick import offers, quick_vote
from app.state import Session

log = logging.getLogger(__name__)

SETTINGS = ("num_seeds", "steps", "guidance", "width", "height", "control_word")
RESTORED = ("prompt", "seed", *SETTINGS, "left", "right")
MEMORY_MODES = [
    ("Automatic, by free memory", "auto"),
    ("Both on the device", "resident"),
    ("One on the device, swapped", "swap"),
    ("Layer by layer, offloaded", "offload"),
    ("Rounded to 8 or 4 bits: single pictures alone", "quantized"),
]
LORA_WEIGHTS = -1.0, 2.0  # what the slider offers; a path may say more
WORKING = ("waiting", "running")  # phases after which more comes
UNEXPECTED = "Something went wrong in the app itself; the terminal it was started from has the details."


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def generate(
        self,
        request: gr.Request,
        session: Session,
        seed_mode: str,
        seed: object,
        prompt: str,
        left: str,
        right: str,
        *settings: object,
    ) -> Iterator[tuple]:
        """(stage, session, Generate, Stop) at each step; bad input leaves everything but the banner as it was.

        The end is shown after the work has left: whoever sees it can start again. `ready` gives the buttons back.
        """
        try:
            raw = dict(zip(SETTINGS, settings, strict=True)) | {"prompt": prompt, "left": left, "right": right}
            asked = parse(CompareRequest, raw | {"seed": session.choose_seed(seed_mode, seed)})
            with self.studio.jobs.flag(visitor(request), account(request)) as stop:
                for view in compare(self.studio, asked, stop):
                    session.last_seed, session.offers = asked.seed, offers(view, asked)
                    if view.phase in WORKING:
                        yield stage_value(view), session, *_busy(True)
            yield stage_value(view), session, gr.skip(), gr.skip()
        except ValueError as error:
            yield error_value(str(error)), session, gr.skip(), gr.skip()
        except Exception:
            log.exception("A comparison failed.")
            yield error_value(UNEXPECTED), session, gr.skip(), gr.skip()

    def paint_grid(
        self,
        request: gr.Request,
        session: Session,
        seed_mode: str,
        seed: object,
        lines: str,
        models: list[str],
        num_seeds: object,
        *settings: object,
    ) -> Iterator[tuple]:
        """(table, sheet, session, Draw, Stop) at each step, the end after the work has left; see `ready_grid`."""
        try:
            raw = dict(zip(SETTINGS, (num_seeds, *settings[1:]), strict=True)) | {"prompts": lines, "models": models}
            asked = parse(GridRequest, raw | {"seed": session.choose_seed(seed_mode, seed)})
            with self.studio.jobs.flag(visitor(request, "grid"), account(request)) as stop:
                for view in paint_grid(self.studio, asked, stop):
                    session.last_seed = asked.seed
                    if view.phase in WORKING:
                        yield grid_value(view), _offer(None), session, *_busy(True)
            yield grid_value(view), _offer(view.sheet), session, gr.skip(), gr.skip()
        except ValueError as error:
            yield error_value(str(error)), gr.skip(), session, gr.skip(), gr.skip()
        except Exception:
            log.exception("A grid failed.")
            yield error_value(UNEXPECTED), gr.skip(), session, gr.skip(), gr.skip()

    def vote(self, session: Session, event: gr.EventData) -> dict[str, Any]:
        """What the stage says once an answer to "Which is better?" is stored, or why it is not."""
        pair = told(event, "pair")
        try:
            return voted(pair, quick_vote(self.studio, session.offers, {"pair": pair, "answer": told(event, "answer")}))
        except ValueError as error:
            return voted(pair, str(error), stored=False)

    def ready(self, request: gr.Request) -> tuple:
        """(Generate, Stop) given back, unless the page is at work: a start that was refused ends before the work."""
        return (gr.skip(),) * 2 if self.studio.jobs.is_running(visitor(request)) else _busy(False)

    def ready_grid(self, request: gr.Request) -> tuple:
        """(Draw, Stop) given back, unless the page is at work."""
        return (gr.skip(),) * 2 if self.studio.jobs.is_running(visitor(request, "grid")) else _busy(False)

    def stop(self, request: gr.Request) -> None:
        self.studio.jobs.stop(visitor(request))

    def stop_grid(self, request: gr.Request) -> None:
        self.studio.jobs.stop(visitor(request, "grid"))

    def leave(self, request: gr.Request) -> None:
        """A page was closed: its work ends."""
        self.stop(request)
        self.stop_grid(request)

    def restore(self, path: str | None) -> tuple:
        """(the file field, a note, the seed mode, then RESTORED): what a dropped PNG says, or nothing."""
        keep = [gr.skip()] * len(RESTORED)
        if path is None:
            return gr.skip(), gr.skip(), gr.skip(), *keep
        try:
            found, note, made_with = read_request(path)
        except BadInput as error:
            return None, note_html(str(error), "failed"), gr.skip(), *keep
        values = found.model_dump() if isinstance(found, CompareRequest) else dict(found)
        for side in ("left", "right"):
            try:
                self.studio.catalogue.find(values.get(side, BASE))
            except BadInput:
                note = f"Restored all but the {side} model, which is not here."
                values.pop(side)
        note = f"{note} {differences(made_with, self.studio.made_with())}".strip()
        values["control_word"] = values.get("control_word") or PLAIN
        updates = [gr.update(value=values[name]) if name in values else gr.skip() for name in RESTORED]
        return None, note_html(note, "ready"), "fixed" if "seed" in values else gr.skip(), *updates

    def tokens(self, prompt: str, control_word: str) -> str:
        """The length of the prompt as the text encoder counts it."""
        try:
            text = Settings(seed=0, control_word=control_word).text(prompt or "")
        except ValueError:
            return ""
        if len(text) > MAX_PROMPT_CHARACTERS:  # no work for a text that would be refused
            return f"<b>{len(text):,} of {MAX_PROMPT_CHARACTERS:,} characters: too long</b>"
        counted = self.studio.count_tokens(text) if (prompt or "").strip() else None
        if counted is None:
            return ""
        count, limit = counted
        return f"<b>{count} of {limit} tokens: too long</b>" if count > limit else f"{count} of {limit} tokens"

    def status(self) -> tuple:
        """(the line about the models, the timer, which stops once the models are there)."""
        status = self.studio.status()
        return note_html(status.message, status.phase), gr.Timer(active=status.phase != "ready")

    def rearrange(self, memory: object) -> tuple:
        """(what was refused, or nothing; the line about the models; the timer that tells how far they are)."""
        try:
            self.studio.rearrange(str(memory))
        except BadInput as error:
            return note_html(str(error), "failed"), gr.skip(), gr.skip()
        # However short the loading: the line changes, and once more when the models are there.
        return "", note_html("Loading models …", "loading"), gr.Timer(active=True)

    def arrangement(self) -> tuple:
        """(the memory mode as it was asked for, what was picked and why)."""
        said = self.studio.arrangement() or "The models are still loading."
        return gr.update(value=self.studio.memory), html.escape(said)

    def model_choices(self) -> tuple:
        """(left, right, grid) pickers with every run that has finished by now."""
        choices = [(model.label, model.id) for model in self.studio.catalogue.models()]
        return (gr.update(choices=choices),) * 3

    def weight_of(self, left: str, right: str) -> dict[str, Any]:
        """The slider of a LoRA's weight: shown where a side is one, at the first one's weight."""
        weights = [model.weight for name in (left, right) if (model := self._lora(name)) is not None]
        return gr.update(visible=True, value=weights[0]) if weights else gr.update(visible=False)

    def weigh(self, weight: object, left: str, right: str) -> tuple:
        """(left, right) pickers with that weight on every side that is a LoRA."""
        choices = [(model.label, model.id) for model in self.studio.catalogue.models()]
        updates = []
        for name in (left, right):
            if (model := self._lora(name)) is None or not isinstance(weight, int | float):
                updates.append(gr.skip())
                continue
            weighed = self.studio.catalogue.weighted(model, float(weight))
            offered = choices if weighed.id in dict(choices).values() else [*choices, (weighed.label, weighed.id)]
            updates.append(gr.update(choices=offered, value=weighed.id))
        return tuple(updates)

    def _lora(self, name: str) -> Model | None:
        """The model of that name where it is a LoRA."""
        try:
            model = self.studio.catalogue.find(name or "")
        except BadInput:
            return None
        return model if self.studio.catalogue.is_lora(model) else None

    def cost(self, num_seeds: object) -> str:
        """What Generate says: how much it will make."""
        count = int(num_seeds or 1)
        return "Generate" if count == 1 else f"Generate {count} pairs"

    def grid_cost(self, lines: str, models: list[str], num_seeds: object) -> str:
        """What Draw says: how much it will make."""
        count = sum(bool(line.strip()) for line in (lines or "").splitlines()) * len(models or []) * int(num_seeds or 0)
        over = f", at most {MAX_GRID_PICTURES}" if count > MAX_GRID_PICTURES else ""
        return f"Draw {count} picture{'' if count == 1 else 's'}{over}"


def visitor(request: gr.Request, job: str = "compare") -> str:
    """The name under which this page's work can be stopped."""
    return f"{request.session_hash}/{job}"


def account(request: gr.Request) -> str | None:
    """The visitor's name on Hugging Face; None for one who has not signed in. (The cookie it lies in is signed.)"""
    scope = getattr(getattr(request, "request", None), "scope", {})
    found = scope.get("session", {}).get("oauth_info")
    return found["userinfo"]["preferred_username"] if found and found.get("expires_at", 0) > time.time() else None


def _busy(running: bool) -> tuple:
    """The start and the stop button while work runs, or while none does."""
    return gr.update(interactive=not running), gr.update(interactive=running)


def _offer(sheet: Path | None) -> dict[str, Any]:
    """The download of a grid's sheet, hidden where there is none."""
    return gr.update(value=str(sheet) if sheet else None, visible=sheet is not None)


def build(studio: Studio) -> tuple[gr.Dropdown, gr.Dropdown]:
    """Lays out the tab inside the Blocks that are open, and wires it. Returns the pickers of both sides."""
    do = Handlers(studio)
    options = studio.options
    side = studio.catalogue.native_side
    choices = [(model.label, model.id) for model in studio.catalogue.models()]
    known = [identity for _, identity in choices]
    second = SRPO if SRPO in known else BASE
    examples = prompts.examples(is_full_size(options.model))

    session = gr.State(Session())
    with gr.Column(elem_id="compare"):
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(
                label="Prompt", placeholder="Describe a picture", lines=2, max_lines=8, elem_id="prompt", autofocus=True
            )
            tokens = gr.HTML(elem_id="tokens", apply_default_css=False)
            if options.is_miniature:
                gr.HTML(prompts.miniature_world(), elem_id="world", elem_classes="hint", apply_default_css=False)
            with gr.Row(elem_id="examples"):
                chips = [gr.Button(text, size="sm") for text in examples]
            with gr.Row(elem_id="go"):
                generate = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", interactive=False, elem_id="stop")
            picker = {"allow_custom_value": options.local_paths, "min_width": 120}
            with gr.Row():
                left = gr.Dropdown(choices, value=BASE, label="Left model", elem_id="left", **picker)
                right = gr.Dropdown(choices, value=second, label="Right model", elem_id="right", **picker)
            lora_weight = gr.Slider(
                *LORA_WEIGHTS,
                value=1,
                step=0.05,
                label="Weight of the LoRA, on every side that is one",
                visible=False,
                elem_id="lora-weight",
            )
            if options.local_paths:
                gr.HTML(
                    "Or paste the path of a folder, or of a .safetensors or .gguf file; behind a LoRA’s path, @0.8 is "
                    "its weight.",
                    elem_classes="hint",
                    apply_default_css=False,
                )
            status = gr.HTML(note_html(*_status_of(studio)), elem_id="status", apply_default_css=False)
            gr.HTML(RULE, elem_classes="hint", apply_default_css=False)
        # Beyond loopback nobody may fill the database: what is not registered cannot be called.
        view = stage(studio.catalogue.look_for, asks=options.local_paths, elem_id="stage")
        with gr.Column(elem_id="settings"):
            word = gr.Dropdown(
                prompts.control_words(),
                value=PLAIN,
                label="Control word in front of the prompt, for both sides",
                allow_custom_value=True,
                elem_id="control-word",
            )
            seed_mode = gr.Radio(
                [("Fixed", "fixed"), ("Random", "random"), ("Reuse last", "last")],
                value="fixed",
                label="Seed",
                elem_id="seed-mode",
            )
            with gr.Row():
                seed = gr.Number(0, label="Fixed seed", step=1, min_width=80, elem_id="seed")
                width = gr.Number(side, label="Width", step=SIZE_MULTIPLE, min_width=80, elem_id="width")
                height = gr.Number(side, label="Height", step=SIZE_MULTIPLE, min_width=80, elem_id="height")
            num_seeds = gr.Slider(1, MAX_SEEDS, value=1, step=1, label="Number of seeds", elem_id="num-seeds")
            steps = gr.Slider(1, studio.max_steps, value=28, step=1, label="Steps", elem_id="steps")
            guidance = gr.Slider(0, MAX_GUIDANCE, value=3.5, step=0.1, label="Guidance", elem_id="guidance")
            dropped = gr.File(
                label="Restore the settings of a picture",
                show_label=False,
                height=64,
                type="filepath",
                elem_id="dropped",
            )
            restored = gr.HTML(elem_id="restored", apply_default_css=False)
            with gr.Accordion("Memory and speed", open=False, elem_id="memory-panel") as memory_panel:
                memory = gr.Dropdown(
                    MEMORY_MODES,
                    value=studio.memory,
                    label="How two models share the device",
                    interactive=options.local_paths,  # beyond loopback nobody may reload the models of all
                    elem_id="memory",
                )
                arranged = gr.HTML(elem_id="arranged", elem_classes="hint", apply_default_css=False)
                refused = gr.HTML(elem_id="memory-refused", apply_default_css=False)
    with gr.Accordion("Grid: prompts × seeds × models", open=False, elem_id="grid-panel"):
        with gr.Row():
            lines = gr.Textbox(
                "\n".join(examples[:3]), label="Prompts, one per line", lines=4, max_lines=12, elem_id="grid-prompts"
            )
            with gr.Column():
                grid_models = gr.Dropdown(
                    choices,
                    value=list(dict.fromkeys((BASE, second))),
                    multiselect=True,
                    label="Models, one column each",
                    allow_custom_value=options.local_paths,
                    elem_id="grid-models",
                )
                grid_seeds = gr.Slider(1, MAX_SEEDS, value=2, step=1, label="Seeds per prompt", elem_id="grid-seeds")
        with gr.Row():
            counted = [lines, grid_models, grid_seeds]
            label = do.grid_cost(*(field.value for field in counted))
            draw = gr.Button(label, variant="primary", elem_id="draw", scale=0, min_width=220)
            stop_grid = gr.Button("Stop", interactive=False, elem_id="stop-grid", scale=0, min_width=88)
            sheet = gr.DownloadButton("Download the sheet", visible=False, elem_id="sheet", scale=0, min_width=230)
        table = grid_table(elem_id="grid-table")
    gr.HTML(f'<p id="terms">{studio.catalogue.licences()}</p>', apply_default_css=False)
    timer = gr.Timer(1.0)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Only long work goes through the queue. Its answers come over a stream that ends with the last of them, and
    # Gradio's page never hears the answer to a question that joins the queue while that end is on its way. So short
    # questions keep out of it, and a button comes back in an event of its own, after the stream.
    work: dict[str, Any] = quiet | {
        "trigger_mode": "multiple",
        "concurrency_limit": 8,  # how many may wait in the device's own line; one of them works
    }
    # "multiple": no press is dropped because the answer to the one before is still on its way.
    press: dict[str, Any] = quiet | {"trigger_mode": "multiple", "queue": False}
    # "always_last": asked again where a field changed while the answer was on its way. Such an output has this one
    # event and no other, or an older answer could come after a newer one.
    follow: dict[str, Any] = quiet | {"trigger_mode": "always_last", "queue": False}
    page = gr.context.Context.root_block
    settings = [num_seeds, steps, guidance, width, height, word]
    inputs = [session, seed_mode, seed, prompt, left, right, *settings]

    starts = [generate.click]
    for chip, text in zip(chips, examples, strict=True):
        starts.append(chip.click(None, js=f"() => {json.dumps(text)}", outputs=prompt, **press).then)
    for start in starts:
        start(do.generate, inputs, [view, session, generate, stop], **work).then(
            do.ready, outputs=[generate, stop], **press
        )
    stop.click(do.stop, **press)
    if options.local_paths:
        view.select(do.vote, session, view, **press)
    draw.click(
        do.paint_grid,
        [session, seed_mode, seed, lines, grid_models, grid_seeds, *settings],
        [table, sheet, session, draw, stop_grid],
        **work,
    ).then(do.ready_grid, outputs=[draw, stop_grid], **press)
    stop_grid.click(do.stop_grid, **press)
    # The fields in the order of RESTORED.
    dropped.upload(do.restore, dropped, [dropped, restored, seed_mode, prompt, seed, *settings, left, right], **press)
    gr.on([prompt.change, word.change, status.change], do.tokens, [prompt, word], tokens, **follow)
    if options.local_paths:  # elsewhere a picker takes what it lists alone
        gr.on([left.change, right.change, page.load], do.weight_of, [left, right], lora_weight, **follow)
        lora_weight.input(do.weigh, [lora_weight, left, right], [left, right], **follow)
    if options.local_paths:
        memory.input(do.rearrange, memory, [refused, status, timer], **press)
    looks = [status.change, memory_panel.expand, refused.change, page.load]
    gr.on(looks, do.arrangement, outputs=[memory, arranged], **follow)
    num_seeds.change(do.cost, num_seeds, generate, **follow)
    gr.on([field.change for field in counted], do.grid_cost, counted, draw, **follow)
    timer.tick(do.status, outputs=[status, timer], queue=False, **quiet)
    page.load(do.model_choices, outputs=[left, right, grid_models], **press)
    page.unload(do.leave)
    return left, right


def _status_of(studio: Studio) -> tuple[str, str]:
    status = studio.status()
    return status.message, status.phase
