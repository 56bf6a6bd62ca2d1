"""The command line that paints base and SRPO: the page's own pictures, in files that the page restores."""

import hashlib
import json
import shutil

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
from srpo import recover, sample
from srpo.evaluation.sheets import KEY
from srpo.policies.checkpoints import WEIGHTS_NAME, save_transformer
from srpo.rewards.base import to_pil
from tests.policies.forms import save, to_bfl, to_fp8, write_gguf
from tests.policies.hub_server import put_into
from tests.tiny import save_tiny_flux, save_tiny_klein, tiny_flux_pipeline, tiny_klein_pipeline

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
        (("a ball", "--model", "nowhere"), "there is no model at nowhere"),
        (("a ball", "--srpo", "nowhere.safetensors"), "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_painted_is_one_sentence_and_no_file(capsys, flux_folder, weights, tmp_path, arguments, said):
    words = ["--model", str(flux_folder), "--srpo", str(weights), "--size", "32,32", "--out", str(tmp_path / "out")]
    status = sample.main([*words, *arguments])
    printed = capsys.readouterr()
    assert status == 2 and printed.out == "" and not (tmp_path / "out").exists()
    assert printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1


def test_a_prompt_in_another_encoding_is_refused(capsys):
    with pytest.raises(SystemExit):
        sample.main([b"a red \xe9clair".decode(errors="surrogateescape")])
    assert "PROMPT: expected a text in UTF-8" in capsys.readouterr().err


def test_another_model_wants_its_own_srpo_weights(run):
    status, printed, _ = run("a red ball", srpo=None)
    assert status == 2 and "name them with --srpo" in printed.err


# What the page takes, the command lines take


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    adapters = {
        "transformer.x_embedder.lora_A.weight": torch.randn(4, 64, generator=generator),
        "transformer.x_embedder.lora_B.weight": 0.1 * torch.randn(32, 4, generator=generator),
    }
    return save(adapters, tmp_path_factory.mktemp("lora") / "style.safetensors")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def pixels(out, side="srpo"):
    (file,) = out.glob(f"01_*_{side}.png")
    return np.asarray(Image.open(file)).astype(int)


@pytest.mark.parametrize("form", ["gguf", "fp8", "bfl", "id"])
def test_srpo_weights_of_every_form_are_painted_with(run, weights, cache, tmp_path, form):
    tuned = tiny_flux_pipeline(seed=1).transformer
    if form == "gguf":
        named = write_gguf(to_bfl(tuned), tmp_path / "srpo.gguf", "Q8_0")
    elif form == "id":
        put_into(cache, "tencent/SRPO", lambda folder: save(tuned.state_dict(), folder / WEIGHTS_NAME))
        named = "tencent/SRPO"
    else:
        plain = to_bfl(tuned)
        named = save(to_fp8(plain) if form == "fp8" else plain, tmp_path / "srpo.safetensors")
    status, printed, out = run("a red ball", srpo=named)
    assert status == 0, printed.err
    found = pixels(out)
    shutil.rmtree(out)
    run("a red ball", srpo=weights)
    difference = np.abs(found - pixels(out)).mean()
    assert difference <= {"fp8": 10, "gguf": 2}.get(form, 0.01)  # of 255: as far as it is rounded


def test_a_lora_takes_its_weight_and_a_pictures_name_tells_it(run, lora, flux_folder):
    _, _, out = run("a red ball", srpo=f"{lora}@0")
    assert np.abs(pixels(out, "srpo-0") - pixels(out, flux_folder.name)).max() <= 1
    _, _, out = run("a red ball", srpo=f"{lora}@0.5")
    run("a red ball", srpo=lora)
    base, half, whole = (pixels(out, side) for side in (flux_folder.name, "srpo-0-5", "srpo"))
    assert 0 < np.abs(half - base).mean() < np.abs(whole - base).mean()
    record = json.loads(Image.open(next(out.glob("01_*_srpo-0-5.png"))).text[KEY])
    assert record["names"]["right"] == "SRPO × 0.5"
    assert record["weights_sha256"]["srpo"] == hashlib.sha256(lora.read_bytes()).hexdigest()


def test_a_base_named_by_its_id_is_found_in_the_cache_and_called_by_it(capsys, cache, weights, tmp_path):
    put_into(cache, "black-forest-labs/FLUX.1-dev", save_tiny_flux)
    words = ["--model", "black-forest-labs/FLUX.1-dev", "--srpo", str(weights), "--size", "32,32", "--steps", "1"]
    assert sample.main(["a red ball", *words, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "01_a-red-ball_seed-0_flux-1-dev.png").is_file()


def test_a_second_family_is_painted_by_the_same_command(capsys, tmp_path):
    folder = save_tiny_klein(tmp_path / "klein")
    srpo = save_transformer(tiny_klein_pipeline(seed=1).transformer, tmp_path / "srpo.safetensors", torch.float32)
    words = ["--model", str(folder), "--srpo", str(srpo), "--size", "32,32", "--steps", "2"]
    assert sample.main(["a red ball", *words, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    assert (pixels(tmp_path / "out") != pixels(tmp_path / "out", "klein")).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--srpo", "tencent/SRPO"), "tencent/SRPO is not in"),
        (("--model", "someone/FLUX"), "someone/FLUX is not in"),
        (("--srpo", "{lora}@9"), "weight of a LoRA must lie between -4 and 4"),
        (("--srpo", "{whole}@0.5"), "holds whole weights, not a LoRA"),
    ],
)
def test_weights_that_are_not_here_or_take_no_weight_are_one_sentence(
    capsys, cache, flux_folder, weights, lora, tmp_path, options, said
):
    named = [word.format(lora=lora, whole=weights) for word in options]
    words = ["--model", str(flux_folder), "--srpo", str(weights), "--size", "32,32", "--out", str(tmp_path / "out")]
    status = sample.main(["a red ball", *words, *named])
    printed = capsys.readouterr()
    assert status == 2 and printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_recoveries_take_the_same_names(capsys, cache, flux_folder, weights, lora, tmp_path):
    def sheet(name, *more):
        out = tmp_path / f"{name}.png"
        words = ["--model", flux_folder, "--size", "32,32", "--steps", "2", "--sigmas", "0.9", "--out", out, *more]
        return recover.main([str(word) for word in words]), out

    plain, none, whole = sheet("plain"), sheet("none", "--weights", f"{lora}@0"), sheet("lora", "--weights", lora)
    assert [status for status, _ in (plain, none, whole)] == [0, 0, 0], capsys.readouterr().err
    pictures = [np.asarray(Image.open(out)).astype(int) for _, out in (plain, none, whole)]
    near, far = (np.abs(pictures[0] - other).max() for other in pictures[1:])
    assert near <= 1 < 10 < far  # of 255: two copies of the same weights may round a product otherwise
    put_into(cache, "tencent/SRPO", lambda folder: shutil.copyfile(weights, folder / WEIGHTS_NAME))
    assert sheet("id", "--weights", "tencent/SRPO")[0] == sheet("file", "--weights", weights)[0] == 0
    assert (tmp_path / "id.png").read_bytes() != (tmp_path / "plain.png").read_bytes()
    capsys.readouterr()
    for named, said in (
        (("--weights", "nobody/nothing"), "is not in"),
        (("--weights", "gone.safetensors"), "nothing"),
        (("--model", "nobody/nothing"), "is not in"),
        (("--prompt", "x" * 600), "this model reads 512"),
        (("--steps", "0"), "--steps must be 1 or more"),
        (("--size", "30,32"), "multiples of 16"),
    ):
        assert sheet("bad", *named)[0] == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and said in printed and printed.count("\n") == 1
