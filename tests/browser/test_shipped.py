"""`python app.py` without any option, on the weights in assets/miniature, as a first-time visitor meets it."""

import pytest

from tests.app.serving import served
from tests.browser.pages import pixel_width, set_numbers, wait_for

pytestmark = pytest.mark.browser

# What a visitor is told and shown is the same on a desk and on a phone; a phone shows the pictures under a slider.
SCREENS = [(1440, 900, ".side.left img", ".side.right img"), (390, 844, ".over .top", ".over .under")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the app runs on what is shipped; stands in for the tiny weights of the other modules."""
    with served(None, tmp_path_factory.mktemp("shipped") / "log.txt") as (address, _):
        yield address


@pytest.mark.parametrize(("width", "height", "left", "right"), SCREENS)
def test_a_first_time_visitor_sees_two_pictures_and_their_scores(open_page, keep, width, height, left, right):
    page = open_page(width, height)
    assert "SRPO fine-tunes FLUX on human preference" in page.locator("#masthead").inner_text()
    told = "left side mostly paints or draws, the right side mostly looks like a photo"
    assert told in page.locator(".empty").inner_text()
    assert "8 things (ball, cube," in page.locator("#world").inner_text()
    assert "Apache-2.0" in page.locator("#terms").inner_text() and "Tencent" not in page.locator("#terms").inner_text()

    example = page.locator("#examples button").first
    example.click()
    wait_for(page, "done")
    first = page.locator(left).get_attribute("src")
    set_numbers(page, seed=8)
    page.locator("#generate").click()
    page.wait_for_selector(".facts:has-text('seed 8')")
    wait_for(page, "done")

    sources = [page.locator(side).get_attribute("src") for side in (left, right)]
    assert len({first, *sources}) == 3
    for side in (left, right):
        picture = page.locator(side)
        assert pixel_width(picture) == 128
        assert picture.bounding_box()["width"] > 250
        assert example.inner_text() in picture.get_attribute("alt")
    heads = page.locator(".scores thead th").all_inner_texts()
    assert heads == ["Score", "FLUX miniature", "SRPO miniature", "right − left"]
    assert page.locator(".scores tbody tr").count() == 7
    assert not page.locator(".scores-note").is_visible()
    share = page.locator(".scores tr", has_text="Judged photo").locator("td").all_inner_texts()
    assert share[0].endswith(" %") and share[2].endswith(" points")

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    keep(page, f"shipped-{width}-light")
    page.locator("#theme-switch").click()
    keep(page, f"shipped-{width}-dark")
