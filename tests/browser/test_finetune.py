"""The Fine-tune tab as a visitor uses it, with real trainings of a tiny model."""

import json
import re
import time

import pytest

from tests.app.serving import make_options, served
from tests.browser.pages import open_panel, open_tab, settle_fields, show_curves
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

TINY = (
    "objective.height=32", "objective.width=32", "objective.rollout_steps=2", "validation.num_prompts=2",
    "validation.num_samples=2", "validation.num_steps=2", "checkpoint_every=2",
)  # fmt: skip


def open_form(page):
    open_tab(page, "Fine-tune")
    page.wait_for_function("document.querySelector('#preset input').value !== ''")


def fill(page, name, updates, every=2):
    """The form, for a run of the tiny model."""
    page.locator("#run-name input, #run-name textarea").first.fill(name)
    page.locator("#prompt-source input").click()
    page.get_by_role("option", name="Typed here").click()
    page.locator("#tune-prompts textarea").fill("a red ball\na blue house")
    for selector, value in (("#updates", updates), ("#batch", 2), ("#every", every)):
        page.locator(f"{selector} input").fill(str(value))
        page.locator(f"{selector} input").press("Tab")
    more = page.locator("#more textarea")
    if not more.is_visible():
        open_panel(page, page.locator("#more-panel > button"), more)
    more.fill(more.input_value() + "\n" + "\n".join(TINY))


def begin(page, name, updates, every=2):
    fill(page, name, updates, every)
    page.locator("#start").click()


def wait_for(page, status):
    page.wait_for_selector(f'.run-head[data-status="{status}"]')


def wait_for_update(page, update):
    page.wait_for_function(
        "least => Number(document.querySelector('.run-head')?.dataset.update) >= least", arg=update, polling=200
    )


def points(page, key="difference"):
    """The updates that a chart draws."""
    plot = page.locator(f'#curves figure[data-key="{key}"] .plot')
    return plot.evaluate("plot => plot.data ? [...plot.data[0].x] : []")


def test_start_watch_stop_resume_and_open_in_compare(open_page, keep):
    page = open_page(1440, 1200)
    open_form(page)
    fill(page, "watched", 400)
    page.locator("#start", has_text="Start 400 updates of 2 prompts").wait_for()
    page.locator("#start").click()
    page.wait_for_selector(".run-head")
    wait_for(page, "running")
    wait_for_update(page, 3)
    page.wait_for_selector('#curves .curves:not([data-drawn="0"])')

    # Zoom stays while the curve grows.
    plot = '#curves figure[data-key="difference"] .plot'
    page.evaluate("selector => Plotly.relayout(document.querySelector(selector), {'xaxis.range': [1, 2.5]})", plot)
    grown = len(points(page))
    longer = "([selector, count]) => document.querySelector(selector).data[0].x.length > count"
    page.wait_for_function(longer, arg=[plot, grown], polling=200)
    assert page.evaluate("selector => document.querySelector(selector)._fullLayout.xaxis.range", plot) == [1, 2.5]
    updates = points(page)
    assert updates == list(range(1, len(updates) + 1))

    # Log scale where it can be, smoothing by the viewer's hand, samples through time.
    page.locator("#curves .log").click()
    gradient = '#curves figure[data-key="gradient"] .plot'
    is_log = "selector => document.querySelector(selector)._fullLayout.yaxis.type === 'log'"
    page.locator(gradient).scroll_into_view_if_needed()  # what nobody sees is not drawn
    page.wait_for_function(is_log, arg=gradient)
    page.locator("#curves .smooth input").fill("0.6")
    page.locator(gradient).scroll_into_view_if_needed()
    page.wait_for_function("selector => document.querySelector(selector).data.length > 2", arg=gradient)
    page.locator("#curves .log").click()
    page.wait_for_selector("#film .film-strip img")
    wait_for_update(page, 5)
    page.wait_for_function("document.querySelectorAll('#film .film-strip thead th').length >= 3", polling=200)
    slider = page.locator("#film .film-time input")
    slider.focus()
    slider.press("Home")
    assert page.locator("#film .now figcaption").inner_text().startswith("before training")
    picture = page.locator("#film .now img")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 32
    keep(page, "finetune-running")

    page.locator("#stop-run").click()
    wait_for(page, "stopped")
    stopped_at = int(page.locator(".run-head").get_attribute("data-update"))
    page.wait_for_selector("#resume:not([disabled])")
    page.locator("#resume").click()
    wait_for_update(page, stopped_at + 2)
    updates = points(page)
    assert updates == list(range(1, len(updates) + 1))
    page.locator("#stop-run:not([disabled])").click()
    wait_for(page, "stopped")

    page.locator("#open-in-compare:not([disabled])").click()
    page.wait_for_selector("#generate:visible")
    assert "watched" in page.locator("#right input").input_value()
    page.locator("#prompt textarea").fill("a red ball")
    page.locator("#steps input[type=number]").fill("2")
    page.locator("#steps input[type=number]").press("Tab")
    page.locator("#generate").click()
    page.wait_for_selector('.stage[data-phase="done"]')
    keep(page, "finetune-in-compare")


def test_charts_stay_apart_when_the_page_gets_narrower(open_page):
    page = open_page(1440, 1200)
    open_form(page)
    begin(page, "turned", 2, every=1)
    wait_for(page, "finished")
    show_curves(page, "#curves")
    page.set_viewport_size({"width": 390, "height": 844})
    settle_fields(page)
    show_curves(page, "#curves")
    page.wait_for_function(
        """() => [...document.querySelectorAll("#curves figure .plot")].every((plot) => plot.clientWidth < 390
          && plot.clientHeight === Number(plot.querySelector(".main-svg").getAttribute("height")))"""
    )


def test_a_start_says_what_it_will_do_however_late_its_tab_is_opened(open_page):
    page = open_page()
    page.wait_for_selector("#status:has-text('Models ready')")
    page.wait_for_timeout(2000)  # the form has been filled, behind its tab
    open_tab(page, "Fine-tune")
    page.locator("#start", has_text="Start 18 updates of 8 prompts").wait_for()


def test_pictures_wait_for_a_run_and_go_on_after_it(open_page):
    page = open_page()
    open_form(page)
    begin(page, "holder", 2000, every=0)
    wait_for_update(page, 1)
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.locator("#prompt textarea").fill("a red ball")
    page.locator("#steps input[type=number]").fill("1")
    page.locator("#steps input[type=number]").press("Tab")
    page.locator("#generate").click()
    page.wait_for_selector(".stage-note:has-text('in use by run holder')")
    page.get_by_role("tab", name="Fine-tune").click()
    page.locator("#stop-run:not([disabled])").click()
    page.get_by_role("tab", name="Compare", exact=True).click()
    page.wait_for_selector('.stage[data-phase="done"]')


def test_two_pages_and_double_clicks_make_one_run(open_page):
    pages = [open_page(), open_page()]
    for number, page in enumerate(pages):
        open_form(page)
        fill(page, f"rival-{number}", 2000, every=0)
    for page in pages:
        page.locator("#start").dblclick(no_wait_after=True)
    pages[1].wait_for_selector("#tune-note .failed, #tune-note .ready")
    pages[0].wait_for_selector("#tune-note .failed, #tune-note .ready")
    said = [page.locator("#tune-note").inner_text() for page in pages]
    assert sorted("started" in text for text in said) == [False, True], said
    (refused,) = [text for text in said if "started" not in text]
    assert re.search(r"in use by run rival-\d", refused)
    winner = pages[["started" in text for text in said].index(True)]
    wait_for_update(winner, 1)
    names = winner.locator("#run input").input_value()
    assert re.fullmatch(r"rival-\d", names)
    winner.locator("#stop-run:not([disabled])").click()
    wait_for(winner, "stopped")


def test_bad_input_says_one_sentence_and_keeps_the_form(open_page, tmp_path, keep):
    page = open_page()
    open_form(page)
    page.locator("#updates input").fill("0")
    page.locator("#updates input").press("Tab")
    page.locator("#start").click()
    page.wait_for_selector("#tune-note .failed")
    assert "The number of updates must be a whole number from 1" in page.locator("#tune-note").inner_text()
    assert page.locator("#updates input").input_value() == "0"
    page.locator("#updates input").fill("2")
    page.locator("#updates input").press("Tab")
    more = page.locator("#more textarea")
    open_panel(page, page.locator("#more-panel > button"), more)
    more.fill("objectve.hinge=0.7")
    page.locator("#start").click()
    page.wait_for_selector("#tune-note:has-text('did you mean objective.hinge')")
    more.fill("")
    page.locator("#prompt-source input").click()
    page.get_by_role("option", name="Own text file").click()
    (tmp_path / "prompts.txt").write_bytes(b"a ball\n\xff\xfe")
    page.locator("#prompt-file input[type=file]").set_input_files(tmp_path / "prompts.txt")
    page.wait_for_selector("#prompt-file :text('prompts.txt')")
    page.locator("#start").click()
    page.wait_for_selector("#tune-note:has-text('not UTF-8')")
    assert page.locator("#start").is_enabled()
    keep(page, "finetune-bad-input")


def test_a_measurement_is_stopped_by_its_button(open_page, keep):
    page = open_page()
    open_form(page)
    fill(page, "measured", 4)
    page.locator("#measure").click()
    page.wait_for_selector("#tune-note .loading:has-text('Measuring one real update')")
    keep(page, "finetune-measuring")
    assert page.locator("#start").is_disabled()
    page.locator("#stop-asking").click()
    page.wait_for_selector("#tune-note :text('The measurement was stopped.')")
    page.wait_for_selector("#start:not([disabled])")
    assert page.locator("#stop-asking").is_disabled()


def test_a_run_of_which_something_has_changed_goes_on_when_that_is_overruled(open_page, options, keep):
    page = open_page()
    open_form(page)
    begin(page, "changed", 2, every=0)
    wait_for(page, "finished")
    file = options.runs / "changed" / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"torch": "1.0"}))
    page.locator("#run-panel > button").click()
    page.locator("#extend-by input").fill("2")
    page.locator("#extend-by input").press("Tab")
    page.locator("#extend").click()
    page.wait_for_selector("#changes li:has-text('torch was 1.0 and is')")
    keep(page, "finetune-refused")
    assert page.locator(".run-head").get_attribute("data-status") == "finished"
    page.locator("#despite").click()
    page.wait_for_selector("#despite", state="hidden")
    wait_for_update(page, 4)
    wait_for(page, "finished")
    assert "torch was 1.0" in json.loads(file.read_text())["despite"]


def test_a_run_outlives_the_app_and_is_found_again(chromium, tmp_path_factory, keep):
    """The app is killed in the middle; a new one shows the living run by itself, every point once."""
    folder = tmp_path_factory.mktemp("killed")
    options = make_options(folder)
    page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.set_default_timeout(180_000)
    try:
        with served(options, folder / "first.txt") as (address, process):
            page.goto(address)
            open_form(page)
            begin(page, "survivor", 5000, every=0)
            wait_for_update(page, 3)
            process.kill()
            process.wait()
            process.returncode = 0  # as was asked of it
    except AssertionError:
        pass
    log = folder / "runs" / "survivor" / "progress.jsonl"
    before = len(log.read_text().splitlines())
    time.sleep(2)
    assert len(log.read_text().splitlines()) > before
    with served(options, folder / "second.txt") as (address, _):
        page.goto(address)
        page.get_by_role("tab", name="Fine-tune").wait_for()
        page.get_by_role("tab", name="Fine-tune").click()
        page.wait_for_selector('.run-head[data-status="running"]:has-text("survivor")')
        page.wait_for_selector('#curves .curves:not([data-drawn="0"])')
        updates = points(page)
        assert updates == list(range(1, len(updates) + 1)) and len(updates) >= before
        page.locator("#stop-run:not([disabled])").click()
        wait_for(page, "stopped")
        lines = [json.loads(line)["update"] for line in log.read_text().splitlines()]
        assert lines == list(range(1, len(lines) + 1))
    page.context.close()


def test_export_copy_compare_and_delete(open_page, keep):
    page = open_page(1440, 1200)
    open_form(page)
    for name in ("alpha", "beta"):
        begin(page, name, 2 if name == "alpha" else 3, every=1)
        page.wait_for_selector(f'.run-head[data-status="finished"]:has-text("{name}")')
    page.locator("#run-panel > button").click()
    page.locator("#export:visible").click()
    page.wait_for_selector("#run-note .ready:has-text('Exported')")
    with page.expect_download() as download:
        page.locator("#download-export").click()
    assert download.value.suggested_filename == "beta-full-final.zip"
    page.locator("#copy").click()
    page.wait_for_selector("#tune-note .ready:has-text('settings of beta')")
    assert page.locator("#updates input").input_value() == "3"
    assert page.locator("#tune-prompts textarea").input_value() == "a red ball\na blue house\n"

    page.locator("#compare-runs > button").click()
    for name in ("alpha", "beta"):
        page.locator("#several input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    page.locator("#compare-them").click()
    page.wait_for_selector("#differing td")
    assert "updates" in page.locator("#differing").inner_text()
    show_curves(page, "#overlaid")
    assert page.locator('#overlaid figure[data-key="difference"] .main-svg').count()
    assert page.locator("#same-samples img").count() == 4
    keep(page, "finetune-compared")

    page.locator("#delete").click()
    page.wait_for_selector("#delete-question:has-text('Delete the run beta')")
    page.locator("#delete-no").click()
    page.wait_for_selector("#delete-question", state="hidden")
    page.locator("#delete").click()
    page.locator("#delete-really").click()
    page.wait_for_selector("#run-note:has-text('Deleted the run beta')")
    assert page.locator("#run input").input_value() != "beta"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 1000), (390, 844)])
def test_text_stands_out_and_nothing_is_wider_than_the_screen(open_page, keep, width, height, scheme):
    page = open_page(width, height, scheme)
    open_form(page)
    begin(page, f"screen-{width}-{scheme}", 6)
    wait_for(page, "finished")
    show_curves(page, "#curves")
    page.wait_for_selector("#film .film-strip img")
    keep(page, f"finetune-{width}-{scheme}")
    page.locator("#run-panel > button").click()
    page.wait_for_timeout(500)
    keep(page, f"finetune-{width}-{scheme}-open")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT_TEXT) == []
