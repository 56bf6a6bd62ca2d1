"""The Control words tab: edit a set, see what a reward makes of it, and what a few updates with it would do.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them; `send_to` adds the way
to the Fine-tune tab.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from app.components.film import film, film_value
from app.components.note import note_html
from app.components.stage import error_value
from app.components.words_editor import edited_set, editor_value, words_editor
from app.components.words_table import table_value, words_table
from app.components.words_verdicts import verdicts_value, words_verdicts
from app.services import prompts
from app.services.device import RULE
from app.services.models import BASE, is_full_size
from app.services.requests import MAX_SEEDS, parse
from app.services.studio import Studio
from app.services.training_requests import lines_of, with_lines
from app.services.word_preview import MAX_UPDATES, PreviewRequest, preview
from app.services.word_sets import WordShelf, file_name, word_set, yaml_address
from app.services.words import PER_WORD, PerceiveRequest, SeeRequest, perceived, see
from app.tabs.compare import UNEXPECTED, WORKING, account, visitor
from app.tabs.finetune import Form

log = logging.getLogger(__name__)

JOBS = ("words/see", "words/check", "words/preview")
STEPS = {True: 28, False: 12}  # by whether the model is of FLUX's size
SEEN_SEEDS = 4
CHECK_STEPS = 10  # what a word does to a picture shows early
SEE_HINT = (
    "The same pictures, scored under the prompt alone and under the prompt with each word in front. A word that adds "
    "to some pictures and takes from others is one that the reward can steer by."
)
CHECK_HINT = (
    "Pictures are painted with each word and without any, from the same prompts and noise. A reward that cannot tell "
    "which is which will teach nothing by that word."
)
PREVIEW_HINT = (
    "A real short run on a copy of the model with the set above, dropped at its end; the same prompts and noise are "
    "painted after every update."
)
LEVELS = "objective.levels."  # settings that belong to one kind of levels: those of another must go


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.shelf = WordShelf(studio)

    # The set

    def open_page(self) -> tuple:
        """(editor, picker): the first set, and all there are. Imports the training, which takes seconds."""
        first = self.shelf.first
        words = editor_value(self.shelf.load(first), self.shelf.recipes)
        return words, gr.update(choices=self.shelf.choices(), value=first)

    def choose(self, key: str | None) -> tuple:
        """(editor, note): the set that was picked."""
        try:
            words = self.shelf.load(key)
        except ValueError as error:
            return gr.skip(), note_html(str(error), "failed")
        return editor_value(words), note_html(f"{words.name} is loaded.", "ready")

    def upload(self, path: str | None) -> tuple:
        """(editor, note): the set of a file."""
        try:
            words = self.shelf.upload(path)
        except ValueError as error:
            return gr.skip(), note_html(str(error), "failed")
        return editor_value(words), note_html(f"{words.name} is read from the file.", "ready")

    def save(self, edited: object) -> tuple:
        """(picker, note): the set is kept beside the runs."""
        try:
            words = word_set(edited_set(edited))
            self.shelf.check(words)
            key = self.shelf.save(words)
        except (ValueError, OSError) as error:
            return gr.skip(), note_html(str(error), "failed")
        return gr.update(choices=self.shelf.choices(), value=key), note_html(f"{words.name} is saved.", "ready")

    def check(self, edited: object) -> tuple:
        """(what there is to know of the set or what is wrong with it, its download)."""
        try:
            words = word_set(edited_set(edited))
            said = self.shelf.check(words)
        except ValueError as error:
            return note_html(str(error), "failed"), ""
        address = yaml_address(words)
        name = html.escape(f"{file_name(words)}.yaml", quote=True)
        return note_html(said, "idle"), f'<a class="download" href="{address}" download="{name}">Download as YAML</a>'

    def send(self, edited: object, more: str | None) -> tuple:
        """(note, tabs, positive, negative, more): the set in the form of a run, whose other settings stay."""
        try:
            words = word_set(edited_set(edited))
            self.shelf.check(words)
            kept = [line for line in (more or "").splitlines() if not line.strip().startswith(LEVELS)]
            lines = with_lines("\n".join(kept), lines_of(self.shelf.settings(words)))
        except ValueError as error:
            return note_html(str(error), "failed"), *(gr.skip(),) * 4
        chosen = words.control_words
        sides = ("\n".join(chosen.positive), "\n".join(chosen.negative))
        return (
            note_html(f"{words.name} is in the form of a run.", "ready"),
            gr.update(selected="finetune"),
            *sides,
            lines,
        )

    # Long work

    def see(
        self,
        request: gr.Request,
        edited: object,
        lines: str,
        model: str,
        files: Sequence[str] | None,
        num_seeds: object,
        seed: object,
        steps: object,
    ) -> Iterator[tuple]:
        """(table, Score, Stop) at each step, the end after the work has left; see `ready`."""
        raw = self._shared(edited, model, seed, steps) | {"prompts": lines, "files": files, "num_seeds": num_seeds}
        yield from self._work(
            request, "words/see", lambda stop: see(self.studio, parse(SeeRequest, raw), stop), table_value
        )

    def perceive(
        self,
        request: gr.Request,
        edited: object,
        model: str,
        others: str,
        per_word: object,
        seed: object,
        steps: object,
    ) -> Iterator[tuple]:
        """(verdicts, Check, Stop) at each step."""
        raw = self._shared(edited, model, seed, steps) | {"others": others, "per_word": per_word}

        def work(stop: Any) -> Iterator:
            return perceived(self.studio, parse(PerceiveRequest, raw), stop)

        yield from self._work(request, "words/check", work, verdicts_value)

    def preview(
        self, request: gr.Request, edited: object, lines: str, updates: object, seed: object
    ) -> Iterator[tuple]:
        """(note, film, Run, Stop) at each step."""
        raw = {"words": edited_set(edited), "prompts": lines, "updates": updates, "seed": seed}
        raw |= {name: self.studio.catalogue.native_side for name in ("width", "height")}
        shown: list[Any] = [gr.skip()]

        def value(view: Any) -> dict[str, Any] | str:
            if isinstance(view, dict):  # an error's sentence
                return note_html(view["message"], "failed")
            if view.film is not None:
                shown[0] = film_value(view.film)
            left = f"{view.left_s:.0f} s left" if view.left_s else ""
            said = " · ".join(part for part in (view.message, left, view.said) if part)
            return note_html(said, "loading" if view.phase in WORKING else "ready")

        def work(stop: Any) -> Iterator:
            return preview(self.studio, parse(PreviewRequest, raw), stop)

        for note, *buttons in self._work(request, "words/preview", work, value, value):
            yield note, shown[0], *buttons

    def _shared(self, edited: object, model: str, seed: object, steps: object) -> dict[str, Any]:
        side = self.studio.catalogue.native_side
        shared = {"words": edited_set(edited), "model": model, "seed": seed, "steps": steps}
        return shared | {"width": side, "height": side}

    def _work(
        self,
        request: gr.Request,
        job: str,
        work: Callable[[Any], Iterator],
        value: Callable[[Any], Any],
        of_error: Callable[[Any], Any] = lambda error: error,
    ) -> Iterator[tuple]:
        """(what is shown, start, Stop) at each step; bad input leaves what is shown as it was."""
        try:
            with self.studio.jobs.flag(visitor(request, job), account(request)) as stop:
                for view in work(stop):
                    if view.phase in WORKING:
                        yield value(view), *_busy(True)
            yield value(view), gr.skip(), gr.skip()
        except ValueError as error:
            yield of_error(error_value(str(error))), gr.skip(), gr.skip()
        except Exception:
            log.exception("Work on control words failed.")
            yield of_error(error_value(UNEXPECTED)), gr.skip(), gr.skip()

    def ready(self, job: str) -> Callable[[gr.Request], tuple]:
        """A handler that gives (start, Stop) back, unless the page is at that work."""

        def ready_words(request: gr.Request) -> tuple:
            return (gr.skip(),) * 2 if self.studio.jobs.is_running(visitor(request, job)) else _busy(False)

        return ready_words

    def stop(self, job: str) -> Callable[[gr.Request], None]:
        """A handler that stops that work."""

        def stop_words(request: gr.Request) -> None:
            self.studio.jobs.stop(visitor(request, job))

        return stop_words

    def leave(self, request: gr.Request) -> None:
        """A page was closed: its work ends."""
        for job in JOBS:
            self.studio.jobs.stop(visitor(request, job))

    def cost(self, lines: str, num_seeds: object, files: Sequence[str] | None) -> str:
        """What Score says: how much it will do."""
        count = len(files or ()) or sum(bool(line.strip()) for line in (lines or "").splitlines()) * int(num_seeds or 0)
        what = f"{count} picture{'' if count == 1 else 's'}"
        return f"Score {what}" if files else f"Paint and score {what}"

    def check_cost(self, edited: object, others: str, per_word: object) -> str:
        """What Check says: how much it will paint."""
        try:
            raw = {"words": edited_set(edited), "model": BASE, "seed": 0, "others": others, "per_word": per_word}
            return f"Paint {parse(PerceiveRequest, raw).num_pictures} pictures and check"
        except ValueError:
            return "Paint and check"

    def model_choices(self) -> tuple:
        """Both pickers with every run that has finished by now."""
        choices = [(model.label, model.id) for model in self.studio.catalogue.models()]
        return (gr.update(choices=choices),) * 2


def _busy(running: bool) -> tuple:
    """The start and the stop button while work runs, or while none does."""
    return gr.update(interactive=not running), gr.update(interactive=running)


# Only long work goes through the queue; see compare.py for why, and for what the modes mean.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
WORK = QUIET | {"trigger_mode": "multiple", "concurrency_limit": 8}
PRESS = QUIET | {"trigger_mode": "multiple", "queue": False}
FOLLOW = QUIET | {"trigger_mode": "always_last", "queue": False}


class Parts(NamedTuple):
    """What the way to the Fine-tune tab begins with; no button where nobody may train."""

    handlers: Handlers
    editor: gr.HTML
    note: gr.HTML
    send: gr.Button | None


def build(studio: Studio) -> Parts:
    """Lays out the tab inside the Blocks that are open, and wires it. Returns what `send_to` needs."""
    do = Handlers(studio)
    trains = studio.options.local_paths
    choices = [(model.label, model.id) for model in studio.catalogue.models()]
    picker = {"value": BASE, "label": "Model", "allow_custom_value": trains, "min_width": 140}
    steps = STEPS[is_full_size(studio.options.model)]
    examples = prompts.examples(is_full_size(studio.options.model))

    with gr.Column(elem_id="words"):
        with gr.Column(elem_id="words-set", elem_classes="words-panel"):
            with gr.Row(elem_id="words-bar"):
                sets = gr.Dropdown([], label="Word set", elem_id="word-sets", min_width=180)
                upload = gr.UploadButton("Open a file", file_types=[".yaml", ".yml"], elem_id="words-upload")
                download = gr.HTML(elem_id="words-download", apply_default_css=False)
                save = gr.Button("Save", elem_id="words-save") if trains else None
                send = gr.Button("Send to Fine-tune", elem_id="words-send") if trains else None
            editor = words_editor(elem_id="words-editor")
            note = gr.HTML(elem_id="words-note", apply_default_css=False)
            checked = gr.HTML(elem_id="words-checked", apply_default_css=False)
        with gr.Column(elem_id="words-see", elem_classes="words-panel"):
            gr.HTML(_title("What does the reward see?", SEE_HINT), apply_default_css=False)
            with gr.Row(equal_height=False):
                lines = gr.Textbox(
                    "\n".join(examples[:2]), label="Prompts, one per line", lines=2, max_lines=8, elem_id="see-prompts"
                )
                files = gr.File(
                    label="Pictures of your own",
                    show_label=False,
                    file_count="multiple",
                    file_types=["image"],
                    height=86,
                    elem_id="see-files",
                )
            with gr.Row():
                model = gr.Dropdown(choices, elem_id="see-model", **picker)
                num_seeds = gr.Slider(
                    1, MAX_SEEDS, value=SEEN_SEEDS, step=1, label="Seeds per prompt", elem_id="see-seeds", min_width=140
                )
                seed = gr.Number(0, label="First seed", step=1, min_width=80, elem_id="see-seed")
                see_steps = gr.Slider(
                    1, studio.max_steps, value=steps, step=1, label="Steps", elem_id="see-steps", min_width=120
                )
            with gr.Row(elem_classes="words-go"):
                label = do.cost(lines.value, num_seeds.value, None)
                score = gr.Button(label, variant="primary", elem_id="see-go", scale=0, min_width=300)
                stop_see = gr.Button("Stop", interactive=False, elem_id="see-stop", scale=0, min_width=88)
            table = words_table(elem_id="words-table")
        with gr.Column(elem_id="words-check", elem_classes="words-panel"):
            gr.HTML(_title("Does it perceive the words?", CHECK_HINT), apply_default_css=False)
            with gr.Row():
                check_model = gr.Dropdown(choices, elem_id="check-model", **picker)
                others = gr.Textbox(
                    "Dark, Bright, Florp",
                    label="Compare with further words",
                    max_lines=1,
                    elem_id="check-others",
                    min_width=180,
                )
                per_word = gr.Slider(
                    *PER_WORD, value=10, step=1, label="Pictures per word", elem_id="check-per-word", min_width=140
                )
                check_seed = gr.Number(0, label="First seed", step=1, min_width=80, elem_id="check-seed")
                check_steps = gr.Slider(
                    1, studio.max_steps, value=CHECK_STEPS, step=1, label="Steps", elem_id="check-steps", min_width=120
                )
            with gr.Row(elem_classes="words-go"):
                check = gr.Button("Paint and check", variant="primary", elem_id="check-go", scale=0, min_width=300)
                stop_check = gr.Button("Stop", interactive=False, elem_id="check-stop", scale=0, min_width=88)
            verdicts = words_verdicts(elem_id="words-verdicts")
        if trains:
            with gr.Column(elem_id="words-preview", elem_classes="words-panel"):
                gr.HTML(_title("What would a few updates do?", PREVIEW_HINT), apply_default_css=False)
                with gr.Row(equal_height=False):
                    preview_lines = gr.Textbox(
                        "\n".join(examples[:3]),
                        label="Prompts, one per line",
                        lines=3,
                        max_lines=4,
                        elem_id="preview-prompts",
                    )
                    updates = gr.Slider(
                        1, MAX_UPDATES, value=5, step=1, label="Updates", elem_id="preview-updates", min_width=140
                    )
                    preview_seed = gr.Number(0, label="First seed", step=1, min_width=80, elem_id="preview-seed")
                with gr.Row(elem_classes="words-go"):
                    run = gr.Button("Train and show", variant="primary", elem_id="preview-go", scale=0, min_width=300)
                    stop_run = gr.Button("Stop", interactive=False, elem_id="preview-stop", scale=0, min_width=88)
                run_note = gr.HTML(elem_id="preview-note", apply_default_css=False)
                before_after = film(elem_id="preview-film")
        gr.HTML(RULE, elem_classes="hint", apply_default_css=False)

    sets.input(do.choose, sets, [editor, note], **PRESS)
    upload.upload(do.upload, upload, [editor, note], **PRESS)
    editor.change(do.check, editor, [checked, download], **FOLLOW)
    gr.on([lines.change, num_seeds.change, files.change], do.cost, [lines, num_seeds, files], score, **FOLLOW)
    gr.on(
        [editor.change, others.change, per_word.change],
        do.check_cost,
        [editor, others, per_word],
        check,
        **FOLLOW,
    )

    def long(start: gr.Button, stop: gr.Button, handler: Callable, job: str, inputs: list, shown: list) -> None:
        start.click(handler, inputs, [*shown, start, stop], **WORK).then(do.ready(job), outputs=[start, stop], **PRESS)
        stop.click(do.stop(job), **PRESS)

    seen = [editor, lines, model, files, num_seeds, seed, see_steps]
    long(score, stop_see, do.see, "words/see", seen, [table])
    asked = [editor, check_model, others, per_word, check_seed, check_steps]
    long(check, stop_check, do.perceive, "words/check", asked, [verdicts])
    if trains:  # what is not registered cannot be called
        save.click(do.save, editor, [sets, note], **PRESS)
        asked = [editor, preview_lines, updates, preview_seed]
        long(run, stop_run, do.preview, "words/preview", asked, [run_note, before_after])
    page = gr.context.Context.root_block
    page.load(do.open_page, outputs=[editor, sets], **PRESS)
    page.load(do.model_choices, outputs=[model, check_model], **PRESS)
    page.unload(do.leave)
    return Parts(do, editor, note, send)


def send_to(parts: Parts, form: Form, tabs: gr.Tabs) -> None:
    """Wires "Send to Fine-tune": the set goes into the form of a run, and that tab is opened."""
    outputs = [parts.note, tabs, form.positive, form.negative, form.more]
    parts.send.click(parts.handlers.send, [parts.editor, form.more], outputs, **PRESS)


def _title(text: str, hint: str) -> str:
    return f'<h3 class="panel-title">{text}</h3><p class="hint">{hint}</p>'
