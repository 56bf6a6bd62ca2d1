"""The pictures of a study: sampled on tiny weights, kept one by one, or brought."""

import hashlib
from dataclasses import replace

import pytest
from PIL import Image

from app.services import study_pictures
from app.services.device import StopFlag
from app.services.requests import BadInput
from app.services.studies import Studies
from app.services.study_pictures import bring_pictures, make_pictures, stock, strip
from app.services.study_plans import write_sources
from app.tabs.studies import Handlers
from srpo.studies.images import encode
from srpo.studies.schedule import Shown
from srpo.studies.schedule import pictures as pictures_of
from tests.app.test_study_plans import brought_from, folders, rows, saved  # noqa: F401


@pytest.fixture
def do(studio, options, tmp_path, monkeypatch):
    """The loaded studio over studies of its own."""
    monkeypatch.setattr(studio, "studies", Studies(replace(options, studies=tmp_path / "studies")))
    return Handlers(studio)


def made(do, study, stop=None):
    return list(make_pictures(do.studio, study.id, stop or StopFlag()))


def bytes_of(do, study):
    """Every kept picture's bytes, by what it shows."""
    folder = do.studio.studies.folder(study.id)
    return {shown: (folder / kept.file).read_bytes() for shown, kept in do.book.store.pictures(study.id).items()}


def test_every_picture_of_the_plan_is_made_and_both_sides_start_from_one_noise(do):
    study = saved(do, num_seeds=2)
    views = made(do, study)
    assert views[-1].phase == "done" and views[-1].share_done == 1
    assert stock(do.studio, study).is_whole
    found = bytes_of(do, study)
    assert set(found) == set(pictures_of(study.plan))
    engine = do.studio._engine
    settings = study_pictures._settings(study.plan)
    base, srpo = engine.policies([do.studio.catalogue.find(name) for name in ("base", "srpo")])
    cond = engine.encode(study.plan.prompts[1].text)
    *_, finished = engine.paint([base, srpo], cond, settings, 1, StopFlag())
    from app.services.engine import to_pil

    for key, image in zip(("base", "srpo"), finished.images, strict=True):
        assert found[Shown(1, 1, key)] == encode(to_pil(image))
    assert any(shown.spoiled for shown in found)


def test_a_served_picture_tells_nothing_but_pixels(do):
    study = saved(do)
    made(do, study)
    folder = do.studio.studies.folder(study.id)
    for shown, kept in do.book.store.pictures(study.id).items():
        data = (folder / kept.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == kept.sha256
        assert shown.model.encode() not in data and b"tEXt" not in data and b"iTXt" not in data
        with Image.open(folder / kept.file) as image:
            assert image.info == {} and image.size == (32, 32)


def test_stopped_it_goes_on_where_it_was_and_gives_the_same_pictures(do, tmp_path):
    study = saved(do)
    stop, views = StopFlag(), []
    for view in make_pictures(do.studio, study.id, stop):
        views.append(view)
        if view.rows:  # the first scene is kept
            stop.set()
    assert views[-1].phase == "stopped" and "are there" in views[-1].message
    first = bytes_of(do, study)
    assert 0 < len(first) < len(pictures_of(study.plan))
    # As after a restart: another store over the same folder.
    do.studio.studies = Studies(replace(do.studio.options, studies=tmp_path / "studies"))
    again = Handlers(do.studio)
    views = made(again, study)
    assert views[-1].phase == "done"
    whole = bytes_of(again, study)
    assert {shown: whole[shown] for shown in first} == first
    other = saved(again, title="Another")
    made(again, other)
    plain = {shown: data for shown, data in bytes_of(again, other).items() if not shown.spoiled}
    assert plain == {shown: data for shown, data in whole.items() if not shown.spoiled}


def test_what_a_kill_left_behind_is_made_anew_or_removed(do):
    study = saved(do)
    made(do, study)
    folder = do.studio.studies.folder(study.id)
    lost = next(iter(do.book.store.pictures(study.id).values()))
    (folder / lost.file).unlink()
    (folder / f"{'0' * 32}.png").write_bytes(b"half")
    assert stock(do.studio, study).lacking == [lost.shown]
    made(do, study)
    assert stock(do.studio, study).is_whole
    assert {path.name for path in folder.glob("*.png")} == {
        kept.file for kept in do.book.store.pictures(study.id).values()
    }


def test_pictures_wait_for_the_device_and_stop_while_they_wait(do):
    study, stop = saved(do), StopFlag()
    with do.studio.device.turn() as other:
        assert other.wait(1) == 0
        making = make_pictures(do.studio, study.id, stop)
        assert "Waiting for the device" in next(making).message
        stop.set()
        assert list(making)[-1].phase == "stopped"
    assert bytes_of(do, study) == {}


def test_weights_that_have_changed_are_refused(do, monkeypatch):
    study = saved(do)
    monkeypatch.setattr(do.studio.catalogue, "sha256", lambda model: "0" * 64)
    with pytest.raises(BadInput, match="not what they were when the plan was saved"):
        made(do, study)


def test_a_study_that_has_begun_keeps_its_pictures(do):
    study = saved(do)
    made(do, study)
    do.book.open(study.id)
    with pytest.raises(BadInput, match="cannot change after it has begun"):
        made(do, study)


def test_an_unfinished_study_does_not_open(do):
    study = saved(do)
    with pytest.raises(BadInput, match="pictures of the study are missing"):
        do.book.open(study.id)
    made(do, study)
    kept = next(iter(do.book.store.pictures(study.id).values()))
    (do.studio.studies.folder(study.id) / kept.file).unlink()
    with pytest.raises(BadInput, match="1 pictures of the study are missing"):
        do.book.open(study.id)


def test_the_strip_shows_copies_that_the_page_may_see(do):
    study = saved(do)
    made(do, study)
    shown = strip(do.studio, study)
    assert [row.prompt for row in shown.rows] == [prompt.text for prompt in study.plan.prompts]
    for row in shown.rows:
        assert all(path.is_relative_to(do.studio.pictures.root) for path in row.pictures)


def brought(do, study):
    return list(bring_pictures(do.studio, study.id, StopFlag()))


def test_folders_are_brought_and_opened(do, folders):  # noqa: F811
    study = saved(do, None, brought_from(rows(folders)), source="bring")
    views = brought(do, study)
    assert views[-1].phase == "done" and stock(do.studio, study).is_whole
    assert (views[-1].width, views[-1].height) == (40, 32)
    assert do.book.open(study.id).state == "open"


def test_folders_that_changed_or_are_forgotten_are_refused(do, folders):  # noqa: F811
    study = saved(do, None, brought_from(rows(folders)), source="bring")
    text = (folders / "one" / "prompts.csv").read_text()
    (folders / "one" / "prompts.csv").write_text(text.replace("thing 0", "another thing"))
    with pytest.raises(BadInput, match="not what they were"):
        brought(do, study)
    (folders / "two" / "0.png").unlink()
    with pytest.raises(BadInput, match="lacks 0"):
        brought(do, study)
    write_sources(do.studio, study.id, study_pictures.Sources())
    with pytest.raises(BadInput, match="Nobody knows any more"):
        brought(do, study)
