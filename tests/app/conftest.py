"""A whole studio on tiny random models, laid out on disk as the real ones are."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from app.services.studio import Studio
from tests.app.serving import make_options


@pytest.fixture(scope="session")
def options(tmp_path_factory):
    return make_options(tmp_path_factory.mktemp("studio"))


@pytest.fixture(scope="session")
def studio(options):
    """A studio whose models are loaded; tests leave it as it is."""
    studio = Studio(options)
    studio.start()
    studio._thread.join()
    assert studio.status().phase == "ready", studio.status()
    yield studio
    studio.pictures.close()


@pytest.fixture
def unloaded(options):
    """A studio that has not begun to load; for tests that give it other options, `unloaded(model=...)`."""
    made = []

    def make(**changes):
        made.append(Studio(replace(options, **changes)))
        return made[-1]

    yield make
    for studio in made:
        studio.pictures.close()


@pytest.fixture
def request_of():
    """What Gradio tells a handler about the page that calls it."""
    return lambda page="page-1": SimpleNamespace(session_hash=page)
