"""The Control words tab as a visitor uses it, on tiny weights."""

import json

import pytest
import yaml

from srpo.objectives.levels import net_weight_curve
from srpo.rewards.control_words import Discounts
from srpo.training.presets import direct, paper, paper_pickscore, studio
from tests.browser.pages import open_tab, pixel_width, settle
from tests.browser.test_compare import FAINT_TEXT

pytestmark = pytest.mark.browser

RECIPES = {"Ours": studio, "Paper, HPSv2.1": paper, "Paper, PickScore": paper_pickscore, "Later trainer": direct}


def open_words(page):
    open_tab(page, "Control words")
    page.wait_for_selector('.words-editor[data-ready="true"]')
    page.wait_for_selector("#words-checked .note")


def said(page, text):
    page.wait_for_selector(f"#words-checked .note:has-text({json.dumps(text)})")


def chip(page, word):
    return page.locator(".chip").filter(has=page.get_by_text(word, exact=True))


def words(page, side):
    return page.locator(f'[data-side="{side}"] .chip label').all_inner_texts()


def curve(page):
    """(noise levels, net weights) that the page draws."""
    data = page.locator(".weight-curve").evaluate("curve => [curve.dataset.sigma, curve.dataset.weights]")
    return [json.loads(part) for part in data]


def set_slider(page, name, value):
    field = page.locator(f"#{name} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def open_file(page, file):
    with page.expect_file_chooser() as chooser:
        page.locator("#words-upload").click()
    chooser.value.set_files(file)


def at(sigmas, weights, sigma):
    """The weight at a noise level, straight between two points of the curve."""
    above = next(place for place, level in enumerate(sigmas) if level >= sigma)
    share = (sigma - sigmas[above - 1]) / (sigmas[above] - sigmas[above - 1])
    return weights[above - 1] + share * (weights[above] - weights[above - 1])


def test_the_curve_is_the_librarys_and_has_the_methods_three_points(open_page):
    page = open_page()
    open_words(page)
    for label, preset in RECIPES.items():
        page.locator(".recipes button", has_text=label).click()
        config = preset()
        sigmas, weights = curve(page)
        discounts, inversion = config.signal.discounts, config.objective.inversion
        expected = net_weight_curve(config.objective.levels, discounts, len(sigmas), inversion=inversion)
        assert sigmas == pytest.approx(expected[0].tolist(), abs=1e-6)
        assert weights == pytest.approx(expected[1].tolist(), abs=1e-6), label
        shown = [page.locator(f".ends input[data-end='{end}']").first.input_value() for end in (0, 1)]
        assert [float(end) for end in shown] == list(discounts.positive)
    for label, points in (
        ("Paper, HPSv2.1", ((0.7511, -0.199), (0.8613, 0.0), (0.9632, 0.237))),
        ("Paper, PickScore", ((0.6682, -0.497), (0.8345, 0.0), (0.9627, 0.483))),
    ):
        page.locator(".recipes button", has_text=label).click()
        sigmas, weights = curve(page)
        assert (weights[0], weights[-1]) == pytest.approx((points[0][1], points[2][1]), abs=1e-3)
        assert (sigmas[0], sigmas[-1]) == pytest.approx((points[0][0], points[2][0]), abs=1e-3)
        assert at(sigmas, weights, points[1][0]) == pytest.approx(0.0, abs=2e-3)


def test_the_ends_follow_the_pointer_the_keys_and_the_typed_number(open_page):
    page = open_page()
    open_words(page)
    page.locator(".recipes button", has_text="Paper, HPSv2.1").click()
    handle = page.locator('[data-handle="k_positive1"]')
    before = curve(page)[1]
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 60, steps=5)
    dragged = curve(page)[1]
    page.mouse.up()
    field = page.locator('.ends input[data-line="k_positive"][data-end="1"]')
    raised = float(field.input_value())
    assert raised > 0.3 and dragged[-1] > before[-1] and dragged[0] == pytest.approx(before[0], abs=2e-2)
    page.locator('[data-handle="k_positive1"]').focus()
    page.keyboard.press("ArrowUp")
    assert float(field.input_value()) == pytest.approx(raised + 0.01)
    field.fill("0.5")
    levels = paper().objective.levels
    expected = net_weight_curve(levels, Discounts((0.1, 0.5), (0.3, 0.01)), len(before))[1]
    assert curve(page)[1] == pytest.approx(expected.tolist(), abs=1e-6)
    field.fill("")
    said(page, "K_positive is None: expected a number.")
    field.fill("99")
    said(page, "K_positive ends at 99")
    field.fill("0.25")
    said(page, "Each update takes the next word")


def test_words_are_added_weighed_moved_switched_off_and_shared(open_page, tmp_path, keep):
    page = open_page()
    open_words(page)
    assert words(page, "positive") == ["Natural-lighting", "Detail", "Detailed", "Real"]
    page.get_by_label("A further positive word").fill("Photo")
    page.keyboard.press("Enter")
    chip(page, "Photo").locator(".weight").fill("3")
    page.keyboard.press("Tab")
    said(page, "Turns in 20 updates, positive: Natural-lighting 3, Detail 3, Detailed 3, Real 3, Photo 8.")
    page.get_by_label("Earlier turn for Photo", exact=True).click()
    assert words(page, "positive")[3:] == ["Photo", "Real"]
    page.get_by_label("Detail takes part", exact=True).uncheck()
    page.get_by_label("Remove Concept art", exact=True).click()
    said(page, "Photo 9")
    page.get_by_label("A further negative word").fill("real")
    page.keyboard.press("Enter")
    said(page, "The word 'real' is on both sides: take one of them out.")
    assert page.locator("#words-download a").count() == 0
    page.get_by_label("Remove real", exact=True).click()
    page.locator(".words-editor .template").fill("{prompt}")
    said(page, "must contain {word} and {prompt}, once each")
    page.locator(".words-editor .template").fill("{prompt}, {word}")
    page.locator(".words-editor .set-name").fill("Shared one")
    page.wait_for_selector('#words-download a[download="shared-one.yaml"]')
    with page.expect_download() as download:
        page.locator("#words-download a").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    text = file.read_text(encoding="utf-8")
    raw = yaml.safe_load(text)
    assert raw["positive"] == [
        "Natural-lighting", {"word": "Detail", "enabled": False}, "Detailed", {"word": "Photo", "weight": 3.0}, "Real"
    ]  # fmt: skip
    assert raw["negative"] == ["Painting", "Anime", "Flat", "Oil"] and raw["template"] == "{prompt}, {word}"
    page.locator("#words-save").click()
    page.wait_for_selector("#words-note .ready:has-text('Shared one is saved')")
    assert page.locator("#word-sets input").input_value() == "Shared one (saved)"
    keep(page, "words-edited")

    other = open_page()
    open_words(other)
    open_file(other, file)
    other.wait_for_selector("#words-note .ready:has-text('Shared one is read from the file')")
    assert words(other, "positive") == words(page, "positive")
    assert not other.get_by_label("Detail takes part", exact=True).is_checked()
    file.write_text("a: &a [x]\nb: [*a, *a]\npositive: [Real]\nnegative: [Oil]")
    open_file(other, file)
    other.wait_for_selector("#words-note .failed:has-text('aliases')")
    assert words(other, "positive") == words(page, "positive")
    other.locator("#word-sets input").click()
    other.get_by_role("option", name="Comic").click()
    other.wait_for_selector("#words-note .ready:has-text('Comic is loaded')")
    assert words(other, "negative") == ["Photo", "Realistic"]


def test_what_the_reward_sees_is_painted_scored_and_looked_at(open_page, keep):
    page = open_page(1440, 1200)
    open_words(page)
    set_slider(page, "see-seeds", 2)
    set_slider(page, "see-steps", 2)
    page.locator("#see-prompts textarea").fill("a red ball")
    page.wait_for_selector("#see-go:has-text('Paint and score 2 pictures')")
    page.locator("#see-go").click()
    page.wait_for_selector('.words-table[data-phase="done"]')
    page.wait_for_selector("#see-go:not([disabled])")
    assert page.locator(".words-table .strip button").count() == 2
    assert pixel_width(page.locator(".words-one img")) == 128
    rows = page.locator(".words-bars tbody tr")
    assert rows.count() == 9
    difference = [float(text.replace("−", "-")) for text in rows.locator("td.strong").all_inner_texts()]
    ranks = [int(text) for text in rows.locator("td:last-child").all_inner_texts()]
    order = sorted(range(9), key=lambda place: -difference[place])
    assert [difference[ranks.index(rank)] for rank in range(1, 10)] == [difference[place] for place in order]
    assert page.locator(".words-heat tbody tr").count() == 2 and page.locator(".words-heat tbody td").count() == 18

    first = page.locator(".words-one img").get_attribute("src")
    page.locator(".words-heat tbody tr").nth(1).locator("button").click()
    assert page.locator(".words-one img").get_attribute("src") != first
    page.locator('[data-show="rank"]').click()
    assert sorted(page.locator(".words-heat tbody tr").first.locator("td").all_inner_texts()) == list("123456789")

    forms = page.locator(".words-forms tbody tr")
    assert forms.locator("th").all_inner_texts() == [
        "Plain", "SGP", "SRP", "CFG-like, published code", "CFG-like, paper", "Relative to noise"
    ]  # fmt: skip
    before = forms.locator("td.strong").all_inner_texts()
    page.locator(".words-forms .minus").select_option("Oil")
    after = forms.locator("td.strong").all_inner_texts()
    assert before[1] == after[1] and before[2] != after[2]  # SGP does not see the negative word, SRP does
    keep(page, "words-seen")

    page.locator("#see-prompts textarea").fill("")
    page.locator("#see-go").click()
    page.wait_for_selector(".words-table .banner:has-text('There is no prompt')")
    assert page.locator(".words-table .strip button").count() == 2  # what is shown stays


def test_own_pictures_are_scored(open_page, tmp_path):
    from PIL import Image

    page = open_page()
    open_words(page)
    for number in range(2):
        Image.new("RGB", (90, 70), (250, 40, 100 * number)).save(tmp_path / f"own-{number}.png")
    page.locator("#see-files input[type=file]").set_input_files([tmp_path / f"own-{n}.png" for n in range(2)])
    page.locator("#see-prompts textarea").fill("a red ball")
    page.wait_for_selector("#see-go:has-text('Score 2 pictures')")
    page.locator("#see-go").click()
    page.wait_for_selector('.words-table[data-phase="done"]')
    assert page.locator(".words-table .strip span").all_inner_texts() == ["own-0.png", "own-1.png"]


def test_words_are_checked_and_the_check_can_be_stopped(open_page, keep):
    page = open_page(1440, 1200)
    open_words(page)
    set_slider(page, "check-per-word", 32)
    set_slider(page, "check-steps", 60)
    page.locator("#check-go:has-text('Paint 416 pictures and check')").click()
    page.wait_for_selector('.words-verdicts[data-phase="running"]')
    page.locator("#check-stop").click()
    page.wait_for_selector('.words-verdicts[data-phase="stopped"]')
    page.wait_for_selector("#check-go:not([disabled])")

    set_slider(page, "check-per-word", 8)
    set_slider(page, "check-steps", 1)
    page.locator("#check-others textarea, #check-others input").first.fill("Dark")
    page.locator("#check-go:has-text('Paint 88 pictures and check')").click()
    page.wait_for_selector('.words-verdicts[data-phase="done"]')
    assert page.locator(".verdicts tbody tr").count() == 11  # ten words, and none
    kinds = page.locator(".verdicts tr[data-kind] .pill").all_inner_texts()
    assert len(kinds) == 10 and all(kind.startswith(("perceived", "entangled with", "weak")) for kind in kinds)
    assert page.locator(".verdicts img").count() == 33
    assert page.locator(".matrix tbody td").count() == 100
    page.locator('[data-matrix="told_apart"]').click()
    assert "0.5 means" in page.locator(".matrix-note").inner_text()
    keep(page, "words-checked")


def test_a_set_goes_to_fine_tune_with_all_that_a_run_needs_of_it(open_page, keep):
    page = open_page()
    page.wait_for_function("document.querySelector('#preset input')?.value !== ''")
    open_words(page)
    page.locator(".recipes button", has_text="Paper, PickScore").click()
    chip(page, "Real").locator(".weight").fill("2")
    page.keyboard.press("Tab")
    said(page, "Turns in 20")
    page.locator("#words-send").click()
    page.wait_for_selector("#positive textarea:visible")
    page.wait_for_function("document.querySelector('#positive textarea').value.includes('Natural-lighting')")
    assert page.locator("#positive textarea").input_value().splitlines()[-1] == "Real"
    assert page.locator("#negative textarea").input_value().splitlines()[0] == "Concept art"
    page.locator("#more-panel > button").click()
    page.wait_for_selector("#more textarea:visible")
    lines = page.locator("#more textarea").input_value().splitlines()
    for line in (
        "signal.words.positive_weights=[1.0, 1.0, 1.0, 2.0]",
        "signal.discounts.negative=[0.6, 0.01]",
        'objective.levels.kind="table"',
        "objective.levels.cleanest_step=30",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith("objective.levels.d_sigma")]
    assert len({line.partition("=")[0] for line in lines}) == len(lines)
    keep(page, "words-sent")


def test_a_short_run_says_what_is_wrong_and_can_be_stopped(open_page):
    page = open_page()
    open_words(page)
    page.locator("#preview-prompts textarea").fill("")
    page.locator("#preview-go").click()
    page.wait_for_selector("#preview-note .failed:has-text('one to 4 prompts')")
    page.locator("#preview-prompts textarea").fill("a red ball")
    page.locator("#preview-go").click()
    page.wait_for_selector("#preview-film .film-strip img", state="attached")
    page.locator("#preview-stop:not([disabled])").click()
    page.wait_for_selector("#preview-note .ready:has-text('Stopped.')")
    page.wait_for_selector("#preview-go:not([disabled])")
    assert pixel_width(page.locator("#preview-film .first img")) == 128


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 1000), (390, 844)])
def test_text_stands_out_and_nothing_is_wider_than_the_screen(open_page, keep, width, height, scheme):
    page = open_page(width, height, scheme)
    open_words(page)
    set_slider(page, "see-steps", 1)
    page.locator("#see-go").click()
    page.wait_for_selector('.words-table[data-phase="done"]')
    set_slider(page, "check-per-word", 8)
    set_slider(page, "check-steps", 1)
    page.locator("#check-go").click()
    page.wait_for_selector('.words-verdicts[data-phase="done"]')
    settle(page)
    keep(page, f"words-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT_TEXT) == []
