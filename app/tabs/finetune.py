"""The Fine-tune tab: start a run, watch it, and do with it whatever comes to mind.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them. A run lives in its
folder: what is shown is read from there once a second, and only what has changed is sent.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from app.blocks import told
from app.components.curves import curves, curves_value
from app.components.film import film, film_value
from app.components.grid_table import grid_table, samples_value
from app.components.note import note_html
from app.services.device import RULE, StopFlag, Stopped
from app.services.finetune import Comparison, Cost, said_s
from app.services.models import BASE
from app.services.requests import BadInput, parse, whole
from app.services.run_view import RunView
from app.services.studio import Studio
from app.services.training_requests import MAX_UPDATES, TrainRequest, lines_of, read_prompt_file
from app.state import Refusal, Resumption, Watching
from app.tabs.compare import UNEXPECTED, account, visitor

log = logging.getLogger(__name__)

LABEL = "Fine-tune"  # of the tab
FIRST_LOOKS_S, LOOKS_S = 1.0, 3.0  # from look to look: while the first point is awaited, and later
OWN_FILE, TYPED = "own file", "typed here"  # beside the built-in sets of prompts
ASKING, GOING_ON = "training", "resume"  # what a page may be at work on, each with a Stop of its own
FINAL = "final"  # beside the checkpoints
SCROLL = '() => {{ document.querySelector("{}").scrollIntoView({{ block: "center" }}); }}'
SINKS = [("TensorBoard", "tensorboard"), ("Trackio", "trackio")]
# The settings that have a field of their own; all others are lines of text.
FIELDS = {
    "updates": "updates",
    "prompts_per_update": "prompts_per_update",
    "lr": "lr",
    "weights": "weights",
    "validate_every": "validation.every",
}
WORDS = {"positive": "signal.words.positive", "negative": "signal.words.negative"}
# What a preset, or a run to be repeated, fills in.
FILLED = ("preset_note", "model", "prompt_source", "prompts", "positive", "negative", *FIELDS, "more")
WHAT_IT_IS = {
    "starting": "starting",
    "running": "running",
    "stalled": "no sign of life",
    "lost": "lost",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
}


class Form(NamedTuple):
    """The fields of a run to be, in the order in which a start receives them."""

    preset: Any
    name: Any
    model: Any
    prompt_source: Any
    prompt_file: Any
    prompts: Any
    positive: Any  # one word per line
    negative: Any
    updates: Any
    prompts_per_update: Any
    lr: Any
    weights: Any
    validate_every: Any
    more: Any  # key=value lines; `training_requests.with_lines` adds to them
    sinks: Any


class Live(NamedTuple):
    """The outputs of everything that shows a run."""

    run: Any
    head: Any
    charts: Any
    film: Any
    stop: Any
    resume: Any
    open: Any
    checkpoint: Any
    export_form: Any
    export_update: Any
    refusal: Any  # the row that offers to go on all the same
    changes: Any


NOTHING_NEW = Live(*[gr.skip()] * len(Live._fields))


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.tune = studio.finetune

    # Watching

    def look(self, watching: Watching) -> Live:
        """What has changed of the run that is shown; of the living or the youngest one where none was chosen."""
        if watching.run is None:
            living = self.tune.living()
            youngest = next(iter(self.tune.runs()), None)
            shown = living or youngest
            return self.show(watching, shown.name if shown else None)
        return self.show(watching, watching.run)

    def tick(self, watching: Watching) -> tuple:
        """(note, LIVE, then the timer): every second until the first point is there, then slower: a page costs the run.

        A note on a run that went on, or was to end, goes when it has ended.
        """
        live = self.look(watching)
        pace_s = FIRST_LOOKS_S if watching.awaits_first_point else LOOKS_S
        has_ended = watching.is_new("lives", watching.is_live) and not watching.is_live
        return (
            "" if has_ended else gr.skip(),
            *live,
            gr.Timer(pace_s) if watching.is_new("pace", pace_s) else gr.skip(),
        )

    def turned(self, event: gr.EventData) -> Any:
        """The timer, which stands while another tab is read."""
        return gr.Timer(active=told(event, "value") == LABEL)

    def choose(self, watching: Watching, chosen: str | None) -> tuple:
        """(note, note of the panel, download, question, then LIVE): the run that the visitor has picked.

        What the panel said and offered was of the run before.
        """
        hidden = gr.update(visible=False)
        return "", "", hidden, hidden, *self.show(watching, chosen or None)

    def show(self, watching: Watching, name: str | None) -> Live:
        """The run of that name, as far as the page does not show it yet; the picker with every run there is."""
        watching.run = name
        names = [run.name for run in self.tune.runs()]
        live = NOTHING_NEW
        if name is not None:
            try:
                live = self._run(watching, name)
            except (ValueError, OSError) as error:
                watching.run = name if name in names else None
                if watching.is_new("head", str(error)):
                    live = live._replace(head=note_html(str(error), "failed"))
        elif watching.is_new("head", None):
            live = live._replace(head=note_html("No run yet. Start one: its curves and pictures appear here.", "idle"))
        if watching.is_new("run", (names, watching.run)):
            live = live._replace(run=gr.update(choices=names, value=watching.run))
        refusal = watching.refusal if watching.refusal and watching.refusal.asked.run == watching.run else None
        if watching.is_new("refusal", refusal):
            said = refusal_html(refusal) if refusal else ""
            live = live._replace(refusal=gr.update(visible=refusal is not None), changes=said)
        return live

    def _run(self, watching: Watching, name: str) -> Live:
        snapshot = self.tune.snapshot(name)
        view, versions = snapshot.view(), snapshot.versions()
        live = NOTHING_NEW
        watching.is_live, watching.awaits_first_point = view.is_live, view.is_live and not view.update
        if watching.is_new("head", head := head_html(view)):
            live = live._replace(head=head)
        if watching.is_new("charts", versions["charts"]):
            live = live._replace(charts=curves_value(name, snapshot.charts()))
        if watching.is_new("film", versions["film"]):
            live = live._replace(film=film_value(snapshot.film()))
        if watching.is_new("buttons", (name, view.status, view.checkpoints, view.best, view.has_weights)):
            choices = [
                (f"update {update}{', best' if update == view.best else ''}", update) for update in view.checkpoints
            ]
            exported = [*([("the finished weights", FINAL)] if view.has_weights else []), *choices]
            live = live._replace(
                stop=gr.update(interactive=view.is_live),
                resume=gr.update(interactive=view.can_resume),
                open=gr.update(interactive=view.has_weights or bool(view.checkpoints)),
                checkpoint=gr.update(choices=choices),
                export_update=gr.update(choices=exported),
            )
            # What a visitor has picked stays picked while the run goes on.
            best = view.best if view.best in view.checkpoints else None
            first = (name, best, bool(view.checkpoints))
            offered = best or next(reversed(view.checkpoints), None)
            if watching.is_new("best", first):
                live = live._replace(checkpoint=gr.update(choices=choices, value=offered))
            if watching.is_new("exported", (name, FINAL) if view.has_weights else first):
                offered = FINAL if view.has_weights else offered
                live = live._replace(export_update=gr.update(choices=exported, value=offered))
        if view.has_settings and watching.is_new("export", name):
            forms = self.tune.export_forms(name)
            live = live._replace(export_form=gr.update(choices=forms, value=forms[0][1]))
        return live

    # Starting, and what a start will cost

    def start(self, request: gr.Request, watching: Watching, *form: object) -> Iterator[tuple]:
        """(note, Start, Measure, Stop, then LIVE) at each step: the run is shown as soon as it has begun."""

        def show(run: Any) -> tuple:
            watching.shown.clear()
            return note_html(f"Run {run.name} started.", "ready"), *self.show(watching, run.name)

        for said, *live in self._work(request, ASKING, lambda stop: self.tune.start(self.read_form(*form), stop), show):
            yield said, *_busy(True), *live

    def measure(self, request: gr.Request, *form: object) -> Iterator[tuple]:
        """(note, Start, Measure, Stop) at each step: what such a run will take, measured."""

        def show(cost: Cost) -> tuple:
            return note_html(cost.said(), "ready"), *NOTHING_NEW

        def begin(stop: StopFlag) -> Iterator:
            return self.tune.measure(self.read_form(*form), stop)

        for said, *_ in self._work(request, ASKING, begin, show, stopped="The measurement was stopped."):
            yield said, *_busy(True)

    def asked(self, request: gr.Request) -> tuple:
        """(Start, Measure, Stop) given back, unless the page is at work: a second press ends before the work does."""
        return (gr.skip(),) * 3 if self.studio.jobs.is_running(visitor(request, ASKING)) else _busy(False)

    def stop_asking(self, request: gr.Request) -> None:
        """A measurement ends, or a start that still waits."""
        self.studio.jobs.stop(visitor(request, ASKING))

    # Going on

    def resume(self, request: gr.Request, watching: Watching) -> Iterator[tuple]:
        """(note, then LIVE) at each step: the run that is shown goes on from its last checkpoint."""
        yield from self._go_on(request, watching, lambda: Resumption(_shown(watching)))

    def extend(self, request: gr.Request, watching: Watching, by: object) -> Iterator[tuple]:
        """(note, then LIVE) at each step: the run goes on beyond its planned end."""

        def read() -> Resumption:
            more = _whole("The number of further updates", by)
            return Resumption(_shown(watching), updates=self.tune.planned(_shown(watching)) + more)

        yield from self._go_on(request, watching, read)

    def go_back(self, request: gr.Request, watching: Watching, update: object) -> Iterator[tuple]:
        """(note, then LIVE) at each step: the run goes on from an earlier checkpoint; what came later is forgotten."""
        yield from self._go_on(request, watching, lambda: Resumption(_shown(watching), from_update=_checkpoint(update)))

    def overrule(self, request: gr.Request, watching: Watching) -> Iterator[tuple]:
        """(note, then LIVE) at each step: the run goes on as was asked, although not all is as it was."""

        def read() -> Resumption:
            if watching.refusal is None or watching.refusal.asked.run != _shown(watching):
                raise BadInput("Nothing was refused: choose Resume.")
            return watching.refusal.asked

        yield from self._go_on(request, watching, read, despite_changes=True)

    def _go_on(
        self, request: gr.Request, watching: Watching, read: Callable[[], Resumption], *, despite_changes: bool = False
    ) -> Iterator[tuple]:
        def begin(stop: StopFlag) -> Iterator:
            return self.tune.resume(read(), stop, despite_changes=despite_changes)

        def show(outcome: Any) -> tuple:  # the run, or a refusal
            if isinstance(outcome, Refusal):
                watching.refusal = outcome
                return "", *self.show(watching, watching.run)
            watching.refusal = None
            watching.shown.clear()
            return note_html(f"Run {outcome.name} goes on.", "ready"), *self.show(watching, outcome.name)

        waiting = NOTHING_NEW._replace(stop=gr.update(interactive=True))
        yield from self._work(request, GOING_ON, begin, show, waiting=waiting)
        watching.shown.pop("buttons", None)  # Stop is as the run has it again, with the next look

    def _work(
        self,
        request: gr.Request,
        job: str,
        begin: Callable[[StopFlag], Iterator],
        show: Callable[[Any], tuple],
        *,
        waiting: Live = NOTHING_NEW,
        stopped: str = "Nothing was started.",
    ) -> Iterator[tuple]:
        """(note, then LIVE) at each step of what `begin` yields: messages, and a result, which `show` makes such."""
        try:
            with self.studio.jobs.flag(visitor(request, job), account(request)) as stop:
                yield note_html("Checking …", "loading"), *waiting
                for step in begin(stop):
                    yield (note_html(step, "loading"), *waiting) if isinstance(step, str) else show(step)
        except Stopped:
            yield note_html(stopped, "idle"), *NOTHING_NEW
        except ValueError as error:
            yield note_html(str(error), "failed"), *NOTHING_NEW
        except Exception:
            log.exception("What was asked of training failed.")
            yield note_html(UNEXPECTED, "failed"), *NOTHING_NEW

    def read_form(self, *form: object) -> TrainRequest:
        """The request that the fields make. BadInput, one sentence, where one does not fit."""
        values = Form(*form)._asdict()
        source, path, typed = (values.pop(key) for key in ("prompt_source", "prompt_file", "prompts"))
        sets = {str(file): file for _, file in self.tune.prompt_sets()}
        if source == OWN_FILE:
            if not path:
                raise BadInput("No prompt file was chosen: choose one, or take other prompts.")
            values["prompts"] = read_prompt_file(path)
        elif source == TYPED:
            values["prompts"] = typed or ""
        elif source:
            if source not in sets:
                raise BadInput("These prompts are not among the ones offered: choose again.")
            values["prompt_set"] = sets[source]
        if values["model"] in (BASE, self.studio.catalogue.base_name):
            values["model"] = None
        return parse(TrainRequest, values | {"sinks": values["sinks"] or []})

    # Filling the form

    def open_page(self) -> tuple:
        """(presets, then FILLED): the form with the first preset. Imports the training, which takes seconds."""
        presets = self.tune.presets
        first = next(iter(presets))
        return gr.update(choices=list(presets), value=first), *self.fill(first)

    def fill(self, preset: str | None) -> tuple:
        """FILLED with a preset's settings."""
        found = self.tune.presets.get(preset or "")
        if found is None:
            return (gr.skip(),) * len(FILLED)
        return self._filled(found.name, found.settings)

    def copy(self, watching: Watching) -> tuple:
        """(note, preset, then FILLED) with the settings of the run that is shown, to start another like it."""
        try:
            name = _shown(watching)
            preset, settings = self.tune.settings_like(name)
        except ValueError as error:
            return note_html(str(error), "failed"), *(gr.skip(),) * (1 + len(FILLED))
        said = note_html(f"The form holds the settings of {name}: change what you like, then start.", "ready")
        return said, gr.update(value=preset), *self._filled(preset, settings)

    def _filled(self, preset: str, settings: dict[str, Any]) -> tuple:
        builtin, typed = self.tune.prompts_of(settings["prompts"])
        rest = {
            key: value for key, value in settings.items() if key not in (*FIELDS.values(), *WORDS.values(), "device")
        }
        if builtin or typed:
            del rest["prompts"]
        values = {
            "preset_note": preset_html(self.tune.presets[preset]),
            "model": self.studio.catalogue.base_name,
            "prompt_source": str(builtin) if builtin else TYPED if typed else None,
            "prompts": typed or gr.skip(),
            "more": "\n".join(lines_of(rest)),
        }
        values |= {field: settings.get(key) for field, key in FIELDS.items()}
        values |= {field: "\n".join(settings.get(key) or ()) for field, key in WORDS.items()}
        return tuple(values[name] for name in FILLED)

    def prompt_fields(self, source: str | None) -> tuple:
        """(file, text): the field that the chosen prompts need."""
        return gr.update(visible=source == OWN_FILE), gr.update(visible=source == TYPED)

    def cost(self, updates: object, prompts: object) -> Any:
        """Start, saying what it will do."""
        if not updates or not prompts:
            return gr.update(value="Start")
        return gr.update(value=f"Start {float(updates):g} updates of {float(prompts):g} prompts")

    # What else can be done with the run that is shown

    def stop(self, request: gr.Request, watching: Watching) -> tuple:
        """(note, Stop): the run was asked to save and end; where it still waits to go on, it does not."""
        self.studio.jobs.stop(visitor(request, GOING_ON))
        try:
            if not self.tune.stop(_shown(watching)):
                return gr.skip(), gr.skip()
        except ValueError as error:
            return note_html(str(error), "failed"), gr.skip()
        said = note_html("The run saves its state and ends; one that hangs is ended after ten seconds.", "loading")
        return said, gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed: a measurement ends, and what still waits to begin. What runs goes on."""
        for job in (ASKING, GOING_ON):
            self.studio.jobs.stop(visitor(request, job))

    def keep(self, watching: Watching, update: object) -> str:
        """A note: the checkpoint is kept."""
        return _said(lambda: self.tune.keep(_shown(watching), _checkpoint(update)))

    def ask_delete(self, watching: Watching) -> tuple:
        """(the row with the question, the question)."""
        watching.to_delete = watching.run
        try:
            return gr.update(visible=True), note_html(self.tune.what_deleting_takes(_shown(watching)), "idle")
        except ValueError as error:
            return gr.update(visible=False), note_html(str(error), "failed")

    def delete(self, watching: Watching) -> tuple:
        """(the row with the question, note, then LIVE): the run that it named is gone; if it was shown, another is."""
        name, watching.to_delete = watching.to_delete, None
        said = _said(lambda: self.tune.delete(_named(name)))
        if watching.run == name:
            watching.run = None
        watching.shown.clear()
        live = self.look(watching)
        if watching.run is None:
            live = live._replace(charts=curves_value("", ()), film={"updates": []})
        return gr.update(visible=False), said, *live

    def open_in_compare(self, watching: Watching) -> tuple:
        """(note, tabs, left, right): the base and the run beside one another."""
        try:
            identity = self.tune.model_id(_shown(watching))
            self.studio.catalogue.find(identity)
        except ValueError as error:
            return note_html(str(error), "failed"), *(gr.skip(),) * 3
        choices = [(model.label, model.id) for model in self.studio.catalogue.models()]
        return (
            gr.skip(),
            gr.update(selected="compare"),
            gr.update(choices=choices, value=BASE),
            gr.update(choices=choices, value=identity),
        )

    def export(self, watching: Watching, form: str | None, update: object, dtype: str) -> Iterator[tuple]:
        """(note, download) at each step: the weights as others read them, with their card."""
        try:
            which = None if update == FINAL else _checkpoint(update)
            yield note_html("Exporting …", "loading"), gr.update(visible=False)
            folder, archive = self.tune.export(_shown(watching), str(form), which, dtype)
        except ValueError as error:
            yield note_html(str(error), "failed"), gr.update(visible=False)
        except Exception:
            log.exception("An export failed.")
            yield note_html(UNEXPECTED, "failed"), gr.update(visible=False)
        else:
            where = f"Exported to {folder}" if self.studio.options.local_paths else "Exported"
            download = gr.update(value=str(archive) if archive else None, visible=archive is not None)
            yield note_html(f"{where}.", "ready"), download

    # Several runs

    def run_choices(self) -> Any:
        """The picker of runs to compare."""
        return gr.update(choices=[run.name for run in self.tune.runs()])

    def compare(self, names: list[str]) -> tuple:
        """(note, curves, table of settings, samples)."""
        try:
            found = self.tune.compare(names or [])
        except ValueError as error:
            return note_html(str(error), "failed"), gr.skip(), gr.skip(), gr.skip()
        samples = samples_value(found.samples) if found.samples else {}
        said = note_html(found.note, "idle") if found.note else ""
        return said, curves_value(" ".join(found.names), found.charts), settings_html(found), samples


def head_html(view: RunView) -> str:
    """The run in a line: what it does, how far it is, how fast, and what there is to say."""
    facts = []
    if view.updates:
        facts.append(f"update {view.update} of {view.updates}")
    if view.is_live and view.phase:
        facts.append(view.phase)
    if view.is_live and view.per_minute:
        facts.append(f"{view.per_minute:.3g} updates/min")
    if view.left_s is not None and view.update < view.updates:
        facts.append(f"{said_s(view.left_s)} left")
    if view.best is not None:
        facts.append(f"best{' so far' if view.is_live else ''}: {f'update {view.best}' if view.best else 'the start'}")
    if view.device and view.is_live:
        facts.append(f"on {view.device}")
    share = 100 * view.update / view.updates if view.updates else 0
    alert = view.message if view.status in ("failed", "lost", "stalled") else ""
    quiet = view.message if view.message and not alert else ""
    if view.status == "stalled":
        alert = alert or "The run gives no sign of life: Stop ends it, and Resume takes it up from its last checkpoint."
    parts = [
        f'<div class="run-head" data-status="{view.status}" data-update="{view.update}">',
        f'<p><span class="pill {view.status}" role="status">{WHAT_IT_IS[view.status]}</span> ',
        f"<b>{html.escape(view.name)}</b> <span>{html.escape(' · '.join(facts))}</span></p>",
        f'<div class="progress" role="progressbar" aria-label="Progress of the run" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div>',
        f'<p class="quiet-note">{html.escape(quiet)}</p>' if quiet else "",
        f'<p class="banner" role="alert">{html.escape(alert)}</p>' if alert else "",
        f'<p class="banner">{html.escape(view.warning)}</p>' if view.warning and view.is_live else "",
        "</div>",
    ]
    return "".join(parts)


def refusal_html(refusal: Refusal) -> str:
    """Why a run does not go on by itself, and what one can do."""
    changes = "".join(f"<li>{html.escape(change)}</li>" for change in refusal.changes)
    return (
        f'<div class="banner" role="alert">Run <b>{html.escape(refusal.asked.run)}</b> would not be the same, as not '
        f"all is as it was when it began:<ul>{changes}</ul>Put that right and resume it, or copy its settings to a new "
        "run. It can go on all the same: its folder will say so, and an exact repetition is no longer promised.</div>"
    )


def preset_html(preset: Any) -> str:
    """What a preset is, in a sentence, and folded away where it comes from and what to expect."""
    details = f"<details><summary>Source, cost, what to expect</summary><p>{html.escape(preset.details)}</p></details>"
    return f"<p>{html.escape(preset.summary)}</p>{details if preset.details else ''}"


def settings_html(found: Comparison) -> str:
    """The settings in which the runs differ, as a table."""
    if not found.differing:
        return '<p class="hint">These runs have the same settings.</p>'
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in ("Setting", *found.names))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(key)}</th>'
        + "".join(f"<td>{html.escape(value)}</td>" for value in values)
        + "</tr>"
        for key, values in found.differing
    )
    return f'<div class="settings-table"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _shown(watching: Watching) -> str:
    """The name of the run that is shown. BadInput where none is."""
    if not watching.run:
        raise BadInput("No run is shown: choose one first.")
    return watching.run


def _named(name: str | None) -> str:
    """The name of the run that is to be deleted. BadInput where the question was not asked, or was answered."""
    if name is None:
        raise BadInput("No run was named: choose Delete the run first.")
    return name


def _busy(working: bool) -> tuple:
    """Start, Measure and Stop while the form's work is under way, or while none is."""
    return gr.update(interactive=not working), gr.update(interactive=not working), gr.update(interactive=working)


def _whole(name: str, value: object) -> int:
    try:
        return whole(name, 1, MAX_UPDATES)(value)
    except ValueError as error:
        raise BadInput(str(error)) from None


def _checkpoint(value: object) -> int:
    if value is None or value == "":
        raise BadInput("No checkpoint is chosen: choose one from the list.")
    return _whole("A checkpoint's update", value)


def _said(act: Callable[[], str]) -> str:
    try:
        return note_html(act(), "ready")
    except ValueError as error:
        return note_html(str(error), "failed")


def build(studio: Studio, tab: gr.Tab, tabs: gr.Tabs, sides: tuple[gr.Dropdown, gr.Dropdown]) -> Form:
    """Lays out the tab inside the Blocks that are open, and wires it. Returns the fields of a run to be.

    tabs, sides: all tabs, and the pickers that "Open in Compare" sets.
    """
    do = Handlers(studio)
    tune, own_process = studio.finetune, not studio.options.trains_here
    base = studio.catalogue.base_name
    sources = [(label, str(file)) for label, file in tune.prompt_sets()]
    sources += [("Own text file", OWN_FILE), ("Typed here", TYPED)]

    watching = gr.State(Watching())
    with gr.Row(elem_id="finetune", equal_height=False):
        with gr.Column(elem_id="tune-ask", elem_classes="pane", scale=0, min_width=372):
            preset = gr.Dropdown([], label="Preset", elem_id="preset")
            preset_note = gr.HTML(elem_id="preset-note", elem_classes="hint", apply_default_css=False)
            model = gr.Dropdown(
                [base],
                value=base,
                label="Base model, or the path of a pipeline",
                allow_custom_value=True,
                elem_id="tune-model",
            )
            with gr.Row():
                source = gr.Dropdown(sources, value=None, label="Prompts", elem_id="prompt-source", min_width=120)
                name = gr.Textbox(
                    label="Name of the run",
                    placeholder="time and preset",
                    max_lines=1,
                    elem_id="run-name",
                    min_width=120,
                )
            file = gr.File(
                label="Prompt file, one prompt per line",
                type="filepath",
                visible=False,
                height=88,
                elem_id="prompt-file",
            )
            prompts = gr.Textbox(
                label="Prompts, one per line", lines=4, max_lines=12, visible=False, elem_id="tune-prompts"
            )
            with gr.Row():
                words: dict[str, Any] = {"placeholder": "one per line", "lines": 5, "max_lines": 10, "min_width": 120}
                positive = gr.Textbox(label="Positive words", elem_id="positive", **words)
                negative = gr.Textbox(label="Negative words", elem_id="negative", **words)
            with gr.Row():
                updates = gr.Number(None, label="Updates", step=1, min_width=120, elem_id="updates")
                batch = gr.Number(None, label="Prompts per update", step=1, min_width=120, elem_id="batch")
            with gr.Row():
                lr = gr.Number(None, label="Learning rate", min_width=120, elem_id="lr")
                every = gr.Number(None, label="Updates per validation", step=1, min_width=120, elem_id="every")
            weights = gr.Radio([("Full weights", "full"), ("LoRA", "lora")], label="What is trained", elem_id="weights")
            with gr.Accordion("All other settings", open=False, elem_id="more-panel"):
                more = gr.Textbox(
                    label="One key=value per line, as the command line's --set", lines=10, max_lines=24, elem_id="more"
                )
                sinks = gr.CheckboxGroup(
                    SINKS, value=[], label="Also hand the records on to", visible=own_process, elem_id="sinks"
                )
            start = gr.Button("Start", variant="primary", elem_id="start")
            with gr.Row(elem_id="tune-go"):
                measure = gr.Button("Measure the cost", visible=own_process, elem_id="measure", min_width=120)
                halt = gr.Button("Stop", interactive=False, elem_id="stop-asking", min_width=80)
            said = gr.HTML(elem_id="tune-note", apply_default_css=False)
            gr.HTML(RULE, elem_classes="hint", apply_default_css=False)
        with gr.Column(elem_id="tune-stage", elem_classes="pane", min_width=320):
            with gr.Row(elem_id="run-bar"):
                run = gr.Dropdown([], label="Run", elem_id="run", min_width=200)
                stop = gr.Button("Stop and save", interactive=False, elem_id="stop-run", min_width=110)
                resume = gr.Button("Resume", interactive=False, elem_id="resume", min_width=90)
                opened = gr.Button("Open in Compare", interactive=False, elem_id="open-in-compare", min_width=140)
            bar_note = gr.HTML(elem_id="bar-note", apply_default_css=False)
            with gr.Column(visible=False, elem_id="refusal") as refusal:
                changes = gr.HTML(elem_id="changes", apply_default_css=False)
                despite = gr.Button("Go on all the same", elem_id="despite", scale=0)
            head = gr.HTML(elem_id="run-head", apply_default_css=False)
            samples = film(elem_id="film")
            charts = curves(studio.plotly, elem_id="curves")
            with gr.Accordion("Go on, go back, copy, export, delete", open=False, elem_id="run-panel"):
                with gr.Row():
                    by = gr.Number(10, label="Further updates", step=1, scale=0, min_width=130, elem_id="extend-by")
                    extend = gr.Button("Extend the run", elem_id="extend", scale=0, min_width=150)
                    copy = gr.Button("Copy the settings to the form", elem_id="copy", scale=0, min_width=250)
                    delete = gr.Button("Delete the run …", elem_id="delete", scale=0, min_width=150)
                with gr.Row(visible=False, elem_id="delete-row") as sure:
                    question = gr.HTML(elem_id="delete-question", apply_default_css=False)
                    really = gr.Button("Delete for good", variant="stop", elem_id="delete-really", min_width=130)
                    keep_it = gr.Button("No", elem_id="delete-no", min_width=70)
                with gr.Row():
                    checkpoint = gr.Dropdown([], label="Checkpoint", min_width=170, elem_id="checkpoint")
                    back = gr.Button("Go back to it, forget what came later", elem_id="go-back", min_width=300)
                    keep = gr.Button("Keep it for good", elem_id="keep", min_width=150)
                with gr.Row():
                    form = gr.Dropdown([], label="Export as", scale=2, min_width=330, elem_id="export-form")
                    which = gr.Dropdown([], label="Weights", min_width=190, elem_id="export-update")
                    dtype = gr.Dropdown(
                        ["float32", "bfloat16"], value="float32", label="Numbers", min_width=120, elem_id="export-dtype"
                    )
                with gr.Row():
                    export = gr.Button("Export with a model card", elem_id="export", scale=0, min_width=230)
                    download = gr.DownloadButton(
                        "Download", visible=False, elem_id="download-export", scale=0, min_width=130
                    )
                done = gr.HTML(elem_id="run-note", apply_default_css=False)
    with gr.Accordion("Compare runs", open=False, elem_id="compare-runs"):
        with gr.Row():
            several = gr.Dropdown([], label="Runs", multiselect=True, elem_id="several", min_width=240)
            compared = gr.Button("Compare", elem_id="compare-them", scale=0, min_width=120)
        compare_note = gr.HTML(elem_id="compare-note", apply_default_css=False)
        overlaid = curves(studio.plotly, elem_id="overlaid")
        differing = gr.HTML(elem_id="differing", apply_default_css=False)
        beside = grid_table(elem_id="same-samples")
    timer = gr.Timer(FIRST_LOOKS_S, active=False)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # As in the Compare tab: only long work goes through the queue, and a button comes back in an event of its own.
    work: dict[str, Any] = quiet | {"trigger_mode": "multiple", "concurrency_limit": 8}
    press: dict[str, Any] = quiet | {"trigger_mode": "multiple", "queue": False}
    follow: dict[str, Any] = quiet | {"trigger_mode": "always_last", "queue": False}
    live = list(Live(run, head, charts, samples, stop, resume, opened, checkpoint, form, which, refusal, changes))
    fields = Form(
        preset, name, model, source, file, prompts, positive, negative, updates, batch, lr, weights, every, more, sinks
    )
    filled = [preset_note, model, source, prompts, positive, negative, updates, batch, lr, weights, every, more]
    asking = [start, measure, halt]

    # "once": the second press of a double click must not ask for a second run.
    start.click(do.start, [watching, *fields], [said, *asking, *live], **work | {"trigger_mode": "once"}).then(
        do.asked, outputs=asking, **press
    )
    measure.click(do.measure, list(fields), [said, *asking], **work).then(do.asked, outputs=asking, **press)
    halt.click(do.stop_asking, **press)
    resume.click(do.resume, watching, [bar_note, *live], **work)
    despite.click(do.overrule, watching, [bar_note, *live], **work)
    extend.click(do.extend, [watching, by], [bar_note, *live], **work)
    back.click(do.go_back, [watching, checkpoint], [bar_note, *live], **work)
    # What these do is seen at the top of the run, and what Copy does in the form, both out of sight from the panel.
    gr.on([extend.click, back.click], js=SCROLL.format("#run-bar"), **press)
    stop.click(do.stop, watching, [bar_note, stop], **press)
    opened.click(do.open_in_compare, watching, [bar_note, tabs, *sides], **press)
    keep.click(do.keep, [watching, checkpoint], done, **press)
    export.click(do.export, [watching, form, which, dtype], [done, download], **work | {"concurrency_limit": 1})
    copy.click(do.copy, watching, [said, preset, *filled], **press).then(js=SCROLL.format("#tune-note"), **press)
    delete.click(do.ask_delete, watching, [sure, question], **press)
    really.click(do.delete, watching, [sure, done, *live], **press)
    keep_it.click(lambda: gr.update(visible=False), outputs=sure, **press)
    compared.click(do.compare, several, [compare_note, overlaid, differing, beside], **press)

    preset.input(do.fill, preset, filled, **follow)
    source.change(do.prompt_fields, source, [file, prompts], **follow)
    # Also as the tab opens: fields that were filled before they were on the page tell of no change.
    gr.on([updates.change, batch.change, tab.select], do.cost, [updates, batch], start, **follow)
    run.input(do.choose, [watching, run], [bar_note, done, download, sure, *live], **follow)
    # One at a time: the next look sees what this one missed.
    timer.tick(do.tick, watching, [bar_note, *live, timer], queue=False, **quiet)
    tab.select(do.look, watching, live, **press)
    tab.select(lambda: gr.Timer(active=True), outputs=timer, **press)
    tabs.select(do.turned, outputs=timer, **press)
    several.focus(do.run_choices, outputs=several, **press)
    page = gr.context.Context.root_block
    page.load(do.open_page, outputs=[preset, *filled], **press)
    page.unload(do.leave)
    return fields
