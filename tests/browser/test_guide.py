"""The Guide as a first-time visitor reads it, each step computed by tiny models."""

import re
import time
from dataclasses import replace

import pytest

from srpo.runs import DeviceLock
from tests.app.serving import make_options, served
from tests.browser.pages import pixel_width
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

LOOK, NOISING, RECOVERING, WORDING, TRAINING, PAIRS = (
    "#guide-look", "#guide-noising", "#guide-recovering", "#guide-wording", "#guide-training", "#guide-pairs-figure"
)  # fmt: skip

NOTE_DISABLED = """button => new MutationObserver(() => { if (button.disabled) button.dataset.wasDisabled = "yes"; })
    .observe(button, {attributes: true, attributeFilter: ["disabled"]})"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the app runs on tiny weights that read short texts; stands in for that of the other modules."""
    folder = tmp_path_factory.mktemp("guide")
    with served(replace(make_options(folder), text_tokens=64), folder / "log.txt") as (address, _):
        yield address


def open_guide(page):
    page.locator("#to-guide").click()
    page.locator(LOOK).wait_for()


def wait_for(page, figure, phase="done"):
    page.wait_for_selector(f'{figure} .guide-figure[data-phase="{phase}"]:not(.stale)')


def come_to(page, figure):
    page.locator(figure).scroll_into_view_if_needed()
    wait_for(page, figure)


def sources(page, figure):
    return [image.get_attribute("src") for image in page.locator(f"{figure} img").all()]


def set_slider(page, name, value):
    field = page.locator(f"{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def test_all_six_steps(open_page, keep):
    page = open_page()
    assert page.locator(".guide-figure").count() == 0  # a page that opens computes nothing of the guide
    open_guide(page)
    assert page.get_by_role("tab", name="Guide").get_attribute("aria-selected") == "true"

    # 1: it begins by itself.
    wait_for(page, LOOK)
    pictures = page.locator(f"{LOOK} button[data-seed]")
    assert pictures.count() == 6 and pixel_width(pictures.first.locator("img")) == 128
    assert pictures.first.get_attribute("aria-pressed") == "true"
    assert re.fullmatch(r"The judge takes \d of 6 for photos\.", page.locator(f"{LOOK} .guide-said").inner_text())
    assert page.locator(f"{TRAINING} img, {PAIRS} img").count() == 0  # far below

    # 2: a slider over σ.
    come_to(page, NOISING)
    before = sources(page, NOISING)
    set_slider(page, "#guide-sigma", 0.3)
    page.locator(f"{NOISING} figcaption", has_text="0.70 of the picture").wait_for()
    after = sources(page, NOISING)
    assert after[:2] == before[:2] and after[2] != before[2]  # only the mixture depends on σ
    assert "no latent is off by more than 0.0000" in page.locator(f"{NOISING} .guide-said").inner_text()

    # 3: its σ is the same, and so is its noise.
    come_to(page, RECOVERING)
    page.locator(f"{RECOVERING} figcaption", has_text="30% noise").wait_for()
    assert page.locator("#guide-sigma-3 input[type=number]").input_value() == "0.3"
    set_slider(page, "#guide-sigma-3", 0.8)
    page.locator(f"{RECOVERING} figcaption", has_text="80% noise").wait_for()
    assert page.locator("#guide-sigma input[type=number]").input_value() == "0.8"
    set_slider(page, "#guide-d", 0.1)
    page.locator(f"{RECOVERING} .guide-bar", has_text="0.33").wait_for()
    fresh = sources(page, RECOVERING)
    page.locator("#guide-noise label", has_text="painted from").click()
    page.wait_for_function(
        "([figure, source]) => document.querySelectorAll(figure + ' img')[1].getAttribute('src') !== source",
        arg=[RECOVERING, fresh[1]],
    )

    # 4: two words, and the curve of the weights.
    come_to(page, WORDING)
    scores = page.locator(f"{WORDING} .guide-bars").inner_text()
    page.locator("#guide-positive input, #guide-positive textarea").first.fill("Oil")
    page.locator(f"{WORDING} .guide-bar", has_text="“Oil. …”").wait_for()
    assert page.locator(f"{WORDING} .guide-bars").inner_text() != scores
    hint = page.locator("#guide-weight small")
    assert hint.inner_text() == "−0.20 at σ 0.75, +0.24 at σ 0.96"
    page.locator("#guide-k label", has_text="PickScore").click()
    page.locator("#guide-weight small", has_text="+0.48").wait_for()

    # Another picture goes through the steps that are in view, and through the others when one comes back to them.
    first = sources(page, NOISING)[0]
    page.locator("#guide-1").scroll_into_view_if_needed()
    pictures.nth(4).click()
    assert pictures.nth(4).get_attribute("aria-pressed") == "true"
    come_to(page, NOISING)
    assert sources(page, NOISING)[0] != first

    # 5: a real training.
    page.locator("#guide-5").scroll_into_view_if_needed()
    assert page.locator(f"{TRAINING} img").count() == 0  # it waits for its button
    page.locator("#guide-train").evaluate(NOTE_DISABLED)  # ten updates of the tiny model may be over before one looks
    page.locator("#guide-train").click()
    page.locator(f"{TRAINING} .guide-note", has_text="Update").wait_for()
    wait_for(page, TRAINING)
    assert page.locator("#guide-train").get_attribute("data-was-disabled") == "yes"
    assert page.locator(f"{TRAINING} .guide-row-name").all_inner_texts() == ["Before", "After update 10"]
    assert page.locator(f"{TRAINING} img").count() == 8 and len(set(sources(page, TRAINING))) == 8
    updates = page.locator("#guide-scores figure .plot").evaluate("plot => [...plot.data[0].x]")
    assert updates == [0, 2, 4, 6, 8, 10]
    page.wait_for_selector("#guide-train:not([disabled])")

    # 6: before and after, on a prompt of one's own.
    come_to(page, PAIRS)
    old = sources(page, PAIRS)
    page.locator("#guide-last-prompt input, #guide-last-prompt textarea").first.fill("a green tree in the snow")
    page.wait_for_selector("#guide-pairs:not([disabled])")
    page.locator("#guide-pairs").click()
    page.locator(f"{PAIRS} img[alt^='a green tree']").nth(5).wait_for()
    wait_for(page, PAIRS)
    assert set(sources(page, PAIRS)).isdisjoint(old)
    assert re.match(r"Judged photo: \d of 3 before, \d of 3 after", page.locator(f"{PAIRS} .guide-said").inner_text())
    keep(page, "guide-1440-light")
    assert page.evaluate(FAINT_TEXT) == []
    page.locator("#theme-switch").click()
    keep(page, "guide-1440-dark")
    assert page.evaluate(FAINT_TEXT) == []

    # A link goes on to another tab, at its top.
    page.locator(".guide-deeper", has_text="Flip, slide").click()
    page.locator("#prompt textarea").wait_for()
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"
    assert page.evaluate("window.scrollY") == 0


def test_bad_input_is_one_sentence_and_what_is_shown_stays(open_page):
    page = open_page()
    open_guide(page)
    wait_for(page, LOOK)
    shown = sources(page, LOOK)
    prompt = page.locator("#guide-prompt input, #guide-prompt textarea").first
    prompt.fill(" ")
    page.wait_for_selector("#guide-paint:not([disabled])")
    page.locator("#guide-paint").click()
    wait_for(page, LOOK, "error")
    banner = page.locator(f"{LOOK} .banner")
    assert banner.inner_text() == "The prompt is empty: describe a picture, or choose an example."
    assert sources(page, LOOK) == shown
    come_to(page, WORDING)
    page.locator("#guide-negative input, #guide-negative textarea").first.fill("w" * 61)
    wait_for(page, WORDING, "error")
    assert "has 61 characters and may have 60." in page.locator(f"{WORDING} .banner").inner_text()
    page.locator("#guide-negative input, #guide-negative textarea").first.fill("Flat")
    page.locator(f"{WORDING} .guide-bar", has_text="“Flat. …”").wait_for()
    assert not page.locator(f"{WORDING} .banner").is_visible()


def test_stop_ends_the_painting_and_the_training(open_page):
    """While another process holds the device: tiny models would be done before anyone could press Stop."""
    page = open_page()
    open_guide(page)
    wait_for(page, LOOK)
    lock = DeviceLock("cpu")
    while not lock.acquire("a test"):
        time.sleep(0.1)
    try:
        page.wait_for_selector("#guide-paint:not([disabled])")
        page.locator("#guide-prompt input, #guide-prompt textarea").first.fill(
            "a house that no test has painted before"
        )
        page.locator("#guide-paint").click()
        page.locator("#guide-paint-stop:not([disabled])").click()
        wait_for(page, LOOK, "stopped")
        page.wait_for_selector("#guide-paint:not([disabled])")
        page.locator("#guide-5").scroll_into_view_if_needed()
        page.locator("#guide-train").click()
        page.locator("#guide-train-stop:not([disabled])").click()
        wait_for(page, TRAINING, "stopped")
        page.wait_for_selector("#guide-train:not([disabled])")
    finally:
        lock.release()


def test_the_guide_fits_a_phone_and_a_keyboard(open_page, keep):
    page = open_page(390, 844)
    open_guide(page)
    come_to(page, LOOK)
    come_to(page, NOISING)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "guide-390-light")
    page.locator("#guide-1").scroll_into_view_if_needed()
    third = page.locator(f"{LOOK} button[data-seed]").nth(2)
    third.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{LOOK} button[data-seed='2'][aria-pressed='true']")
    assert page.evaluate(FAINT_TEXT) == []
