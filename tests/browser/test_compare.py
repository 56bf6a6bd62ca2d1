"""The Compare tab as a visitor uses it, with real generations on tiny models."""

import io
import re

import pytest
from PIL import Image

from tests.browser.pages import generate, open_panel, pixel_width, set_numbers, settle, wait_for

pytestmark = pytest.mark.browser


def open_grid(page, lines):
    """Opens the grid and types its prompts."""
    prompts = page.locator("#grid-prompts textarea")
    open_panel(page, page.locator("#grid-panel > button"), prompts)
    prompts.fill(lines)


def pictures(page):
    """The addresses of the two pictures side by side."""
    return [page.locator(f".side.{place} img").get_attribute("src") for place in ("left", "right")]


def test_one_click_on_an_example_puts_two_pictures_on_the_stage(open_page, keep):
    page = open_page()
    assert page.locator("h1").inner_text() == "SRPO Studio"
    example = page.locator("#examples button").first
    page.evaluate(WATCH)
    example.click()
    wait_for(page, "done")
    previews, notes = page.evaluate("[[...window.previews], [...window.notes]]")
    assert len(previews) > 5
    assert any(re.fullmatch(r"Step \d+ of 28 · \d+ (s|min) left", note) for note in notes)
    assert page.locator("#prompt textarea").input_value() == example.inner_text()
    left, right = pictures(page)
    assert left != right
    for place in ("left", "right"):
        image = page.locator(f".side.{place} img")
        assert example.inner_text() in image.get_attribute("alt")
        assert pixel_width(image) == 128
        assert image.bounding_box()["width"] > 250
    assert page.locator(".scores tbody tr").count() == 7
    keep(page, "compare")


def test_seeds_slider_flip_and_difference(open_page, keep):
    page = open_page()
    generate(page, num_seeds=3, steps=2)
    wait_for(page, "done")
    seeds = page.locator(".strip button")
    assert seeds.all_inner_texts() == ["seed 0", "seed 1", "seed 2"]
    last = pictures(page)
    seeds.first.click()
    first = pictures(page)
    assert set(first).isdisjoint(last)
    page.locator("#masthead h1").click()
    page.keyboard.press("f")
    assert pictures(page) == first[::-1]
    assert page.locator(".side.left .name").inner_text() == "SRPO"
    page.keyboard.press("F")
    assert pictures(page) == first
    page.keyboard.press("2")
    handle = page.locator(".over input")
    handle.focus()
    for _ in range(25):
        handle.press("ArrowLeft")
    assert page.locator(".over .top").evaluate("image => getComputedStyle(image).clipPath") == "inset(0px 75% 0px 0px)"
    page.keyboard.press("3")
    page.locator(".map img").wait_for()
    keep(page, "difference")
    table = page.locator(".scores").inner_text()
    assert "mean of 3 seeds" in table and re.search(r"[+−]0\.\d{4}", table) and re.search(r"[+−]\d+\.\d points", table)
    assert not page.locator("#world").count()  # the tiny weights know nothing


def test_keys_typed_into_the_prompt_are_text(open_page):
    page = open_page()
    prompt = page.locator("#prompt textarea")
    prompt.press_sequentially("f1 2f3")
    assert prompt.input_value() == "f1 2f3"
    assert page.locator(".stage").get_attribute("data-mode") == "side"
    assert page.locator(".flip").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("key", ["Control+Enter", "Meta+Enter"])
def test_the_keyboard_generates_with_what_is_being_typed(open_page, key):
    page = open_page()
    set_numbers(page, steps=1)
    page.locator("#seed input").fill("41")
    page.locator("#prompt textarea").press_sequentially("a blue boat")
    page.keyboard.press(key)
    wait_for(page, "done")
    assert "a blue boat" in page.locator(".facts").inner_text()
    assert "seed 41" in page.locator(".facts").inner_text()
    assert page.locator("#prompt textarea").input_value() == "a blue boat"


def test_the_keyboard_draws_the_grid_from_inside_it(open_page):
    page = open_page()
    set_numbers(page, steps=1)
    open_grid(page, "a red ball")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector('.grid-table[data-phase="done"]')
    assert page.locator("#grid-table img").count() == 4
    assert page.locator(".stage").get_attribute("data-phase") == "idle"


LONG = {"steps": 100, "num_seeds": 16, "width": 512, "height": 512}


def test_stop_ends_a_long_run(open_page):
    page = open_page()
    generate(page, **LONG)
    page.wait_for_selector(".stage.live")
    page.locator("#stop").click()
    wait_for(page, "stopped")
    page.wait_for_selector("#generate:not([disabled])")


def test_a_closed_page_does_not_keep_the_device(open_page):
    page = open_page()
    generate(page, **LONG)
    page.locator(".stage-note", has_text="left").wait_for()
    number, unit = re.search(r"(\d+) (s|min) left", page.locator(".stage-note").inner_text()).groups()
    left_s = int(number) * (60 if unit == "min" else 1)
    page.close()
    other = open_page()
    generate(other, steps=1)
    other.wait_for_selector('.stage[data-phase="done"]', timeout=1000 * left_s / 2)


def test_bad_input_says_one_sentence_and_loses_nothing(open_page, keep):
    page = open_page()
    generate(page, steps=1)
    wait_for(page, "done")
    before = pictures(page)
    generate(page, width=100)
    wait_for(page, "error")
    assert page.locator(".stage .banner").inner_text() == "Width must be a multiple of 16, not 100: 96 or 112 would do."
    assert pictures(page) == before
    assert page.locator("#width input").input_value() == "100"
    assert page.locator("#prompt textarea").input_value() == "a red ball"
    keep(page, "bad-input")
    generate(page, width=96)
    wait_for(page, "done")
    assert not page.locator(".stage .banner").is_visible()


def test_a_saved_picture_dropped_on_another_page_restores_it(open_page, tmp_path):
    page = open_page()
    generate(page, "ein roter Ball, 赤", steps=2, seed=123)
    wait_for(page, "done")
    with page.expect_download() as download:
        page.locator(".saves a", has_text="SRPO").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == "ein-roter-ball_seed-123_srpo.png"
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert "Distilled CFG Scale: 3.5" in image.text["parameters"]

    other = open_page()
    other.locator("#dropped input[type=file]").set_input_files(path)
    other.wait_for_selector("#restored .ready")
    assert other.locator("#prompt textarea").input_value() == "ein roter Ball, 赤"
    assert other.locator("#seed input").input_value() == "123"
    assert other.locator("#steps input[type=number]").input_value() == "2"

    (tmp_path / "notes.txt").write_text("not a picture")
    other.locator("#dropped input[type=file]").set_input_files(tmp_path / "notes.txt")
    other.wait_for_selector("#restored .failed")
    assert "not a PNG picture" in other.locator("#restored").inner_text()
    assert other.locator("#prompt textarea").input_value() == "ein roter Ball, 赤"


def test_a_grid_fills_and_its_sheet_can_be_saved(open_page, tmp_path, keep):
    page = open_page()
    set_numbers(page, steps=2)
    open_grid(page, "a red ball\na tree")
    page.locator("#draw", has_text="Draw 8 pictures").click()
    page.wait_for_selector('.grid-table[data-phase="done"]')
    assert page.locator("#grid-table img").count() == 8
    with page.expect_download() as download:
        page.locator("#sheet").click()
    with Image.open(download.value.path()) as sheet:
        assert sheet.height > 4 * 256
    keep(page, "grid")


def test_what_is_asked_while_an_earlier_answer_is_ending_is_answered(open_page):
    page = open_page(before=HOLD_END)
    generate(page, steps=1)
    page.wait_for_function("Boolean(window.release)")
    open_grid(page, "a red ball\na tree")
    page.locator("#draw", has_text="Draw 8 pictures").wait_for()
    page.wait_for_selector("#generate:not([disabled])")
    page.evaluate("window.release()")


def test_the_buttons_keep_up_with_changes_that_overtake_their_answers(open_page):
    page = open_page(before=SLOW)
    open_panel(page, page.locator("#grid-panel > button"), page.locator("#grid-seeds input[type=number]"))
    for number in (5, 6, 7):
        set_numbers(page, num_seeds=number, grid_seeds=number)
    page.locator("#generate", has_text="Generate 7 pairs").wait_for()
    page.locator("#draw", has_text="Draw 42 pictures").wait_for()


def test_a_click_is_not_lost_the_moment_the_button_comes_back(open_page):
    page = open_page()
    page.evaluate(CLICK_AT_ONCE)
    generate(page, steps=1)
    page.wait_for_function("window.ends === 2")


def test_the_models_being_ready_does_not_bring_back_the_count_of_an_earlier_prompt(open_page):
    open_page().wait_for_selector("#status .ready")
    page = open_page(before=HOLD_STATUS)
    page.wait_for_function("Boolean(window.release)")
    page.locator("#prompt textarea").fill("a red ball")
    count = page.locator("#tokens", has_text="of 512 tokens")
    count.wait_for()
    page.evaluate("window.release()")
    page.wait_for_selector("#status .ready")
    assert count.is_visible()


def choose_memory(page, label, mode):
    """Picks a memory mode and waits until the models are there in it."""
    page.locator("#memory input").click()
    page.get_by_role("option", name=label).click()
    page.locator("#arranged", has_text=f"Memory: {mode}").wait_for()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_the_memory_mode_is_told_with_its_reason_and_can_be_changed(open_page, keep, width, height, scheme):
    page = open_page(width, height, scheme)
    page.wait_for_selector("#status .ready")
    open_panel(page, page.locator("#memory-panel > button"), page.locator("#memory input"))
    told = page.locator("#arranged")
    told.filter(has_text="Memory: resident. Two transformers, text encoders and VAE fit:").wait_for()
    try:
        choose_memory(page, "Layer by layer", "offload. It was asked for;")
        page.wait_for_selector("#status .ready")
        settle(page)
        keep(page, f"memory-{width}-{scheme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(FAINT_TEXT) == []
        generate(page, steps=2)
        wait_for(page, "done")
        choose_memory(page, "Rounded to 8 or 4 bits", "quantized (Q8_0)")
        page.locator("#generate").click()
        page.locator(".stage", has_text="With --memory quantized all weights are rounded").wait_for()
    finally:  # the app is the other tests' too
        choose_memory(page, "Automatic", "resident. Two transformers")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_text_stands_out_and_nothing_is_wider_than_the_screen(open_page, keep, width, height, scheme):
    """Contrast of at least 4.5 : 1 (WCAG AA) for every piece of text that is not part of a disabled control."""
    page = open_page(width, height, scheme)
    generate(page, steps=2)
    wait_for(page, "done")
    page.locator("#grid-panel > button").click()
    settle(page)
    keep(page, f"compare-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(FAINT_TEXT) == []


# Notes what passes by faster than a test can look: the previews of the left side, and the lines above the pictures.
WATCH = """() => {
  window.previews = new Set(); window.notes = new Set();
  const observer = new MutationObserver(() => {
    const source = document.querySelector(".side.left img").getAttribute("src") || "";
    if (source.startsWith("data:image/png")) window.previews.add(source);
    window.notes.add(document.querySelector(".stage-note").textContent);
  });
  observer.observe(document.querySelector(".stage"), { subtree: true, childList: true, attributes: true });
}"""

# Run before the page: the word that ends a stream of answers, which Gradio sends behind the last of them, is kept until
# a test calls `release()`.
HOLD_END = """(() => {
  const fetch = window.fetch.bind(window);
  const [decoder, encoder] = [new TextDecoder(), new TextEncoder()];
  const late = () => new TransformStream({
    async transform(chunk, out) {
      const text = decoder.decode(chunk), end = text.indexOf('data: {"msg":"close_stream"');
      if (end < 0) return out.enqueue(chunk);
      out.enqueue(encoder.encode(text.slice(0, end)));
      await new Promise((go) => { window.release = go; });
      out.enqueue(encoder.encode(text.slice(end)));
    },
  });
  window.fetch = async (...request) => {
    const answer = await fetch(...request);
    if (!answer.url.includes("/queue/data")) return answer;
    return new Response(answer.body.pipeThrough(late()), { headers: answer.headers });
  };
})()"""

# Run before the page: every question to the server leaves late.
SLOW = """(() => {
  const fetch = window.fetch.bind(window);
  window.fetch = async (...request) => {
    await new Promise((go) => setTimeout(go, 1000));
    return fetch(...request);
  };
})()"""

# Run before the page: the first answer about the models is kept until a test calls `release()`.
HOLD_STATUS = """(() => {
  const fetch = window.fetch.bind(window);
  let first = true;
  window.fetch = async (address, options) => {
    const answer = await fetch(address, options);
    const asked = options && typeof options.body === "string" ? JSON.parse(options.body).fn_index : null;
    const status = asked !== null && window.gradio_config.dependencies.find((event) => event.api_name === "status");
    if (first && status && asked === status.id) {
      first = false;
      await new Promise((go) => { window.release = go; });
    }
    return answer;
  };
})()"""

# Clicks Generate again in the very moment it can be clicked; `ends` counts how often it came back.
CLICK_AT_ONCE = """() => {
  const button = document.querySelector("#generate");
  let busy = false;
  window.ends = 0;
  new MutationObserver(() => {
    if (busy && !button.disabled && ++window.ends === 1) button.click();
    busy = button.disabled;
  }).observe(button, { attributeFilter: ["disabled"] });
}"""

# Text nodes with a contrast below 4.5 against the nearest opaque background behind them.
FAINT_TEXT = """() => {
  const parse = (text) => {
    const part = text.match(/[\\d.]+/g).map(Number);
    return { rgb: part.slice(0, 3), alpha: part.length > 3 ? part[3] : 1 };
  };
  const luminance = ({ rgb }) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.alpha > 0.95) return colour;
    }
    return { rgb: [255, 255, 255] };
  };
  const faint = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    const box = node.getBoundingClientRect();
    if (!text || box.width < 2 || box.height < 2 || !node.checkVisibility({ opacityProperty: true })) continue;
    if (["SCRIPT", "STYLE"].includes(node.tagName) || node.closest("button:disabled, .sr-only")) continue;
    const style = getComputedStyle(node);
    if (parseFloat(style.fontSize) < 2) continue;
    const [a, b] = [luminance(parse(style.color)), luminance(behind(node))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) faint.push([text.slice(0, 40), contrast.toFixed(2), style.color, node.tagName].join(" | "));
  }
  return faint;
}"""
