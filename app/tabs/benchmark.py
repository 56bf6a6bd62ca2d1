"""The Benchmark tab: any models paint the same prompts, rewards judge the pictures, and a table tells them apart.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them. A benchmark lives in
its folder, which a command fills: what is shown is read from there, and only what has changed is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from app.blocks import told
from app.components.benchmark_texts import head_html, table_html
from app.components.grid_table import grid_table, strip_value
from app.components.note import note_html
from app.services.benchmarks import BenchmarkRequest, Benchmarks, BenchmarkView
from app.services.device import RULE, StopFlag, Stopped
from app.services.models import BASE, SRPO
from app.services.requests import MAX_GUIDANCE, MAX_STEPS, SIZE_MULTIPLE, BadInput, parse
from app.services.studio import Studio
from app.state import Following
from app.tabs.compare import UNEXPECTED, visitor

log = logging.getLogger(__name__)

TITLE = "Benchmark"  # of the tab
LIVE_S, QUIET_S = 1.0, 3.0  # from look to look: at one that is at work, and at others
ASKING, GOING_ON = "benchmark", "benchmark/resume"  # what a page may be at work on
FIRST_PROMPTS = 16  # of each list, in a new form
HEAD = """<div class="panel-head"><h2>Benchmark</h2><p>Models paint the same prompts from the same seeds; rewards judge
every picture. HPSv2’s four lists of 800, or your own.</p></div>"""
NONE_YET = "No benchmark yet. Start one: its pictures and its table appear here, and stay when this page is closed."
FILES = ("Markdown", "CSV", "JSON")


class Form(NamedTuple):
    """The fields of a benchmark to be, in the order in which a start receives them; named as in the request."""

    name: Any
    models: Any
    sets: Any
    files: Any
    folder: Any
    first: Any
    num_seeds: Any
    seed: Any
    own: Any
    rewards: Any  # one name per line
    steps: Any
    guidance: Any
    width: Any
    height: Any


class Live(NamedTuple):
    """The outputs of everything that shows a benchmark."""

    picker: Any
    head: Any
    table: Any
    strip: Any
    stop: Any
    resume: Any
    markdown: Any  # a download each
    csv: Any
    json: Any


NOTHING_NEW = Live(*[gr.skip()] * len(Live._fields))


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.benchmarks = Benchmarks(studio)

    # Watching

    def look(self, following: Following) -> Live:
        """What has changed of the benchmark that is shown; of the one begun last where none was chosen."""
        names = self.benchmarks.names()
        if following.name is None and names:
            following.name = names[0]
        live = NOTHING_NEW
        if following.name is not None:
            try:
                live = self._show(following, self.benchmarks.view(following.name))
            except BadInput as error:
                following.name = following.name if following.name in names else None
                if following.is_new("head", str(error)):
                    live = live._replace(head=note_html(str(error), "failed"))
        elif following.is_new("head", None):
            live = live._replace(head=note_html(NONE_YET, "idle"))
        if following.is_new("picker", (names, following.name)):
            live = live._replace(picker=gr.update(choices=names, value=following.name))
        return live

    def _show(self, following: Following, view: BenchmarkView) -> Live:
        live = NOTHING_NEW
        if following.is_new("head", head := head_html(view)):
            live = live._replace(head=head)
        if following.is_new("strip", strip := strip_value(self.benchmarks.strip(following.name))):
            live = live._replace(strip=strip)
        can_go_on = view.has_begun and not view.state.is_live and not view.is_whole
        if following.is_new("buttons", (view.state.is_live, can_go_on, view.num_makeable)):
            count = view.num_makeable
            words = f"Make {count:,} missing picture{'' if count == 1 else 's'}" if count else "Resume"
            live = live._replace(
                stop=gr.update(interactive=view.state.is_live), resume=gr.update(value=words, interactive=can_go_on)
            )
        if following.is_new("table", table := table_html(view)):
            paths = self.benchmarks.files(following.name) if table else [None] * len(FILES)
            offers = (gr.update(value=path and str(path), visible=path is not None) for path in paths)
            live = live._replace(table=table, **dict(zip(("markdown", "csv", "json"), offers, strict=True)))
        return live

    def tick(self, following: Following) -> tuple:
        """(LIVE, then the timer): every second while it is at work, slower else."""
        live = self.look(following)
        try:
            at_work = following.name is not None and self.benchmarks.view(following.name).state.is_live
        except BadInput:
            at_work = False
        pace_s = LIVE_S if at_work else QUIET_S
        return *live, gr.Timer(pace_s) if following.is_new("pace", pace_s) else gr.skip()

    def turned(self, event: gr.EventData) -> Any:
        """The timer, which stands while another tab is read."""
        return gr.Timer(active=told(event, "value") == TITLE)

    def choose(self, following: Following, chosen: str | None) -> tuple:
        """(note, then LIVE): the benchmark that the visitor has picked, or the folder of one."""
        following.name = (chosen or "").strip() or None
        following.shown.pop("picker", None)
        return "", *self.look(following)

    # Starting, and what a start will cost

    def start(self, request: gr.Request, following: Following, *form: object) -> Iterator[tuple]:
        """(note, Start, Measure, Stop, then LIVE) at each step: the benchmark is shown as soon as it has begun."""

        def begin(stop: StopFlag) -> Iterator:
            return self.benchmarks.start(read_form(*form), stop)

        def show(folder: Any) -> tuple:
            following.name = folder.name
            following.shown.clear()
            return note_html(f"Benchmark {folder.name} started.", "ready"), *self.look(following)

        for said, *live in self._work(request, ASKING, begin, show):
            yield said, *_busy(True), *live

    def measure(self, request: gr.Request, *form: object) -> Iterator[tuple]:
        """(note, outline, Start, Measure, Stop) at each step: what such a benchmark will take, measured."""
        is_measured = False

        def begin(stop: StopFlag) -> Iterator:
            nonlocal is_measured
            yield from self.benchmarks.measure(read_form(*form), stop)
            is_measured = True

        for said, *_ in self._work(request, ASKING, begin, stopped="The measurement was stopped."):
            yield said, gr.skip(), *_busy(True)
        if is_measured:  # the outline has it now
            yield "", self.outline(*form)[0], *_busy(True)

    def asked(self, request: gr.Request) -> tuple:
        """(Start, Measure, Stop) given back, unless the page is at work: a second press ends before the work does."""
        return (gr.skip(),) * 3 if self.studio.jobs.is_running(visitor(request, ASKING)) else _busy(False)

    def stop_asking(self, request: gr.Request) -> None:
        """A measurement ends, or a start that still waits."""
        self.studio.jobs.stop(visitor(request, ASKING))

    def outline(self, *form: object) -> tuple:
        """(what a start would make and cost, or what it lacks; Start, saying how much)."""
        try:
            asked = read_form(*form)
            count = self.benchmarks.order(asked).num_pictures
            return note_html(self.benchmarks.outline(asked), "idle"), f"Start: {count:,} pictures"
        except ValueError as error:
            return note_html(str(error), "idle"), "Start"

    # What can be done with the one that is shown

    def resume(self, request: gr.Request, following: Following) -> Iterator[tuple]:
        """(note, then LIVE) at each step: it goes on, and makes what is missing."""

        def begin(stop: StopFlag) -> Iterator:
            return self.benchmarks.resume(_shown(following), stop)

        def show(folder: Any) -> tuple:
            following.shown.clear()
            return note_html(f"Benchmark {folder.name} goes on.", "ready"), *self.look(following)

        yield from self._work(request, GOING_ON, begin, show)

    def stop(self, request: gr.Request, following: Following) -> tuple:
        """(note, Stop): the process at work was told to end; where it still waits to go on, it does not."""
        self.studio.jobs.stop(visitor(request, GOING_ON))
        try:
            if not self.benchmarks.stop(_shown(following)):
                return gr.skip(), gr.skip()
        except ValueError as error:
            return note_html(str(error), "failed"), gr.skip()
        following.shown.pop("buttons", None)
        return note_html("It ends, and keeps every finished picture.", "loading"), gr.update(interactive=False)

    def leave(self, request: gr.Request) -> None:
        """The page was closed: a measurement ends, and what still waits to begin. What works goes on."""
        for job in (ASKING, GOING_ON):
            self.studio.jobs.stop(visitor(request, job))

    def model_choices(self) -> Any:
        """The picker with every run that has finished by now."""
        return gr.update(choices=[(model.label, model.id) for model in self.studio.catalogue.models()])

    def _work(
        self,
        request: gr.Request,
        job: str,
        begin: Callable[[StopFlag], Iterator],
        show: Callable[[Any], tuple] = lambda result: (result, *NOTHING_NEW),
        *,
        stopped: str = "Nothing was started.",
    ) -> Iterator[tuple]:
        """(note, then LIVE) at each step of what `begin` yields: messages, and a result, which `show` makes such."""
        try:
            with self.studio.jobs.flag(visitor(request, job)) as stop:
                yield note_html("Checking …", "loading"), *NOTHING_NEW
                for step in begin(stop):
                    yield (note_html(step, "loading"), *NOTHING_NEW) if isinstance(step, str) else show(step)
        except Stopped:
            yield note_html(stopped, "idle"), *NOTHING_NEW
        except ValueError as error:
            yield note_html(str(error), "failed"), *NOTHING_NEW
        except Exception:
            log.exception("What was asked of a benchmark failed.")
            yield note_html(UNEXPECTED, "failed"), *NOTHING_NEW


def read_form(*form: object) -> BenchmarkRequest:
    """The request that the fields make. BadInput, one sentence, where one does not fit."""
    return parse(BenchmarkRequest, Form(*form)._asdict())


def _shown(following: Following) -> str:
    """The name of the benchmark that is shown. BadInput where none is."""
    if not following.name:
        raise BadInput("No benchmark is shown: choose one first.")
    return following.name


def _busy(working: bool) -> tuple:
    """Start, Measure and Stop while the form's work is under way, or while none is."""
    return gr.update(interactive=not working), gr.update(interactive=not working), gr.update(interactive=working)


def build(studio: Studio, tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Lays out the tab inside the Blocks that are open, and wires it."""
    do = Handlers(studio)
    side = studio.catalogue.native_side
    choices = [(model.label, model.id) for model in studio.catalogue.models()]
    known = [identity for _, identity in choices]
    sets = [(label, str(file)) for label, file in do.benchmarks.prompt_sets()]
    own = do.benchmarks.own_rewards()

    following = gr.State(Following())
    with gr.Row(elem_id="benchmark", equal_height=False):
        with gr.Column(elem_id="bench-ask", elem_classes="pane", scale=0, min_width=372):
            gr.HTML(HEAD, apply_default_css=False)
            name = gr.Textbox(label="Name", placeholder="date and time", max_lines=1, elem_id="bench-name")
            models = gr.Dropdown(
                choices,
                value=[model for model in (BASE, SRPO) if model in known],
                label="Models: two or more; the first is what the others are compared with",
                multiselect=True,
                allow_custom_value=True,
                elem_id="bench-models",
            )
            lists = gr.Dropdown(
                sets,
                value=[identity for _, identity in sets[:1]],
                label="Prompt lists",
                multiselect=True,
                elem_id="bench-sets",
            )
            files = gr.File(
                label="Own lists",
                show_label=False,
                file_count="multiple",
                file_types=[".txt", ".json"],
                type="filepath",
                height=56,
                elem_id="bench-lists",
            )
            folder = gr.Textbox(
                label="Or the path of a folder with a list for each style",
                placeholder="such as HPSv2’s anime, concept-art, paintings, photo",
                max_lines=1,
                elem_id="bench-folder",
            )
            with gr.Row():
                first = gr.Number(FIRST_PROMPTS, label="Prompts per list", step=1, min_width=100, elem_id="bench-first")
                num_seeds = gr.Number(1, label="Seeds per prompt", step=1, min_width=100, elem_id="bench-num-seeds")
                seed = gr.Number(0, label="First seed", step=1, min_width=80, elem_id="bench-seed")
            gr.HTML("Leave the prompts per list empty to take all.", elem_classes="hint", apply_default_css=False)
            judged = gr.CheckboxGroup(
                own, value=[identity for _, identity in own], label="Judged by", elem_id="bench-own"
            )
            rewards = gr.Textbox(
                label="And by rewards of these names, one per line",
                placeholder="hpsv2.1:models/HPSv2/HPS_v2.1_compressed.pt",
                lines=2,
                max_lines=8,
                elem_id="bench-rewards",
            )
            with gr.Accordion("Steps, guidance, size", open=False, elem_id="bench-more"):
                steps = gr.Slider(1, MAX_STEPS, value=28, step=1, label="Steps", elem_id="bench-steps")
                guidance = gr.Slider(0, MAX_GUIDANCE, value=3.5, step=0.1, label="Guidance", elem_id="bench-guidance")
                with gr.Row():
                    width = gr.Number(side, label="Width", step=SIZE_MULTIPLE, min_width=80, elem_id="bench-width")
                    height = gr.Number(side, label="Height", step=SIZE_MULTIPLE, min_width=80, elem_id="bench-height")
            outline = gr.HTML(elem_id="bench-outline", apply_default_css=False)
            start = gr.Button("Start", variant="primary", elem_id="bench-start")
            with gr.Row(elem_id="bench-go"):
                measure = gr.Button("Measure the cost", elem_id="bench-measure", min_width=120)
                halt = gr.Button("Stop", interactive=False, elem_id="bench-halt", min_width=80)
            said = gr.HTML(elem_id="bench-note", apply_default_css=False)
            gr.HTML(RULE, elem_classes="hint", apply_default_css=False)
        with gr.Column(elem_id="bench-stage", elem_classes="pane", min_width=320):
            with gr.Row(elem_id="bench-bar"):
                picker = gr.Dropdown(
                    [],
                    label="Benchmark, or the path of a folder that the command has filled",
                    allow_custom_value=True,
                    elem_id="bench-picker",
                    min_width=240,
                )
                stop = gr.Button("Stop", interactive=False, elem_id="bench-stop", min_width=88)
                resume = gr.Button("Resume", interactive=False, elem_id="bench-resume", min_width=110)
            bar_note = gr.HTML(elem_id="bench-bar-note", apply_default_css=False)
            head = gr.HTML(elem_id="bench-head", apply_default_css=False)
            table = gr.HTML(elem_id="bench-table", apply_default_css=False)
            with gr.Row(elem_id="bench-files"):
                downloads = [
                    gr.DownloadButton(
                        f"Download {kind}", visible=False, elem_id=f"bench-{kind.lower()}", scale=0, min_width=170
                    )
                    for kind in FILES
                ]
            strip = grid_table(elem_id="bench-strip")
    timer = gr.Timer(QUIET_S, active=False)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # As in the Compare tab: only long work goes through the queue, and a button comes back in an event of its own.
    work: dict[str, Any] = quiet | {"trigger_mode": "multiple", "concurrency_limit": 8}
    press: dict[str, Any] = quiet | {"trigger_mode": "multiple", "queue": False}
    follow: dict[str, Any] = quiet | {"trigger_mode": "always_last", "queue": False}
    live = list(Live(picker, head, table, strip, stop, resume, *downloads))
    fields = list(
        Form(
            name, models, lists, files, folder, first, num_seeds, seed, judged, rewards, steps, guidance, width, height
        )
    )
    asking = [start, measure, halt]

    # "once": the second press of a double click must not ask for a second start.
    start.click(do.start, [following, *fields], [said, *asking, *live], **work | {"trigger_mode": "once"}).then(
        do.asked, outputs=asking, **press
    )
    measure.click(do.measure, fields, [said, outline, *asking], **work).then(do.asked, outputs=asking, **press)
    halt.click(do.stop_asking, **press)
    resume.click(do.resume, following, [bar_note, *live], **work)
    stop.click(do.stop, following, [bar_note, stop], **press)
    picker.input(do.choose, [following, picker], [bar_note, *live], **follow)
    page = gr.context.Context.root_block
    changes = [field.change for field in fields if field is not files]
    gr.on([*changes, files.upload, files.clear, tab.select], do.outline, fields, [outline, start], **follow)
    models.focus(do.model_choices, outputs=models, **press)
    # One at a time: the next look sees what this one missed.
    timer.tick(do.tick, following, [*live, timer], queue=False, **quiet)
    tab.select(do.look, following, live, **press)
    tab.select(lambda: gr.Timer(active=True), outputs=timer, **press)
    tabs.select(do.turned, outputs=timer, **press)
    page.unload(do.leave)
