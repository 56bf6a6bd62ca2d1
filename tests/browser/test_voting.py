"""The raters' page as a rater uses it, by keys, by mouse and by touch, with and without a connection."""

import json
import re

import pytest

from app.services.studies import Studies
from benchmarks.studies import drawn_study
from srpo.studies.criteria import PAPER, STANDARD
from srpo.studies.schedule import schedule
from srpo.studies.schema import Model
from srpo.studies.simulation import example_plan
from tests.app.serving import PATIENCE_S
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown", "both bad": " "}
READY = "#answers button:not([disabled])"


@pytest.fixture
def studies(options):
    """The studies of the app that is served, from another process, as another app on the same folder would."""
    opened = Studies(options)
    yield opened
    opened.store.close()


@pytest.fixture
def rater(chromium, address):
    """Opens the raters' page of a study: `rater(study, ...)`; at the end no page may have met a defect."""
    contexts, defects = [], []

    def open_page(study, width=1440, height=900, scheme="light", before="", touch=False):
        size = {"width": width, "height": height}
        context = chromium.new_context(viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        page.on("pageerror", lambda error: defects.append(str(error)))
        page.on("request", lambda request: defects.append(request.url) if is_foreign(request.url) else None)
        page.on("console", lambda line: defects.append(line.text) if "Content Security Policy" in line.text else None)
        if before:
            page.add_init_script(before)
        page.goto(f"{address}vote/{getattr(study, 'id', study)}")
        page.wait_for_selector("#loading", state="hidden")
        return page

    def is_foreign(url):
        return not url.startswith((address, "data:"))

    yield open_page
    for context in contexts:
        context.close()
    assert defects == []


def begin(page):
    """Starts as a new rater; the code that was given."""
    page.locator("#start").click()
    page.wait_for_selector("#granted:not([hidden])")
    code = page.locator("#own-code").inner_text()
    page.locator("#begin").click()
    page.wait_for_selector(READY)
    return code


def press(page, key):
    """One answer by a key, once the pair takes one."""
    page.wait_for_selector(READY)
    page.keyboard.press(key)


def count(page, text):
    page.locator("#count", has_text=re.compile(f"^{text}$")).wait_for()


def saved(page):
    """Waits until everything is acknowledged."""
    page.wait_for_selector('body[data-unsaved="0"]')


def files(page):
    """The names of the pictures that are shown."""
    return [source.split("/")[-1] for source in page.locator(".frame img").evaluate_all("all => all.map((i) => i.src)")]


def shown_files(studies, study, number, rater=0):
    """The names of the pictures of one trial of a rater."""
    known = studies.store.pictures(study.id)
    return [known[shown].file for shown in schedule(study.plan, rater)[number].pictures]


def answers(studies, study, criterion="overall"):
    return [vote.answers[criterion] for vote in studies.store.votes(study.id)]


def test_a_whole_session_by_keys_alone(rater, studies, keep):
    study = drawn_study(studies, example_plan(prompts=8))
    page = rater(study)
    assert study.plan.title == page.locator("h1.title").first.inner_text() == page.title()
    assert f"{study.plan.num_trials} pairs" in page.locator("#task").inner_text()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "start":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    code = page.locator("#own-code")
    code.wait_for()
    assert studies.store.rater(code.inner_text()).study == study.id
    page.locator("#begin").focus()
    page.keyboard.press("Enter")
    given = [list(KEYS)[number % 4] for number in range(study.plan.num_trials)]
    for number, answer in enumerate(given):
        count(page, f"{number} of {len(given)}")
        page.wait_for_selector(READY)
        assert files(page) == shown_files(studies, study, number)
        assert page.locator("#prompt").inner_text() == study.plan.prompts[schedule(study.plan, 0)[number].prompt].text
        page.keyboard.press(KEYS[answer])
    page.locator("#end h1", has_text="Thank you").wait_for()
    assert f"All {len(given)} of your votes are stored" in page.locator("#end-text").inner_text()
    assert answers(studies, study) == given
    keep(page, "vote-end")


def test_the_next_pairs_are_there_before_they_are_needed(rater, studies):
    """Three more pairs can be judged after the server has stopped giving out pictures."""
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    for number in range(1, 4):  # asked for by now, and decoded soon
        for file in shown_files(studies, study, number):
            page.wait_for_function(FETCHED, arg=file)
    page.route("**/pictures/*", lambda route: route.abort())
    for number in range(4):
        page.wait_for_selector(READY)
        assert files(page) == shown_files(studies, study, number)
        page.keyboard.press("ArrowLeft")
    page.locator("#waiting", has_text="Fetching the pictures").wait_for()
    page.unroute("**/pictures/*")
    page.wait_for_selector(READY)
    assert files(page) == shown_files(studies, study, 4)


def test_a_phone_votes_by_touch_and_zooms_both_pictures_at_once(rater, studies, keep):
    study = drawn_study(studies, example_plan(prompts=8))
    page = rater(study, 390, 844, touch=True)
    page.locator("#start").tap()
    page.locator("#begin").tap()
    page.wait_for_selector(READY)
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [390, 844]
    boxes = [page.locator(".frame").nth(side).bounding_box() for side in (0, 1)]
    assert boxes[0]["width"] > 350 and boxes[0]["height"] > 220 and boxes[0]["width"] == boxes[1]["width"]
    assert boxes[1]["y"] > boxes[0]["y"] + boxes[0]["height"]
    assert all(button.bounding_box()["height"] >= 44 for button in page.locator("#answers button").all())

    first, second = transforms(page)
    assert first == second == [1, 0, 0]
    x, y = boxes[0]["x"] + 0.75 * boxes[0]["width"], boxes[0]["y"] + 0.5 * boxes[0]["height"]
    page.touchscreen.tap(x, y)
    page.touchscreen.tap(x, y)
    first, second = transforms(page)
    assert first == second and first[0] == 3 and first[1] == pytest.approx(-0.5 * boxes[0]["width"], rel=0.05)
    page.locator('[data-zoom="fit"]').tap()
    pinch(page, x, y, start=20, end=60)
    first, second = transforms(page)
    assert first == second and first[0] == pytest.approx(3, rel=0.1)
    keep(page, "vote-phone-zoomed")
    for number, answer in enumerate(["left", "both bad", "right", "tie"]):
        page.wait_for_selector(READY)
        page.locator(f'#answers [data-answer="{answer}"]').tap()
        count(page, f"{number + 1} of {study.plan.num_trials}")
    page.wait_for_selector(READY)
    assert transforms(page)[0] == [1, 0, 0]  # a new pair is shown whole
    saved(page)
    assert answers(studies, study) == ["left", "both bad", "right", "tie"]


def test_the_mouse_zooms_where_it_points_and_drags_both_within_their_frames(rater, studies):
    study = drawn_study(studies, example_plan(prompts=8))
    page = rater(study)
    begin(page)
    box = page.locator(".frame").first.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -800)
    page.locator("#pictures.zoomed").wait_for()  # the wheel's event comes a moment later
    first, second = transforms(page)
    assert first == second and first[0] > 2
    # The corner under the pointer stayed where it was: the shift is half of what the picture grew by.
    assert first[1] == pytest.approx(box["width"] * (first[0] - 1) / 2, rel=0.05)
    page.mouse.down()
    page.mouse.move(box["x"] + 102, box["y"] + box["height"] / 2)
    assert transforms(page)[1][1] <= box["width"] * (first[0] - 1) / 2 + 1  # not beyond its own edge
    page.mouse.move(box["x"] - 98, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert transforms(page)[0][1] == pytest.approx(box["width"] * (first[0] - 1) / 2 - 200, abs=1)
    page.keyboard.press("0")
    assert transforms(page) == [[1, 0, 0], [1, 0, 0]]
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert [scale for scale, _, _ in transforms(page)] == [3, 3]
    page.keyboard.press("-")
    page.keyboard.press("Shift+ArrowLeft")
    first, second = transforms(page)
    assert first == second and first[0] == 2 and first[1] == pytest.approx(0.1 * box["width"], rel=0.01)
    assert answers(studies, study) == []  # no zooming is a vote


def transforms(page):
    """[scale, x, y] of both pictures as they are drawn."""
    return page.locator(".frame img").evaluate_all(
        "all => all.map((i) => new DOMMatrix(getComputedStyle(i).transform)).map((m) => [m.a, m.e, m.f])"
    )


def pinch(page, x, y, start, end):
    """Two fingers around a point, from one distance to another."""
    touch = page.context.new_cdp_session(page)
    fingers = lambda apart: [{"x": x - apart / 2, "y": y, "id": 0}, {"x": x + apart / 2, "y": y, "id": 1}]  # noqa: E731
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": fingers(start)})
    for step in range(1, 11):
        apart = start + (end - start) * step / 10
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": fingers(apart)})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_rater_comes_back_on_another_device_by_the_code(rater, studies):
    study = drawn_study(studies, example_plan(prompts=8))
    page = rater(study)
    code = begin(page)
    for _ in range(3):
        press(page, "ArrowLeft")
    saved(page)
    other = rater(study, 390, 844)
    other.locator("#code").fill(code.lower().replace("-", " "))
    other.locator("#return button").click()
    other.wait_for_selector(READY)
    count(other, f"3 of {study.plan.num_trials}")
    assert files(other) == shown_files(studies, study, 3)
    assert len(studies.store.raters(study.id)) == 1
    other.locator("#help").click()
    assert code in other.locator("#keys").inner_text()  # however it was typed
    # The first device knows its code by itself.
    page.reload()
    assert code in page.locator("#known").inner_text()
    page.locator("#go-on").click()
    count(page, f"3 of {study.plan.num_trials}")


def test_codes_that_do_not_fit_are_told_apart(rater, studies):
    study = drawn_study(studies, example_plan(prompts=8))
    other = drawn_study(studies, example_plan(prompts=8, seed=1))
    stranger = studies.store.join(other.id).code
    page = rater(study)
    refusals = {"": "The code is missing", "AAAA-AAAA": "no rater with this code", stranger: "another study"}
    for code, says in refusals.items():
        page.locator("#code").fill(code)
        page.locator("#return button").click()
        page.locator("#welcome-alert", has_text=says).wait_for()
    begin(page)


def test_the_last_answer_is_taken_back_by_key_and_button_also_after_the_end(rater, studies):
    study = drawn_study(studies, example_plan(prompts=3, repeats=0, gold=0))
    page = rater(study)
    begin(page)
    assert page.locator("#undo").is_disabled()
    press(page, "ArrowLeft")
    first = shown_files(studies, study, 0)
    press(page, "u")
    count(page, "0 of 3")
    page.wait_for_selector(READY)
    assert files(page) == first and answers(studies, study) == []
    for key in ("ArrowRight", "ArrowRight"):
        press(page, key)
    count(page, "2 of 3")
    for left in (1, 0):
        page.wait_for_selector(READY)
        page.keyboard.press("Backspace")
        count(page, f"{left} of 3")
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
        press(page, key)
    page.locator("#end-undo").click()
    count(page, "2 of 3")
    page.wait_for_selector(READY)
    assert files(page) == shown_files(studies, study, 2)
    page.locator('[data-answer="right"]').click()
    page.locator("#end h1").wait_for()
    assert answers(studies, study) == ["tie", "left", "right"]


def test_votes_without_a_connection_wait_on_the_device_and_are_sent_when_it_is_back(rater, studies, keep):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    page.wait_for_load_state("networkidle")
    page.context.set_offline(True)
    for _ in range(2):
        press(page, "ArrowLeft")
    page.locator("#saved", has_text="No connection: 2 votes kept on this device").wait_for()
    page.wait_for_selector(READY)  # the next pair is there all the same
    keep(page, "vote-offline")
    assert answers(studies, study) == []
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.close(run_before_unload=True)
    page.wait_for_timeout(500)
    assert asked == ["beforeunload"] and not page.is_closed()
    page.context.set_offline(False)
    saved(page)
    page.locator("#saved", has_text="Saved").wait_for()
    press(page, "ArrowRight")
    saved(page)
    assert answers(studies, study) == ["left", "left", "right"]


def test_a_page_that_was_closed_with_votes_unsaved_sends_them_when_it_is_opened_again(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    page.route("**/vote", lambda route: route.abort() if route.request.method == "POST" else route.continue_())
    for key in ("ArrowLeft", "ArrowDown"):
        press(page, key)
    page.locator("#saved", has_text="2 votes kept").wait_for()
    page.unroute("**/vote")
    page.route("**/vote/*/vote", lambda route: route.abort())
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    page.unroute("**/vote/*/vote")
    page.locator("#go-on").click()
    count(page, f"2 of {study.plan.num_trials}")
    saved(page)
    assert answers(studies, study) == ["left", "tie"]


def test_a_vote_whose_receipt_was_lost_is_sent_again_and_counts_once(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    tickets = []

    def lose_the_receipt(route):
        tickets.append(json.loads(route.request.post_data)["ticket"])
        if len(tickets) == 1:
            route.fetch()  # the server has it
            return route.abort()
        return route.continue_()

    page.route("**/vote/*/vote", lose_the_receipt)
    press(page, "ArrowLeft")
    saved(page)
    assert len(tickets) >= 2 and len(set(tickets)) == 1
    assert answers(studies, study) == ["left"]
    press(page, "ArrowRight")
    saved(page)
    assert answers(studies, study) == ["left", "right"]


def test_a_crowded_server_is_said_and_asked_again(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    refusals = iter(range(2))
    busy = {"status": 503, "headers": {"Retry-After": "1"}, "json": {"sentence": "Many are voting at this moment."}}
    page.route("**/vote/*/vote", lambda r: r.continue_() if next(refusals, None) is None else r.fulfill(**busy))
    press(page, "ArrowLeft")
    page.locator("#saved", has_text="The server is busy: 1 vote kept").wait_for()
    saved(page)
    assert answers(studies, study) == ["left"]


def test_the_page_says_what_is_saved_here_and_what_on_the_hub(rater, studies):
    """The receipts are the server's own, but for what they say of the Hub."""
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    minute_us = 60_000_000
    states = {
        "Saved here; the Hub follows": (None, ""),
        "Saved here. The Hub does not answer.": (None, "The Hub does not answer."),
        "the last ones follow": (-minute_us, ""),
        "Saved here, and to the Hub at": (minute_us, ""),
    }

    def telling(after_us, problem):
        def tell(route):
            answer = route.fetch()
            content = answer.json()
            until_us = None if after_us is None else content["standing"]["now_us"] + after_us
            content["standing"]["hub"] = {"until_us": until_us, "problem": problem}
            route.fulfill(response=answer, json=content)

        return tell

    for says, state in states.items():
        page.route("**/vote/*/vote", telling(*state))
        press(page, "ArrowLeft")
        page.locator("#saved", has_text=says).wait_for()
        page.unroute("**/vote/*/vote")
    assert re.search(r"at \d\d:\d\d", page.locator("#saved").inner_text())


def test_a_study_that_ends_meanwhile_thanks_and_says_what_counted(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    press(page, "ArrowLeft")
    saved(page)
    studies.store.end(study.id)
    press(page, "ArrowLeft")
    page.locator("#end-text", has_text="This study has ended").wait_for()
    assert "could not be stored" in page.locator("#end-text").inner_text()
    assert "1 vote of yours is stored" in page.locator("#end-text").inner_text()
    closed = rater(study)
    assert "has ended" in closed.locator("#problem-text").inner_text()
    assert not closed.locator("#again").is_visible()  # it stays ended, however often one tries
    assert not closed.locator("#start").is_visible()
    assert "no such study" in rater("nothing-here").locator("#problem-text").inner_text()
    preparing = studies.store.create(example_plan(prompts=2, seed=77))
    assert "has not begun" in rater(preparing).locator("#problem-text").inner_text()


def test_ratings_of_several_questions_by_keys_with_a_way_back(rater, studies, keep):
    study = drawn_study(studies, example_plan(prompts=6, mode="rating", criteria=PAPER, repeats=0, gold=0))
    page = rater(study)
    begin(page)
    assert page.locator(".frame:visible").count() == 1
    for key in "14":
        press(page, key)
    assert page.locator("#question span").inner_text().startswith("Detail")
    press(page, "u")  # back to the second question
    press(page, "3")
    steps = page.locator("#steps button")
    assert [text.split(": ")[-1] for text in steps.all_inner_texts()[:2]] == ["Excellent", "Pass"]
    steps.first.click()  # any question can be answered anew
    press(page, "2")
    page.keyboard.press("r")
    assert PAPER[2].rubric[0] in page.locator("#rubric").inner_text()
    page.keyboard.press("3")  # no answer while the dialog is open
    page.keyboard.press("Escape")
    keep(page, "vote-rating")
    for key in "14":
        press(page, key)
    count(page, "1 of 12")
    saved(page)
    (vote,) = studies.store.votes(study.id)
    expected = {"alignment": "Good", "realism": "Pass", "detail": "Excellent", "aesthetics": "Fail"}
    assert vote.answers == expected


def test_a_key_held_down_and_a_double_click_are_one_answer(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    for _ in range(8):
        page.keyboard.down("ArrowLeft")
    page.keyboard.up("ArrowLeft")
    page.wait_for_selector(READY)
    page.locator('[data-answer="right"]').dblclick()
    count(page, f"2 of {study.plan.num_trials}")
    page.wait_for_timeout(500)
    saved(page)
    assert answers(studies, study) == ["left", "right"]


def test_whoever_tabs_to_a_button_presses_it_by_space_and_does_not_vote(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study)
    begin(page)
    press(page, "ArrowLeft")
    page.wait_for_selector(READY)
    while page.evaluate("document.activeElement.id") != "undo":
        page.keyboard.press("Tab")
    page.keyboard.press(" ")
    count(page, f"0 of {study.plan.num_trials}")
    page.wait_for_selector(READY)
    page.locator('[data-answer="right"]').click()
    press(page, " ")  # the mouse leaves the keyboard to the answers
    saved(page)
    assert answers(studies, study) == ["right", "both bad"]


def test_the_time_of_a_look_is_that_in_which_the_pair_was_in_sight(rater, studies):
    study = drawn_study(studies, example_plan(prompts=12))
    page = rater(study, before=HIDE)
    begin(page)
    page.evaluate("hide(true)")
    page.wait_for_timeout(3000)
    page.evaluate("hide(false)")
    page.wait_for_timeout(600)
    press(page, "ArrowLeft")
    saved(page)
    (vote,) = studies.store.votes(study.id)
    assert 0.6 <= vote.dwell_s < 3


def test_hostile_texts_are_shown_and_never_run(rater, studies):
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>{{7*7}} javascript:window.hacked=1"
    question = PAPER[0].model_copy(update={"title": evil[:150], "question": evil[:150], "rubric": (evil,)})
    plan = example_plan([evil, evil + " 2"], title=evil[:150], instructions=evil, criteria=(question,), gold=0)
    study = drawn_study(studies, plan)
    page = rater(study)
    assert page.locator("#instructions").inner_text() == evil
    begin(page)
    assert page.locator("#prompt").inner_text().startswith(evil)
    assert page.locator("#question span").inner_text() == evil[:150]
    page.keyboard.press("r")
    assert evil in page.locator("#rubric").inner_text()
    page.keyboard.press("Escape")
    press(page, "ArrowLeft")
    page.wait_for_selector(READY)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".frame img").count() == 2


SECRETS = (  # none of which a random ticket, a code or the clock can spell
    *("secretmodel", "alpha", "omega", "base-of-all", "folder:7", "hidden_setting", "very-quiet-value", "model-"),
    *("c0ffee" * 2, "spoiled", "gold", "source_sha", "studies.db"),
)


def test_nothing_of_a_whole_session_tells_a_model_or_the_kind_of_a_trial(rater, studies, options, address):
    """All requests and answers with their headers, all sources of the page, and what it leaves on the device."""
    models = [
        Model(key="folder:7", label="Secretmodel Alpha", weights_sha256="c0ffee" * 10),
        Model(key="base-of-all", label="Secretmodel Omega"),
    ]
    settings = {"hidden_setting": "very-quiet-value"}
    plan = example_plan(prompts=10, models=models, settings=settings, repeats=0.2, gold=0.15, criteria=STANDARD)
    study = drawn_study(studies, plan)
    page = rater("nothing-yet")
    traffic, pictures, sources = [], [], []

    def record(answer):
        request = answer.request
        heads = [*request.all_headers().items(), *answer.all_headers().items()]
        body = answer.body()
        if "/pictures/" in answer.url:
            pictures.append((answer.url, answer.all_headers(), body))
        traffic.append((answer.url, json.dumps([answer.url, heads, request.post_data]), body))

    finished = []
    page.on("requestfinished", lambda request: finished.append(request))
    page.goto(f"{address}vote/{study.id}")
    page.locator("#start").wait_for()
    sources.append(page.content())
    begin(page)
    for _ in range(plan.num_trials):
        for criterion in range(len(STANDARD)):
            press(page, list(KEYS.values())[criterion % 4])
        sources.append(page.content())
    page.locator("#end h1").wait_for()
    kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    sources += [page.content(), page.evaluate(kept)]
    for request in finished:
        record(request.response())
    assert sum("/vote/" in url and url.endswith("/vote") for url, _, _ in traffic) == plan.num_trials
    hashes = {picture.source_sha256 for picture in studies.store.pictures(study.id).values()}
    secrets = [*SECRETS, str(options.studies).lower(), study.sha256, *hashes]
    for url, heads, body in traffic:
        said = heads.lower() + ("" if "/pictures/" in url else body.decode().lower())
        if "/vote/files/" not in url:  # those are one and the same for every study
            assert "repeat" not in said
        assert [secret for secret in secrets if secret in said] == [], url
    assert [secret for secret in secrets for source in sources if secret in source.lower()] == []
    # One form of name and one set of headers, and nothing in a file but its pixels.
    assert len({url for url, _, _ in pictures}) >= 20
    assert all(re.fullmatch(r".*/pictures/[0-9a-f]{32}\.png", url) for url, _, _ in pictures)
    for _, heads, _ in pictures:
        del heads["content-length"], heads["date"]
    assert len({json.dumps(heads) for _, heads, _ in pictures}) == 1
    for _, _, body in pictures:
        assert not re.search(rb"tEXt|iTXt|zTXt|eXIf|iCCP|tIME", body)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
@pytest.mark.parametrize("mode", ["pairwise", "rating"])
def test_text_stands_out_and_voting_fits_the_screen(rater, studies, keep, width, height, scheme, mode):
    """Contrast of at least 4.5 : 1 on every screen; the pictures and all answers are in sight without scrolling."""
    criteria = STANDARD if mode == "pairwise" else PAPER
    text = "a very long prompt that says again and again what there is to be seen in the picture " * 6
    study = drawn_study(studies, example_plan([text, text + "2"], criteria=criteria, mode=mode, gold=0, repeats=0))
    page = rater(study, width, height, scheme, touch=width < 500)
    screens = []

    def look(name):
        keep(page, f"vote-{mode}-{width}-{scheme}-{name}")
        screens.append(page.evaluate(FAINT_TEXT))
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name

    look("welcome")
    page.locator("#start").click()
    page.locator("#own-code").wait_for()
    look("code")
    page.locator("#begin").click()
    page.wait_for_selector(READY)
    page.locator("#answers button").first.click()
    look("voting")
    assert page.evaluate("document.documentElement.scrollHeight") <= height
    for part in ("#answers button", ".frame:visible", "#undo", "#question", "#prompt"):
        for box in (found.bounding_box() for found in page.locator(part).all()):
            assert box["y"] >= 0 and box["y"] + box["height"] <= height and box["x"] + box["width"] <= width, part
    area = sum(box["width"] * box["height"] for box in (f.bounding_box() for f in page.locator(".frame:visible").all()))
    assert area > 0.4 * width * height
    page.locator("#help").click()
    look("help")
    page.keyboard.press("Escape")
    page.locator("#rubric-open").click()
    look("rubric")
    assert screens == [[]] * len(screens)
    unnamed = "all => all.filter((b) => !(b.ariaLabel || b.textContent.trim())).length"
    assert page.locator("button").evaluate_all(unnamed) == 0
    assert all(page.locator(".frame img").evaluate_all("all => all.map((image) => image.alt)"))


# A file has come over the network.
FETCHED = """(name) => performance.getEntriesByType("resource")
  .some((entry) => entry.name.endsWith(name) && entry.responseEnd)"""

# Run before the page: `hide(true)` is what a browser does when another tab comes to the front.
HIDE = """(() => {
  let hidden = false;
  Object.defineProperty(Document.prototype, "visibilityState", { get: () => (hidden ? "hidden" : "visible") });
  window.hide = (value) => { hidden = value; document.dispatchEvent(new Event("visibilitychange")); };
})()"""
