"""What page.js does on every tab."""

import pytest

pytestmark = pytest.mark.browser

# Frames are numbered in the order in which they are asked for: how many others were, within a second.
FRAMES = """() => new Promise((done) => {
  const first = requestAnimationFrame(() => {});
  setTimeout(() => done(requestAnimationFrame(() => {}) - first - 1), 1000);
})"""
AT_REST = f"async () => await ({FRAMES})() === 0"
BUSY = """window.busy = true; window.beats = 0;
(function beat() { window.beats += 1; if (window.busy) requestAnimationFrame(beat); })();"""


def test_a_page_at_rest_asks_for_no_frames(open_page):
    page = open_page()
    page.wait_for_function(AT_REST)


def test_what_still_draws_is_left_alone(open_page):
    page = open_page(before=BUSY)
    page.get_by_role("tab", name="Compare").wait_for()
    page.wait_for_timeout(3000)  # far more than the frames after which a counter that is alone is taken off
    beats = page.evaluate("beats")
    assert page.evaluate(FRAMES) > 10 and page.evaluate("beats") > beats + 10
    page.evaluate("busy = false")
    page.wait_for_function(AT_REST)
