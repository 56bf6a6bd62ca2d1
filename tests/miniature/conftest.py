"""A cache folder of its own for everything that renders or trains."""

import pytest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A few rendered training pictures; tests read them and leave them as they are."""
    from srpo.miniature.data import load_pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SRPO_CACHE", str(tmp_path_factory.mktemp("pictures")))
        yield load_pictures(64, 3, batch=32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, for a training that must start afresh."""
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
