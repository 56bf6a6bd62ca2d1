"""What the page shows of a run is what its folder says, read once and then only as it grows."""

import time

import pytest
from PIL import Image

from app.services import run_view
from app.services.pictures import PictureStore
from app.services.run_view import RunBook
from tests.app.folders import make_run, pretend_to_run, record, validated


@pytest.fixture
def book(tmp_path):
    pictures = PictureStore()
    yield RunBook(tmp_path / "runs", pictures)
    pictures.close()


def test_a_run_is_shown_with_its_place_its_speed_and_the_time_left(book):
    run = make_run(book.root, status="running")
    pretend_to_run(run, time.time(), 3)
    view = book.reader("one").read().view()
    assert (view.status, view.phase, view.update, view.updates) == ("running", "training", 3, 10)
    assert view.per_minute == pytest.approx(30)  # 2 s each
    assert view.left_s == pytest.approx(7 * 2 + 3 * 4)  # validated every 3 updates, 4 s each: at 6, 9 and the end
    assert view.is_live and not view.can_resume and view.best == 3


def test_a_run_without_a_sign_of_life_is_shown_as_stalled(book):
    run = make_run(book.root, status="running")
    pretend_to_run(run, time.time(), 3)
    job = run.job()
    run.write_job(type(job)(**{**vars(job), "began": "2020-01-01T00:00:00+00:00"}))
    run.write_heartbeat(type(run.heartbeat())(time.time() - 60, "training", 3, time.time() - 60))
    view = book.reader("one").read().view()
    assert view.status == "stalled" and view.is_live


def test_a_run_whose_process_is_gone_is_lost_and_can_be_resumed(book):
    run = make_run(book.root, status="running")
    pretend_to_run(run, time.time(), 3)
    job = run.job()
    run.write_job(type(job)(**{**vars(job), "started": "another process"}))
    view = book.reader("one").read().view()
    assert view.status == "lost" and view.can_resume and "process ended" in view.message


def test_only_new_lines_are_parsed_and_none_comes_twice(book, monkeypatch):
    run, parsed = make_run(book.root), []
    reader = book.reader("one")
    reader.read()
    whole = run_view.UpdateRecord
    monkeypatch.setattr("srpo.runs.folder.UpdateRecord", lambda **line: parsed.append(line["update"]) or whole(**line))
    run.append_progress(record(4))
    assert [entry.update for entry in reader.read().records] == [1, 2, 3, 4]
    assert [entry.update for entry in reader.read().records] == [1, 2, 3, 4]
    assert parsed == [4]


def test_after_going_back_the_curve_forgets_what_came_later(book):
    run = make_run(book.root, updates=5)
    reader = book.reader("one")
    assert len(reader.read().records) == 5
    run.cut_back(2)
    for update in (3, 4, 5, 6):
        run.append_progress(record(update, loss=9.0))
    records = reader.read().records
    assert [entry.update for entry in records] == [1, 2, 3, 4, 5, 6]
    assert records[2].loss == 9.0


def test_a_torn_last_line_waits_for_its_end(book):
    run = make_run(book.root)
    with (run.path / "progress.jsonl").open("a") as log:
        log.write('{"update": 4, "loss"')
    assert [entry.update for entry in book.reader("one").read().records] == [1, 2, 3]


def test_a_part_of_the_page_changes_its_version_only_with_what_it_shows(book):
    run = make_run(book.root)
    reader = book.reader("one")
    before = reader.read().versions()
    assert reader.read().versions() == before
    run.append_progress(record(4))
    after = reader.read().versions()
    assert after["charts"] != before["charts"] and after["film"] == before["film"]
    run.append_validation(validated(4, 0.5))
    assert reader.read().versions()["charts"] != after["charts"]


def test_the_film_has_every_sample_in_order_as_a_file_of_the_page(book):
    make_run(book.root, updates=3)
    film = book.reader("one").read().film()
    assert film.prompts == (("a ball", 1), ("a boat", 2))
    assert (film.updates, film.best, film.ratio) == ((0, 3), 3, 1.0)
    assert [len(row) for row in film.pictures] == [2, 2]
    for update, row in zip(film.updates, film.pictures, strict=True):
        for number, path in enumerate(row):
            assert path.is_relative_to(book._pictures.root)
            with Image.open(path) as picture:
                assert picture.getpixel((0, 0)) == (20 * update, 100 * number, 50)
    assert book.reader("one").read().film() == film  # no copy is made twice


def test_large_samples_are_shown_smaller(book, tmp_path):
    store, original = book._pictures, tmp_path / "large.png"
    Image.new("RGB", (2048, 1024)).save(original)
    folder = store.new_folder()
    with Image.open(store.publish(folder, original)) as copy:
        assert copy.size == (512, 256)


def test_a_copy_that_was_forgotten_is_made_anew(book, tmp_path):
    store, original = book._pictures, tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(original)
    first = store.publish(store.new_folder(), original)
    first.unlink()
    again = store.publish(store.new_folder(), original)
    assert again != first and again.is_file()


def test_samples_that_are_still_being_written_are_left_out(book):
    run = make_run(book.root, updates=3)
    (run.path / "samples" / "update-000003" / "01.png").unlink()
    assert book.reader("one").read().film().updates == (0,)


@pytest.mark.parametrize("name", ["", ".", "..", "../one", "/etc", "a/b", "nobody"])
def test_only_a_run_below_the_folder_can_be_named(book, name):
    make_run(book.root)
    with pytest.raises(ValueError):
        book.reader(name)


def test_a_run_that_was_removed_is_said_to_be_gone(book):
    import shutil

    run = make_run(book.root)
    book.reader("one")
    shutil.rmtree(run.path)
    with pytest.raises(ValueError, match="gone"):
        book.reader("one")


def test_a_very_long_log_is_read_in_part(book, monkeypatch):
    monkeypatch.setattr(run_view, "MAX_READ", 50)
    run = make_run(book.root, updates=3)
    with (run.path / "progress.jsonl").open("a") as log:
        line = (run.path / "progress.jsonl").read_text().splitlines()[0]
        log.writelines(line.replace('"update": 1,', f'"update": {update},') + "\n" for update in range(4, 2001))
    records = book.reader("one").read().records
    assert len(records) <= 60
    assert (records[0].update, records[-1].update) == (1, 2000)
