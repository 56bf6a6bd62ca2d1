"""The paper's claim on the shipped miniature, and the command that shows it."""

import json

import pytest
import torch
from PIL import Image

from srpo import recover as command
from srpo.evaluation.recoveries import grid_methods, recover
from srpo.evaluation.recovery_errors import psnr
from srpo.evaluation.shares import few
from srpo.evaluation.sheets import KEY
from srpo.miniature import paths
from srpo.miniature import recoveries as figures
from srpo.miniature.data import training_scenes
from srpo.miniature.renderer import render
from srpo.miniature.world import caption
from srpo.policies.flux import FluxPolicy


@pytest.fixture(scope="module")
def policy():
    return FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=64)


def test_at_95_percent_noise_direct_align_is_far_nearer_than_one_step_and_the_shorter_the_step_the_nearer(policy):
    """Pictures that no model has made: renders, each with a noise of its own. The intervals of the gains exclude 0."""
    scenes = training_scenes(8, seed=77_000)
    _, one_step, long, short, _ = grid_methods()
    found = {method: [] for method in (one_step, long, short)}
    for number, scene in enumerate(scenes):
        with torch.no_grad():
            x0 = policy.encode_image(render([scene]))
            original = policy.decode(x0)
        cond, noise = policy.encode_prompts([caption(scene)]), policy.initial_noise(number, 128, 128)
        for cell in recover(policy, x0, noise, cond, [0.95], list(found)):
            found[cell.method].append(psnr(cell.image, original).item())
    one, longer, shorter = (torch.tensor(found[method]) for method in (one_step, long, short))
    assert few(shorter - one).low > 3  # decibels
    assert few(longer - one).low > 1
    assert few(shorter - longer).low > 1


def test_the_command_writes_a_sheet_of_any_picture(tmp_path, capsys):
    Image.effect_noise((100, 60), 60).convert("RGB").save(tmp_path / "mine.jpg")
    out = tmp_path / "sheet.png"
    arguments = [str(tmp_path / "mine.jpg"), "--prompt", "a red ball", "--sigmas", "0.97,0.5", "--out", str(out)]
    assert command.main([*arguments, "--size", "64,96", "--noises", "2", "--reward", str(paths.REWARD)]) == 0
    said = capsys.readouterr().out
    assert said.count("PSNR") == 10 and said.strip().endswith("sheet.png")
    with Image.open(out) as image:
        record = json.loads(image.text[KEY])
        assert record["kind"] == "recoveries" and record["request"]["sigmas"] == [0.97, 0.5]
        assert image.width > 3 * 256


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.png"], "No such file"),
        (["--sigmas", "1.5", "--steps", "1"], "--sigmas must lie within 0 and 1, not 1.5"),
        (["--out", "sheets"], "--out sheets has no ending of a picture: call it sheets.png"),
        (["--model", "nowhere"], "there is no model at nowhere"),
        (["--size", "100,100", "--steps", "1"], "multiples of 16"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(capsys, arguments, says):
    assert command.main(arguments) == 2
    assert says in capsys.readouterr().err


def test_the_page_of_figures_says_what_was_measured(tmp_path, monkeypatch):
    for name, value in (("NUM_PICTURES", 2), ("NUM_NOISES", 1)):
        monkeypatch.setattr(figures, name, value)
    monkeypatch.setitem(figures.SAMPLING, "num_steps", 4)
    found = figures.measure(lambda text: None)
    text, picture = figures.write(found, tmp_path)
    assert picture.stat().st_size <= figures.MAX_PICTURE_BYTES
    page = text.read_text(encoding="utf-8")
    _, one_step, _, short, _ = grid_methods()
    gain = found.gains[figures.FRESH, short, one_step, 0.95]
    assert f"**{gain.mean:.1f} ({gain.low:.1f} to {gain.high:.1f}) dB** nearer" in page
    pairs = zip(*(found.errors[figures.FRESH, method, 0.95, "psnr"] for method in (short, one_step)), strict=True)
    assert gain.mean == pytest.approx(next(left - right for left, right in pairs), abs=1e-4)
    assert page.count("| Direct-Align") == 3 * 3 + 3 + 4
