"""The Studies tab: plan a blind comparison, make its pictures, follow the voting, read what it found.

`Handlers` are plain functions of what the page holds; `build` lays out the page and wires them. A study lives in the
store and in its folder of pictures; what is shown is read from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from app.blocks import told
from app.components.grid_table import grid_table, strip_value
from app.components.note import note_html
from app.components.stage import error_value
from app.components.study_figures import figures_value, study_figures
from app.components.study_head import head_value, invitation_value, new_value, study_head
from app.components.study_link import link_value, study_link
from app.components.study_list import list_value, study_list
from app.components.study_texts import (
    opening_html,
    plan_html,
    power_html,
    quick_html,
    rubrics_html,
    seats_html,
    story_html,
    tables_html,
    voting_html,
)
from app.services.device import RULE, Stopped
from app.services.models import BASE, SRPO
from app.services.requests import MAX_GUIDANCE, MAX_SEEDS, MAX_STEPS, SIZE_MULTIPLE
from app.services.studio import Studio
from app.services.study_pictures import bring_pictures, is_brought, make_pictures, stock, strip
from app.services.study_plans import (
    FIRST_CRITERION,
    MAX_ROWS,
    OWN_FILE,
    TYPED,
    brought_from,
    criteria_chosen,
    criteria_offered,
    form_of,
    plan_of,
    prompt_lines,
    read_form,
    rows_and_lines,
    save_plan,
    what_saving_does,
)
from app.services.study_power import power_of, power_without_plan
from app.services.study_quick import quick_csv, tallies
from app.services.study_view import Study, StudyBook
from app.state import Looking
from app.tabs.compare import UNEXPECTED, WORKING, account, visitor

log = logging.getLogger(__name__)

TITLE = "Studies"  # of the tab
SAVING, MAKING = "studies/save", "studies/pictures"  # what a page may be at work on
LIVE_EVERY_S = 3.0
FIRST_PROMPTS = 40  # of a built-in set, in a new plan
PLACES = range(1, MAX_ROWS + 1)
FIELDS = (
    *("title", "instructions", "source", "models", "prompt_source", "prompt_file", "prompts", "take"),
    *("seed", "num_seeds", "steps", "guidance", "width", "height"),
    *(f"{what}_{place}" for place in PLACES for what in ("name", "folder", "files")),
    *("further", "table", "mode", "criteria", "own_criteria", "stop", "votes_per_item", "trials_per_rater"),
    *("repeats", "gold", "smallest_win_rate", "min_gold", "min_repeats", "min_dwell_s"),
)
FROM_PROMPTS = ("prompt_source", "prompt_file", "prompts")
SETTINGS = ("seed", "num_seeds", "steps", "guidance", "width", "height")
PLAIN_FIELDS = ("title", "instructions", "source", "models", "take", *FIELDS[FIELDS.index("mode") :])  # of the request
FILES = ("prompt_file", "table", *(f"files_{place}" for place in PLACES))
PICTURES_HINT = (
    "All models paint each prompt and seed from the same noise. Every finished picture is kept: whatever ends the "
    "work, a closed page or a restart too, it goes on where it was."
)
BRING_HINT = (
    "One folder for each model, or uploaded files; pictures of one name belong together. What they show says a "
    "prompts.csv beside them (columns file, prompt, and where wanted seed and category), or they themselves, if they "
    "were saved in Compare."
)
DESIGN_HINT = (
    "Repeats come again later with the sides swapped, and show how sure a rater is. In a gold pair one picture is "
    "visibly spoiled: who prefers it did not look. Neither counts as a vote."
)
FILTER_HINT = "Results are shown with and without them. 0 filters nothing."
QUICK_HINT = (
    "One-click answers to “Which is better?” below a finished pair. They are not blind and have no plan: a way to see "
    "whether a study is worth while, no evidence."
)
HEAD = """<div class="panel-head"><h2>Preference studies</h2><p>Show people pictures of two or more models, blind, and
find out which they prefer: planned beforehand, frozen by its hash, analysed by prompt.</p></div>"""


class Panes(NamedTuple):
    """The outputs of everything that shows a study."""

    list: Any
    head: Any
    form: Any  # the four steps, of which one is visible, and the form in their place
    plan: Any
    pictures: Any
    voting: Any
    results: Any
    plan_text: Any
    make: Any
    bring: Any
    strip: Any
    open: Any
    end: Any
    sure: Any
    link: Any
    live: Any
    seats: Any
    story: Any
    figures: Any
    tables: Any
    filtered: Any
    files: Any  # a download each of the last export
    report: Any
    timer: Any


NOTHING_NEW = Panes(*[gr.skip()] * len(Panes._fields))
TICKING = ("list", "live", "seats")  # what changes by itself while a study is open


class Handlers:
    """What the tab's events do."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.book = StudyBook(studio)
        self._quick_file = 0, Path()  # the latest table of quick votes, and of how many

    # Looking

    def look(self, looking: Looking) -> tuple:
        """(note, then PANES): the study that is shown, the youngest one where none was chosen."""
        return self._said(looking, lambda: "", chooses=True)

    def choose(self, looking: Looking, event: gr.EventData) -> tuple:
        """(note, then PANES): the study that was pressed in the list."""
        looking.study, looking.step, looking.is_editing = told(event, "study"), None, False
        return self._said(looking, lambda: "")

    def choose_step(self, looking: Looking, event: gr.EventData) -> tuple:
        """(note, then PANES): another step of the study."""
        looking.step, looking.is_editing = told(event, "step"), False
        return self._said(looking, lambda: "")

    def choose_votes(self, looking: Looking, which: str) -> tuple:
        """(note, then PANES): the results of all votes, or with the declared filters."""
        looking.filtered = which == "filtered"
        return self._said(looking, lambda: "")

    def show(self, looking: Looking, *, chooses: bool = False) -> Panes:
        """Everything as it is. BadInput where the studies cannot be read."""
        rows = self.book.rows()
        if looking.study is None and rows and chooses and not looking.is_editing:
            looking.study = rows[0].id
        live = NOTHING_NEW._replace(
            list=list_value(rows, looking.study), sure=gr.update(visible=False), timer=gr.Timer(active=False)
        )
        if looking.study is None:
            head = new_value() if looking.is_editing else invitation_value()
            return live._replace(head=head, **_visible("form" if looking.is_editing else None))
        study = self.book.study(looking.study)
        steps, is_in = self.book.steps(study), self.book.step_of(study)
        step = looking.step if isinstance(looking.step, str) and steps.get(looking.step) else is_in
        live = live._replace(head=head_value(study, steps, is_in, step))
        if looking.is_editing:
            return live._replace(**_visible("form"))
        live = live._replace(**_visible(step))
        return getattr(self, f"_{step}")(looking, study, live)

    def _plan(self, looking: Looking, study: Study, live: Panes) -> Panes:
        return live._replace(plan_text=plan_html(study))

    def _pictures(self, looking: Looking, study: Study, live: Panes) -> Panes:
        changes, brings = study.state == "preparing", is_brought(study.plan)
        lacking = len(stock(self.studio, study).lacking) if changes else 0
        what = f"{lacking:,} picture{'' if lacking == 1 else 's'}"
        words = (f"Make {what}", f"Bring {what}") if lacking else ("All pictures are made",) * 2
        return live._replace(
            make=gr.update(value=words[0], visible=changes and not brings, interactive=lacking > 0),
            bring=gr.update(value=words[1], visible=changes and brings, interactive=lacking > 0),
            strip=strip_value(strip(self.studio, study)),
        )

    def _voting(self, looking: Looking, study: Study, live: Panes) -> Panes:
        is_open = study.state == "open"
        return live._replace(
            open=gr.update(visible=study.state == "preparing"),
            end=gr.update(visible=is_open),
            link=link_value(study.id) if is_open else {},
            live=opening_html(study) if study.state == "preparing" else voting_html(study, self.book.live(study)),
            seats=seats_html(self.book.seats(study)),
            timer=gr.Timer(active=is_open),
        )

    def _results(self, looking: Looking, study: Study, live: Panes) -> Panes:
        closed = study.state == "closed"
        live = live._replace(
            filtered=gr.update(visible=closed, value="filtered" if looking.filtered else "all"),
            files=gr.update(visible=False),
            report=gr.update(visible=False),
        )
        if not closed:
            story = note_html(
                "Results are shown when the study has ended: whoever sees a leader is tempted to end it there, or to "
                "tell raters. The numbers that tell no leader are under Voting.",
                "idle",
            )
            return live._replace(story=story, figures={}, tables="")
        found = self.book.results(study)
        shown = found.filtered if looking.filtered else found.everything
        return live._replace(
            story=story_html(study, found, filtered=looking.filtered),
            figures=figures_value(study.plan, shown, self.studio.plotly),
            tables=tables_html(study, found, filtered=looking.filtered),
        )

    def tick(self, looking: Looking) -> tuple:
        """(note, then PANES): what has changed of an open study since the last look."""
        turn = looking.turn
        try:
            study = self.book.study(looking.study)
            if study.state != "open":  # ended elsewhere
                return self._said(looking, lambda: "")
            now = {
                "list": list_value(self.book.rows(), study.id),
                "live": voting_html(study, self.book.live(study)),
                "seats": seats_html(self.book.seats(study)),
            }
            if looking.turn != turn:
                return gr.skip(), *NOTHING_NEW
            news = {name: value for name, value in now.items() if looking.is_new(name, value)}
            return gr.skip(), *NOTHING_NEW._replace(**news)
        except ValueError as error:
            return note_html(str(error), "failed"), *NOTHING_NEW._replace(timer=gr.Timer(active=False))

    def left(self, event: gr.EventData) -> Any:
        """The timer, which rests while another tab is shown."""
        return gr.skip() if told(event, "value") == TITLE else gr.Timer(active=False)

    # Planning

    def new(self, looking: Looking) -> tuple:
        """(note, then PANES, then FIELDS): an empty form."""
        looking.study, looking.step, looking.is_editing = None, None, True
        return *self._said(looking, lambda: ""), *self._filled(self.first_form())

    def edit(self, looking: Looking) -> tuple:
        """(note, then PANES, then FIELDS): the form with the plan that is shown."""
        try:
            study = self.book.study(looking.study)
            values = form_of(self.studio, study) | {"prompt_source": TYPED}
            noted = len(stock(self.studio, study).there)
        except ValueError as error:
            return note_html(str(error), "failed"), *NOTHING_NEW, *(gr.skip(),) * len(FIELDS)
        looking.is_editing = True
        said = self._said(looking, lambda: what_saving_does(study, noted), phase="idle")
        return *said, *self._filled(self.first_form() | values)

    def cancel(self, looking: Looking) -> tuple:
        """(note, then PANES): the form is closed; what was typed into it stays there until another plan fills it."""
        looking.is_editing = False
        return self._said(looking, lambda: "", chooses=True)

    def save(self, request: gr.Request, looking: Looking, *form: object) -> Iterator[tuple]:
        """(note, then PANES) at each step: the plan is judged, stored, and its pictures come next."""
        try:
            with self.studio.jobs.flag(visitor(request, SAVING), account(request)) as stop:
                yield note_html("Checking …", "loading"), *NOTHING_NEW
                values = dict(zip(FIELDS, form, strict=True))
                asked = read_form(self.read_fields(values))
                brings = asked.source == "bring"
                rows = [tuple(values[f"{what}_{place}"] for what in ("name", "folder", "files")) for place in PLACES]
                brought = brought_from(rows, values["further"]) if brings else []
                table = Path(values["table"]) if brings and values["table"] else None
                before = looking.study
                saving = save_plan(self.studio, asked, brought, table, before, stop)
                try:
                    while True:
                        yield note_html(next(saving), "loading"), *NOTHING_NEW
                except StopIteration as end:
                    study = end.value
            looking.study, looking.step, looking.is_editing = study.id, None, False
            looking.turn += 1
            new = f"Saved as version {study.version}: a study of its own" if before not in (None, study.id) else "Saved"
            yield note_html(f"{new}. Its pictures come next.", "ready"), *_sent(looking, self.show(looking))
        except Stopped:
            yield note_html("Stopped: nothing was saved.", "idle"), *NOTHING_NEW
        except ValueError as error:
            yield note_html(str(error), "failed"), *NOTHING_NEW
        except Exception:
            log.exception("A plan could not be saved.")
            yield note_html(UNEXPECTED, "failed"), *NOTHING_NEW

    def outline(self, *form: object) -> str:
        """What is said beside the form: how many prompts it takes, and what this plan can find."""
        values = dict(zip(FIELDS, form, strict=True))
        try:
            asked = read_form(self.read_fields(values, waits=True))
        except ValueError as error:
            return power_html(power_without_plan(5), str(error))
        try:
            if asked.source == "make":
                return power_html(power_of(plan_of(self.studio, asked)))
            problem = "How many prompts there are is known once the pictures are read."
        except ValueError as error:
            problem = str(error)
        num_seeds = asked.settings.num_seeds if asked.settings else 1
        return power_html(power_without_plan(asked.votes_per_item * num_seeds), problem)

    def kinds(self, source: str, prompt_source: str | None, mode: str, criteria: list[str] | None) -> tuple:
        """(own models, brought pictures, prompt file, typed prompts, the stop, criteria, numbers of votes, of trials
        and of gold): the fields that the choices need.
        """
        makes, shown = source != "bring", "picture" if mode == "rating" else "pair"
        asked = criteria_chosen(mode, criteria)
        return (
            gr.update(visible=makes),
            gr.update(visible=not makes),
            gr.update(visible=prompt_source == OWN_FILE),
            gr.update(visible=prompt_source == TYPED),
            gr.update(interactive=False, value="fixed") if mode == "rating" else gr.update(interactive=True),
            gr.skip() if asked == criteria else gr.update(value=asked),
            gr.update(label=f"Votes on each {shown}"),
            gr.update(label=f"{shown.capitalize()}s per rater (0: all)"),
            gr.update(label=f"Gold {shown}s, %"),
        )

    def model_choices(self) -> Any:
        """The picker with every run that has finished by now."""
        return gr.update(choices=[(model.label, model.id) for model in self.studio.catalogue.models()])

    def read_fields(self, values: dict[str, Any], *, waits: bool = False) -> dict[str, Any]:
        """The fields as the request has them. waits: a title and prompts may still be missing."""
        raw = {name: values[name] for name in PLAIN_FIELDS}
        raw["settings"] = {name: values[name] for name in SETTINGS}
        for name in ("models", "criteria"):
            raw[name] = tuple(values[name]) if isinstance(values[name], list | tuple) else values[name] or ()
        for name in ("title", "instructions", "own_criteria"):
            raw[name] = values[name] or ("(no title yet)" if waits and name == "title" else "")
        if raw["source"] != "bring":
            raw["prompts"] = prompt_lines(self.studio.finetune, *(values[name] for name in FROM_PROMPTS))
        return raw

    def first_form(self) -> dict[str, Any]:
        """The fields of a new plan."""
        side = self.studio.catalogue.native_side
        known = [model.id for model in self.studio.catalogue.models()]
        sets = self.studio.finetune.prompt_sets_to_measure()
        empty = dict.fromkeys(FIELDS)
        return empty | {
            **{"title": "", "instructions": "", "source": "make", "prompts": "", "own_criteria": ""},
            "models": [name for name in (BASE, SRPO) if name in known],
            **{"prompt_source": str(sets[0][1]) if sets else TYPED, "take": FIRST_PROMPTS},
            **{"seed": 0, "num_seeds": 1, "steps": 28, "guidance": 3.5, "width": side, "height": side},
            **{f"{what}_{place}": "" for place in PLACES for what in ("name", "folder")} | {"further": ""},
            **{"mode": "pairwise", "criteria": [FIRST_CRITERION], "stop": "fixed", "votes_per_item": 5},
            **{"repeats": 10, "gold": 5, "smallest_win_rate": 60, "trials_per_rater": 0},
            **{"min_gold": 50, "min_repeats": 0, "min_dwell_s": 0.5},
        }

    def _filled(self, values: dict[str, Any]) -> tuple:
        """FIELDS with these values; the rows of folders from `folders`."""
        rows, further = rows_and_lines(values.pop("folders", []))
        for place, (label, folder) in enumerate(rows, 1):
            values |= {f"name_{place}": label, f"folder_{place}": folder, "further": further}
        choices = {"models": self.model_choices()["choices"]}
        return tuple(
            gr.update(value=values[name], choices=choices[name]) if name in choices else gr.update(value=values[name])
            for name in FIELDS
        )

    # Pictures

    def make(self, request: gr.Request, looking: Looking) -> Iterator[tuple]:
        """(strip, Make, Bring, Stop) at each step."""
        yield from self._pictures_work(request, looking, make_pictures)

    def bring(self, request: gr.Request, looking: Looking) -> Iterator[tuple]:
        """(strip, Make, Bring, Stop) at each step."""
        yield from self._pictures_work(request, looking, bring_pictures)

    def _pictures_work(self, request: gr.Request, looking: Looking, work: Callable[..., Iterator]) -> Iterator[tuple]:
        try:
            identity = self.book.study(looking.study).id
            looking.step = "pictures"  # where the page stays when they are all there
            with self.studio.jobs.flag(visitor(request, MAKING), account(request)) as stop:
                for view in work(self.studio, identity, stop):
                    if view.phase in WORKING:
                        yield strip_value(view) if looking.study == identity else gr.skip(), *_busy(True)
            yield strip_value(view) if looking.study == identity else gr.skip(), *(gr.skip(),) * 3
        except ValueError as error:
            yield error_value(str(error)), *(gr.skip(),) * 3
        except Exception:
            log.exception("The pictures of a study could not be made.")
            yield error_value(UNEXPECTED), *(gr.skip(),) * 3

    def pictures_ready(self, request: gr.Request, looking: Looking) -> tuple:
        """(Make, Bring, Stop, head) given back, unless the page is at work; the next step may be open now."""
        if self.studio.jobs.is_running(visitor(request, MAKING)):
            return (gr.skip(),) * 4
        try:
            live = self.show(looking)
        except ValueError:
            return *_busy(False), gr.skip()
        return live.make, live.bring, gr.update(interactive=False), live.head

    def stop(self, request: gr.Request) -> None:
        for job in (SAVING, MAKING):
            self.studio.jobs.stop(visitor(request, job))

    # Voting

    def open(self, looking: Looking) -> tuple:
        """(note, then PANES): the study is open, its plan frozen."""

        def act() -> str:
            study = self.book.open(self.book.study(looking.study).id)
            return f"The study is open and its plan frozen as {study.sha256[:12]}: give raters the link below."

        return self._said(looking, act)

    def ask_end(self, looking: Looking) -> tuple:
        """(row, question): before a study is ended."""
        try:
            live = self.book.live(self.book.study(looking.study))
        except ValueError as error:
            return gr.update(visible=True), note_html(str(error), "failed")
        lacking = live.wanted - live.votes
        short = f" {lacking:,} votes of the plan are still lacking." if lacking > 0 and not live.is_complete else ""
        return gr.update(visible=True), note_html(
            f"End the study for good? No more votes are taken, and the models are revealed.{short}", "idle"
        )

    def end(self, looking: Looking) -> tuple:
        """(note, then PANES): the study has ended, its results are shown."""

        def act() -> str:
            self.book.end(self.book.study(looking.study).id)
            looking.step = None
            return "The study has ended."

        return self._said(looking, act)

    # Results and files

    def export(self, looking: Looking) -> tuple:
        """(note, zip, report): the study's files, ready to be downloaded."""
        try:
            files, report = self.book.export(self.book.study(looking.study))
        except ValueError as error:
            return note_html(str(error), "failed"), gr.skip(), gr.skip()
        except Exception:
            log.exception("A study could not be exported.")
            return note_html(UNEXPECTED, "failed"), gr.skip(), gr.skip()
        said = self.book.parquet_note()
        offers = (gr.update(value=str(path), visible=True) for path in (files, report))
        return note_html(f"The export is ready. {said}".strip(), "ready"), *offers

    def bring_back(self, looking: Looking, upload: str | None, folder: str | None) -> tuple:
        """(note, upload, then PANES): an exported study, as it was."""

        def act() -> str:
            study = self.book.bring_back(upload, folder)
            looking.study, looking.step, looking.is_editing = study.id, None, False
            return f"Brought back, with {len(self.book.votes(study)):,} votes."

        said, *panes = self._said(looking, act)
        return said, None, *panes

    def quick(self) -> tuple:
        """(table of quick votes, their download)."""
        try:
            votes = self.book.quick_votes()
        except ValueError as error:
            return note_html(str(error), "failed"), gr.update(visible=False)
        if not votes:
            return quick_html([]), gr.update(visible=False)
        count, path = self._quick_file
        if count != len(votes) or not path.exists():  # votes are only ever added
            # Below a name that nobody guesses: whoever has seen a picture knows the folder above; these are prompts.
            path = self.studio.pictures.new_folder() / "quick-votes.csv"
            path.write_bytes(quick_csv(votes))
            self._quick_file = len(votes), path
        return quick_html(tallies(votes)), gr.update(value=str(path), visible=True)

    def _said(self, looking: Looking, act: Callable[[], str], *, phase: str = "ready", chooses: bool = False) -> tuple:
        """(note, then PANES) after what `act` does; what it refuses is said, and the page stays as it is."""
        looking.turn = turn = looking.turn + 1
        try:
            said = act()
            panes = self.show(looking, chooses=chooses)
        except ValueError as error:
            return note_html(str(error), "failed"), *NOTHING_NEW
        if looking.turn != turn:  # the visitor went on meanwhile: that answer shows where
            return gr.skip(), *NOTHING_NEW
        return note_html(said, phase) if said else "", *_sent(looking, panes)


def _sent(looking: Looking, panes: Panes) -> Panes:
    """The panes, which the page shows from now on."""
    skip = gr.skip()
    looking.shown |= {name: value for name in TICKING if (value := getattr(panes, name)) != skip}
    return panes


def _visible(shown: str | None) -> dict[str, Any]:
    """Which of the steps, or the form, stands on the page."""
    return {name: gr.update(visible=name == shown) for name in ("form", "plan", "pictures", "voting", "results")}


def _busy(running: bool) -> tuple:
    """Make, Bring and Stop while pictures are made, or while none are."""
    return gr.update(interactive=not running), gr.update(interactive=not running), gr.update(interactive=running)


def build(studio: Studio, tab: gr.Tab, tabs: gr.Tabs) -> None:
    """Lays out the tab inside the Blocks that are open, and wires it."""
    do = Handlers(studio)
    first = do.first_form()
    fields: dict[str, Any] = {}
    sources = [(label, str(file)) for label, file in studio.finetune.prompt_sets_to_measure()]
    sources += [("Own text file", OWN_FILE), ("Typed here", TYPED)]

    def value(name: str) -> dict[str, Any]:
        return {"value": first[name], "elem_id": f"study-{name.replace('_', '-')}"}

    looking = gr.State(Looking())
    with gr.Row(elem_id="studies", equal_height=False):
        with gr.Column(elem_id="studies-list", elem_classes="pane", scale=0, min_width=372):
            gr.HTML(HEAD, apply_default_css=False)
            new = gr.Button("New study", variant="primary", elem_id="study-new")
            listed = study_list(elem_id="study-list")
            with gr.Accordion("Bring an exported study back", open=False, elem_id="study-import"):
                upload = gr.File(
                    label="Its zip",
                    show_label=False,
                    type="filepath",
                    file_types=[".zip"],
                    height=56,
                    elem_id="study-upload",
                    elem_classes="study-file",
                )
                folder = gr.Textbox(label="Or the path of its folder", max_lines=1, elem_id="study-import-folder")
                back = gr.Button("Bring it back", elem_id="study-bring-back")
        with gr.Column(elem_id="study-stage", elem_classes="pane", min_width=320):
            # Until the page knows what studies there are.
            head = study_head(value=invitation_value(), elem_id="study-head")
            note = gr.HTML(elem_id="study-note", apply_default_css=False)
            with gr.Column(visible=False, elem_id="study-form") as form:
                with gr.Row(equal_height=False, elem_classes="study-columns"):
                    with gr.Column(elem_classes="study-fields"):
                        makes, brings, halt = _what_is_compared(fields, value, studio, sources)
                        _what_is_asked(fields, value)
                    with gr.Column(elem_classes="study-side"):
                        power = gr.HTML(elem_id="study-power", apply_default_css=False)
                        _how_many_votes(fields, value)
                with gr.Row(elem_classes="study-go"):
                    save = gr.Button("Save the plan", variant="primary", elem_id="study-save", scale=0, min_width=180)
                    cancel = gr.Button("Close the form", elem_id="study-cancel", scale=0, min_width=170)
                saved = gr.HTML(elem_id="study-form-note", apply_default_css=False)
            with gr.Column(visible=False, elem_id="study-plan") as plan:
                edit = gr.Button("Change the plan", elem_id="study-edit", scale=0, min_width=160)
                plan_text = gr.HTML(elem_id="study-plan-text", apply_default_css=False)
            with gr.Column(visible=False, elem_id="study-pictures") as pictures:
                gr.HTML(f'<p class="hint">{PICTURES_HINT} {RULE}</p>', apply_default_css=False)
                with gr.Row(elem_classes="study-go"):
                    make = gr.Button("Make", variant="primary", elem_id="study-make", scale=0, min_width=220)
                    bring = gr.Button("Bring", variant="primary", elem_id="study-bring", scale=0, min_width=220)
                    stop = gr.Button("Stop", interactive=False, elem_id="study-stop", scale=0, min_width=88)
                shown = grid_table(elem_id="study-strip")
            with gr.Column(visible=False, elem_id="study-voting") as voting:
                with gr.Row(elem_classes="study-go"):
                    opens = gr.Button("Open the study", variant="primary", elem_id="study-open", scale=0, min_width=180)
                    ends = gr.Button("End the study …", elem_id="study-end", scale=0, min_width=160)
                with gr.Row(visible=False, elem_id="study-sure") as sure:
                    question = gr.HTML(elem_id="study-question", apply_default_css=False)
                    really = gr.Button("End it", variant="stop", elem_id="study-end-really", scale=0, min_width=110)
                    no = gr.Button("No", elem_id="study-end-no", scale=0, min_width=70)
                link = study_link(elem_id="study-link")
                live = gr.HTML(elem_id="study-live", apply_default_css=False)
                with gr.Accordion("Raters and their codes", open=False, elem_id="study-raters"):
                    seats = gr.HTML(elem_id="study-seats", apply_default_css=False)
            with gr.Column(visible=False, elem_id="study-results") as results:
                filtered = gr.Radio(
                    [("All votes", "all"), ("With the declared filters", "filtered")],
                    value="all",
                    show_label=False,
                    visible=False,
                    elem_id="study-filtered",
                )
                story = gr.HTML(elem_id="study-story", apply_default_css=False)
                figures = study_figures(elem_id="study-figures")
                tables = gr.HTML(elem_id="study-tables", apply_default_css=False)
                with gr.Row(elem_classes="study-go"):
                    export = gr.Button("Export", elem_id="study-export", scale=0, min_width=110)
                    files = gr.DownloadButton(
                        "Download all files (zip)", visible=False, elem_id="study-files", scale=0, min_width=210
                    )
                    report = gr.DownloadButton(
                        "Download the report", visible=False, elem_id="study-report", scale=0, min_width=190
                    )
                exported = gr.HTML(elem_id="study-export-note", apply_default_css=False)
    with gr.Accordion("Quick votes from Compare", open=False, elem_id="quick-panel", elem_classes="pane") as quick:
        gr.HTML(f'<p class="hint">{QUICK_HINT}</p>', apply_default_css=False)
        quick_table = gr.HTML(elem_id="quick-table", apply_default_css=False)
        quick_csv_button = gr.DownloadButton(
            "Download as CSV", visible=False, elem_id="quick-csv", scale=0, min_width=170
        )
    timer = gr.Timer(LIVE_EVERY_S, active=False)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # As in the Compare tab: only long work goes through the queue, and a button comes back in an event of its own.
    work: dict[str, Any] = quiet | {"trigger_mode": "multiple", "concurrency_limit": 8}
    press: dict[str, Any] = quiet | {"trigger_mode": "multiple", "queue": False}
    follow: dict[str, Any] = quiet | {"trigger_mode": "always_last", "queue": False}
    panes = list(
        Panes(
            *(listed, head, form, plan, pictures, voting, results, plan_text, make, bring, shown, opens, ends, sure),
            *(link, live, seats, story, figures, tables, filtered, files, report, timer),
        )
    )
    asked = [fields[name] for name in FIELDS]

    tab.select(do.look, looking, [note, *panes], **press)
    tab.select(do.quick, outputs=[quick_table, quick_csv_button], **press)
    quick.expand(do.quick, outputs=[quick_table, quick_csv_button], **press)
    tabs.select(do.left, outputs=timer, **press)
    timer.tick(do.tick, looking, [note, *panes], queue=False, **quiet)  # one at a time
    listed.select(do.choose, looking, [note, *panes], **press)
    head.select(do.choose_step, looking, [note, *panes], **press)
    new.click(do.new, looking, [note, *panes, *asked], **press)
    edit.click(do.edit, looking, [note, *panes, *asked], **press)
    cancel.click(do.cancel, looking, [note, *panes], **press)
    # What was said below a form or an export is about one study: it does not stay for the next.
    gr.on([listed.select, new.click, edit.click, back.click], lambda: ("", ""), outputs=[saved, exported], **press)
    # "once": the second press of a double click must not save a second study.
    save.click(do.save, [looking, *asked], [saved, *panes], **work | {"trigger_mode": "once"})
    gr.on([field.change for field in asked if not isinstance(field, gr.File)], do.outline, asked, power, **follow)
    gr.on([fields[name].upload for name in FILES], do.outline, asked, power, **press)
    gr.on(
        [fields[name].change for name in ("source", "prompt_source", "mode")],
        do.kinds,
        [fields[name] for name in ("source", "prompt_source", "mode", "criteria")],
        [
            *(makes, brings, fields["prompt_file"], fields["prompts"], fields["stop"], fields["criteria"]),
            *(fields[name] for name in ("votes_per_item", "trials_per_rater", "gold")),
        ],
        **follow,
    )
    fields["models"].focus(do.model_choices, outputs=fields["models"], **press)
    for start, act in ((make, do.make), (bring, do.bring)):
        start.click(act, looking, [shown, make, bring, stop], **work).then(
            do.pictures_ready, looking, [make, bring, stop, head], **press
        )
    gr.on([stop.click, halt.click], do.stop, **press)
    opens.click(do.open, looking, [note, *panes], **press)
    ends.click(do.ask_end, looking, [sure, question], **press)
    really.click(do.end, looking, [note, *panes], **press)
    no.click(lambda: gr.update(visible=False), outputs=sure, **press)
    filtered.input(do.choose_votes, [looking, filtered], [note, *panes], **follow)
    export.click(do.export, looking, [exported, files, report], **work | {"concurrency_limit": 1})
    back.click(do.bring_back, [looking, upload, folder], [note, upload, *panes], **press)
    gr.context.Context.root_block.unload(do.stop)


def _what_is_compared(
    fields: dict[str, Any], value: Callable[[str], dict[str, Any]], studio: Studio, sources: list[tuple[str, str]]
) -> tuple[gr.Column, gr.Column, gr.Button]:
    """The fields of title, models, prompts and pictures. Returns the columns for pictures made and for pictures
    brought, and the button that ends the reading of the latter.
    """
    gr.HTML("<h3>What is compared</h3>", apply_default_css=False)
    fields["title"] = gr.Textbox(
        label="Title",
        info="Raters read it: a name of a model in it tells them what is compared.",
        max_lines=1,
        placeholder="What do you want to know?",
        **value("title"),
    )
    fields["source"] = gr.Radio(
        [("Make the pictures here", "make"), ("Bring finished pictures", "bring")],
        label="Pictures",
        **value("source"),
    )
    with gr.Column(elem_classes="study-group") as makes:
        fields["models"] = gr.Dropdown(
            [(model.label, model.id) for model in studio.catalogue.models()],
            label="Models: two or more",
            multiselect=True,
            allow_custom_value=True,
            **value("models"),
        )
        with gr.Row():
            fields["prompt_source"] = gr.Dropdown(sources, label="Prompts", min_width=140, **value("prompt_source"))
            fields["take"] = gr.Number(label="Take the first (0: all)", step=1, min_width=140, **value("take"))
        fields["prompt_file"] = gr.File(
            label="Prompt file, one prompt per line",
            show_label=False,
            type="filepath",
            visible=False,
            height=56,
            elem_id="study-prompt-file",
            elem_classes="study-file",
        )
        fields["prompts"] = gr.Textbox(
            label="Prompts, one per line; a category may follow “ | ”",
            lines=4,
            max_lines=12,
            visible=False,
            **value("prompts"),
        )
        with gr.Row():
            fields["seed"] = gr.Number(label="First seed", step=1, min_width=100, **value("seed"))
            fields["num_seeds"] = gr.Slider(
                1, MAX_SEEDS, label="Seeds per prompt", step=1, min_width=160, **value("num_seeds")
            )
        with gr.Row():
            fields["width"] = gr.Number(label="Width", step=SIZE_MULTIPLE, min_width=100, **value("width"))
            fields["height"] = gr.Number(label="Height", step=SIZE_MULTIPLE, min_width=100, **value("height"))
        with gr.Row():
            fields["steps"] = gr.Slider(1, MAX_STEPS, label="Steps", step=1, min_width=160, **value("steps"))
            fields["guidance"] = gr.Slider(
                0, MAX_GUIDANCE, label="Guidance", step=0.1, min_width=160, **value("guidance")
            )
    with gr.Column(visible=False, elem_classes="study-group") as brings:
        gr.HTML(f'<p class="hint">{BRING_HINT}</p>', apply_default_css=False)
        for place in PLACES:
            with gr.Row(elem_classes="study-place"):
                fields[f"name_{place}"] = gr.Textbox(
                    label=f"Model {place}", max_lines=1, min_width=110, **value(f"name_{place}")
                )
                fields[f"folder_{place}"] = gr.Textbox(
                    label="Its folder", max_lines=1, min_width=150, **value(f"folder_{place}")
                )
                fields[f"files_{place}"] = gr.File(
                    label=f"Or the files of model {place}",
                    show_label=False,
                    file_count="multiple",
                    file_types=[".png", ".jpg", ".jpeg", ".webp"],
                    type="filepath",
                    height=56,
                    elem_id=f"study-files-{place}",
                    elem_classes="study-file",
                )
        fields["further"] = gr.Textbox(
            label="Further models, one per line",
            placeholder="name = folder",
            lines=1,
            max_lines=8,
            **value("further"),
        )
        fields["table"] = gr.File(
            label="prompts.csv or prompts.jsonl, where it does not lie beside the pictures",
            show_label=False,
            file_types=[".csv", ".jsonl"],
            type="filepath",
            height=56,
            elem_id="study-table",
            elem_classes="study-file",
        )
        halt = gr.Button("Stop reading the pictures", elem_id="study-halt", size="sm")
    return makes, brings, halt


def _what_is_asked(fields: dict[str, Any], value: Callable[[str], dict[str, Any]]) -> None:
    """The fields of questions."""
    gr.HTML("<h3>What raters are asked</h3>", apply_default_css=False)
    fields["mode"] = gr.Radio(
        [("Which of two is better", "pairwise"), ("Rate one at a time", "rating")],
        label="How",
        info="Rating gives Excellent, Good, Pass or Fail, as in the paper; Overall is derived from the other criteria.",
        **value("mode"),
    )
    fields["criteria"] = gr.CheckboxGroup(
        criteria_offered(),
        label="Criteria",
        info="Each is asked every time, so more of them cost time. The first one decides a sequential study.",
        **value("criteria"),
    )
    gr.HTML(rubrics_html(), elem_classes="study-rubrics", apply_default_css=False)
    fields["own_criteria"] = gr.Textbox(
        label="Own criteria, one per line",
        placeholder="Mood: Which picture has the calmer mood?",
        lines=2,
        max_lines=6,
        **value("own_criteria"),
    )
    fields["instructions"] = gr.Textbox(
        label="Words to the raters, before they begin", lines=2, max_lines=6, **value("instructions")
    )


def _how_many_votes(fields: dict[str, Any], value: Callable[[str], dict[str, Any]]) -> None:
    """The fields of the design and of the filters."""
    gr.HTML("<h3>How many votes</h3>", apply_default_css=False)
    fields["stop"] = gr.Radio(
        [("A fixed number", "fixed"), ("Until the evidence suffices", "sequential")],
        label="The study is complete after",
        info="The second may end after any prompt, however often one looks: at most 5 % of studies without a true "
        "difference name a winner.",
        **value("stop"),
    )
    with gr.Row():
        fields["votes_per_item"] = gr.Number(
            label="Votes on each pair", step=1, min_width=120, **value("votes_per_item")
        )
        fields["trials_per_rater"] = gr.Number(
            label="Pairs per rater (0: all)", step=1, min_width=120, **value("trials_per_rater")
        )
    with gr.Row():
        fields["repeats"] = gr.Number(label="Repeats, %", min_width=80, **value("repeats"))
        fields["gold"] = gr.Number(label="Gold pairs, %", min_width=80, **value("gold"))
        fields["smallest_win_rate"] = gr.Number(
            label="Win rate that matters, %", min_width=80, **value("smallest_win_rate")
        )
    gr.HTML(f'<p class="hint">{DESIGN_HINT}</p>', apply_default_css=False)
    gr.HTML("<h3>Filters, declared beforehand</h3>", apply_default_css=False)
    with gr.Row():
        fields["min_gold"] = gr.Number(label="Gold right, at least %", min_width=80, **value("min_gold"))
        fields["min_repeats"] = gr.Number(label="Repeats alike, at least %", min_width=80, **value("min_repeats"))
        fields["min_dwell_s"] = gr.Number(label="A look, at least s", min_width=80, **value("min_dwell_s"))
    gr.HTML(f'<p class="hint">{FILTER_HINT}</p>', apply_default_css=False)
