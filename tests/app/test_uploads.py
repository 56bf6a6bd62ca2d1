"""A visitor's file becomes a picture of the model's size, or one sentence; nothing huge is ever decoded."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from app.services.requests import BadInput
from app.services.uploads import MAX_IMAGE_PIXELS, fit_note, open_picture, read_picture


def halves(left="red", right="blue", size=(40, 20)):
    """A picture of two colours, side by side."""
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def write(path, picture, **settings):
    picture.save(path, **settings)
    return path


def claimed(path, width, height):
    """A small PNG file whose header claims that size; its pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0))
    return path


def test_the_middle_is_cut_out_and_resized(tmp_path):
    picture = read_picture(write(tmp_path / "a.png", halves(size=(80, 20))), 32, 64)
    assert (picture.mode, picture.size) == ("RGB", (64, 32))
    assert picture.getpixel((4, 16)) == (255, 0, 0) and picture.getpixel((60, 16)) == (0, 0, 255)
    narrow = read_picture(tmp_path / "a.png", 48, 32)
    assert narrow.getpixel((2, 24)) == (255, 0, 0) and narrow.getpixel((29, 24)) == (0, 0, 255)


def test_a_picture_of_the_right_size_keeps_every_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    picture = read_picture(write(tmp_path / "a.png", Image.fromarray(pixels)), 32, 48)
    assert (np.asarray(picture) == pixels).all()
    assert fit_note((48, 32), 32, 48) == ""


def test_what_was_cut_is_said():
    assert fit_note((1600, 1200), 128, 128) == (
        "The picture has 1,600 × 1,200 pixels; its middle, resized to 128 × 128, is what is used."
    )
    assert "its middle" not in fit_note((512, 512), 128, 128)


def test_a_photo_that_was_taken_sideways_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture = open_picture(write(tmp_path / "a.jpg", halves(), exif=exif, quality=95))
    assert picture.size == (20, 40)
    top, bottom = picture.getpixel((10, 5)), picture.getpixel((10, 35))
    assert top[0] > 200 > top[2] and bottom[2] > 200 > bottom[0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_the_usual_formats_are_read(tmp_path, suffix):
    assert open_picture(write(tmp_path / f"a.{suffix}", halves())).size == (40, 20)


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    path = write(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    red, _, blue = open_picture(path).getpixel((16, 16))
    assert red > 200 and blue < 60


def test_other_modes_become_rgb(tmp_path):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert open_picture(write(tmp_path / "clear.png", clear)).getpixel((5, 5)) == (255, 255, 255)
    deep = Image.fromarray(np.full((32, 32), 0x8000, np.uint16))
    assert open_picture(write(tmp_path / "deep.png", deep)).getpixel((5, 5)) == (128, 128, 128)
    palette = halves().convert("P")
    assert open_picture(write(tmp_path / "palette.png", palette)).mode == "RGB"
    inks = halves().convert("CMYK")
    assert open_picture(write(tmp_path / "inks.jpg", inks)).mode == "RGB"


@pytest.mark.parametrize("limit", [None, MAX_IMAGE_PIXELS])
def test_a_giant_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    """With Pillow's own limit, which the app sets, and without; decoding would fail with another sentence."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    path = claimed(tmp_path / "giant.png", 60_000, 60_000)
    assert path.stat().st_size < 100
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(BadInput, match="may have 50 megapixels: choose a smaller one"):
            open_picture(path)
        with pytest.raises(BadInput, match="may have 50 megapixels"):
            open_picture(claimed(tmp_path / "large.png", 8_000, 6_251))


def test_a_picture_of_a_few_pixels_is_refused(tmp_path):
    with pytest.raises(BadInput, match="40 × 8 pixels and needs at least 16"):
        open_picture(write(tmp_path / "a.png", halves(size=(40, 8))))


def whole():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>", whole()[:200], b"\x89PNG\r\n\x1a\n", b"BM"],
    ids=["empty", "text", "svg", "cut off", "signature", "two bytes"],
)
def test_what_is_no_picture_is_answered_by_one_sentence(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as a picture: choose a PNG, JPEG, WEBP, GIF or BMP file"):
        open_picture(path)


def test_a_file_that_is_gone_is_answered_by_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        open_picture(tmp_path / "nowhere.png")
    with pytest.raises(BadInput, match="cannot be read"):
        open_picture(tmp_path)
