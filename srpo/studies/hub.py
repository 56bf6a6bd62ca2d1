"""Studies kept in a private dataset of the Hub as well: for a Space, whose disk does not outlive a restart.

The store is where votes are acknowledged. From it, in the background, comes a journal: one file of JSON lines for each
process, to which a row is appended whenever it is new or has changed, so that no two processes write one file. The file
and the pictures are committed every few minutes, when a study ends, and when the app is asked to stop. Merging all
journals, in any order and however often, makes the same studies again.

huggingface_hub's CommitScheduler does not serve: it commits for the last time in `atexit`, which SIGTERM does not run,
takes a repository that is public as it is, fails where the Hub is down at the start, and cannot say until when
everything is saved, which is what raters are told.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srpo.runs.atomic import write_file
from srpo.studies.images import DATE_S, FILE_NAME
from srpo.studies.store import COPIED, Row, Store
from srpo.studies.tables import pictures, quick_votes

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

FORMAT = 1
EVERY_S = 120.0  # between commits: the Hub limits how many an hour has
LOOK_S = 5.0  # between looks whether a study has ended, and between attempts while the Hub does not answer
PATIENCE_S = 20.0  # for the last commit of a process that was asked to stop
FILES_PER_COMMIT = 100
JOURNALS, PICTURES = "journals", "pictures"  # folders of the dataset
SILENT = "The Hub does not answer at the moment: votes are safe here, and it is asked again."

KEYS = {table.name: tuple(column.name for column in table.primary_key) for table in (*COPIED, quick_votes)}
Key = tuple[Any, ...]  # the table's name and the values of its primary key


@dataclass(frozen=True)
class Saved:
    """What of the studies is on the Hub."""

    until_us: int | None  # everything that was stored before this moment is there; None until anything is
    problem: str  # a sentence, where it is not as it should be


class Hub:
    """The copy of a store's studies in a private dataset."""

    def __init__(
        self, dataset: str, store: Store, folder: Callable[[str], Path], root: Path, *, every_s: float = EVERY_S
    ) -> None:
        """dataset: OWNER/NAME, made where it is missing. folder: of a study's pictures. root: for the journals.

        ValueError where the dataset's name is none. The token is the environment's HF_TOKEN.
        """
        if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", dataset, re.ASCII):
            raise ValueError(f"A dataset of the Hub is named OWNER/NAME, not {dataset[:80]!r}.")
        self._dataset, self._store, self._folder, self._every_s = dataset, store, folder, every_s
        self._root = root
        # This process's own: no other one has its name, and so none can overwrite it.
        self._name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}.jsonl"
        self._known: dict[Key, str] = {}  # what the journals say of each row
        self._lacking: dict[str, Path] = {}  # pictures that are not in the dataset yet, by their names there
        self._finished: set[str] = set()  # studies that are closed, and were whole in the journals at a later look
        self._is_private = False  # as far as is known
        self._is_behind = False  # our journal has lines that the Hub lacks
        self._saved = Saved(None, "")
        self._is_restored = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)

    @property
    def saved(self) -> Saved:
        return self._saved

    @property
    def is_restored(self) -> bool:
        """Whether what the dataset held at the start is in the store by now."""
        return self._is_restored.is_set()

    def start(self) -> None:
        """Brings the dataset's studies back, and then keeps it up to date; all of it in the background."""
        self._thread.start()

    def stop(self, patience_s: float = PATIENCE_S) -> None:
        """Commits what is left, and ends. Gives up after `patience_s`."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(patience_s)

    def _run(self) -> None:
        next_s, open_before = 0.0, set()
        while True:
            is_last = self._stopping.wait(0 if next_s == 0 else LOOK_S)
            try:
                open_now = {study.id for study in self._store.studies() if study.state == "open"}
                if is_last or time.monotonic() >= next_s or open_before - open_now:
                    self._meet()
                    next_s, open_before = time.monotonic() + self._every_s, open_now
            except Exception:  # whatever it is, votes go on, and the next look may find the Hub back
                if not self._saved.problem:  # once, not at every look
                    log.exception("The studies could not be brought to the Hub.")
                self._saved = Saved(self._saved.until_us, SILENT)
                next_s = time.monotonic()
            if is_last:
                return

    def _meet(self) -> None:
        """Brings the store and the dataset together. What cannot be brought back keeps nothing from being saved."""
        try:
            if not self.is_restored:
                self.restore()
        finally:
            self.push()

    def restore(self) -> None:
        """Takes the studies of the dataset over into the store, and their pictures into their folders.

        ValueError for a dataset that cannot be read here, and as `push`.
        """
        from huggingface_hub import snapshot_download

        api = self._private_dataset()
        place = Path(
            snapshot_download(
                self._dataset,
                repo_type="dataset",
                local_dir=self._root / "restored",
                allow_patterns=[f"{JOURNALS}/*.jsonl", f"{PICTURES}/*/*.png"],
                token=api.token,
            )
        )
        rows = [row for path in sorted((place / JOURNALS).glob("*.jsonl")) for row in read_journal(path)]
        for name, values in rows:
            if name == pictures.name:
                self._bring_picture(place, values)
        self._store.merge(rows)  # only now: a study that is there can be voted on
        self._known |= {_key(name, values): _line(name, values) for name, values in rows}
        self._is_restored.set()

    def push(self) -> None:
        """Brings the dataset up to date with the store. ValueError for a dataset that anybody may read.

        The dataset is made where it is missing.
        """
        self._private_dataset()
        until_us = self._store.settled_us()
        fresh = list(self._changes())
        journal = self._root / JOURNALS / self._name
        if fresh:
            journal.parent.mkdir(parents=True, exist_ok=True)
            with journal.open("a", encoding="utf-8") as file:
                file.writelines(_line(*row) for row in fresh)
                file.flush()
                os.fsync(file.fileno())
            self._known |= {_key(*row): _line(*row) for row in fresh}
            self._lacking |= {
                f"{PICTURES}/{row['study']}/{row['file']}": self._folder(row["study"]) / row["file"]
                for name, row in fresh
                if name == pictures.name
            }
            self._is_behind = True
        if self._is_behind:
            self._commit_pictures()  # first: a study comes back with its pictures or not at all
            self._commit({f"{JOURNALS}/{self._name}": journal}, "Votes")
            self._is_behind = False
        self._saved = Saved(until_us, "")

    # Inside

    def _changes(self) -> Iterator[Row]:
        """The rows that are not in the journals as they are now."""
        for study in self._store.studies():
            if study.state == "preparing" or study.id in self._finished:
                continue
            rows = self._store.rows(study.id)
            if study.state == "closed":  # brought back from an export, it has no pictures, and never will
                rows = [row for row in rows if row[0] != pictures.name or self._is_here(row[1])]
            changed = [row for row in rows if self._known.get(_key(*row)) != _line(*row)]
            if study.state == "closed" and not changed:
                self._finished.add(study.id)
            yield from changed
        yield from (row for row in self._store.quick_rows() if _key(*row) not in self._known)

    def _is_here(self, picture: dict[str, Any]) -> bool:
        return (self._folder(picture["study"]) / picture["file"]).exists()

    def _commit_pictures(self) -> None:
        """Commits what the dataset lacks, in parts: a part that got there is not sent again."""
        while some := dict(list(self._lacking.items())[:FILES_PER_COMMIT]):
            self._commit(some, "Pictures")
            for name in some:
                del self._lacking[name]

    def _commit(self, files: Mapping[str, Path], title: str) -> None:
        from huggingface_hub import CommitOperationAdd

        adding = [CommitOperationAdd(name, path) for name, path in files.items()]
        self._private_dataset().create_commit(self._dataset, adding, commit_message=title, repo_type="dataset")

    def _bring_picture(self, place: Path, values: dict[str, Any]) -> None:
        """Puts a downloaded picture to where it is served from. ValueError for one that is missing or was changed."""
        if not re.fullmatch(FILE_NAME, str(values["file"])) or not re.fullmatch(
            r"[\w-]{1,64}", str(values["study"]), re.ASCII
        ):
            raise ValueError("A picture in the dataset has a name that is none of this program's.")
        target = self._folder(values["study"]) / values["file"]
        if target.exists():
            return
        try:
            data = (place / PICTURES / values["study"] / values["file"]).read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != values["sha256"]:
            raise ValueError(f"The picture {values['file']} of the dataset is missing, or was changed.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, lambda path: path.write_bytes(data))
        os.utime(target, (DATE_S, DATE_S))

    def _private_dataset(self) -> HfApi:
        """What asks the Hub, once it is known that nobody else can read the dataset."""
        from huggingface_hub import HfApi

        api = HfApi(token=os.environ.get("HF_TOKEN"))
        if not self._is_private:
            api.create_repo(self._dataset, repo_type="dataset", private=True, exist_ok=True)
            if not api.repo_info(self._dataset, repo_type="dataset").private:
                raise ValueError(f"The dataset {self._dataset} is public, and raters' codes are keys: make it private.")
            self._is_private = True
        return api


def read_journal(path: Path) -> list[Row]:
    """The rows of a journal. ValueError, one sentence, for what is none."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            content = json.loads(line)
            if content["format"] != FORMAT:
                raise ValueError(f"{path.name} has format {content['format']!r}, and this program reads {FORMAT}.")
            rows.append((content["table"], dict(content["row"])))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name} of the dataset is damaged, or is no journal of studies.") from error
    return rows


def _line(name: str, values: dict[str, Any]) -> str:
    return json.dumps({"format": FORMAT, "table": name, "row": values}, sort_keys=True, allow_nan=False) + "\n"


def _key(name: str, values: dict[str, Any]) -> Key:
    return name, *(values[column] for column in KEYS[name])
