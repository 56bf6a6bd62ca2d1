"""How the app is served: page first, models behind it, the loopback alone, and no way round the queue."""

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.app.serving import PATIENCE_S, ROOT, served

# Stands before app.py in the same process: any name looked up or address reached beyond the loopback ends it.
GUARD = """
import os, runpy, socket, sys

def require_loopback(call, host):
    if host not in (None, "", "localhost", "127.0.0.1", "::1", b"localhost", b"127.0.0.1"):
        print("FORBIDDEN", call, host, flush=True)
        os._exit(66)

def guard(call):
    whole = getattr(socket.socket, call)
    def guarded(self, *arguments):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            require_loopback(call, arguments[-1][0])
        return whole(self, *arguments)
    setattr(socket.socket, call, guarded)

for call in ("connect", "connect_ex", "bind", "sendto"):
    guard(call)
whole_look_up = socket.getaddrinfo
def look_up(host, *arguments, **more):
    require_loopback("getaddrinfo", host)
    return whole_look_up(host, *arguments, **more)
socket.getaddrinfo = look_up
sys.argv[0] = "app.py"
sys.path.insert(0, os.getcwd())
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def app(options, tmp_path_factory):
    """(address, log, process) of the app in a process of its own that may reach the loopback alone."""
    log = tmp_path_factory.mktemp("app") / "log.txt"
    # What an environment could reopen must stay closed.
    reopened = {"GRADIO_SHARE": "True", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_MCP_SERVER": "True"}
    with served(options, log, ("-c", GUARD), **reopened) as (address, process):
        yield address, log, process


def ask(address, body=None):
    """(status, text) of one request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def function_index(address, name):
    config = json.loads(ask(address + "config")[1])
    return next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == name)


# What the page sends for Generate: the session, the seed's mode and value, prompt, left, right, and the settings.
PAGE = [None, "fixed", 3, "a red ball", "base", "srpo", 1, 2, 3.5, 32, 32, "none"]


def generate(address, page="page-1", values=PAGE):
    """The values of the stage that a page receives, through the queue."""
    body = {"data": values, "fn_index": function_index(address, "generate"), "session_hash": page}
    assert ask(address + "gradio_api/queue/join", body)[0] == 200
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={page}", timeout=PATIENCE_S) as events:
        for line in events:
            event = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if event.get("msg") in ("process_generating", "process_completed"):
                yield event


def test_a_generation_reaches_nothing_but_the_loopback(app):
    address, log, process = app
    *steps, last = generate(address)
    assert last["msg"] == "process_completed" and last["success"], last
    pictures = re.findall(r"gradio_api/file=[^\"]*\.png", json.dumps(steps))
    assert len(set(pictures)) == 3
    assert all(ask(address + picture)[0] == 200 for picture in pictures)
    assert process.poll() is None and "FORBIDDEN" not in log.read_text()


def test_the_default_path_reaches_nothing_but_the_loopback(tmp_path):
    """`python app.py` without any option, on the weights that are shipped, from the start to a pair of pictures."""
    log = tmp_path / "log.txt"
    values = [*PAGE[:9], 128, 128, "Photo"]
    with served(None, log, ("-c", GUARD)) as (address, process):
        *steps, last = generate(address, values=values)
        assert last["msg"] == "process_completed" and last["success"], last
        assert len(set(re.findall(r"gradio_api/file=[^\"]*\.png", json.dumps(steps)))) == 3
        assert "Judged photo" in json.dumps(steps)
        assert process.poll() is None and "FORBIDDEN" not in log.read_text()


def test_the_guard_of_these_tests_does_end_the_process():
    guard = GUARD.split("sys.argv")[0]
    for reach in ("socket.create_connection(('192.0.2.1', 80), 1)", "socket.getaddrinfo('example.org', 80)"):
        done = subprocess.run([sys.executable, "-c", guard + reach], capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 66 and "FORBIDDEN" in done.stdout


def test_the_queue_cannot_be_passed_by(app):
    address, _, _ = app
    for name in ("generate", "paint_grid"):
        body = {"data": PAGE, "fn_index": function_index(address, name), "session_hash": "page-2"}
        status, text = ask(address + "gradio_api/run/predict", body)
        assert status == 404 and "join the queue" in text


def test_no_file_but_the_pictures_is_served(app, options):
    address, log, _ = app
    for path in (ROOT / "app.py", ROOT / "pyproject.toml", options.srpo, log, "/etc/passwd"):
        assert ask(f"{address}gradio_api/file={path}")[0] in (403, 404)


def test_monitoring_is_closed(app):
    address, _, _ = app
    for path in ("monitoring", "monitoring/summary", "gradio_api/monitoring", "gradio_api/monitoring/summary"):
        assert ask(address + path)[0] in (401, 403, 404)


def test_the_page_is_built_without_the_heavy_libraries():
    """What the page needs is imported within seconds; torch and diffusers come behind it."""
    script = (
        "import sys; from app import ui; from app.services.studio import Studio; from app.state import Options; "
        "studio = Studio(Options()); ui.build(studio); ui.launch_options(studio); "
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_every_limit_is_stated_at_launch(studio):
    from app import ui

    given = ui.launch_options(studio)
    assert given["enable_monitoring"] is False and given["strict_cors"] is True and given["share"] is False
    assert given["allowed_paths"] == [str(studio.pictures.root)]
    assert given["max_file_size"] and given["state_session_capacity"] <= 500
    assert given["run_history"] is False and given["mcp_server"] is False


def test_a_machine_too_busy_to_answer_at_once_still_serves_the_page(studio, monkeypatch):
    from app import ui

    monkeypatch.setattr("gradio.networking.url_ok", lambda address: False)  # Gradio asks its own page, for 3 s
    page = ui.build(studio)
    try:
        page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **ui.launch_options(studio))
        assert ask(page.local_url)[0] == 200
    finally:
        page.close()


def test_beyond_the_loopback_no_path_can_be_named(monkeypatch):
    import runpy

    parse_options = runpy.run_path(str(ROOT / "app.py"))["parse_options"]
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert parse_options([])[0].local_paths
    assert not parse_options(["--host", "0.0.0.0"])[0].local_paths
    monkeypatch.setenv("SPACE_ID", "someone/studio")
    assert not parse_options([])[0].local_paths


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "app.py", "--port", port]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr and "choose --port" in done.stderr
    assert "Traceback" not in done.stderr
