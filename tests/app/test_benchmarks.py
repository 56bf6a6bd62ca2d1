"""The Benchmark tab's handlers and services, called as plain functions; the work itself is the real command's."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from html import unescape
from html.parser import HTMLParser

import pytest

from app.services.device import OURS
from app.services.requests import BadInput
from app.state import Following
from app.tabs import benchmark as tab
from app.tabs.benchmark import Form, Handlers, Live
from app.tabs.compare import UNEXPECTED
from srpo import benchmark
from srpo.evaluation.benchmark_folder import BenchmarkFolder, State
from srpo.runs import DeviceLock
from tests.app.serving import PATIENCE_S, ROOT

PROMPTS = [f"a red ball number {number}" for number in range(12)]


@pytest.fixture
def do(unloaded, tmp_path):
    return Handlers(unloaded(runs=tmp_path / "runs"))


@pytest.fixture
def lists(tmp_path):
    """A folder of two lists, as a visitor may have HPSv2's four."""
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "anime.json").write_text(json.dumps(PROMPTS))
    (folder / "photo.txt").write_text("\n".join(PROMPTS[:11]))
    return folder


@pytest.fixture
def form(lists):
    """The fields of a small benchmark, with changes."""
    small = {
        **{"name": "one", "models": ["base", "srpo"], "sets": [], "files": None, "folder": str(lists), "first": 1},
        **{"num_seeds": 1, "seed": 0, "own": ["reward", "judge"], "rewards": "", "steps": 1, "guidance": 3.5},
        **{"width": 32, "height": 32},
    }
    return lambda **changes: tuple((small | changes)[name] for name in Form._fields)


def live_of(output):
    return Live(*output[-len(Live._fields) :])


def is_skip(value):
    return isinstance(value, dict) and value == tab.NOTHING_NEW.head


def wait(do, name, status="finished"):
    """The benchmark once it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while (view := do.benchmarks.view(name)).state.is_live:
        assert time.monotonic() < deadline, view
        time.sleep(0.2)
    log = do.benchmarks.root / name / "log.txt"
    assert view.state.status == status, (view.state, log.read_text() if log.exists() else "")
    return view


class Cells(HTMLParser):
    """The texts of the table's cells, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.is_inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append([])
            self.is_inside = True

    def handle_endtag(self, tag):
        self.is_inside = self.is_inside and tag not in ("th", "td")

    def handle_data(self, data):
        if self.is_inside:
            self.rows[-1][-1].append(data)


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """The runs' folder with a benchmark in it that the command has made: two models, two lists, two columns."""
    runs = tmp_path_factory.mktemp("finished")
    (runs / "lists").mkdir()
    (runs / "lists" / "anime.json").write_text(json.dumps(PROMPTS))
    (runs / "lists" / "photo.txt").write_text("\n".join(PROMPTS[:11]))
    words = [runs / "benchmarks" / "made", "--model", options.model, "--steps", "1"]
    words += ["--size", "32,32", "--prompts", runs / "lists", "--entry", "base", "--entry", f"srpo={options.srpo}"]
    words += ["--reward", options.reward, "--judge", options.judge]
    assert benchmark.main([str(word) for word in words]) == 0
    return runs


@pytest.fixture
def made(do, finished):
    """The same folder, for a test that changes it."""
    shutil.copytree(finished / "benchmarks", do.benchmarks.root)
    return do.benchmarks.root / "made"


def test_it_starts_stops_and_goes_on_from_the_page_and_from_a_terminal(do, form, request_of):
    following = Following()
    *_, last = do.start(request_of(), following, *form(first="", num_seeds=16))
    assert "Benchmark one started." in last[0] and live_of(last).picker["value"] == "one"
    folder = do.benchmarks.root / "one"
    deadline = time.monotonic() + PATIENCE_S
    while not (done := do.benchmarks.view("one").state).done:
        assert done.is_live and time.monotonic() < deadline, (folder / "log.txt").read_text()
        time.sleep(0.05)
    # Whoever else wants the device is told who has it, and a second start of the same is refused.
    assert DeviceLock("cpu").holder() == "benchmark one"
    *_, refused = do.start(request_of("page-2"), Following(), *form(first=""))
    assert "at work already: stop it first" in refused[0]
    *_, refused = do.start(request_of("page-2"), Following(), *form(name="two"))
    assert "in use by benchmark one" in refused[0]

    said, button = do.stop(request_of(), following)
    assert "keeps every finished picture" in said and not button["interactive"]
    view = wait(do, "one", "stopped")
    assert DeviceLock("cpu").holder() is None
    there = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert 0 < len(there) < view.num_pictures == 2 * 23 * 16
    assert sum(count for _, count in view.missing) == view.num_pictures - len(there) == view.num_makeable
    live = do.look(following)
    assert live.resume["value"] == f"Make {view.num_makeable:,} missing pictures" and live.resume["interactive"]
    assert "of 368 pictures of srpo" in live.head and 'role="alert"' in live.head

    # A terminal takes it up, and Ctrl-C ends that; then it is the page's turn again.
    command = [sys.executable, "-m", "srpo.benchmark", str(folder), "--resume"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as terminal:
        painted = len(there)
        while len(list(folder.rglob("*.png"))) == painted:
            assert terminal.poll() is None and time.monotonic() < deadline, terminal.stderr.read()
            time.sleep(0.05)
        assert 'data-status="running"' in do.look(following).head and is_skip(do.look(following).stop)
        terminal.send_signal(signal.SIGINT)
        assert "--resume goes on" in terminal.stderr.read()
    assert terminal.returncode == 130 and do.benchmarks.view("one").state.status == "stopped"
    *_, last = do.resume(request_of(), following)
    assert "Benchmark one goes on." in last[0] and do.benchmarks.view("one").state.is_live
    do.stop(request_of(), following)
    wait(do, "one", "stopped")
    assert all(path.stat().st_mtime_ns == changed for path, changed in there.items())  # nothing painted twice


# Begins a benchmark as the page does, and is killed at once.
KILLED = """
import json, os, signal, sys
from types import SimpleNamespace
from app.services.studio import Studio
from app.state import Following, Options
from app.tabs.benchmark import Handlers
from pathlib import Path
model, srpo, reward, judge, runs = map(Path, sys.argv[1:6])
do = Handlers(Studio(Options(model=model, srpo=srpo, reward=reward, judge=judge, runs=runs)))
form = json.loads(sys.argv[6])
*_, last = do.start(SimpleNamespace(session_hash="page"), Following(), *form)
assert "started" in last[0], last[0]
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_outlives_the_app_and_is_found_again(do, form, options):
    places = [options.model, options.srpo, options.reward, options.judge, do.benchmarks.root.parent]
    command = [sys.executable, "-c", KILLED, *map(str, places), json.dumps(form())]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    following = Following()
    live = do.look(following)
    assert following.name == "one" and live.stop["interactive"] and DeviceLock("cpu").holder() == "benchmark one"
    view = wait(do, "one")
    assert view.is_whole and view.result["models"] == ["base", "srpo"] and DeviceLock("cpu").holder() is None


def test_the_tab_shows_the_numbers_that_the_command_wrote(do, made):
    """Every mean and difference of the table in Markdown, each in its own cell of the page."""
    live = do.look(Following())
    rows = Cells(live.table).rows
    said = {row[0][0]: row[1:] for row in rows[1:3]}
    table = [line.split("|")[1:-1] for line in (made / "benchmark.md").read_text().splitlines() if line[:2] == "| "]
    heads = [cell.strip() for cell in table[0]]
    assert [cell[0] for cell in rows[0]][1:] == heads[1:] and heads[-1] == "Judged photo"
    result = json.loads((made / "benchmark.json").read_text())
    for line in table[2:4]:
        name, *cells = (cell.strip() for cell in line)
        for column, cell in enumerate(cells):
            value, low, high = re.findall(r"-?[\d.]+", cell)
            assert said[name][column][:2] == [value, f"{low} to {high}"]
    entry = {(each["reward"], each["style"]): each for each in result["differences"]}
    for column, reward in enumerate(result["rewards"]):
        found = entry[reward["name"], "all"]
        clear = not found["low"] <= 0 <= found["high"]
        digits = 4 if "judge" in reward["name"] else len(said["base"][column][0].partition(".")[2])
        words = "".join(said["srpo"][column][2:])
        assert f"{found['mean']:+.{digits}f} ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})" in words
        assert words.startswith("clearly" if clear else "not clearly")
        assert ("▲" in words or "▼" in words) is clear
    # And all that is downloaded is the command's own, byte for byte.
    for update, name in zip((live.markdown, live.csv, live.json), ("md", "csv", "json"), strict=True):
        path = do.studio.pictures.root / update["value"]
        assert path.name == f"made.{name}" and path.read_bytes() == (made / f"benchmark.{name}").read_bytes()


def test_a_table_without_intervals_says_that_more_prompts_give_them(do, made):
    file = made / "benchmark.json"
    result = json.loads(file.read_text())
    assert "take more" not in do.look(Following()).table
    for entry in (*result["means"], *result["differences"]):
        entry["low"] = entry["high"] = None
    file.write_text(json.dumps(result))
    table = do.look(Following()).table
    assert "Fewer than 10 prompts give no intervals" in table and "Means with 95 % intervals" not in table


def test_a_page_is_sent_only_what_it_does_not_show(do, made):
    following = Following()
    assert not any(is_skip(value) for value in do.look(following))
    assert all(is_skip(value) for value in do.look(following))
    assert do.tick(following)[-1].value == tab.QUIET_S and is_skip(do.tick(following)[-1])
    BenchmarkFolder(made).say(State("failed", "the reward is broken"))
    live = do.look(following)
    assert "The reward is broken." in live.head and 'data-status="failed"' in live.head
    assert "when it was last finished" in live.table and live.resume["interactive"] and is_skip(live.strip)


def test_missing_pictures_are_an_error_that_counts_them_and_offers_to_make_them(do, made, request_of):
    for name in ("base/anime/00003", "srpo/anime/00003", "srpo/photo/00010"):
        (made / "pictures" / f"{name}.png").unlink()
    following = Following()
    live = do.look(following)
    assert 'data-status="incomplete"' in live.head and 'role="alert"' in live.head
    assert "1 of 23 pictures of base and 2 of 23 pictures of srpo are missing" in live.head
    assert live.resume["value"] == "Make 3 missing pictures"
    before = (made / "benchmark.json").read_bytes()
    list(do.resume(request_of(), following))
    assert wait(do, "made").missing == () and (made / "benchmark.json").read_bytes() == before
    live = do.look(following)
    assert 'role="alert"' not in live.head and not live.resume["interactive"]


def test_pictures_made_elsewhere_can_only_be_brought(do, made):
    asked = json.loads((made / "asked.json").read_text())
    (made / "asked.json").write_text(json.dumps(asked | {"entry": [*asked["entry"], "other"]}))
    view = do.benchmarks.view("made")
    assert view.missing == (("other", 23),) and view.num_makeable == 0
    live = do.look(Following())
    assert "put those of other, made elsewhere, into the folder" in live.head and live.resume["value"] == "Resume"


def test_the_folder_of_any_benchmark_can_be_named(do, finished):
    following = Following()
    said, *live = do.choose(following, f"  {finished / 'benchmarks' / 'made'} ")
    assert said == "" and 'data-status="finished"' in Live(*live).head
    _, *live = do.choose(Following(), str(finished))
    assert "There is no benchmark" in Live(*live).head


def test_what_a_start_fails_of_is_told_by_its_folder(do, form, request_of, lists):
    """What only the command can tell: the page begins it, and shows what it said before it ended."""
    (lists / "photo.txt").write_text("word " * 700)
    following = Following()
    list(do.start(request_of(), following, *form()))
    wait(do, "one", "failed")
    assert "tokens and this model reads" in do.look(following).head and not list(do.benchmarks.root.rglob("*.png"))


def test_a_name_that_stands_for_other_pictures_is_refused_and_a_new_column_is_not(do, form, finished, request_of, made):
    """The folder stays as it was; the same pictures again, judged by less, are not painted anew."""
    lists = str(finished / "lists")
    files = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    for changes in ({"steps": 2}, {"first": 1}, {"seed": 1}, {"width": 64}):
        *_, last = do.start(request_of(), Following(), *form(name="made", folder=lists, **({"first": ""} | changes)))
        assert "begun with other prompts, seeds or settings" in last[0]
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == files
    list(do.start(request_of(), Following(), *form(name="made", folder=lists, first="", own=["judge"])))
    assert [reward["kind"] for reward in wait(do, "made").result["rewards"]] == ["judge"]
    assert all(path.read_bytes() == content for path, content in files.items() if path.suffix == ".png")


def test_a_benchmark_without_a_name_is_called_by_its_time(do, form, request_of):
    following = Following()
    list(do.start(request_of(), following, *form(name="")))
    assert re.fullmatch(r"\d{8}-\d{6}", following.name) and following.name in do.benchmarks.names()
    wait(do, following.name)


def test_the_cost_is_measured_and_then_told_of_any_number(do, form, request_of):
    said, button = do.outline(*form(first="", num_seeds=2))
    assert "2 models × 23 prompts × 2 seeds = 92 pictures. Measure the cost" in said and button == "Start: 92 pictures"
    *_, last = do.measure(request_of(), *form())
    assert "2 models × 2 prompts = 4 pictures. Measured here:" in last[1]
    assert "Measured here:" in do.outline(*form(first="", num_seeds=2))[0]  # the same picture, more of them
    assert "Measure the cost" in do.outline(*form(steps=2))[0]  # another picture
    assert not do.benchmarks.root.exists()


def test_pictures_under_way_are_waited_for(do, form, request_of):
    lock = DeviceLock("cpu")
    assert lock.acquire(OURS)
    try:
        work = do.start(request_of(), Following(), *form())
        assert "Checking" in next(work)[0] and "when the pictures under way are finished" in next(work)[0]
        do.stop_asking(request_of())
        assert "Nothing was started." in list(work)[-1][0]
    finally:
        lock.release()
    assert not list(do.benchmarks.root.rglob("*.png"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../up"}, "A name may have at most 64"),
        ({"seed": 2**32 - 2, "first": ""}, "Every picture has a seed of its own"),
        ({"models": ["base"]}, "two to 12 models, not 1"),
        ({"models": ["base", "base"]}, "two to 12 models, not 1"),
        ({"models": ["base", "/nowhere"]}, "no model at '/nowhere'"),
        ({"folder": ""}, "There are no prompts"),
        ({"folder": "/nowhere"}, "There is nothing at"),
        ({"sets": ["/etc/passwd"]}, "not among the ones offered"),
        ({"first": 0}, "Prompts per list must be a whole number from 1"),
        ({"first": "many"}, "must be a number"),
        ({"num_seeds": 17}, "The number of seeds must be a whole number from 1 to 16"),
        ({"own": []}, "Nothing would judge"),
        ({"own": ["emperor"]}, "This page has no emperor"),
        ({"folder": "~nobody-of-that-name/lists"}, "Could not determine home directory"),
        ({"folder": "a" * 900}, "File name too long"),
        ({"rewards": "clip:" + "a" * 900}, "File name too long"),
        ({"rewards": "hpsv9:x"}, "There is no kind of reward 'hpsv9'"),
        ({"rewards": "hpsv2.1:/nowhere.pt"}, "is not here: hf download"),
        ({"steps": 0}, "Steps must be a whole number"),
        ({"width": 33}, "Width must be a multiple of 16"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(do, form, request_of, changes, said):
    *_, last = do.start(request_of(), Following(), *form(**changes))
    assert 'class="note failed"' in last[0] and said in unescape(last[0]) and UNEXPECTED not in last[0]
    assert said in unescape(do.outline(*form(**changes))[0]) and do.outline(*form(**changes))[1] == "Start"
    assert not do.benchmarks.root.exists()


def test_lists_that_are_none_are_one_sentence(do, form, tmp_path):
    (tmp_path / "bad.json").write_text('{"a": 1}')
    (tmp_path / "bad.txt").write_bytes(b"a ball\n\xff\xfe")
    (tmp_path / "anime.txt").write_text("a ball")
    (tmp_path / "list.csv").write_text("a ball")
    for file, said in (
        ("bad.json", "is no list of prompts"),
        ("bad.txt", "not UTF-8"),
        ("anime.txt", "name the file once"),  # the folder has an anime.json
        ("list.csv", "bring .txt files"),
    ):
        assert said in do.outline(*form(files=[str(tmp_path / file)]))[0]


def test_models_get_names_that_can_be_folders_each_its_own(do, form, options, tmp_path):
    twin = tmp_path / "Srpo.safetensors"
    shutil.copy(options.srpo, twin)
    order = do.benchmarks.order(tab.read_form(*form(models=["base", "srpo", str(twin)])))
    assert order.entries == ("base", f"srpo={options.srpo.resolve()}", f"srpo-2={twin.resolve()}")


@pytest.mark.parametrize("file", ["asked.json", "plan.json", "benchmark.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"pictures": 3}'])
def test_a_damaged_folder_is_one_sentence(do, made, file, content):
    (made / file).write_text(content)
    head = do.look(Following()).head
    assert 'class="note failed"' in head and "cannot be read" in head and file in head


def test_what_cannot_be_done_with_none_is_one_sentence(do, request_of):
    assert "No benchmark is shown" in do.stop(request_of(), Following())[0]
    assert "No benchmark is shown" in list(do.resume(request_of(), Following()))[-1][0]
    assert "No benchmark yet" in do.look(Following()).head
    with pytest.raises(BadInput, match="There is no benchmark"):
        do.benchmarks.view("\0")


def test_a_defect_of_ours_is_said_and_logged(do, form, request_of, monkeypatch, caplog):
    monkeypatch.setattr(do.benchmarks, "order", lambda request: 1 / 0)
    with caplog.at_level(logging.ERROR):
        *_, last = do.start(request_of(), Following(), *form())
    assert UNEXPECTED.split(";")[0] in last[0] and "ZeroDivisionError" in caplog.text
    assert do.asked(request_of())[0]["interactive"]


def test_names_and_messages_are_text_and_never_markup(do, made):
    BenchmarkFolder(made).say(State("failed", "<img src=x onerror=alert(1)>"))
    result = json.loads((made / "benchmark.json").read_text())
    result["rewards"][0]["title"] = "<script>"
    (made / "benchmark.json").write_text(json.dumps(result))
    live = do.look(Following())
    assert "<img" not in live.head and "<script" not in live.table
