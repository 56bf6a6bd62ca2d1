"""The Studies tab as a visitor uses it: the whole way of a study on tiny models, results that look like real ones."""

import zipfile

import pytest

from benchmarks.studies import open_study
from srpo.studies.criteria import PAPER, REALISM, WHOLE
from srpo.studies.schema import FixedStop, Model, Prompt
from srpo.studies.simulation import World, clicks_left, example_plan, simulate
from srpo.studies.store import Store
from tests.app.study_forms import vote_all
from tests.browser.pages import generate, open_panel, open_tab
from tests.browser.pages import wait_for as wait_for_stage
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror='window.hacked = 1'> {{7*7}} =1+1"
MODELS = [Model(key="base", label="FLUX"), Model(key="srpo", label="SRPO"), Model(key="run:a", label="Run a")]


@pytest.fixture
def store(options):
    """The app's own studies, opened a second time: as a voting page writes to them."""
    options.studies.mkdir(parents=True, exist_ok=True)
    opened = Store(options.studies / "studies.db")
    yield opened
    opened.close()


def open_studies(page):
    open_tab(page, "Studies")
    page.wait_for_selector(".study-list button, .study-list .none:not([hidden])")


def set_number(page, field, value):
    box = page.locator(f"#study-{field} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def fill(page, title, prompts, **numbers):
    """Opens a new form and fills it in for the tiny model."""
    first = page.locator("#study-title").locator("input, textarea")
    open_panel(page, page.locator("#study-new"), first)
    first.fill(title)
    page.locator("#study-prompt-source input").click()
    page.get_by_role("option", name="Typed here").click()
    page.locator("#study-prompts textarea").fill("\n".join(prompts))
    for field, value in ({"steps": 1, "width": 32, "height": 32, "votes-per-item": 2, "take": 0} | numbers).items():
        set_number(page, field, value)


def test_plan_pictures_votes_results_export_and_import(open_page, store, keep, tmp_path):
    page = open_page(1440, 1000)
    open_studies(page)
    prompts = [f"a {colour} ball number {number}" for colour in ("red", "blue") for number in range(6)]
    fill(page, f"Is it better? {EVIL}", [*prompts, EVIL])
    page.wait_for_selector("#study-power :text('13 prompts × 1 seed = 13 pairs, 26 votes.')")
    keep(page, "studies-form")
    page.locator("#study-save").click()
    page.wait_for_selector("#study-make:visible:has-text('Make')")
    assert EVIL in page.locator(".study-head h2").inner_text()
    study = store.studies()[0].id

    page.locator("#study-make").click()
    page.wait_for_selector('#study-strip .grid-table[data-phase="done"]:has-text("are there")')
    image = page.locator("#study-strip img").first
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
    assert image.bounding_box()["width"] > 100
    keep(page, "studies-pictures")

    page.locator('.study-head [data-step="voting"]:not([disabled])').click()
    page.locator("#study-open:visible").click()
    page.wait_for_selector(".study-link:visible")
    assert page.locator(".study-link code").inner_text() == f"{page.url.split('?')[0]}vote/{study}"
    assert page.locator(".study-link a").get_attribute("target") == "_blank"
    page.wait_for_selector(".study-link .local:has-text('Only this machine')")  # it is served on loopback

    # Votes come from elsewhere, and the page counts them by itself.
    given = vote_all(store, study)
    page.wait_for_selector('.study-live[data-votes="26"]')
    page.wait_for_selector(".study-live :text('no more votes are needed')")
    open_panel(page, page.locator("#study-raters > button"), page.locator("#study-seats td").first)
    for rater in store.raters(study):
        assert rater.code in page.locator("#study-seats").inner_text()
    keep(page, "studies-voting")
    page.locator('.study-head [data-step="results"]').click()
    page.wait_for_selector("#study-story :text('Results are shown when the study has ended')")
    assert page.locator("#study-figures .main-svg").count() == 0

    page.locator('.study-head [data-step="voting"]').click()
    page.locator("#study-end:visible").click()
    page.wait_for_selector("#study-question:has-text('for good')")
    page.locator("#study-end-no").click()
    page.wait_for_selector("#study-question", state="hidden")
    page.locator("#study-end").click()
    page.locator("#study-end-really:visible").click()
    page.wait_for_selector('#study-figures .study-figures[data-drawn="1"]')
    assert store.study(study).state == "closed"
    story = page.locator("#study-story").inner_text()
    assert "wins 100.0% of the decided votes" in story
    keep(page, "studies-results")

    page.locator("#study-export").click()
    page.wait_for_selector("#study-export-note :text('The export is ready')")
    with page.expect_download() as download:
        page.locator("#study-files").click()
    download.value.save_as(tmp_path / "study.zip")
    with zipfile.ZipFile(tmp_path / "study.zip") as archive:
        assert len(archive.read("votes.jsonl").splitlines()) == given
        (tmp_path / "report.html").write_bytes(archive.read("report.html"))
    with page.expect_download() as download:
        page.locator("#study-report").click()
    assert download.value.suggested_filename.endswith(".html")

    upload = page.locator("#study-upload input[type=file]")
    page.locator("#study-import > button").click()
    upload.set_input_files(tmp_path / "study.zip")
    page.wait_for_selector("#study-upload :text('study.zip')")
    page.locator("#study-bring-back").click()
    page.wait_for_selector(f"#study-note :text('{given} votes')")
    page.wait_for_selector('#study-figures .study-figures[data-drawn="1"]')
    assert page.locator("#study-story").inner_text() == story
    assert page.locator(".study-list [aria-current] b").inner_text() == f"Is it better? {EVIL}"
    assert page.evaluate("window.hacked") is None


def test_bad_input_says_one_sentence_and_keeps_the_form(open_page, store, keep):
    page = open_page()
    open_studies(page)
    before = len(store.studies())
    fill(page, "Typed once", ["a ball", "A Ball"])
    page.locator("#study-save").click()
    page.wait_for_selector("#study-form-note .failed:has-text('is there twice')")
    page.locator("#study-prompts textarea").fill("a ball\na house")
    set_number(page, "width", 33)
    page.wait_for_selector("#study-power :text('multiple of 16')")
    page.locator("#study-save").click()
    page.wait_for_selector("#study-form-note .failed:has-text('multiple of 16')")
    assert page.locator("#study-title").locator("input, textarea").input_value() == "Typed once"
    assert page.locator("#study-prompts textarea").input_value() == "a ball\na house"
    keep(page, "studies-bad-input")
    set_number(page, "width", 32)
    page.wait_for_selector("#study-power :text('2 prompts')")
    folder = page.locator("#study-folder-1").locator("input, textarea")
    open_panel(page, page.get_by_label("Bring finished pictures"), folder)
    folder.fill("/nowhere")
    page.locator("#study-save").click()
    page.wait_for_selector("#study-form-note .failed:has-text('is no folder')")
    assert len(store.studies()) == before
    keep(page, "studies-bring")
    open_panel(page, page.get_by_label("Make the pictures here"), page.locator("#study-width input"))
    page.wait_for_selector("#study-power :text('2 prompts')")  # nothing that was typed is lost
    page.locator("#study-save").click()
    page.wait_for_selector("#study-make:visible")
    assert len(store.studies()) == before + 1


def test_making_pictures_stops_at_its_button_and_goes_on(open_page, store):
    page = open_page()
    open_studies(page)
    fill(page, "Stopped and taken up", [f"a ball, number {number}" for number in range(40)], steps=100)
    page.locator("#study-save").click()
    page.locator("#study-make:visible").click()
    page.wait_for_selector("#study-strip img")
    page.locator("#study-stop:not([disabled])").click()
    page.wait_for_selector('#study-strip .grid-table[data-phase="stopped"]')
    page.wait_for_selector("#study-make:not([disabled])")
    study = store.studies()[0].id
    there = len(store.pictures(study))
    assert 0 < there < 80
    page.reload()
    open_studies(page)
    page.locator(f'.study-list [data-study="{study}"]').click()
    page.wait_for_selector(f"#study-strip .grid-note:has-text('{there} of')")
    page.locator("#study-make:visible").click()
    page.wait_for_selector("#study-strip .grid-note:has-text('are kept; step')")
    page.locator("#study-stop:not([disabled])").click()
    page.wait_for_selector('#study-strip .grid-table[data-phase="stopped"]')


def test_a_quick_vote_takes_one_click_and_is_counted(open_page, store, keep):
    page = open_page()
    generate(page, "a quick ball", steps=2)
    wait_for_stage(page, "done")
    before = len(store.quick_votes())
    page.locator("#masthead h1").click()
    page.keyboard.press("f")  # flipped: the button at the left is the right side of the pair
    page.locator(".quick button").first.click()
    page.wait_for_selector(".quick :text('Stored.')")
    keep(page, "quick-vote")
    page.locator(".quick button").nth(2).click()
    page.wait_for_selector(".quick :text('There is a vote on this pair already')")
    votes = store.quick_votes()
    assert len(votes) == before + 1
    assert (votes[-1].prompt, votes[-1].answer, votes[-1].facts["steps"]) == ("a quick ball", "right", 2)
    assert page.locator('.quick [aria-pressed="true"]').get_attribute("data-answer") == "right"
    assert page.evaluate(FAINT_TEXT) == []
    open_studies(page)
    open_panel(page, page.locator("#quick-panel > button"), page.locator("#quick-table td").first)
    with page.expect_download() as download:
        page.locator("#quick-csv").click()
    assert download.value.suggested_filename == "quick-votes.csv"


def simulated(store):
    """Boards of votes as real studies have them, two modes, several criteria and models, one rater at fault."""
    prompts = [
        Prompt(text=f"a red ball in place {number}", category=("seaside", "land")[number % 2]) for number in range(40)
    ]
    pairs = example_plan(title="Which has less of the AI look?", models=MODELS, criteria=(WHOLE, REALISM)).model_copy(
        update={"prompts": tuple(prompts), "stop": FixedStop(votes_per_item=4)}
    )
    ratings = example_plan(title="Levels as in the paper", mode="rating", models=MODELS, criteria=PAPER).model_copy(
        update={"prompts": tuple(prompts[:20])}
    )
    world = World(strengths={"srpo": 0.9, "run:a": 0.4})
    return [
        store.restore(plan, 1, simulate(plan, 4, 3, world, behaviours))
        for plan, behaviours in ((pairs, {3: clicks_left}), (ratings, {}))
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_text_stands_out_and_nothing_is_wider_than_the_screen(open_page, store, keep, width, height, scheme):
    studies = simulated(store)
    page = open_page(width, height, scheme)
    open_studies(page)

    def check(name):
        keep(page, f"studies-{name}-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(FAINT_TEXT) == []

    for study, name, figures in zip(studies, ("pairs", "ratings"), (4, 5), strict=True):
        page.locator(f'.study-list [data-study="{study.id}"]').click()
        page.wait_for_selector(f'#study-figures .study-figures[data-drawn="{figures}"]')
        for summary in page.locator("#study-tables summary").all():
            summary.click()
        check(name)
    page.locator('.study-head [data-step="plan"]').click()
    page.wait_for_selector("#study-plan-text:visible")
    check("plan")
    under_way = open_study(store, example_plan(20, title="Under way"))
    store.join(under_way.id)
    page.locator("#study-new").click()
    page.locator(f'.study-list [data-study="{under_way.id}"]').click()
    page.wait_for_selector(".study-link:visible")
    check("voting")
    open_panel(page, page.locator("#study-new"), page.locator("#study-title").locator("input, textarea"))
    check("new")
    folder = page.locator("#study-folder-1").locator("input, textarea")
    open_panel(page, page.get_by_label("Bring finished pictures"), folder)
    check("bring")
