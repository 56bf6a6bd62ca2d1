"""Settings and models that all tests share."""

import os
import shutil
import tempfile

# Before torch is imported: parallel processes with several threads each slow one another down many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may look anything up
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# The locks of devices: no test may wait for a run of the person at this machine, nor make that one wait.
os.environ["SRPO_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="srpo-locks-")
# Of several test processes each looks for free ports among its own.
os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))

import pytest  # the models are imported where a fixture makes them: most tests start without diffusers

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture
def pipe():
    """A tiny random FluxPipeline, new for every test that asks for one."""
    from tests.tiny import tiny_flux_pipeline

    return tiny_flux_pipeline()


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory):
    """A folder with the tiny pipeline; tests read it and leave it as it is."""
    from tests.tiny import save_tiny_flux

    return save_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder with the tiny CLIP; tests read it and leave it as it is."""
    from tests.tiny import tiny_clip

    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder)
    return folder


@pytest.fixture(scope="session")
def chromium():
    """Headless Chromium: one for all tests, as one thread can drive one Playwright only."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()
