"""What page.js does on every tab."""

import pytest

pytestmark = pytest.mark.browser

IS_CALM = "() => { const frame = requestAnimationFrame(() => {}); cancelAnimationFrame(frame); return frame < 0; }"
COUNT_FRAMES = """() => new Promise((done) => {
  let frames = 0;
  const again = () => { frames += 1; requestAnimationFrame(again); };
  requestAnimationFrame(again);
  setTimeout(() => done(frames), 2000);
})"""
CANCELLED = """() => new Promise((done) => {
  const frame = requestAnimationFrame(() => done(false));
  cancelAnimationFrame(frame);
  setTimeout(() => done(true), 1000);
})"""


def test_a_page_that_nobody_touches_draws_a_few_frames_a_second(open_page):
    page = open_page()
    page.mouse.move(300, 300)
    assert not page.evaluate(IS_CALM)
    page.wait_for_function(IS_CALM)
    assert 1 <= page.evaluate(COUNT_FRAMES) <= 2 * 4 + 1
    assert page.evaluate(CANCELLED)
    page.keyboard.press("Tab")
    assert not page.evaluate(IS_CALM)
