"""A finished study as files that others can read, and back: the imported study gives the same numbers.

plan.json       the plan, in the form whose hash names it
votes.jsonl     one vote per line, in the order in which they were given; what an import reads
votes.csv       the same as a table, safe to open in a spreadsheet
votes.parquet   the same, where the package pyarrow is installed
pictures.csv    every picture with its model and hashes
pictures.jsonl  the same, for an import
results.json    all numbers
report.html     all of it to look at, in one file that asks no network
manifest.json   hashes of the others, written last

Raters are numbers: their codes, which are keys, stay in the store.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srpo.runs.atomic import write_file, write_folder
from srpo.studies.analysis import Results, results
from srpo.studies.images import FILE_NAME
from srpo.studies.report import report_html
from srpo.studies.schedule import Shown, pictures, schedule
from srpo.studies.schema import Plan
from srpo.studies.store import MAX_RATERS, Picture, Refused, Store, Study
from srpo.studies.votes import Vote, check_answers, check_dwell

FORMAT = 1
MANIFEST = "manifest.json"
MAX_SIDE = 100_000  # pixels of a picture, as a fence
MAX_FILE_BYTES = 256 * 2**20  # of one file of an import
NEEDED = ("plan.json", "votes.jsonl", "pictures.jsonl")  # by an import
# What unpacking raises for a damaged archive, beside BadZipFile and OSError: encrypted, of another version, cut.
UNZIPPABLE = (RuntimeError, EOFError, OverflowError, zlib.error, lzma.LZMAError, struct.error)
FORMULA = tuple("=+-@\t\r\n|%＝＋－＠")  # a cell that begins so is run by one spreadsheet or another


@dataclass(frozen=True)
class Imported:
    """What an export says."""

    plan: Plan
    version: int
    votes: tuple[Vote, ...]
    pictures: tuple[Picture, ...]


def export_folder(store: Store, identity: str, folder: Path) -> Path:
    """The new folder with all files; there whole or not at all. Refused before the study has ended."""
    files = export_files(store, identity)

    def write(target: Path) -> None:
        for name, data in files.items():
            (target / name).write_bytes(data)

    folder.parent.mkdir(parents=True, exist_ok=True)
    write_folder(folder, write)
    return folder


def export_zip(store: Store, identity: str, path: Path) -> Path:
    """The same as one zip file."""
    files = export_files(store, identity)

    def write(target: Path) -> None:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    return path


def export_files(store: Store, identity: str) -> dict[str, bytes]:
    """The content of every file by its name, the manifest last. Refused before the study has ended."""
    study = store.study(identity)
    if study.state != "closed":
        raise Refused("A study is exported when it has ended, as the files reveal its models.")
    votes, known = store.votes(identity), store.pictures(identity)
    found = results(study.plan, votes)
    made = [known[shown] for shown in pictures(study.plan) if shown in known]
    vote_rows = [vote_row(study.plan, vote) for vote in votes]
    picture_rows = [picture_row(study.plan, picture) for picture in made]
    files = {
        "plan.json": study.plan.as_text().encode(),
        "votes.jsonl": as_jsonl(vote_rows),
        "votes.csv": as_csv(map(flat, vote_rows)),
        "pictures.jsonl": as_jsonl(picture_rows),
        "pictures.csv": as_csv(picture_rows),
        "results.json": json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False).encode(),
        "report.html": report_html(study, found).encode(),
    }
    if vote_rows and importlib.util.find_spec("pyarrow"):
        files["votes.parquet"] = as_parquet(map(flat, vote_rows))
    files[MANIFEST] = _manifest(study, files, len(votes), len(made))
    return files


def vote_row(plan: Plan, vote: Vote) -> dict[str, Any]:
    """A vote in words that need nothing else to be understood."""
    trial = vote.trial
    row = {
        "rater": vote.rater,
        "trial": trial.number,
        "kind": trial.kind,
        "repeats_trial": trial.of,
        "prompt_number": trial.prompt,
        "prompt": plan.prompts[trial.prompt].text,
        "category": plan.prompts[trial.prompt].category,
        "seed": trial.left.seed,
        "left": _seen(trial.left),
        "right": None if trial.right is None else _seen(trial.right),
        "answers": dict(vote.answers),
        "dwell_s": vote.dwell_s,
        "at_us": vote.at_us,
    }
    return row


def picture_row(plan: Plan, picture: Picture) -> dict[str, Any]:
    shown = picture.shown
    return {
        "file": picture.file,
        "model": shown.model,
        "prompt_number": shown.prompt,
        "prompt": plan.prompts[shown.prompt].text,
        "seed": shown.seed,
        "spoiled": shown.spoiled,
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256,
        "source_sha256": picture.source_sha256,
    }


def _seen(shown: Shown) -> str:
    """The model of a picture, marked where it is the spoiled half of a gold pair."""
    return f"{shown.model} (spoiled, of prompt {shown.prompt})" if shown.spoiled else shown.model


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with one column for each criterion's answer."""
    plain = {name: value for name, value in row.items() if name != "answers"}
    return plain | {f"answer_{key}": answer for key, answer in row["answers"].items()}


def as_jsonl(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def as_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table for spreadsheets: UTF-8 with a mark, and no cell of it a formula."""
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: safe_cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue().encode("utf-8-sig")


def safe_cell(value: Any) -> Any:
    """The value; a text that a spreadsheet would run is made plain text by an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA) else value


def as_parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as a Parquet table. Needs the package pyarrow."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), buffer)
    return buffer.getvalue()


def _manifest(study: Study, files: Mapping[str, bytes], num_votes: int, num_pictures: int) -> bytes:
    content = {
        "format": FORMAT,
        "title": study.plan.title,
        "version": study.version,
        "plan_sha256": study.sha256,
        "votes": num_votes,
        "pictures": num_pictures,
        "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Back


def import_study(store: Store, path: Path) -> tuple[Study, Results]:
    """(the study, closed, in this store; its numbers). path: an exported folder or zip file. ValueError as below."""
    found = read_export(path)
    study = store.restore(found.plan, found.version, found.votes, found.pictures)
    return study, results(found.plan, store.votes(study.id))


def read_export(path: Path) -> Imported:
    """What an exported folder or zip file says. ValueError, one sentence, where it is incomplete or was changed."""
    try:
        read = _reader(path)
        manifest = json.loads(read(MANIFEST))
        listed = {name: str(entry["sha256"]) for name, entry in manifest["files"].items()}
        version, plan_sha256 = manifest["version"], manifest["plan_sha256"]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} is no exported study: {_reason(error)}.") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} has format {manifest.get('format')!r}, and this program reads {FORMAT}: update it."
        )
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version < 10**6:
        raise ValueError(f"{path.name} was changed after the export: its version is no number.")
    content = {}
    for name in NEEDED:
        try:
            content[name] = read(name)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path.name} is incomplete: {name} {_reason(error)}.") from error
        if _sha256(content[name]) != listed.get(name):
            raise ValueError(f"{path.name} was changed after the export: {name} has another hash.")
    plan = Plan.from_text(content["plan.json"].decode())
    if plan.sha256 != plan_sha256:
        raise ValueError(f"{path.name} was changed after the export: its plan has another hash.")
    votes = tuple(_votes_from(plan, content["votes.jsonl"]))
    return Imported(plan, version, votes, tuple(_pictures_from(plan, content["pictures.jsonl"])))


def _reader(path: Path) -> Callable[[str], bytes]:
    """A function that gives the content of a file of the export, however it is packed."""
    if path.is_dir():

        def read(name: str) -> bytes:
            found = (path / name).stat()
            if not stat.S_ISREG(found.st_mode):  # a device, say, which never ends, or a pipe, which never begins
                raise ValueError("is no file")
            if found.st_size > MAX_FILE_BYTES:
                raise ValueError("is too large")
            return (path / name).read_bytes()

        return read

    if path.exists() and not path.is_file():
        raise ValueError("neither a folder nor a file")

    def unzip(name: str) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                data = file.read(MAX_FILE_BYTES + 1)  # what the archive says of its size need not be true
        except UNZIPPABLE as error:
            raise ValueError(f"cannot be unpacked, {_reason(error)}") from error
        if len(data) > MAX_FILE_BYTES:
            raise ValueError("is too large")
        return data

    return unzip


def _votes_from(plan: Plan, data: bytes) -> list[Vote]:
    """The votes, each as the plan's own schedule has it."""
    found, taken = [], set()
    for number, row in enumerate(_rows(data, "votes.jsonl"), 1):
        try:
            rater, place = row["rater"], row["trial"]
            if type(rater) is not int or type(place) is not int or type(row["at_us"]) is not int:
                raise ValueError("rater, trial and time are whole numbers")
            if not 0 <= rater < MAX_RATERS or not 0 <= row["at_us"] < 2**63:
                raise ValueError("there is no such rater or time")
            trials = schedule(plan, rater)
            if not 0 <= place < len(trials) or (rater, place) in taken:
                raise ValueError("the trial does not exist, or is there twice")
            taken.add((rater, place))
            answers, dwell_s = check_answers(plan, row["answers"]), check_dwell(row["dwell_s"])
            vote = Vote(rater, trials[place], answers, dwell_s, row["at_us"])
            if vote_row(plan, vote) != row:
                raise ValueError("it does not fit the plan's schedule")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Line {number} of votes.jsonl does not fit the study: {_reason(error)}.") from error
        found.append(vote)
    return found


def _pictures_from(plan: Plan, data: bytes) -> list[Picture]:
    wanted, found = set(pictures(plan)), {}
    for number, row in enumerate(_rows(data, "pictures.jsonl"), 1):
        try:
            shown = Shown(row["prompt_number"], row["seed"], row["model"], row["spoiled"])
            picture = Picture(shown, *(row[name] for name in ("file", "sha256", "source_sha256", "width", "height")))
            if shown not in wanted or picture_row(plan, picture) != row:
                raise ValueError("the plan has no such picture")
            texts = (picture.file, picture.sha256, picture.source_sha256)
            if not all(isinstance(text, str) and text.isascii() and len(text) < 100 for text in texts):
                raise ValueError("names and hashes are short texts")
            if not re.fullmatch(FILE_NAME, picture.file):  # it is part of paths, here and on the Hub
                raise ValueError("a picture's name is none that this program gives")
            if not all(type(side) is int and 0 < side <= MAX_SIDE for side in (picture.width, picture.height)):
                raise ValueError("sizes are whole numbers of pixels")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"Line {number} of pictures.jsonl does not fit the study: {_reason(error)}.") from error
        found[shown] = picture
    return list(found.values())


def _rows(data: bytes, name: str) -> Sequence[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in data.decode().split("\n") if line]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: {_reason(error)}.") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} cannot be read: a line is no record.")
    return rows


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError | KeyError):
        return "is missing"
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__
