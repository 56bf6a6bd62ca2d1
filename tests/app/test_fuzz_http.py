"""Everything that the page registers, asked for over plain HTTP with what no page sends.

On an app in a process of its own: no traceback in its log, no answer that tells of its insides, no file but those that
are meant to be served, no picture decoded that is larger than allowed, and a memory that does not grow with it all.
"""

import json
import random
import re
import struct
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from tests.app.serving import PATIENCE_S, served

SEED = 7
PAGE = "page"  # of one visitor: what Gradio keeps of each, 0.8 MB, is bounded by the number of sessions
PAYLOADS_EACH = 1  # of those below, for each event in the default suite
MAX_GROWTH = 150 * 2**20  # bytes of resident memory, over all requests but each event's first
LARGE = "a red ball " * 95_000  # 1 MB
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"), 1e308, -1, 2**63, 0.5)
PATHS = (
    "/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "..\\..\\windows\\win.ini", "C:\\windows\\win.ini",
    "%2e%2e/%2e%2e/etc/passwd", "/proc/self/environ", "a\0b", "~root/.ssh/id_rsa", "//server/share", "x" * 5000, "NUL",
    "\ud800",
)  # fmt: skip
FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
ODD = (
    None, True, "", [], {}, [[]], {"a": {"b": []}}, 12345678901234567890, "<script>alert(1)</script>", FILE, [FILE],
    FILE | {"path": "../../app.py", "url": "http://127.0.0.1:9/x"}, {"__type__": "update", "value": 1}, [None] * 300,
    {"": ""}, "\u202e\x00\x1b[31m",
)  # fmt: skip
LEAKS = ("Traceback", 'File "', "site-packages", "/app/tabs/", "sqlite", "KeyError", "TypeError", "root:x:0")


def huge_png(side=13_000):
    """A small file that says it is a picture of 169 megapixels, and is."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), bytearray()
    row = b"\0" + bytes((side + 7) // 8)
    for _ in range(side):
        rows += packer.compress(row)
    rows += packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", bytes(rows)) + chunk(b"IEND", b"")


@pytest.fixture(scope="module", params=["home", "public"])
def target(request, options, tmp_path_factory):
    """The app at home, and in public."""
    log = tmp_path_factory.mktemp(f"fuzz-{request.param}") / "log.txt"
    words = ("app.py", "--public") if request.param == "public" else ("app.py",)
    with served(options, log, words) as (address, process):
        config = json.loads(ask(address + "config")[1])
        yield SimpleNamespace(kind=request.param, address=address, process=process, log=log, config=config)


def ask(address, body=None, headers=None):
    """(status, text) of one request; bytes are sent as they are, everything else as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read(4_000_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def call(target, event, values, page, event_data=None):
    """(status, text) of an event, through the queue where it belongs there."""
    body = {"data": values, "fn_index": event["id"], "session_hash": page, "event_data": event_data, "trigger_id": None}
    if not event["queue"]:
        return ask(target.address + "gradio_api/run/predict", body)
    status, text = ask(target.address + "gradio_api/queue/join", body)
    if status != 200:
        return status, text
    request = urllib.request.Request(f"{target.address}gradio_api/queue/data?session_hash={page}")
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as events:
        for line in events:
            told = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if told.get("msg") in ("process_completed", "unexpected_error", "close_stream"):
                return 200, json.dumps(told)
    return 200, ""


def uploaded(target, name="../../huge.png"):
    """The picture of 169 megapixels as the page would name it, once it has been sent there."""
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + huge_png() + f"\r\n--{boundary}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    status, text = ask(target.address + "gradio_api/upload", body, kind)
    assert status == 200 and ".." not in text
    return {"path": json.loads(text)[0], "orig_name": "huge.png", "meta": {"_type": "gradio.FileData"}}


def ready(target):
    """Waits for the models, whose memory is none of what grows here."""
    [status] = [event for event in target.config["dependencies"] if event["api_name"] == "status"]
    give_up = time.monotonic() + PATIENCE_S
    while "Models ready" not in call(target, status, [], "ready")[1]:
        assert time.monotonic() < give_up
        time.sleep(0.2)


def memory_of(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def usual(target, event):
    """The values that the page itself holds for the event's inputs."""
    parts = {part["id"]: part["props"].get("value") for part in target.config["components"]}
    return [parts.get(place) for place in event["inputs"]]


def payloads(random_, usual_values, uploaded):
    """Lists of values, each wrong in its own way."""
    count = len(usual_values)
    yield usual_values
    yield []
    yield [None] * count
    yield [*usual_values, "one too many"]
    for odd in (*ODD, *NOT_NUMBERS, *PATHS, LARGE, *uploaded):
        place = random_.randrange(count) if count else 0
        yield [odd if number == place else value for number, value in enumerate(usual_values)]
        if odd is not LARGE:
            yield [odd] * count


def test_no_value_that_any_event_is_given_shows_its_insides(target):
    fuzz(target, PAYLOADS_EACH)


@pytest.mark.slow
def test_no_value_at_all_that_any_event_is_given_shows_its_insides(target):
    fuzz(target, None)


def test_half_a_character_is_refused_in_every_field_of_every_event(target):
    ready(target)
    usual_values = {event["id"]: usual(target, event) for event in target.config["dependencies"]}
    for event in target.config["dependencies"]:
        values = ["\ud800" if isinstance(value, str) else value for value in usual_values[event["id"]]]
        if event["backend_fn"] and "\ud800" in values:
            text = call(target, event, values, PAGE)[1]
            assert "cannot be read here" in text and not any(leak in text for leak in LEAKS), event["api_name"]
    assert "Traceback" not in target.log.read_text()


def fuzz(target, each):
    random_ = random.Random(SEED)
    file = uploaded(target)
    ready(target)
    events = [event for event in target.config["dependencies"] if event["backend_fn"]]
    for event in events:  # what is imported or opened once is none of what may grow
        call(target, event, [None] * len(event["inputs"]), PAGE)
    before, asked, defects = memory_of(target.process), 0, []
    for event in events:
        found = list(payloads(random_, usual(target, event), (file, [file])))
        # What the page itself sends would begin work; wrong values are what is tried.
        found = found[1:] if event["queue"] else found
        for values in found if each is None else random_.sample(found, min(each, len(found))):
            event_data = random_.choice((None, {}, [], "x", 5, {"index": 0, "value": None}, {"seed": [], "level": {}}))
            status, text = call(target, event, values, PAGE, event_data)
            asked += 1
            if leak := next((leak for leak in LEAKS if leak in text), None):
                defects.append((event["api_name"], str(values)[:200], event_data, status, leak, text[:300]))
    assert not defects, defects[:5]
    log, growth = target.log.read_text(), memory_of(target.process) - before
    assert target.process.poll() is None
    assert "Traceback" not in log, log[log.index("Traceback") - 500 : log.index("Traceback") + 4000]
    assert growth < MAX_GROWTH, f"{growth / 2**20:.0f} MB more after {asked} requests"


SPOTS = ("{}", "gradio_api/file={}", "file={}", "gradio_api/file/{}", "vote/{}", "vote/files/{}", "vote/x/pictures/{}")
TRICKS = (
    "/etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/app.py", "app.py",
    "file:///etc/passwd", "/proc/self/environ", "....//....//etc/passwd", "..\\..\\app.py", "C:\\windows\\win.ini",
    "%00/etc/passwd", "/etc/passwd%00.png", "//etc/passwd", "http://127.0.0.1:9/x", "x" * 5000, "requirements.txt",
    "%ff%fe", "~/.ssh/id_rsa", "assets/miniature/card.json", ".git/config",
)  # fmt: skip


def test_no_address_serves_a_file_that_is_not_meant_to_be(target, options, tmp_path):
    """Each trick at each place that takes a name, and links and siblings beside the pictures that are served."""
    secret = tmp_path / "secret.txt"
    secret.write_text("root:x:0 the secret")
    named = (str(secret), str(options.srpo), str(options.runs / "first-run"), str(target.log), str(Path(__file__)))
    for spot in SPOTS:
        for trick in (*TRICKS, *named):
            status, text = ask(target.address + spot.format(quote(trick, safe="/%:.")))
            assert "root:x:0" not in text and "SRPO Studio is at" not in text and "import " not in text, (spot, trick)
            if "file" in spot or "pictures" in spot:
                assert status in (400, 403, 404, 405, 422, 500) and "Traceback" not in text, (
                    spot,
                    trick,
                    status,
                    text[:200],
                )
    log = target.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 : log.index("Traceback") + 3000]


DEAD_ENDS = (
    "assets/" + "x" * 300, "static/" + "x" * 3000, "gradio_api/heartbeat/%00", "gradio_api/run/%00", "%7f",
    "gradio_api/call/any/none", "gradio_api/call/v2/any/none", "gradio_api/call/v2/any",
    "gradio_api/file=" + "x" * 3000,
)  # fmt: skip
BODIES = (b"{}", b"[" * 100_000, b'{"data":"\\ud800","session_hash":"\\ud800","fn_index":1e308}', b"\xff")
ROUTES = ("run/x", "queue/join", "cancel", "reset", "component_server", "vibe-code", "vibe-edit", "vibe-edit/")


def test_no_address_and_no_body_leaves_a_traceback(target):
    """What Gradio registers of its own, the page's or not."""
    for place in DEAD_ENDS:
        status, text = ask(target.address + place)
        assert 400 <= status < 500 and "Traceback" not in text, (place, status, text)
    for place in ROUTES:
        for body in BODIES:
            status, text = ask(f"{target.address}gradio_api/{place}", body)
            assert 400 <= status < 500 and "Traceback" not in text, (place, body[:40], status, text)
    log = target.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 : log.index("Traceback") + 3000]


def test_an_event_of_the_browser_alone_is_refused(target):
    [event, *_] = [event for event in target.config["dependencies"] if not event["backend_fn"]]
    status, text = call(target, event | {"queue": False}, usual(target, event), PAGE)
    assert status == 500 and "cannot be read here" in text
    assert "IndexError" not in target.log.read_text()


@pytest.mark.parametrize(
    "place, named",
    [
        ("call/no-such", {}),
        ("api/no-such", {}),
        ("queue/join", {"fn_index": 999_999}),
        ("queue/join", {"fn_index": -1}),
    ],
)
def test_an_event_that_is_not_there_is_not_found_and_leaves_no_traceback(target, place, named):
    status, text = ask(f"{target.address}gradio_api/{place}", {"data": [], "session_hash": "none"} | named)
    assert status == 404 and "no such event" in text
    assert "Traceback" not in target.log.read_text()


def test_a_small_file_of_169_megapixels_is_refused_wherever_a_picture_is_taken(target):
    file = uploaded(target)
    parts = {part["id"]: part["type"] for part in target.config["components"]}
    taking = [
        event
        for event in target.config["dependencies"]
        if event["backend_fn"] and any(parts[place] == "file" for place in event["inputs"])
    ]
    assert len(taking) >= 3
    before = memory_of(target.process)
    for number, event in enumerate(taking):
        values = [
            file if parts[place] == "file" else value
            for place, value in zip(event["inputs"], usual(target, event), strict=True)
        ]
        _, text = call(target, event, values, f"huge-{number}")
        assert not any(leak in text for leak in LEAKS)
    assert memory_of(target.process) - before < 100 * 2**20  # 169 MB at a byte for each pixel
    assert "Traceback" not in target.log.read_text()
