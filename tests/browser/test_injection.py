"""Texts that try to be scripts, in everything that a page shows back: names, prompts, words, files, titles, votes.

A hundred of them. None may run, become an element or a link of its own, or leave the page unusable. The page has no
content policy to stop them (Gradio's own scripts are inline), so what is looked at is the page's own care.
"""

import itertools
import json

import pytest
from PIL import Image

from app.services.metadata import comparison_texts
from app.services.requests import CompareRequest
from app.services.studies import Studies
from benchmarks.studies import drawn_study
from srpo.studies.schema import Model
from srpo.studies.simulation import World, example_plan, simulate
from srpo.studies.store import QuickVote
from tests.app.folders import make_run
from tests.app.serving import PATIENCE_S
from tests.browser.pages import generate, open_panel, open_tab, wait_for

pytestmark = pytest.mark.browser

BREAKS = ("", '">', "'>", "</textarea></title></style></script>", "--!>${hit=1}{{hit=1}}")
VECTORS = (
    "<script>hit=1</script>", "<img src=x onerror=hit=1>", "<svg onload=hit=1>", "<details open ontoggle=hit=1>",
    "<iframe srcdoc='<script>parent.hit=1</script>'>", "<body onload=hit=1>", "<input autofocus onfocus=hit=1>",
    "<a href=javascript:hit=1>x</a>", "<video><source onerror=hit=1></video>", "[x](javascript:hit=1)",
    "<math><a xlink:href=javascript:hit=1>x</a></math>",
    "![x](x\" onerror=\"hit=1)", "<style>@import'javascript:hit=1'</style>", "<object data=javascript:hit=1>",
    "<form><button formaction=javascript:hit=1>x", "<p style=animation-name:x onanimationstart=hit=1>", "`;hit=1;`",
    "<marquee onstart=hit=1>", "<scr<script>ipt>hit=1</scr</script>ipt>", "&lt;img src=x onerror=hit=1&gt;",
)  # fmt: skip
PAYLOADS = tuple(start + vector for start, vector in itertools.product(BREAKS, VECTORS))
LINES = [" ".join(PAYLOADS[start : start + 4]) for start in range(0, len(PAYLOADS), 4)]  # a model reads few tokens
WORDS = ('<img src=x onerror="hit=1">', "'><svg onload=hit=1>")  # a word has at most 60 characters

# What no text of a visitor may have become.
BECAME = r"""() => {
  const link = /^(href|src|srcdoc|action|formaction|data|xlink:href)$/;
  const live = ({name, value}) => /hit=1/.test(value) &&
    (/^on/.test(name) || (link.test(name) && /^\s*javascript:|<script/i.test(value)));
  const elements = [...document.querySelectorAll("*")].filter((element) => [...element.attributes].some(live));
  const scripts = [...document.scripts].filter((script) => /^\s*(parent\.)?hit=1/.test(script.text));
  return [...(window.hit ? ["ran"] : []), ...[...elements, ...scripts].map((one) => one.outerHTML.slice(0, 200))];
}"""


@pytest.fixture
def clean(open_page):
    """`clean(page)`: nothing of the payloads has run or become a part of the page; dialogs count as well."""
    dialogs = []

    def clean(page):
        page.wait_for_timeout(300)
        assert page.evaluate(BECAME) == []
        assert dialogs == []

    clean.watch = lambda page: page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    return clean


def test_there_are_a_hundred_and_one_of_them_would_run(chromium):
    """The proof that the look at the page sees what it looks for: the same texts, shown without any care."""
    assert len(set(PAYLOADS)) == 100 and len(LINES) == 25
    page = chromium.new_context().new_page()
    page.set_content("<div id=there></div>")
    page.evaluate("text => document.querySelector('#there').innerHTML = text", LINES[0])
    page.wait_for_timeout(300)
    found = page.evaluate(BECAME)
    assert "ran" in found and len(found) > 4
    page.context.close()


def test_prompts_words_and_dropped_files_stay_text(open_page, clean, tmp_path, keep):
    page = open_page()
    clean.watch(page)
    page.locator("#control-word input").fill(WORDS[0])
    page.locator("#control-word input").press("Enter")
    generate(page, LINES[-1], width=32, height=32, steps=1)
    wait_for(page, "done")
    clean(page)
    open_panel(page, page.locator("#grid-panel > button"), page.locator("#grid-prompts textarea"))
    page.locator("#grid-seeds input[type=number]").fill("1")
    page.locator("#grid-seeds input[type=number]").press("Tab")
    for lines in (LINES[:12], LINES[12:24]):  # as many prompts as a grid takes
        page.locator("#grid-prompts textarea").fill("\n".join(lines))
        page.locator("#draw").click()
        page.wait_for_selector("#stop-grid:not([disabled])")
        page.wait_for_selector("#sheet:visible")
        page.wait_for_function("line => document.querySelector('#grid-table').innerText.includes(line)", arg=lines[-1])
        clean(page)

    asked = {"prompt": LINES[2], "seed": 1, "left": LINES[3], "right": "srpo", "control_word": WORDS[1]}
    texts = comparison_texts(CompareRequest(**asked), 1, "left", {"left": LINES[4], "right": LINES[5]}, {"scores": {}})
    evil = tmp_path / "'><img src=x onerror=hit=1>.png"
    Image.new("RGB", (32, 32)).save(evil, pnginfo=texts)
    page.locator("#dropped input[type=file]").set_input_files(evil)
    page.wait_for_selector("#restored .note")
    clean(page)
    open_tab(page, "Control words")
    page.locator("#see-files input[type=file]").set_input_files(evil)
    page.wait_for_selector("#see-go:has-text('Score 1 picture')")
    page.locator("#see-go").click()
    page.wait_for_selector("#words-table img, #words-table .banner")
    clean(page)
    open_tab(page, "Guide")
    page.wait_for_timeout(500)
    clean(page)
    open_tab(page, "Compare")
    generate(page, "a red ball", seed=9)
    wait_for(page, "done")  # the page still works
    keep(page, "injection-compare")


def test_words_sets_and_the_guides_fields_stay_text_on_a_phone(open_page, clean, tmp_path, keep):
    page = open_page(390, 844)
    clean.watch(page)
    open_tab(page, "Control words")
    page.wait_for_selector('.words-editor[data-ready="true"]')
    for side, word in zip(("positive", "negative"), WORDS, strict=True):
        page.get_by_label(f"A further {side} word").fill(word)
        page.keyboard.press("Enter")
        page.wait_for_selector(f'[data-side="{side}"] .chip:has-text("hit=1")')
    clean(page)
    page.locator(".words-editor .template").fill(PAYLOADS[21] + " {word} {prompt}")
    page.locator(".words-editor .set-name").fill(PAYLOADS[1])
    page.locator("#words-save").click()
    page.wait_for_selector("#words-note .note")
    clean(page)
    file = tmp_path / "set.yaml"
    for text in (
        json.dumps({"name": PAYLOADS[22], "positive": [WORDS[1]], "negative": [WORDS[0]]}),
        json.dumps({PAYLOADS[1]: 1, "positive": [PAYLOADS[2]], "negative": PAYLOADS[3]}),
        PAYLOADS[41],
    ):
        file.write_text(text)
        with page.expect_file_chooser() as chooser:
            page.locator("#words-upload").click()
        with page.expect_response(lambda response: "/upload" in response.url):
            chooser.value.set_files(file)
        page.wait_for_timeout(1000)
        clean(page)
    page.locator("#see-prompts textarea").fill("\n".join(PAYLOADS[20:22]))
    page.locator("#see-go").click()
    page.wait_for_selector('.words-table[data-phase="done"]')
    page.wait_for_selector("#see-go:not([disabled])")
    clean(page)
    keep(page, "injection-words-390")

    open_tab(page, "Guide")
    page.wait_for_selector("#guide-look .guide-figure")
    page.locator("#guide-prompt input, #guide-prompt textarea").first.fill(LINES[0])
    page.locator("#guide-positive input, #guide-positive textarea").first.fill(WORDS[0])
    page.locator("#guide-negative input, #guide-negative textarea").first.fill(WORDS[1])
    page.locator("#guide-last-prompt input, #guide-last-prompt textarea").first.fill(LINES[1])
    for step in ("#guide-1", "#guide-wording", "#guide-pairs-figure"):
        page.locator(step).scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        clean(page)
    keep(page, "injection-guide-390")


def test_runs_with_such_names_prompts_and_messages_stay_text(open_page, clean, options):
    names = ["<img src=x onerror=hit=1>", "'><svg onload=hit=1>", "`;hit=1;` {{hit=1}}"]
    for number, name in enumerate(names):
        run = make_run(
            options.runs, name, config={"prompts": LINES[number], "signal": {"words": {"positive": [WORDS[0]]}}}
        )
        run.write_samples(
            5,
            LINES[:2],
            [1, 2],
            lambda folder: [Image.new("RGB", (32, 32)).save(folder / f"0{n}.png") for n in range(2)],
        )
        run.write_state("failed", 3, LINES[3], updates=10)
    page = open_page()
    clean.watch(page)
    open_tab(page, "Fine-tune")
    for name in names:
        page.locator("#run input").click()
        page.get_by_role("option", name=name, exact=True).click()
        page.wait_for_selector(".run-head[data-status=failed] .banner:has-text('hit=1')")
        page.wait_for_selector("#film img")
        clean(page)
    page.locator("#run-name input, #run-name textarea").first.fill(PAYLOADS[1])
    page.locator("#start").click()
    page.wait_for_selector("#tune-note .failed")
    clean(page)
    page.locator("#run-panel > button").click()
    page.locator("#delete").click()
    page.wait_for_selector("#delete-question .note")
    clean(page)
    page.locator("#delete-really").click()
    page.wait_for_selector("#run-note .note")
    clean(page)


def test_studies_with_such_titles_prompts_models_and_criteria_stay_text(open_page, chromium, address, clean, options):
    studies = Studies(options)
    models = [Model(key=f"model-{number}", label=PAYLOADS[number + 1]) for number in range(2)]
    texts = {"title": PAYLOADS[1], "instructions": LINES[0]}
    plan = example_plan(LINES[:3], models, **texts)
    studies.store.restore(plan, 1, simulate(plan, 3, 1, World()))
    open_study = drawn_study(studies, plan)
    page = open_page()
    clean.watch(page)
    open_tab(page, "Studies")
    page.wait_for_selector("#study-list button")
    clean(page)
    for entry in range(min(2, page.locator("#study-list button").count())):
        page.locator("#study-list button").nth(entry).click()
        page.wait_for_timeout(700)
        clean(page)

    rater = chromium.new_context().new_page()
    rater.set_default_timeout(1000 * PATIENCE_S)
    clean.watch(rater)
    rater.goto(f"{address}vote/{open_study.id}")
    rater.wait_for_selector("#loading", state="hidden")
    assert "onerror=hit=1" in rater.inner_text("body")  # the title, as the text that it is
    clean(rater)
    rater.context.close()
    studies.store.close()


def test_quick_votes_on_such_prompts_and_models_stay_text(open_page, clean, options):
    """Votes of whoever was on the page: their prompts, and models that were named after files."""
    store = Studies(options).store
    for number in range(4):
        left, right = WORDS[number % 2], PAYLOADS[20 + number]
        vote = QuickVote(
            f"injected-{number}", PAYLOADS[number + 1], number, left, right, "left", {WORDS[0]: PAYLOADS[1]}
        )
        assert store.quick_vote(vote)
    store.close()
    page = open_page()
    clean.watch(page)
    open_tab(page, "Studies")
    open_panel(page, page.locator("#quick-panel > button"), page.locator("#quick-panel td, #quick-panel th").first)
    page.wait_for_selector("#quick-panel :text('hit=1') >> nth=0")
    clean(page)
