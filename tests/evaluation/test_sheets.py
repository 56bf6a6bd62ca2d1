"""A sheet holds every picture where it belongs, and what was to be said of it."""

import json

import numpy as np
from PIL import Image

from srpo.evaluation.sheets import KEY, png_texts, sheet


def test_a_sheet_holds_every_picture_enlarged_in_its_place():
    colours = [["red", "lime"], ["blue", None]]
    cells = [[Image.new("RGB", (128, 64), colour) if colour else None for colour in row] for row in colours]
    page = sheet(["a very long prompt " * 20 + "\nseed 7", "b"], ["FLUX", "SRPO"], cells, "28 steps")
    counts = {colour: count for count, colour in page.getcolors(maxcolors=1_000_000)}
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert counts[colour] == 512 * 256
    top_left = np.argwhere((np.asarray(page) == (255, 0, 0)).all(axis=-1))[0]
    lower = np.argwhere((np.asarray(page) == (0, 0, 255)).all(axis=-1))[0]
    beside = np.argwhere((np.asarray(page) == (0, 255, 0)).all(axis=-1))[0]
    assert lower[0] > top_left[0] and lower[1] == top_left[1]
    assert beside[1] > top_left[1] and beside[0] == top_left[0]


def test_a_note_is_written_across_the_foot_of_its_cell_alone():
    cells = [[Image.new("RGB", (256, 256), colour) for colour in ("red", "lime")]]
    plain, noted = (np.asarray(sheet(["a"], ["b", "c"], cells, "", notes)) for notes in (None, {(0, 1): "shortened"}))
    changed = np.argwhere((plain != noted).any(axis=-1))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert (bottom - top + 1, right - left + 1) == (26, 256)
    assert (plain[top - 256 + 26, left] == (0, 255, 0)).all() and (plain[bottom, right] == (0, 255, 0)).all()


def test_a_record_survives_the_file(tmp_path):
    record = {"kind": "recoveries", "prompt": "ein roter Ball, 赤"}
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=png_texts(record))
    with Image.open(tmp_path / "a.png") as image:
        assert json.loads(image.text[KEY]) == {"format": 1, **record}
