"""Finished pictures are kept within limits of number, bytes and age, and the run under way is never robbed."""

import pytest
from PIL import Image, PngImagePlugin

from app.services.pictures import PictureStore

NO_TEXTS = PngImagePlugin.PngInfo()


@pytest.fixture
def store_of():
    made = []

    def make(**limits):
        made.append(PictureStore(**limits))
        return made[-1]

    yield make
    for store in made:
        store.close()


def save(store, folder, name="a", side=64):
    return store.save(folder, name, Image.effect_noise((side, side), 80), NO_TEXTS)


def test_the_oldest_runs_go_when_there_are_too_many(store_of):
    store = store_of(max_folders=2)
    folders = [store.new_folder() for _ in range(3)]
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_the_oldest_runs_go_when_they_are_too_large_together(store_of):
    """Each picture has about 4 kB of noise: two fit into 10 kB, a third makes room for itself."""
    store = store_of(max_bytes=10_000)
    paths = [save(store, store.new_folder()) for _ in range(3)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert sum(path.stat().st_size for path in paths if path.exists()) <= 10_000


def test_the_run_under_way_keeps_its_pictures_however_large(store_of):
    store = store_of(max_bytes=10_000)
    before, folder = save(store, store.new_folder()), store.new_folder()
    paths = [save(store, folder, str(number)) for number in range(4)]
    assert all(path.exists() for path in paths) and not before.exists()


def test_old_runs_go(store_of):
    store = store_of(max_age_s=0.0)
    first, second = store.new_folder(), store.new_folder()
    assert not first.exists() and second.exists()


def test_a_run_that_was_forgotten_can_still_save(store_of):
    store = store_of(max_folders=1)
    folder = store.new_folder()
    store.new_folder()
    assert save(store, folder).exists()


def test_all_pictures_go_with_the_store(store_of):
    store = store_of()
    path = save(store, store.new_folder())
    store.close()
    assert not path.exists() and not store.root.exists()
