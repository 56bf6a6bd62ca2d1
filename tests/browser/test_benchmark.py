"""The Benchmark tab as a visitor uses it, with real benchmarks of tiny models."""

import json

import pytest

from tests.browser.pages import open_panel, open_tab, settle_fields
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

PROMPTS = [f"a red ball number {number}" for number in range(12)]


def open_form(page):
    """The tab, once it says what a start would make."""
    open_tab(page, "Benchmark")
    page.wait_for_selector("#bench-outline .note")
    settle_fields(page)


def set_number(page, field, value):
    box = page.locator(f"#bench-{field} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def fill(page, name, lists, **numbers):
    """The form, for the tiny models and lists of one's own."""
    page.locator("#bench-name").locator("input, textarea").fill(name)
    page.locator("#bench-folder").locator("input, textarea").fill(str(lists))
    page.locator("#bench-sets button.token-remove, #bench-sets .token-remove").first.click()
    steps = page.locator("#bench-steps input[type=number]")
    if not steps.is_visible():
        open_panel(page, page.locator("#bench-more > button"), steps)
    for field, value in ({"steps": 1, "width": 32, "height": 32, "first": 12} | numbers).items():
        set_number(page, field, value)


def wait_for(page, status, name):
    page.wait_for_selector(f'#bench-head .run-head[data-status="{status}"]:has-text("{name}")')


@pytest.fixture
def lists(tmp_path):
    folder = tmp_path / "lists"
    folder.mkdir()
    (folder / "anime.json").write_text(json.dumps(PROMPTS))
    (folder / "photo.txt").write_text("\n".join(PROMPTS))
    return folder


def test_start_progress_close_the_page_stop_resume_and_table(open_page, options, lists, keep):
    first = open_page(1440, 1000)
    open_form(first)
    fill(first, "watched", lists, **{"num-seeds": 16})
    first.wait_for_selector("#bench-outline:has-text('2 models × 24 prompts × 16 seeds = 768 pictures')")
    first.locator("#bench-start", has_text="Start: 768 pictures").click()
    wait_for(first, "running", "watched")
    first.close()  # nothing is lost by that

    page = open_page(1440, 1000)
    open_form(page)
    wait_for(page, "running", "watched")
    page.wait_for_function("Number(document.querySelector('#bench-head .run-head').dataset.done) > 3")
    page.wait_for_selector("#bench-strip img")
    keep(page, "benchmark-running")
    page.locator("#bench-stop:not([disabled])").click()
    wait_for(page, "stopped", "watched")
    folder = options.runs / "benchmarks" / "watched"
    there = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert 0 < len(there) < 768
    button = page.locator("#bench-resume:not([disabled])", has_text=f"Make {768 - len(there)} missing pictures")
    assert "are missing" in page.locator("#bench-head [role=alert]").inner_text()
    button.click()
    wait_for(page, "finished", "watched")
    assert all(file.stat().st_mtime_ns == changed for file, changed in there.items())

    # The table has the command's numbers, and so has what is downloaded.
    page.wait_for_selector("#bench-table .scores")
    result = json.loads((folder / "benchmark.json").read_text())
    cells = page.locator("#bench-table .scores tbody tr").nth(1).locator("td")
    assert cells.count() == len(result["rewards"]) == 2
    for place, reward in enumerate(result["rewards"]):
        wanted = {"reward": reward["name"], "style": "all", "model": "srpo"}
        mean = next(each for each in result["means"] if wanted.items() <= each.items())
        assert f"{mean['mean']:.3f}"[:-1] in cells.nth(place).inner_text()
    with page.expect_download() as download:
        page.locator("#bench-csv").click()
    assert download.value.suggested_filename == "watched.csv"
    assert download.value.path().read_bytes() == (folder / "benchmark.csv").read_bytes()
    page.locator("#bench-table summary").last.click()
    page.get_by_text("srpo − base").locator("visible=true").first.wait_for()
    keep(page, "benchmark-finished")


def test_a_measurement_tells_the_cost_and_is_stopped_by_its_button(open_page, lists):
    page = open_page()
    open_form(page)
    fill(page, "measured", lists)
    page.locator("#bench-measure").click()
    page.wait_for_selector("#bench-note .loading:has-text('Measuring one picture')")
    assert page.locator("#bench-start").is_disabled()
    page.locator("#bench-halt").click()
    page.wait_for_selector("#bench-note :text('The measurement was stopped.')")
    page.wait_for_selector("#bench-start:not([disabled])")
    page.locator("#bench-measure").click()
    page.wait_for_selector("#bench-outline:has-text('48 pictures. Measured here:')")
    page.wait_for_selector("#bench-measure:not([disabled])")


def test_bad_input_says_one_sentence_and_keeps_the_form(open_page, lists, tmp_path, keep):
    page = open_page()
    open_form(page)
    fill(page, "bad", lists)
    page.locator("#bench-name").locator("input, textarea").fill("a/b")
    page.locator("#bench-start").click()
    page.wait_for_selector("#bench-note .failed:has-text('A name may have at most 64')")
    page.locator("#bench-name").locator("input, textarea").fill("bad")
    set_number(page, "first", 0)
    page.wait_for_selector("#bench-outline:has-text('Prompts per list must be a whole number')")
    page.locator("#bench-start").click()
    page.wait_for_selector("#bench-note .failed:has-text('Prompts per list must be a whole number')")
    set_number(page, "first", 2)
    page.locator("#bench-rewards textarea").fill("hpsv9:nothing")
    page.locator("#bench-rewards textarea").press("Tab")
    page.locator("#bench-start").click()
    page.wait_for_selector("#bench-note .failed:has-text('There is no kind of reward')")
    page.locator("#bench-rewards textarea").fill("")
    (tmp_path / "own.txt").write_bytes(b"a ball\n\xff\xfe")
    page.locator("#bench-lists input[type=file]").set_input_files(tmp_path / "own.txt")
    page.wait_for_selector("#bench-outline:has-text('not UTF-8')")
    keep(page, "benchmark-bad-input")
    page.locator("#bench-picker input").fill("/nowhere")
    page.locator("#bench-picker input").press("Enter")
    page.wait_for_selector("#bench-head .failed:has-text('There is no benchmark')")
    assert page.locator("#bench-start").is_enabled()
    assert page.locator("#bench-first input").input_value() == "2"


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens")
    (folder / "photo.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 1000), (390, 844)])
def test_text_stands_out_and_nothing_is_wider_than_the_screen(open_page, keep, screens, width, height, scheme):
    page = open_page(width, height, scheme)
    open_form(page)
    fill(page, f"screen-{width}-{scheme}", screens)
    page.locator("#bench-start").click()
    wait_for(page, "finished", f"screen-{width}-{scheme}")
    page.wait_for_selector("#bench-table .scores")
    for summary in page.locator("#bench-table summary").all():
        summary.click()
    keep(page, f"benchmark-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT_TEXT) == []
