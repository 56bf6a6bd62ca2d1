"""`python app.py --model FOLDER` over a FLUX.2 klein, as a visitor meets it."""

import pytest

from app.state import Options
from tests.app.serving import served
from tests.browser.pages import generate, pixel_width, wait_for
from tests.tiny import save_tiny_klein, tiny_klein_pipeline

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the app runs on a tiny FLUX.2 klein; stands in for the tiny FLUX.1 of the other modules."""
    import torch

    from srpo.policies.checkpoints import save_transformer

    root = tmp_path_factory.mktemp("klein")
    save_tiny_klein(root / "FLUX.2-klein-4B", is_distilled=True)
    save_transformer(tiny_klein_pipeline(seed=1).transformer, root / "tuned.safetensors", torch.float32)
    options = Options(
        model=root / "FLUX.2-klein-4B", srpo=root / "tuned.safetensors", runs=root / "runs", studies=root / "studies"
    )
    with served(options, root / "log.txt") as (address, _):
        yield address


@pytest.mark.parametrize(("width", "height", "scheme"), [(1440, 900, "light"), (390, 844, "dark")])
def test_a_pair_is_painted_and_the_page_names_the_model_its_licence_and_its_limits(
    open_page, keep, width, height, scheme
):
    page = open_page(width, height, scheme)
    generate(page, steps=4)
    wait_for(page, "done")
    place = (".side.left", ".side.right") if width > 400 else (".over .top", ".over .under")
    images = [page.locator(f"{it} img" if width > 400 else it) for it in place]
    sources = [image.get_attribute("src") for image in images]
    assert len(set(sources)) == 2 and all(pixel_width(image) == 128 for image in images)
    assert "FLUX.2-klein-4B weights: Apache-2.0." in page.locator("#terms").inner_text()
    assert "made for 4 steps, and guidance changes nothing" in page.locator("body").inner_text()
    keep(page, f"families-{width}-{scheme}")
