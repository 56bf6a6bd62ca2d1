"""What the page costs a run that it watches: the same run's updates with the page open and without, in turns.

Unwatched means that there is no page and that the app is halted; its start is not part of either.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.state import Options
from benchmarks import app_process, training
from benchmarks.figures import Figure, LeftOut
from benchmarks.scale import Scale
from benchmarks.training import Watch

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = {"width": 1440, "height": 900}

FIGURES = (
    Figure("updates per minute, nobody watching", "updates"),
    Figure("updates per minute, page open", "updates"),
    Figure("what the page costs the run", "%", at_most=5),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures, from medians of seconds per update. LeftOut where there is no browser."""
    watched: list[float] = []
    unwatched: list[float] = []
    with _chromium() as browser, tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        more = ("updates=100000", "validation.every=0", "checkpoint_every=100000")
        with (
            app_process.started(options, runs) as app,
            training.started(options, scale, "watched", *more, root=runs) as (run, _),
        ):
            app.wait_for_page()
            app.wait_for_models()
            run.until(lambda: run.updates >= 1)
            for _ in range(scale.watches):
                with _halted(app):
                    unwatched += _seconds(run, scale.updates_watched)
                with _page(browser, app.address):
                    watched += _seconds(run, scale.updates_watched)
    alone, seen = statistics.median(unwatched), statistics.median(watched)
    yield FIGURES[0].name, 60 / alone
    yield FIGURES[1].name, 60 / seen
    yield FIGURES[2].name, 100 * (1 - alone / seen)


def _seconds(run: Watch, count: int) -> list[float]:
    """Seconds of so many updates from now on, but for the one that is on its way."""
    begun = run.updates + 1
    run.until(lambda: run.updates >= begun + count, pause_s=0.5)
    return run.seconds_of_updates(begun)[:count]


@contextmanager
def _chromium() -> Iterator[Any]:
    """A headless browser. LeftOut where Playwright or a Chromium is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise LeftOut("a browser is driven by Playwright, which is not installed") from error
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise LeftOut("there is no Chromium on this machine")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def _halted(app: app_process.App) -> Iterator[None]:
    """The app stands still, as if it were not there."""
    app.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        app.process.send_signal(signal.SIGCONT)


@contextmanager
def _page(browser: Any, address: str) -> Iterator[None]:
    """A page on the Fine-tune tab, its curves drawn, with a second to come to rest."""
    context = browser.new_context(viewport=WINDOW)
    try:
        page = context.new_page()
        page.set_default_timeout(1000 * app_process.LIMIT_S)
        page.goto(address)
        page.get_by_role("tab", name="Fine-tune").click()
        page.wait_for_selector('.run-head[data-status="running"]')
        page.locator("#curves").scroll_into_view_if_needed()
        page.wait_for_selector('#curves .curves:not([data-drawn="0"])')
        time.sleep(1)
        yield
    finally:
        context.close()
