"""Exports: readable by others, safe to open, and the same numbers when they come back."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import zipfile
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from benchmarks.studies import open_study, picture_rows
from srpo.studies import export
from srpo.studies.analysis import results
from srpo.studies.criteria import PAPER, STANDARD
from srpo.studies.export import (
    NEEDED,
    as_csv,
    export_files,
    export_folder,
    export_zip,
    import_study,
    read_export,
    safe_cell,
)
from srpo.studies.report import report_html
from srpo.studies.schema import Model, SequentialStop
from srpo.studies.simulation import World, clicks_fast, clicks_left, example_plan, simulate
from srpo.studies.store import Refused, Store

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>=cmd|' /C calc'!A0 \"quoted\" {{7*7}}"
PLANS = {
    "pairs": example_plan(prompts=20, criteria=STANDARD),
    "three": example_plan(prompts=15, models=3, seeds=2),
    "sequential": example_plan(prompts=30, stop=SequentialStop(votes_per_item=2)),
    "rating": example_plan(prompts=12, models=3, mode="rating", criteria=PAPER),
    "evil": example_plan(
        [f"{EVIL} {number}" for number in range(12)],
        title=EVIL[:190],
        instructions=EVIL,
        settings={EVIL[:100]: EVIL},
        models=[Model(key="</script>" + EVIL[:150], label=EVIL[:150]), Model(key="=1+1", label="javascript:alert(1)")],
    ),
}


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "studies.db")
    yield opened
    opened.close()


def closed_study(store, name):
    plan = PLANS[name]
    votes = simulate(
        plan, 4, 1, World(strengths={"model-1": 0.8}), {2: clicks_fast, 3: clicks_left} if name == "pairs" else None
    )
    return store.restore(plan, 3, votes, picture_rows(plan))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pack", [export_folder, export_zip])
def test_an_import_brings_the_same_numbers_back(store, tmp_path, name, pack):
    study = closed_study(store, name)
    path = pack(store, study.id, tmp_path / "out" / "study")
    other = Store(tmp_path / "elsewhere.db")
    again, numbers = import_study(other, path)
    assert numbers == results(study.plan, store.votes(study.id))
    assert (again.plan, again.version, again.state) == (study.plan, 3, "closed")
    assert other.pictures(again.id) == store.pictures(study.id)
    before, after = export_files(store, study.id), export_files(other, again.id)
    assert before == after
    assert json.loads(before["results.json"]) == json.loads(json.dumps(asdict(numbers)))
    other.close()


def test_every_file_has_its_hash_in_the_manifest(store, tmp_path):
    study = closed_study(store, "pairs")
    folder = export_folder(store, study.id, tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["plan_sha256"] == hashlib.sha256((folder / "plan.json").read_bytes()).hexdigest() == study.sha256
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert manifest["votes"] == len(store.votes(study.id))


def test_no_code_of_a_rater_leaves_the_store(store):
    study = closed_study(store, "pairs")
    text = b"".join(export_files(store, study.id).values()).decode(errors="replace")
    for rater in store.raters(study.id):
        assert rater.code not in text and rater.code.replace("-", "") not in text


def test_a_study_is_exported_after_its_end_only(store, tmp_path):
    study = open_study(store, example_plan(prompts=12))
    with pytest.raises(Refused, match="exported when it has ended"):
        export_folder(store, study.id, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store.end(study.id)
    folder = export_folder(store, study.id, tmp_path / "out")  # without a single vote
    assert (folder / "votes.jsonl").read_bytes() == b""
    assert import_study(store, folder)[1].everything.votes == 0


def test_a_vote_is_told_in_words(store):
    study = closed_study(store, "pairs")
    rows = [json.loads(line) for line in export_files(store, study.id)["votes.jsonl"].splitlines()]
    for row, vote in zip(rows, store.votes(study.id), strict=True):
        assert row["prompt"] == study.plan.prompts[vote.trial.prompt].text
        assert row["answers"] == dict(vote.answers)
        assert row["left"].split(" ")[0] == vote.trial.left.model
        assert ("spoiled" in row["left"] + row["right"]) == (row["kind"] == "gold")


@pytest.mark.parametrize("start", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "|x", "%x", " =1", "＝1"])
def test_no_cell_of_a_table_is_a_formula(start):
    (row,) = csv.DictReader(io.StringIO(as_csv([{"text": start, "number": -1.5}]).decode("utf-8-sig")))
    assert row == {"text": f"'{start}", "number": "-1.5"}
    assert safe_cell("a ball") == "a ball" and safe_cell(-1) == -1 and safe_cell(None) is None


def test_the_table_has_a_row_for_each_vote_and_no_formula(store):
    study = closed_study(store, "evil")
    text = export_files(store, study.id)["votes.csv"].decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == len(store.votes(study.id))
    assert "answer_overall" in rows[0]
    cells = [cell for row in rows for cell in row.values()]
    assert any(cell.startswith("'=1+1") for cell in cells)
    assert not any(cell.startswith(("=", "+", "@")) for cell in cells)


def test_parquet_holds_the_same_rows_where_pyarrow_is_installed(store):
    parquet = pytest.importorskip("pyarrow.parquet")
    study = closed_study(store, "pairs")
    files = export_files(store, study.id)
    table = parquet.read_table(io.BytesIO(files["votes.parquet"])).to_pylist()
    rows = [export.flat(json.loads(line)) for line in files["votes.jsonl"].splitlines()]
    assert table == rows


def exported(store, tmp_path):
    return export_folder(store, closed_study(store, "three").id, tmp_path / "out")


# Of a picture: names that lead elsewhere, and what no database can hold.
HOSTILE = ({"file": "../../studies.db"}, {"file": "/etc/passwd"}, {"file": ".."}, {"width": 2**70}, {"height": -1})


def resign(folder, name, data):
    """Changes a file and its hash in the manifest, as somebody would who means it."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", NEEDED)
def test_a_changed_or_missing_file_is_named(store, tmp_path, name):
    folder = exported(store, tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ValueError, match=f"was changed after the export: {name}"):
        import_study(store, folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"is incomplete: {name} is missing"):
        import_study(store, folder)
    assert len(store.studies()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rater": -1}, "no such rater"),
        ({"rater": 10**9}, "no such rater"),
        ({"rater": "0"}, "whole numbers"),
        ({"rater": True}, "whole numbers"),
        ({"trial": 10**6}, "does not exist"),
        ({"at_us": 2**70}, "no such rater or time"),
        ({"kind": "gold"}, "does not fit the plan's schedule"),
        ({"left": "model-9"}, "does not fit the plan's schedule"),
        ({"answers": {"overall": "up"}}, "An answer is one of"),
        ({"dwell_s": -1}, "number of seconds"),
        ({"extra": 1}, "does not fit the plan's schedule"),
    ],
)
def test_votes_that_do_not_fit_the_schedule_are_refused(store, tmp_path, change, says):
    folder = exported(store, tmp_path)
    lines = (folder / "votes.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    resign(folder, "votes.jsonl", "\n".join([json.dumps({**row, **change}), *lines[1:]]).encode())
    with pytest.raises(ValueError, match=f"Line 1 of votes.jsonl does not fit the study: .*{says}"):
        import_study(store, folder)


def test_a_vote_twice_a_broken_line_and_strange_pictures_are_refused(store, tmp_path):
    folder = exported(store, tmp_path)
    votes, made = (folder / "votes.jsonl").read_bytes(), (folder / "pictures.jsonl").read_bytes()
    resign(folder, "votes.jsonl", votes + votes.splitlines()[0])
    with pytest.raises(ValueError, match="is there twice"):
        import_study(store, folder)
    for broken in (b"{", b"[1]", b"\xff", b"[" * 100_000):
        resign(folder, "votes.jsonl", broken)
        with pytest.raises(ValueError, match=r"votes\.jsonl cannot be read"):
            import_study(store, folder)
    resign(folder, "votes.jsonl", votes)
    for change in (
        {"model": "model-9"},
        {"file": "é.png"},
        {"width": "64"},
        {"prompt_number": 10**6},
        {"sha256": 7},
        *HOSTILE,
    ):
        row = json.loads(made.splitlines()[0]) | change
        resign(folder, "pictures.jsonl", json.dumps(row).encode())
        with pytest.raises(ValueError, match=r"Line 1 of pictures\.jsonl does not fit"):
            import_study(store, folder)
    resign(folder, "pictures.jsonl", made)
    resign(folder, "plan.json", example_plan(prompts=15, models=3, seeds=2, seed=1).as_text().encode())
    with pytest.raises(ValueError, match="its plan has another hash"):
        import_study(store, folder)


def test_what_is_no_export_is_refused(store, tmp_path, monkeypatch):
    folder = exported(store, tmp_path)
    for name, content in (("text", b"hello"), ("zip", b"PK\x03\x04 cut"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is no exported study"):
            read_export(tmp_path / name)
    with pytest.raises(ValueError, match="is no exported study: is missing"):
        read_export(tmp_path / "nowhere")
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, says in (
        ({"format": 2}, "has format 2"),
        ({"version": "x"}, "version is no number"),
        ({"files": 3}, "no exp"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(ValueError, match=says):
            read_export(folder)


def test_an_archive_that_unpacks_to_too_much_is_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 100_000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * 10_000_000)
    with pytest.raises(ValueError, match="is no exported study: is too large"):
        read_export(path)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(8, b"\x01\x00"), (10, b"\x63\x00"), (10, b"\x0e\x00"), (6, b"\xff\x00")],
    ids=["encrypted", "a method of nobody", "another method than it has", "another version"],
)
def test_an_archive_that_cannot_be_unpacked_is_refused(store, tmp_path, offset, value):
    path = export_zip(store, closed_study(store, "three").id, tmp_path / "out.zip")
    data = bytearray(path.read_bytes())
    for at in (found.start() for found in re.finditer(b"PK\x01\x02", bytes(data))):
        data[at + offset : at + offset + 2] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no exported study: "):
        read_export(path)


def test_a_device_or_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(store, tmp_path):
    folder = exported(store, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for file in ("/dev/zero", tmp_path / "pipe"):
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").symlink_to(file)
        with pytest.raises(ValueError, match="is no exported study: is no file"):
            read_export(folder)
    with pytest.raises(ValueError, match="is no exported study: neither a folder nor a file"):
        read_export(tmp_path / "pipe")


def test_a_full_folder_is_not_written_over(store, tmp_path):
    folder = exported(store, tmp_path)
    before = sorted(folder.iterdir())
    with pytest.raises(FileExistsError):
        export_folder(store, store.studies()[0].id, folder)
    assert sorted(folder.iterdir()) == before


# The report


class Tags(HTMLParser):
    """The names of all tags of a page, and of all their attributes."""

    def __init__(self):
        super().__init__()
        self.names, self.attributes = set(), set()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.attributes.update(name for name, _ in attributes)


@pytest.mark.parametrize("name", PLANS)
def test_the_report_tells_the_results_and_asks_no_network(store, name):
    study = closed_study(store, name)
    found = results(study.plan, store.votes(study.id))
    page = report_html(study, found)
    own = page[: page.index("<script>")] + page[page.index("</head>") :]  # without the library's code
    assert study.sha256 in own
    tags = Tags()
    tags.feed(own)
    assert not {"img", "link", "iframe", "a", "object", "form"} & tags.names
    assert not {"src", "href", "action", "data", "srcset"} & tags.attributes
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert "@import" not in own and "url(" not in own
    if name == "pairs":
        assert found.everything.pairs[0].sentence in own
        assert "Rater 3 chose the left side" in own and "Rater 2 answered" in own
        assert "With the declared filters" in own
    if name == "rating":
        assert "Excellent, gain by prompt" in own
    if name == "sequential":
        assert "where 20 decides" in own
    if name == "three":
        assert "By category" not in own and "Without" in own and "of its wins over the second" in own


def test_hostile_text_is_only_text_in_the_report(store):
    study = closed_study(store, "evil")
    page = report_html(study, results(study.plan, store.votes(study.id)))
    assert "<script>window" not in page
    assert "<img" not in page[page.index("</head>") :]
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in page


@pytest.mark.browser
def test_a_browser_draws_the_report_runs_none_of_its_texts_and_asks_nobody(store, tmp_path, chromium):
    study = closed_study(store, "evil")
    path = export_folder(store, study.id, tmp_path / "out") / "report.html"
    with contextlib.closing(chromium.new_page()) as page:
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg")
        assert page.evaluate("window.hacked") is None
        assert "<script>window.hacked" in page.inner_text("h1")
        assert page.locator("figure .point, figure .points path").count() > 0
        assert asked == [path.as_uri()] and errors == []
    assert os.path.getsize(path) < 8e6
