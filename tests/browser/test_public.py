"""A page that anyone may open, as a visitor meets its limits and the end of its hour."""

import re

import pytest

from tests.app.serving import served
from tests.browser.pages import generate, wait_for

pytestmark = pytest.mark.browser

# The app as it is, but for an hour that is spent with the first pair.
SHORT_HOUR = """
import runpy, sys
from app.services import studio
from app.services.public import Budget
studio.Budget = lambda *known: Budget(*known, shared_s=0.01)
sys.argv = ["app.py", "--public", *sys.argv[1:]]
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture
def address(options, tmp_path):
    """Where a public app runs; stands in for the one at home."""
    with served(options, tmp_path / "log.txt", ("-c", SHORT_HOUR)) as (address, _):
        yield address


@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_a_visitor_is_told_the_limits_and_when_there_is_more(open_page, keep, width, height, scheme):
    page = open_page(width, height, scheme)
    assert "up to 128 × 128 pixels, 40 steps and 24 pictures at once" in page.locator("#limits").inner_text()
    assert page.get_by_role("tab", name="Fine-tune").count() == 0
    banner = page.locator(".stage .banner")

    generate(page, width=144, height=32, steps=2)
    wait_for(page, "error")
    assert banner.inner_text() == "This public page gives at most 128 pixels per side, not 144: ask for less."

    generate(page, width=32, height=32, steps=2)
    wait_for(page, "done")
    first = page.locator(".stage img").first.get_attribute("src")
    generate(page, seed=4)
    wait_for(page, "error")
    assert re.search(r"are spent for this hour: there is more at \d\d:\d\d UTC\.$", banner.inner_text())
    assert page.locator(".stage img").first.get_attribute("src") == first  # what was painted stays
    assert page.locator("#generate").is_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    keep(page, f"public-{width}-{scheme}")
