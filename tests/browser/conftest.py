"""The app, and pages that note whatever goes wrong in them."""

from pathlib import Path

import pytest

from tests.app.serving import PATIENCE_S, make_options, served

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"


@pytest.fixture(scope="session")
def options(tmp_path_factory):
    """What the app is started with: tiny weights, and a folder of runs."""
    return make_options(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def address(options):
    """Where the app runs on tiny weights."""
    with served(options, options.runs.parent / "log.txt") as (address, _):
        yield address


@pytest.fixture
def open_page(chromium, address):
    """Opens the app: `open_page(width, height, scheme)`; at the end of the test no page may have met a defect.

    `before` is a script that runs before the page's own.
    """
    contexts, defects = [], []

    def open_page(width=1440, height=900, scheme="light", before=""):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.on("console", lambda line: defects.append(as_told(line)) if line.type == "error" else None)
        page.on("request", lambda request: defects.append(request.url) if is_foreign(request.url) else None)
        if before:
            page.add_init_script(before)
        with page.expect_request(lambda request: '"trigger_id":0' in (request.post_data or "")):
            page.goto(address)  # until the page itself asks its first question: by then all of it listens
        return page

    def as_told(line):
        return f"{line.text} ({line.location['url']})"

    def is_foreign(url):
        return not url.startswith((address, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert defects == []


@pytest.fixture
def keep():
    """Keeps a screenshot as an artefact of the run: `keep(page, name)`."""
    ARTIFACTS.mkdir(exist_ok=True)

    def keep(page, name):
        page.wait_for_timeout(400)
        page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=True)

    return keep
