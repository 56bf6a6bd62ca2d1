"""A picture's settings survive the file, and a file that was tampered with is answered by one sentence."""

import json
import struct
import time
import zlib

import pytest
from PIL import Image, PngImagePlugin

from app.services.metadata import KEY, _a1111, comparison_texts, differences, read_request
from app.services.requests import BadInput, CompareRequest
from srpo.evaluation.sheets import png_texts

REQUEST = CompareRequest(
    prompt="ein roter Ball, 赤いボール, “quoted”",
    seed=11,
    num_seeds=4,
    steps=20,
    guidance=2.5,
    width=160,
    height=128,
    control_word="Photo",
    left="base",
    right="run:first-run",
)


HERE = {"base": {"name": "FLUX miniature", "sha256": "aa"}, "text_tokens": 64}


def write(path, texts):
    Image.new("RGB", (16, 16), "red").save(path, pnginfo=texts)
    return path


def with_record(path, record):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(KEY, record if isinstance(record, str) else json.dumps(record))
    return write(path, info)


def test_every_setting_of_a_seed_comes_back(tmp_path):
    texts = comparison_texts(REQUEST, 13, "right", {"left": "FLUX", "right": "SRPO"}, {"scores": {"a": 1.5}})
    found, note, made_with = read_request(write(tmp_path / "a.png", texts))
    assert made_with["scores"] == {"a": 1.5}
    assert found == REQUEST.model_copy(update={"seed": 13, "num_seeds": 1})
    assert note == "Restored every setting of that picture."


def test_other_tools_can_read_the_conventional_text(tmp_path):
    texts = comparison_texts(REQUEST, 13, "right", {"left": "FLUX", "right": "SRPO, ours"}, {})
    with Image.open(write(tmp_path / "a.png", texts)) as image:
        prompt, settings = image.text["parameters"].split("\n")
    assert prompt == "Photo. ein roter Ball, 赤いボール, “quoted”"
    assert settings.startswith("Steps: 20, Sampler: Euler, Schedule type: Simple, CFG scale: 1, ")
    fields = dict(field.split(": ") for field in settings.split(", "))
    assert fields["Distilled CFG Scale"] == "2.5"
    assert fields["Seed"] == "13"
    assert fields["Size"] == "160x128"
    assert fields["Model"] == "SRPO  ours" or fields["Model"] == "SRPO ours"


def test_a_picture_of_another_tool_gives_what_its_text_says(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "a castle,\nfar away\nNegative prompt: rain\nSteps: 12, Sampler: Euler a, CFG scale: 1, "
        "Distilled CFG Scale: 4.5, Seed: 99, Size: 512x768, Model: other",
    )
    found, note, made_with = read_request(write(tmp_path / "a.png", info))
    assert differences(made_with, HERE) == ""
    assert found == {
        "prompt": "a castle, far away",
        "seed": 99,
        "steps": 12,
        "guidance": 4.5,
        "width": 512,
        "height": 768,
    }
    assert "parameters" in note


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{not json", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("9" * 10_000, "not readable as JSON"),
        ({"kind": "compare"}, "no format number"),
        ({"format": 99}, "newer version"),
        ({"format": 1, "kind": "grid"}, "sheet of many pictures"),
        ({"format": 1, "kind": "compare"}, "no request"),
        ({"format": 1, "request": REQUEST.model_dump() | {"steps": 1e9}}, "steps must be a whole number"),
        ({"format": 1, "request": REQUEST.model_dump() | {"width": 100}}, "multiple of 16"),
        ({"format": 1, "request": REQUEST.model_dump() | {"shell": "rm"}}, "means nothing here"),
        ({"format": 1, "request": {"prompt": "a"}}, "lacks"),
    ],
)
def test_a_tampered_record_is_answered_by_one_sentence(tmp_path, record, says):
    with pytest.raises(BadInput) as error:
        read_request(with_record(tmp_path / "a.png", record))
    assert says in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("made_with", "says"),
    [
        (HERE, ""),
        ({}, ""),
        ({"base": "FLUX", "text_tokens": "many"}, ""),
        ({"base": {"name": "renamed", "sha256": "aa"}}, ""),
        ({"base": {"name": "FLUX miniature", "sha256": "bb"}}, "another base model (FLUX miniature)"),
        ({"base": {"name": "FLUX.1-dev", "sha256": None}}, "another base model (FLUX.1-dev)"),
        ({"base": {"name": "FLUX miniature", "sha256": None}}, ""),
        ({"base": {"name": "x" * 500}}, f"({'x' * 60})"),
        ({"text_tokens": 512}, "with 512 text tokens, not 64"),
        ({"base": {"name": "FLUX.1-dev"}, "text_tokens": 512}, "(FLUX.1-dev) and with 512 text tokens, not 64"),
    ],
)
def test_another_base_or_another_length_of_text_is_told_on_restoring(made_with, says):
    said = differences(made_with, HERE)
    assert says in said and bool(says) == bool(said)
    assert not said or said.endswith("here the same settings give other pictures.")


def test_a_sheet_is_told_apart_from_a_picture(tmp_path):
    with pytest.raises(BadInput, match="sheet of many pictures"):
        read_request(write(tmp_path / "a.png", png_texts({"kind": "grid", "request": {}})))


@pytest.mark.parametrize("name", ["text.png", "empty.png", "photo.png", "torn.png"])
def test_what_is_no_png_is_answered_by_one_sentence(tmp_path, name):
    path = tmp_path / name
    whole = write(tmp_path / "whole.png", PngImagePlugin.PngInfo()).read_bytes()
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg")
    contents = {"text.png": b"just text\n", "empty.png": b"", "torn.png": whole[:20]}
    path.write_bytes(contents.get(name, (tmp_path / "a.jpg").read_bytes()))
    with pytest.raises(BadInput, match="not a PNG picture"):
        read_request(path)


def test_a_png_without_settings_is_answered_by_one_sentence(tmp_path):
    with pytest.raises(BadInput, match="carries no settings"):
        read_request(write(tmp_path / "a.png", PngImagePlugin.PngInfo()))


def test_a_png_that_claims_a_gigantic_picture_is_refused_unread(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(BadInput, match="not a PNG picture"):
        read_request(path)


def test_a_name_without_end_in_another_tools_text_is_passed_over_at_once():
    """A name of unlimited length was looked for from each of its letters: minutes for 200 kB."""
    began_s = time.monotonic()
    assert _a1111("a ball\nSteps: 7, Seed: 3, " + "a" * 200_000)["steps"] == 7
    assert time.monotonic() - began_s < 5
