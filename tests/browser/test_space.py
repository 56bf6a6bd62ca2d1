"""What a hosted page adds: owners, who see what others do not, and runs that the app trains itself."""

import pytest

from tests.app.serving import PATIENCE_S, ROOT, served
from tests.app.signing_in import HEADER, PROGRAM
from tests.browser.pages import open_tab
from tests.browser.test_finetune import begin, open_form, points, wait_for, wait_for_update

pytestmark = pytest.mark.browser


@pytest.fixture
def address(request, options, tmp_path):
    """Where the app runs that the test asks for: "in-process", or "owned" as a Space with a login."""
    words, environment = ("app.py", "--train", "in-process"), {}
    if request.param == "owned":
        words = ("-c", PROGRAM)
        environment = {"SPACE_ID": "ada/studio", "SPACE_AUTHOR_NAME": "ada", "OAUTH_CLIENT_ID": "id"}
        environment["TESTS_ROOT"] = str(ROOT)
    with served(options, tmp_path / "log.txt", words, **environment) as (address, _):
        yield address


@pytest.mark.parametrize("address", ["in-process"], indirect=True)
def test_a_run_of_the_app_itself_starts_grows_stops_and_goes_on(open_page, keep):
    page = open_page(1440, 1200)
    open_form(page)
    assert page.locator("#measure").count() == 0 or not page.locator("#measure").is_visible()
    begin(page, "in-here", 3000, every=0)
    wait_for(page, "running")
    wait_for_update(page, 3)
    page.wait_for_selector('#curves .curves:not([data-drawn="0"])')
    grown = len(points(page))
    wait_for_update(page, grown + 3)
    keep(page, "space-in-process")
    page.locator("#stop-run").click()
    wait_for(page, "stopped")
    stopped_at = int(page.locator(".run-head").get_attribute("data-update"))
    page.locator("#resume:not([disabled])").click()
    wait_for_update(page, stopped_at + 2)
    updates = points(page)
    assert updates == list(range(1, len(updates) + 1))
    page.locator("#stop-run:not([disabled])").click()
    wait_for(page, "stopped")


@pytest.mark.parametrize("address", ["owned"], indirect=True)
def test_owners_see_their_tabs_and_nobody_else_does(open_page, keep):
    page = open_page()
    page.wait_for_timeout(1000)
    assert page.get_by_role("tab", name="Fine-tune").count() == 0
    assert page.get_by_role("tab", name="Studies").count() == 0
    for name in ("Recoveries", "Control words", "Guide", "Compare"):  # what listens to tabs says nothing to others
        open_tab(page, name)
    page.wait_for_timeout(500)
    assert page.locator(".toast-body").count() == 0
    keep(page, "space-visitor")
    page.context.set_extra_http_headers({HEADER: "ada"})
    visitor, page = page, page.context.new_page()
    page.set_default_timeout(1000 * PATIENCE_S)
    page.goto(visitor.url)
    page.get_by_role("tab", name="Studies").wait_for()
    open_form(page)
    keep(page, "space-owner")
    begin(page, "of-ada", 2, every=0)
    wait_for(page, "finished")
