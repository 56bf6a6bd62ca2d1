"""The Recoveries tab as a visitor uses it, with real recoveries by tiny models."""

import json

import pytest
from PIL import Image

from srpo.evaluation.sheets import KEY
from tests.browser.pages import open_tab, pixel_width, settle_fields, show_curves
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser


def open_recoveries(page):
    open_tab(page, "Recoveries")
    page.locator("#recover").wait_for()
    settle_fields(page)


def set_numbers(page, **values):
    """Types numbers into fields of the tab: `steps=2, noises=3`; those that are folded away are opened first."""
    if not page.locator("#recover-seed input").is_visible():
        page.locator("#recover-more > button").click()
        page.locator("#recover-seed input").wait_for()
        settle_fields(page)
    for name, value in values.items():
        field = page.locator(f"#recover-{name.replace('_', '-')} input[type=number]")
        field.fill(str(value))
        field.press("Tab")


def recover(page, **numbers):
    """Asks for the grid in small."""
    set_numbers(page, **({"steps": 1, "noises": 1, "width": 32, "height": 32} | numbers))
    page.locator("#recover").click()


def wait_for(page, phase):
    page.wait_for_selector(f'.recovery[data-phase="{phase}"]')


def cell(page, row, column):
    return page.locator(f'.recovery td[data-row="{row}"][data-column="{column}"] button')


def test_a_grid_fills_and_each_cell_enlarges(open_page, keep):
    page = open_page()
    open_recoveries(page)
    assert page.locator("#recover").inner_text() == "Recover 30 cells"
    page.evaluate(COUNT)
    recover(page, noises=2)
    wait_for(page, "done")
    assert page.evaluate("[...window.counts].sort((a, b) => a - b)") == list(range(31))  # one after the other
    heads = page.locator(".recovery thead th").all_inner_texts()
    assert heads == ["Method", "σ 0.95", "σ 0.9", "σ 0.8", "σ 0.7", "σ 0.6", "σ 0.5"]
    picture = cell(page, 3, 0).locator("img").first
    assert pixel_width(picture) == 32 and picture.bounding_box()["width"] > 80
    assert picture.get_attribute("alt") == "Direct-Align, Δσ 0.025 at σ 0.95"

    dialog = page.locator("dialog")
    cell(page, 3, 0).focus()
    page.keyboard.press("Enter")
    assert dialog.locator("b").inner_text() == "Direct-Align, Δσ 0.025, σ 0.95"
    assert dialog.locator(".picture").bounding_box()["width"] > 350
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert dialog.locator("b").inner_text() == "Direct-Align, Δσ 0.075, σ 0.9"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")  # no further than the first row
    assert dialog.locator("b").inner_text() == "Noisy input, σ 0.9"
    keep(page, "recovery-enlarged")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.closest('td').dataset.row") == "0"


def test_differences_are_drawn_in_the_browser(open_page, keep):
    page = open_page()
    open_recoveries(page)
    recover(page)
    wait_for(page, "done")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    tile = cell(page, 1, 0).locator(".tile")
    before = tile.screenshot()
    page.locator(".recovery-bar .difference").click()
    assert page.locator(".recovery-legend").is_visible()
    assert tile.evaluate("tile => getComputedStyle(tile).filter").endswith('#recovery-difference")')
    assert tile.screenshot() != before
    keep(page, "recovery-difference")
    page.locator(".panel-head").first.click()
    page.keyboard.press("d")
    assert not page.locator(".recovery-legend").is_visible()
    assert tile.screenshot() == before and asked == []


def test_the_curves_point_at_the_grid(open_page):
    page = open_page(1440, 2400)
    open_recoveries(page)
    recover(page, noises=2)
    wait_for(page, "done")
    plot = page.locator('#recovery-curves figure[data-key="recovery-psnr"] .plot')
    show_curves(page, "#recovery-curves")
    assert plot.evaluate("plot => plot.data.map((line) => line.name)")[1] == "One-step prediction"
    assert plot.evaluate("plot => plot.data[1].error_y.array.every((end) => end > 0)")
    assert plot.evaluate(
        "plot => plot._fullLayout.xaxis.range[0] > plot._fullLayout.xaxis.range[1]"
    )  # noise at the left
    area = plot.locator(".nsewdrag").first.bounding_box()
    across = plot.evaluate("plot => plot._fullLayout.xaxis.d2p(0.5)")
    page.wait_for_selector('#recovery-curves figure[data-key="recovery-psnr"] .plot[data-tells]')
    page.mouse.move(area["x"] + across, area["y"] + area["height"] / 2)
    page.wait_for_selector('.recovery thead th.on[data-column="5"]')
    assert page.locator(".recovery td.on").count() == 5
    page.mouse.move(10, 10)
    page.wait_for_function("!document.querySelector('.recovery .on')")
    cell(page, 2, 1).hover()
    assert page.locator('.recovery td.on[data-column="1"]').count() == 5


def test_a_push_is_asked_for_from_a_cell_and_from_the_panel(open_page, keep):
    page = open_page(1440, 1200)
    open_recoveries(page)
    page.locator("#push").click()
    page.wait_for_selector("#pushed .failed")
    assert "There is no grid yet" in page.locator("#pushed").inner_text()
    recover(page)
    wait_for(page, "done")
    page.wait_for_selector("#recover:not([disabled])")
    cell(page, 2, 3).click()
    page.locator("dialog .push").click()
    page.wait_for_selector('.pushes[data-phase="done"]')
    assert (
        "“Real. a " in page.locator(".pushes > p").inner_text() and "σ 0.7" in page.locator(".pushes > p").inner_text()
    )
    assert page.locator("#push-level input").input_value() == "σ 0.7"
    heads = page.locator(".pushes thead th").all_inner_texts()
    assert heads == ["One-step prediction", "Direct-Align, Δσ 0.075", "Direct-Align, Δσ 0.025", "The original itself"]
    assert page.locator(".pushes img").count() == 12 and page.locator(".pushes .meter").count() == 3
    keep(page, "recovery-push")
    page.wait_for_selector("#push:not([disabled])")
    page.locator("#push-text textarea, #push-text input").first.fill("a blue boat")
    page.locator("#push").click()
    page.wait_for_selector(".pushes > p:has-text('“Real. a blue boat” at σ 0.7')")


def test_a_run_plays_without_the_server(open_page, keep):
    page = open_page(1440, 1200)
    open_recoveries(page)
    set_numbers(page, steps=4, width=32, height=32)
    page.locator("#look").click()
    page.locator(".recovery-scene").wait_for()
    page.wait_for_selector('.recovery-film[data-phase="done"]')
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    pixels = "canvas => canvas.toDataURL()"
    recovered = page.locator(".recovery-frames canvas").nth(2)
    first = recovered.evaluate(pixels)
    assert "σ 1.000, step 1 of 4" in page.locator(".recovery-film output").inner_text()
    page.locator(".recovery-film input").focus()
    page.keyboard.press("ArrowRight")
    assert recovered.evaluate(pixels) != first
    assert "step 2 of 4" in recovered.get_attribute("aria-label") or "σ 0." in recovered.get_attribute("aria-label")
    page.keyboard.press("Home")
    page.locator(".recovery-film .play").click()
    page.wait_for_selector(".recovery-film .play[aria-pressed='false']")
    assert "step 4 of 4" in page.locator(".recovery-film output").inner_text() and asked == []
    keep(page, "recovery-film")


def test_a_picture_of_ones_own_two_models_and_the_sheet(open_page, tmp_path, keep):
    page = open_page()
    open_recoveries(page)
    page.get_by_text("My own").click()
    recover(page)
    wait_for(page, "error")
    assert page.locator(".recovery .banner").inner_text() == (
        "No picture was uploaded: choose a file, or another way to start."
    )
    (tmp_path / "notes.png").write_text("not a picture")
    page.locator("#recover-file input[type=file]").set_input_files(tmp_path / "notes.png")
    page.locator("#recover-file", has_text="notes").wait_for()
    page.locator("#recover").click()
    page.locator(".recovery .banner", has_text="cannot be read as a picture").wait_for()
    page.locator("#recover-file button[aria-label='Clear'], #recover-file button[aria-label='Remove']").first.click()

    Image.effect_noise((90, 60), 90).convert("RGB").save(tmp_path / "mine.png")
    page.locator("#recover-file input[type=file]").set_input_files(tmp_path / "mine.png")
    page.locator("#recover-file", has_text="mine").wait_for()
    page.locator("#recover-prompt textarea").fill("a red ball")
    page.locator("#recover-models input").click()
    page.get_by_role("option", name="SRPO").click()
    page.keyboard.press("Escape")
    page.locator("#recover-d-sigmas textarea, #recover-d-sigmas input").first.fill("0.05")
    page.locator("#recover-typed textarea, #recover-typed input").first.fill("0.98")
    page.locator("#recover").click()
    wait_for(page, "done")
    assert page.locator(".recovery .banner").is_hidden()
    assert "90 × 60 pixels; its middle, resized to 32 × 32" in page.locator(".recovery-notice").inner_text()
    assert page.locator(".recovery tbody tr").count() == 1 + 3 * 2
    assert page.locator(".recovery em").first.inner_text() == "step cut short at σ 0.99"
    with page.expect_download() as download:
        page.locator("#recovery-sheet").click()
    with Image.open(download.value.path()) as sheet:
        record = json.loads(sheet.text[KEY])
    assert record["request"]["source"] == "upload" and record["request"]["sigmas"][0] == 0.98
    keep(page, "recovery-two-models")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("typed", "0.9", "The noise level 0.9 is named twice: once is enough."),
        ("typed", "1.5", "A noise level must lie between 0 and 1, not at 1.5."),
        ("d-sigmas", "0", "A step Δσ must be above 0 and below 1, not 0."),
        ("d-sigmas", "0.99", "reaches the clean picture from every level"),
    ],
)
def test_bad_input_says_one_sentence(open_page, field, value, says):
    page = open_page()
    open_recoveries(page)
    page.locator(f"#recover-{field} textarea, #recover-{field} input").first.fill(value)
    page.locator("#recover").click()
    page.locator(".recovery .banner", has_text=says).wait_for()
    page.wait_for_selector("#recover:not([disabled])")


def test_stop_and_the_keyboard(open_page):
    page = open_page()
    open_recoveries(page)
    set_numbers(page, steps=100, width=512, height=512, noises=16)
    page.locator("#recover-prompt textarea").press("Control+Enter")
    page.wait_for_selector(".recovery-head img[src^='data:image/png']")
    page.locator("#recover-stop").click()
    wait_for(page, "stopped")
    page.wait_for_selector("#recover:not([disabled])")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_all_of_it_can_be_read_on_a_desk_and_on_a_phone(open_page, width, scheme, keep):
    page = open_page(width, 900, scheme)
    open_recoveries(page)
    recover(page)
    wait_for(page, "done")
    show_curves(page, "#recovery-curves")
    keep(page, f"recoveries-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT_TEXT) == []


# How many cells were filled at any moment.
COUNT = """() => {
  window.counts = new Set();
  const grid = document.querySelector(".recovery");
  const count = () => window.counts.add(grid.querySelectorAll("td button").length);
  new MutationObserver(count).observe(grid, { subtree: true, childList: true });
  count();
}"""
