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
