"""The command line that paints base and SRPO: the page's own pictures, in files that the page restores."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from app.services.device import StopFlag
from app.services.engine import Engine
from app.services.metadata import differences, read_request
from app.services.models import Catalogue
from app.services.requests import CompareRequest
from app.state import Options
from srpo import sample
from srpo.evaluation.sheets import KEY
from srpo.policies.checkpoints import save_transformer
from srpo.rewards.base import to_pil
from tests.tiny import tiny_flux_pipeline

PROMPTS = ("a red ball", "a  blue boat\non the sea")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("srpo") / "srpo.safetensors"
    save_transformer(tiny_flux_pipeline(seed=1).transformer, path, torch.float32)
    return path


@pytest.fixture
def run(capsys, flux_folder, weights, tmp_path):
    """Runs the command; returns its status, what it printed and the folder it wrote to."""

    def run(*arguments, srpo=weights):
        words = ["--model", flux_folder, "--size", "32,48", "--steps", "2", "--out", tmp_path / "out"]
        words += ["--srpo", srpo] if srpo else []
        status = sample.main([str(word) for word in (*arguments, *words)])
        return status, capsys.readouterr(), tmp_path / "out"

    return run


def test_both_sides_of_every_prompt_and_a_sheet_are_written_and_named(run, flux_folder):
    status, printed, out = run(*PROMPTS, "--seed", "7")
    lines = printed.out.splitlines()
    files = sorted(path.name for path in out.iterdir())
    assert status == 0 and len(lines) == 5
    assert files == [
        f"01_a-red-ball_seed-7_{flux_folder.name}.png",
        "01_a-red-ball_seed-7_srpo.png",
        f"02_a-blue-boat-on-the-sea_seed-7_{flux_folder.name}.png",
        "02_a-blue-boat-on-the-sea_seed-7_srpo.png",
        "sheet.png",
    ]
    assert sorted(line.split()[0] for line in lines) == [str(out / file) for file in files]
    left, right = (np.asarray(Image.open(out / file)) for file in files[:2])
    assert left.shape == (32, 48, 3) and (left != right).any()


def test_the_pictures_are_those_of_compare_and_the_page_restores_their_settings(run, flux_folder, weights):
    """Same weights, seed and settings through the page's engine: the same pixels, byte for byte."""
    status, _, out = run("a red ball", "--seed", "7")
    page = Options(model=flux_folder, srpo=weights)
    catalogue, engine = Catalogue(page), Engine.load(page)
    found = read_request(out / "01_a-red-ball_seed-7_srpo.png")
    assert status == 0 and found.note == "Restored every setting of that picture."
    asked = CompareRequest(prompt="a red ball", seed=7, steps=2, width=48, height=32, left="base", right="srpo")
    assert found.settings == asked
    here = {"base": catalogue.base_facts(), "text_tokens": page.max_sequence_length}
    assert differences(found.made_with, here) == ""
    policies = engine.policies([catalogue.find(asked.left), catalogue.find(asked.right)])
    *_, finished = engine.paint(policies, engine.encode(asked.prompt), asked, asked.seed, StopFlag())
    for name, image in zip((flux_folder.name, "srpo"), finished.images, strict=True):
        assert Image.open(out / f"01_a-red-ball_seed-7_{name}.png").tobytes() == to_pil(image).tobytes()


def test_a_picture_says_which_weights_made_it(run, weights):
    _, _, out = run("a red ball")
    record = json.loads(Image.open(out / "01_a-red-ball_seed-0_srpo.png").text[KEY])
    assert record["weights_sha256"]["srpo"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["side"] == "right" and record["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((" ",), "a prompt is empty"),
        (("x" * 600,), "this model reads 512"),
        (("a ball", "--size", "30,32"), "must be multiples of 16"),
        (("a ball", "--steps", "0"), "--steps must be 1 or more, not 0"),
        (("a ball", "--guidance", "nan"), "--guidance must be a finite number"),
        (("a ball", "--seed", "-1"), "seeds go from 0"),
        (("a ball", "--model", "nowhere"), "There is no folder nowhere"),
        (("a ball", "--srpo", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_painted_is_one_sentence_and_no_file(capsys, flux_folder, weights, tmp_path, arguments, said):
    words = ["--model", str(flux_folder), "--srpo", str(weights), "--size", "32,32", "--out", str(tmp_path / "out")]
    status = sample.main([*words, *arguments])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == "" and not (tmp_path / "out").exists()
    assert printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1


def test_another_model_wants_its_own_srpo_weights(run):
    status, printed, _ = run("a red ball", srpo=None)
    assert status == 2 and "name them with --srpo" in printed.err
