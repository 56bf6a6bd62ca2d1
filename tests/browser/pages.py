"""What a visitor does with a page, for every browser test."""


def wait_for(page, phase):
    page.wait_for_selector(f'.stage[data-phase="{phase}"]')


def set_numbers(page, **values):
    """Types numbers into their fields: `steps=2, num_seeds=3`."""
    for name, value in values.items():
        field = page.locator(f"#{name.replace('_', '-')} input[type=number]")
        field.fill(str(value))
        field.press("Tab")


def generate(page, prompt="a red ball", **numbers):
    """Asks for a comparison."""
    page.locator("#prompt textarea").fill(prompt)
    set_numbers(page, **numbers)
    page.locator("#generate").click()


def pixel_width(image):
    """The width of a picture itself, once it is there."""
    return image.evaluate("image => image.decode().then(() => image.naturalWidth)")


def settle(page):
    """Waits for every transition that ends."""
    page.evaluate("""() => Promise.all(document.getAnimations()
      .filter((animation) => Number.isFinite(animation.effect.getComputedTiming().endTime))
      .map((animation) => animation.finished))""")


def open_tab(page, name):
    """Opens a tab, from the menu behind the dots where the screen is too narrow for all."""
    tab, dots = page.get_by_role("tab", name=name, exact=True), page.locator(".overflow-menu > button")
    tab.or_(dots).first.wait_for()
    if tab.count():
        tab.click()
    else:
        dots.click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def settle_fields(page):
    """Waits until the fields of what has just opened can be typed into.

    Gradio gives them their values once more, a frame after it has drawn them for the first time: what is typed before
    that is lost.
    """
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def open_panel(page, button, first):
    """Opens a panel or a tab by its button, until `first`, a field in it, can be typed into."""
    button.click()
    first.wait_for()
    settle_fields(page)


def show_curves(page, selector):
    """Brings every chart below `selector` into sight, as nothing else is drawn, until all of them are.

    Which charts there are may change meanwhile, as when a run ends.
    """
    page.wait_for_function(
        """selector => {
          const figures = [...document.querySelectorAll(selector + " figure")];
          const blank = figures.find((figure) => !figure.querySelector(".js-plotly-plot"));
          if (blank) blank.scrollIntoView({block: "center"});
          return figures.length > 0 && !blank;
        }""",
        arg=selector,
    )
