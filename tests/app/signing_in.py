"""A login that tests can trust to be none: whoever sends a name in a header has signed in by it.

Gradio's own asks Hugging Face on a Space, and off it pretends to by this machine's token. Both leave what they found
out where this one leaves it, in the request's session.
"""

import json
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

from app import ui
from tests.app.serving import PATIENCE_S

HEADER = "x-account"
ENDED = " (ended)"  # behind a name: that login is over

# Stands before app.py in the same process, as a Space with a login starts it.
PROGRAM = """
import os, runpy, sys
sys.path.insert(0, os.environ["TESTS_ROOT"])
import gradio.routes
from tests.app.signing_in import attach_oauth
gradio.routes.attach_oauth = attach_oauth
sys.argv[0] = "app.py"
runpy.run_path("app.py", run_name="__main__")
"""


def session_of(name):
    """What a login leaves in the session of that account; nothing where there is no name."""
    expires_at = 1 if name.endswith(ENDED) else time.time() + 3600
    name = name.removesuffix(ENDED)
    if not name:
        return {}
    known = {"preferred_username": name, "name": name, "profile": "", "picture": ""}
    return {"oauth_info": {"userinfo": known, "expires_at": expires_at}}


class SignedIn:
    """Middleware that believes the header."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope["session"] = session_of(dict(scope["headers"]).get(HEADER.encode(), b"").decode())
        await self.app(scope, receive, send)


def attach_oauth(app):
    """Stands in for Gradio's function of that name."""
    app.add_middleware(SignedIn)


@contextmanager
def launched(studio, monkeypatch):
    """(address, the page) of that studio in this process, for as long as the block runs."""
    monkeypatch.setattr("gradio.routes.attach_oauth", attach_oauth)
    page = ui.build(studio)
    try:
        page.launch(server_name="127.0.0.1", prevent_thread_lock=True, **ui.launch_options(studio))
        yield page.local_url, page
    finally:
        page.close()


def call(address, event, values, account="", page="page-1"):
    """(whether it went well, the answer's text) of any event of the page, asked for as the page asks for it."""
    body = {
        "data": values,
        "fn_index": event["id"],
        "session_hash": page,
        "event_data": {"index": 0, "value": ""},
        "trigger_id": 1,
    }
    if not event["queue"]:
        return _ask(address + "gradio_api/run/predict", account, body)
    well, said = _ask(address + "gradio_api/queue/join", account, body)
    if not well:
        return well, said
    with _open(f"{address}gradio_api/queue/data?session_hash={page}", account) as events:
        for line in events:
            told = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if told.get("msg") in ("process_completed", "unexpected_error"):
                return told["success"], json.dumps(told.get("output"), ensure_ascii=False)
    return False, ""


def _ask(address, account, body):
    try:
        with _open(address, account, json.dumps(body).encode()) as answer:
            return True, answer.read().decode()
    except urllib.error.HTTPError as error:
        return False, error.read().decode()


def _open(address, account, data=None):
    headers = {"Content-Type": "application/json", **({HEADER: account} if account else {})}
    return urllib.request.urlopen(urllib.request.Request(address, data, headers), timeout=PATIENCE_S)
