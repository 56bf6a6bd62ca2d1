"""Pictures for a study: what is brought is checked, and what is served carries nothing but pixels."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from srpo.studies.images import DATE_S, bring, encode, gather, keep, leaks, plain, spoil
from srpo.studies.schedule import Shown, pictures, schedule
from srpo.studies.simulation import example_plan
from srpo.studies.store import Store
from tests.generators import finished


def picture(number, size=(64, 48)):
    """A picture like no other."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def gathered(*arguments):
    return finished(gather(*arguments))[1]


@pytest.fixture
def folders(tmp_path):
    """Two folders of six pictures, three prompts with two seeds, and a table in the first."""
    sources = {}
    for place, model in enumerate(("base", "srpo")):
        folder = tmp_path / model
        folder.mkdir()
        for number in range(6):
            picture(10 * place + number).save(folder / f"{number}.png")
        sources[model] = folder
    with (tmp_path / "base" / "prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "prompt", "seed", "category"])
        for number in range(6):
            table.writerow(
                [f"{number}.png", f"a thing, number {number // 2}", number % 2, ("photo", "anime", "")[number // 2]]
            )
    return sources


def test_folders_become_prompts_seeds_and_files(folders):
    said, found = finished(gather(folders))
    assert [prompt.text for prompt in found.prompts] == [f"a thing, number {number}" for number in range(3)]
    assert [prompt.category for prompt in found.prompts] == ["photo", "anime", ""]
    assert found.seeds == (0, 1)
    assert found.files[1, 0, "srpo"] == folders["srpo"] / "2.png"
    assert len(found.files) == 12
    assert [step.done for step in said] == list(range(1, 13)) and said[-1].total == 12


def test_files_and_a_table_may_lie_anywhere_and_in_other_formats(folders, tmp_path):
    table = tmp_path / "what they show.jsonl"
    lines = [{"file": f"sub/{number}", "prompt": f"thing {number}"} for number in range(6)]
    table.write_text("\n".join(map(json.dumps, lines)))
    jpegs = tmp_path / "jpegs"
    jpegs.mkdir()
    for number in range(6):
        picture(number).save(jpegs / f"{number}.JPG", "JPEG")
    found = gathered({"a": sorted(jpegs.iterdir()), "b": folders["base"]}, table)
    assert len(found.prompts) == 6 and found.seeds == (0,)


def test_our_own_pictures_say_what_they_show(tmp_path):
    for model in ("a", "b"):
        (tmp_path / model).mkdir()
        for seed in (3, 4):
            texts = PngImagePlugin.PngInfo()
            texts.add_itxt("srpo_studio", json.dumps({"format": 1, "request": {"prompt": "a  ball", "seed": seed}}))
            picture(seed + ord(model)).save(tmp_path / model / f"x{seed}.png", pnginfo=texts)
    found = gathered({"a": tmp_path / "a", "b": tmp_path / "b"})
    assert [prompt.text for prompt in found.prompts] == ["a ball"]
    assert found.seeds == (3, 4)
    (tmp_path / "b" / "x4.png").write_bytes((tmp_path / "b" / "x3.png").read_bytes())
    picture(99).save(tmp_path / "b" / "x3.png")
    with pytest.raises(ValueError, match="Nothing says what the pictures show"):
        gathered({"a": tmp_path / "a", "b": tmp_path / "b"})


def rewrite(folder, change):
    """Rewrites the table's rows."""
    path = folder / "prompts.csv"
    rows = list(csv.DictReader(path.open()))
    rows = change(rows)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "prompt", "seed", "category"])
        table.writeheader()
        table.writerows(rows)


def damage(name):
    """Breaks the folders in one way; returns what the refusal must say."""

    def missing(sources):
        (sources["srpo"] / "4.png").unlink()
        return "srpo lacks 4"

    def more(sources):
        for number in range(7, 12):
            picture(number).save(sources["base"] / f"{number}.png")
        return "srpo lacks 10, 11, 7 and 2 more"

    def empty(sources):
        for path in sources["srpo"].iterdir():
            path.unlink()
        return "srpo has no pictures"

    def no_folder(sources):
        sources["srpo"] = sources["srpo"] / "nothing"
        return "nothing is no folder"

    def truncated(sources):
        path = sources["srpo"] / "2.png"
        path.write_bytes(path.read_bytes()[:400])
        return "2.png cannot be read"

    def no_picture(sources):
        (sources["srpo"] / "2.png").write_text("<script>")
        return r"2.png cannot be read \(it is no PNG, JPEG or WebP picture\)"

    def bomb(sources):
        Image.new("1", (20_000, 20_000)).save(sources["srpo"] / "2.png")
        return "2.png cannot be read"

    def sizes(sources):
        picture(55, (32, 32)).save(sources["srpo"] / "2.png")
        return "2 is 32 x 32 and 64 x 48, by which the models could be told apart"

    def duplicate(sources):
        with Image.open(sources["srpo"] / "2.png") as image:
            image.save(sources["srpo"] / "3.png", comment="another file, the same pixels", compress_level=1)
        return "2 and 3 of srpo are the same picture"

    def twice(sources):
        picture(77).save(sources["srpo"] / "2.webp")
        return "two pictures of the name '2'"

    def same_prompt(sources):
        rewrite(sources["base"], lambda rows: [row | {"seed": "0"} for row in rows])
        return "0 and 1 have the same prompt and seed"

    def ragged(sources):
        rewrite(sources["base"], lambda rows: [row | ({"seed": "5"} if row["file"] == "3.png" else {}) for row in rows])
        return r"has the seeds \[0, 5\], another one \[0, 1\]"

    def unnamed(sources):
        rewrite(sources["base"], lambda rows: rows[:-1])
        return "prompts.csv says nothing about 5"

    def named_twice(sources):
        rewrite(sources["base"], lambda rows: rows + rows[:1])
        return "names 0 twice"

    def bad_seed(sources):
        rewrite(sources["base"], lambda rows: [row | {"seed": "first"} for row in rows])
        return "Entry 1 of prompts.csv cannot be read"

    def no_columns(sources):
        (sources["base"] / "prompts.csv").write_text("a,b\n1,2\n")
        return "Entry 1 of prompts.csv cannot be read: it needs the columns file and prompt"

    def no_text(sources):
        (sources["base"] / "prompts.csv").write_bytes(b"\xff\xfe\x00\x80 no text")
        return "prompts.csv cannot be read"

    return locals()[name]


@pytest.mark.parametrize(
    "name",
    [
        *("missing", "more", "empty", "no_folder", "truncated", "no_picture", "bomb", "sizes", "duplicate", "twice"),
        *("same_prompt", "ragged", "unnamed", "named_twice", "bad_seed", "no_columns", "no_text"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(folders, name):
    says = damage(name)(folders)
    with pytest.raises(ValueError, match=says) as refused:
        gathered(folders)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_many_problems_are_listed_in_part(folders):
    for number in range(5):
        (folders["srpo"] / f"{number}.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"0.png .*; 1.png .*; 2.png .*; and 2 more\.$"):
        gathered(folders)
    with pytest.raises(ValueError, match="There are no pictures"):
        gathered({})


def test_a_served_picture_is_its_pixels_and_nothing_else(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("parameters", "model: SRPO")
    original = picture(1)
    exif = Image.Exif()
    exif[0x010E] = "SRPO"
    original.save(tmp_path / "srpo.png", pnginfo=texts, exif=exif, dpi=(300, 300))
    with Image.open(tmp_path / "srpo.png") as image:
        made = keep(tmp_path / "served", Shown(0, 0, "srpo"), image, "0" * 64)
    data = (tmp_path / "served" / made.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == made.sha256
    assert b"SRPO" not in data and b"srpo" not in data and "srpo" not in made.file
    assert [data[at - 4 : at] for at in (16,)] == [b"IHDR"]
    kinds = {data[at : at + 4] for at in chunk_starts(data)}
    assert kinds == {b"IHDR", b"IDAT", b"IEND"}
    assert (tmp_path / "served" / made.file).stat().st_mtime == DATE_S
    with Image.open(io.BytesIO(data)) as served:
        assert np.array_equal(np.asarray(served), np.asarray(original))
    assert (made.width, made.height) == original.size


def chunk_starts(data):
    """Where the kinds of a PNG's chunks stand."""
    at = 8
    while at < len(data):
        yield at + 4
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def test_a_picture_is_seen_as_people_see_it():
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    picture(1).save(buffer, "JPEG", exif=turned)
    assert plain(Image.open(buffer)).size == (48, 64)
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert plain(clear).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4))
    assert plain(palette).mode == plain(Image.new("L", (4, 4))).mode == plain(Image.new("I;16", (4, 4))).mode == "RGB"
    profiled = Image.new("RGB", (4, 4), (10, 200, 30))
    buffer = io.BytesIO()
    profiled.save(buffer, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    again = plain(Image.open(buffer))
    assert np.abs(np.asarray(again, int) - [10, 200, 30]).max() <= 1 and "icc_profile" not in again.info
    profiled.info["icc_profile"] = b"no profile"
    assert plain(profiled).getpixel((0, 0)) == (10, 200, 30)


def test_a_spoiled_picture_keeps_its_size_and_loses_nearly_all_it_shows():
    for size in ((64, 48), (5, 300), (1, 1)):
        image = picture(3, size)
        bad = spoil(image)
        assert bad.size == size
    shown = np.asarray(spoil(picture(3, (240, 240))))
    blocks = shown.reshape(12, 20, 12, 20, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(shown)) <= 8


def study_of(store, folders, seeds=2):
    found = gathered(folders)
    plan = example_plan([prompt.text for prompt in found.prompts], seeds=seeds, gold=0.2)
    keys = dict(zip(("model-0", "model-1"), folders, strict=True))
    files = {(p, s, key): found.files[p, s, folder] for key, folder in keys.items() for p in range(3) for s in range(2)}
    return store.create(plan), files


def test_a_study_gets_all_of_its_pictures_and_opens(folders, tmp_path):
    store = Store(tmp_path / "studies.db")
    study, files = study_of(store, folders)
    served = tmp_path / "served"
    steps = list(bring(store, study, files, served))
    made = store.pictures(study.id)
    assert set(made) == set(pictures(study.plan))
    assert steps[-1].done == steps[-1].total == len(made) == 12 + study.plan.num_gold
    assert {path.name for path in served.iterdir()} == {known.file for known in made.values()}
    for shown, known in made.items():
        source = files[shown.prompt, shown.seed, shown.model]
        assert known.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
        with Image.open(served / known.file) as image, Image.open(source) as original:
            expected = spoil(plain(original)) if shown.spoiled else original
            assert np.array_equal(np.asarray(image), np.asarray(expected))
    assert leaks(study.plan, made.values()) == []
    assert store.open(study.id).state == "open"
    rater = store.join(study.id)
    for showing, trial in zip(store.showings(rater.code, 99), schedule(study.plan, 0), strict=True):
        assert (showing.left, showing.right) == tuple(made[shown].file for shown in trial.pictures)
    store.close()


def test_preparing_goes_on_where_it_was_stopped_and_leaves_no_strangers(folders, tmp_path):
    store = Store(tmp_path / "studies.db")
    study, files = study_of(store, folders)
    served = tmp_path / "served"
    first = bring(store, study, files, served)
    for _ in range(5):
        next(first)
    first.close()
    kept = set(store.pictures(study.id).values())
    assert len(kept) == 5
    (served / f"{'0' * 32}.png").write_bytes(encode(picture(1)))  # written, and stopped before it was noted
    lost = next(iter(kept))
    (served / lost.file).unlink()
    steps = list(bring(store, study, files, served))
    made = set(store.pictures(study.id).values())
    assert kept - {lost} <= made and lost not in made
    assert len(steps) == len(made) - 4
    assert {path.name for path in served.iterdir()} == {known.file for known in made}
    assert list(bring(store, study, files, served)) == []
    store.close()


def test_a_file_that_has_gone_meanwhile_is_named(folders, tmp_path):
    store = Store(tmp_path / "studies.db")
    study, files = study_of(store, folders)
    (folders["srpo"] / "4.png").unlink()
    with pytest.raises(ValueError, match=r"4.png cannot be read .*: bring it anew"):
        list(bring(store, study, files, tmp_path / "served"))
    store.close()


def test_names_and_sizes_that_tell_a_model_are_found():
    plan = example_plan(prompts=1)
    pair = [
        keep_like(Shown(0, 0, "model-0"), "0" * 32 + ".png", 64),
        keep_like(Shown(0, 0, "model-1"), "1" * 32 + ".png", 64),
    ]
    assert leaks(plan, pair) == []
    assert "is not a random one" in leaks(plan, [pair[0], replace(pair[1], file="srpo-1.png")])[0]
    assert "differ in size" in leaks(plan, [pair[0], replace(pair[1], width=65)])[0]


def keep_like(shown, file, side):
    from srpo.studies.store import Picture

    return Picture(shown, file, "0" * 64, "1" * 64, side, side)
