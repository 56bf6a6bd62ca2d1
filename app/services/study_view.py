"""What the page shows of studies: the list, a study under way, and what one that has ended has found.

While a study is open nothing here tells who leads: whoever sees that may stop when they like it, and tell raters.
"""

from __future__ import annotations

import importlib.util
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from app.services.public import allowed_place
from app.services.requests import BadInput, sentence
from app.services.studio import Studio
from app.services.study_pictures import stock
from srpo.evaluation.records import file_stem
from srpo.studies.analysis import Results, results
from srpo.studies.export import export_zip, import_study
from srpo.studies.health import Flag, health
from srpo.studies.report import report_html
from srpo.studies.stopping import complete_scores, evidence
from srpo.studies.store import QuickVote, Rater, Store, Study
from srpo.studies.votes import Vote, votes_by_item

Step = Literal["plan", "pictures", "voting", "results"]
STEPS: tuple[Step, ...] = ("plan", "pictures", "voting", "results")
TELLING = ("one model", "drift")  # flags that name the model that is ahead
HIDDEN_FLAG = (
    "The votes of one rater, or of one half of the study, differ from the others; which way is told at its end."
)
MAX_KEPT, MAX_COUNTED = 16, 2000  # studies of which votes and results, or only a number, are kept
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One line of the list."""

    id: str
    title: str
    version: int
    state: str
    size: str  # "24 prompts × 2 models"
    votes: int
    wanted: int
    created_us: int


@dataclass(frozen=True)
class Live:
    """An open study, or one that has ended, in numbers that do not tell who leads."""

    raters: int  # who have joined
    voting: int  # of them with a vote
    votes: int
    wanted: int
    items: int
    items_complete: int
    is_complete: bool  # by the plan's own rule
    is_sequential: bool
    gold_right: int
    gold: int
    repeats_same: int
    repeats: int
    median_dwell_s: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Seat:
    """A rater, for the table of codes."""

    number: int
    code: str
    votes: int
    trials: int


class Shelf:
    """What was made of studies, each in its latest version; the longest unused makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], tuple[object, object]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str], version: object, make: Callable[[], T]) -> T:
        """What `make` returns; it is asked where there is nothing of that version."""
        with self._lock:
            known = self._kept.get(key)
            if known is not None and known[0] == version:
                self._kept.move_to_end(key)
                return known[1]
        made = make()
        with self._lock:
            self._kept[key] = version, made
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made


class StudyBook:
    """What was read of the studies of one app: nothing is read anew whose votes have not changed."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._kept, self._counts = Shelf(MAX_KEPT), Shelf(MAX_COUNTED)

    @property
    def store(self) -> Store:
        """The open store. BadInput where the database cannot be used."""
        try:
            return self.studio.studies.store
        except (ValueError, OSError) as error:
            raise BadInput(sentence(error)) from None

    def study(self, identity: str | None) -> Study:
        """BadInput where there is none of that name."""
        if not isinstance(identity, str) or not identity:
            raise BadInput("No study is shown: choose one from the list.")
        return asked(lambda: self.store.study(identity))

    def rows(self) -> list[Row]:
        """The youngest first."""
        return asked(lambda: [self._row(study) for study in self.store.studies()])

    def live(self, study: Study) -> Live:
        """The study in numbers. The health of many votes takes a moment, so it is kept until one changes."""

        def make() -> Live:
            joined = len(self.store.raters(study.id))
            version = self._version(study), joined
            return self._kept.get(("live", study.id), version, lambda: _live(study, self.votes(study), joined))

        return asked(make)

    def seats(self, study: Study) -> list[Seat]:
        """Every rater with the code by which to come back: keys, for the owner of the study alone."""
        raters, votes = asked(lambda: (self.store.raters(study.id), self.votes(study)))
        given = Counter(vote.rater for vote in votes)
        return [_seat(study, rater, given[rater.number]) for rater in raters]

    def results(self, study: Study) -> Results:
        """What the study has found. BadInput while it is open."""
        if study.state != "closed":
            raise BadInput(
                "The results are shown when the study has ended: who sees a leader is no fair judge of an end."
            )
        version = self._version(study)
        return self._kept.get(("results", study.id), version, lambda: results(study.plan, self.votes(study)))

    def votes(self, study: Study) -> list[Vote]:
        """Every vote that counts. A vote that comes in between is there, and makes the next call read anew."""
        return self._kept.get(("votes", study.id), self._version(study), lambda: self.store.votes(study.id))

    def steps(self, study: Study) -> dict[Step, bool]:
        """Which steps can be opened by now."""
        begun = study.state != "preparing"
        whole = begun or stock(self.studio, study).is_whole
        return {"plan": True, "pictures": True, "voting": whole, "results": begun}

    def step_of(self, study: Study) -> Step:
        """The step that a study is in."""
        if study.state == "preparing":
            return "voting" if stock(self.studio, study).is_whole else "pictures"
        return "voting" if study.state == "open" else "results"

    def quick_votes(self) -> list[QuickVote]:
        """Every quick vote, in the order in which they were given."""
        return asked(lambda: self.store.quick_votes())

    # Changes

    def open(self, identity: str) -> Study:
        study = self.study(identity)
        if study.state == "preparing" and not (found := stock(self.studio, study)).is_whole:
            raise BadInput(f"{len(found.lacking):,} pictures of the study are missing: finish making them first.")
        return asked(lambda: self.store.open(identity))

    def end(self, identity: str) -> Study:
        return asked(lambda: self.store.end(identity))

    # Files

    def export(self, study: Study) -> tuple[Path, Path]:
        """(all files of the study in a zip, its report), in files that the page may serve."""
        folder = self.studio.pictures.new_folder()
        stem = file_stem(study.plan.title, study.version, "").replace("_seed-", "-version-").rstrip("_")
        path = asked(lambda: export_zip(self.store, study.id, folder / f"{stem}.zip"))
        report = folder / f"{stem}.html"
        report.write_text(report_html(study, self.results(study)), encoding="utf-8")
        return path, report

    def parquet_note(self) -> str:
        """How to have the votes as Parquet too, where that cannot be written here."""
        return (
            "" if importlib.util.find_spec("pyarrow") else "For Parquet as well: pip install pyarrow, then export anew."
        )

    def bring_back(self, upload: str | Path | None, folder: str | None = None) -> Study:
        """The study of an exported zip that was uploaded, or of a zip or folder that is named; closed.

        BadInput for anything else, and for a place that this page does not open.
        """
        named = str(folder or "").strip()
        if not upload and not named:
            raise BadInput("Nothing was chosen: choose an exported zip, or name an exported folder.")
        place = Path(upload) if upload else allowed_place(self.studio.options, named)
        return asked(lambda: import_study(self.store, place)[0])

    # Inside

    def _row(self, study: Study) -> Row:
        plan = study.plan
        votes = 0
        if study.state != "preparing":
            votes = self._counts.get(("main", study.id), self._version(study), lambda: self._main(study))
        size = f"{len(plan.prompts):,} prompt{'s' * (len(plan.prompts) > 1)} × {len(plan.models)} models"
        size += f" × {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
        wanted = plan.num_items * plan.stop.votes_per_item
        return Row(study.id, plan.title, study.version, study.state, size, votes, wanted, study.created_us)

    def _version(self, study: Study) -> object:
        """What changes with the votes of the study; those of a closed one never change."""
        return study.state if study.state == "closed" else self.store.changes(study.id)

    def _main(self, study: Study) -> int:
        """How many votes count for the plan."""
        return sum(vote.trial.kind == "main" for vote in self.votes(study))


def asked(ask: Callable[[], T]) -> T:
    """What `ask` returns; what the store or a file refuses becomes BadInput, one sentence."""
    try:
        return ask()
    except BadInput:
        raise
    except (ValueError, OSError) as error:  # Refused and Unavailable are among them
        raise BadInput(sentence(error)) from None


def _live(study: Study, votes: Sequence[Vote], joined: int) -> Live:
    plan = study.plan
    main = [vote for vote in votes if vote.trial.kind == "main"]
    counts = votes_by_item(plan, main)
    per_item = plan.stop.votes_per_item
    found = health(plan, votes)
    all_given = all(count >= per_item for count in counts)
    sequential = plan.stop.kind == "sequential"
    scores = complete_scores(plan, main) if sequential else []
    return Live(
        raters=joined,
        voting=len(found.raters),
        votes=len(main),
        wanted=len(counts) * per_item,
        items=len(counts),
        items_complete=sum(count >= per_item for count in counts),
        is_complete=all_given or (sequential and evidence(scores, plan.stop.alpha).winner is not None),
        is_sequential=sequential,
        gold_right=found.gold_right,
        gold=found.gold,
        repeats_same=found.repeats_same,
        repeats=found.repeats,
        median_dwell_s=found.median_dwell_s,
        flags=blind_flags(found.flags),
    )


def blind_flags(flags: Sequence[Flag]) -> tuple[str, ...]:
    """The flags' sentences; those that would tell who leads become one that does not."""
    said = [HIDDEN_FLAG if flag.kind in TELLING else flag.sentence for flag in flags]
    return tuple(dict.fromkeys(said))


def _seat(study: Study, rater: Rater, votes: int) -> Seat:
    return Seat(rater.number, rater.code, votes, study.plan.num_trials)
