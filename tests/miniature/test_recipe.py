"""The command that makes the miniature: what it refuses, what its stages keep, and that no number is typed twice."""

import copy
import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from srpo.miniature import card, paths, recipe
from srpo.miniature.__main__ import main
from srpo.miniature.loop import work_folder
from srpo.miniature.storage import store_in_half
from srpo.runs import RunFolder
from tests.tiny import save_tiny_flux, tiny_clip, tiny_flux_pipeline


@pytest.fixture
def assets(tmp_path, monkeypatch, cache):
    """An empty assets folder, and an empty cache."""
    root = tmp_path / "assets"
    root.mkdir()
    for name, place in (("ROOT", ""), ("FLUX", "flux"), ("REWARD", "reward"), ("JUDGE", "judge")):
        monkeypatch.setattr(paths, name, root / place)
    monkeypatch.setattr(paths, "SRPO", root / "srpo" / paths.SRPO.name)
    monkeypatch.setattr(card, "FIGURES", root / "figures.json")
    return root


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["guidance", "srpo", "--from-shipped"], "guidance, srpo cannot start from shipped weights"),
        (["flux", "--from-shipped"], "holds no pipeline yet: run the stages vae, flux and guidance first"),
        (["judge", "--from-shipped"], "no judge at"),
        (["card"], "figures.json lacks 'vae': run `python -m srpo.miniature figures` first"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(arguments, sentence, assets, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_an_unknown_stage_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["vea"])
    assert "vae" in capsys.readouterr().err


def test_the_prompts_stage_writes_the_shipped_lists(assets):
    assert main(["prompts"]) == 0
    for split in ("train", "test"):
        shipped = paths.REPOSITORY / "assets" / "miniature" / "prompts" / f"{split}.txt"
        assert (assets / "prompts" / shipped.name).read_bytes() == shipped.read_bytes()


def test_the_numbers_of_a_training_read_as_they_are_used():
    assert recipe._of({"updates": 2000, "batch": 16, "lr": 1.5e-3, "seed": 0}) == (
        "2,000 updates of 16, AdamW 0.0015, cosine, seed 0."
    )
    for name, settings in (("vae", recipe.VAE), ("judge", recipe.JUDGE), ("flux", recipe.FLUX)):
        assert f"{settings['updates']:,} updates" in recipe.STAGES[name].text


def polished(vae):
    other = copy.deepcopy(vae)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.5
    return other


def test_a_vae_with_another_decoder_or_with_rounded_weights_makes_the_same_latents(tmp_path):
    vae = tiny_flux_pipeline().vae
    vae.save_pretrained(tmp_path)
    store_in_half(tmp_path)
    assert recipe._same_encoder(vae, polished(vae))
    assert recipe._same_encoder(vae, AutoencoderKL.from_pretrained(tmp_path))
    assert not recipe._same_encoder(vae, tiny_flux_pipeline(seed=1).vae)
    scaled = copy.deepcopy(vae)
    scaled.register_to_config(scaling_factor=0.5)
    assert not recipe._same_encoder(vae, scaled)


@pytest.mark.parametrize("same_latents", [True, False])
def test_guidance_keeps_a_polished_decoder_of_the_same_latents_and_no_other(same_latents, assets, monkeypatch):
    teacher = tiny_flux_pipeline()
    teacher.save_pretrained(work_folder("flux") / "finished")
    shipped = polished(teacher.vae if same_latents else tiny_flux_pipeline(seed=1).vae)
    shipped.save_pretrained(paths.FLUX / "vae")
    saved = {}
    monkeypatch.setattr(recipe, "_latents", lambda: None)
    monkeypatch.setattr(recipe, "_pictures", lambda: recipe.Pictures(None, []))
    monkeypatch.setattr(recipe.FluxText, "from_pipeline", lambda pipe: None)
    monkeypatch.setattr(recipe, "distil_guidance", lambda text, transformer, *rest, **settings: transformer)
    monkeypatch.setattr(recipe, "save_flux", lambda folder, text, student, vae: saved.update(vae=vae))
    recipe._guidance(False)
    expected = shipped if same_latents else teacher.vae
    assert torch.equal(saved["vae"].decoder.conv_out.bias, expected.decoder.conv_out.bias)


@pytest.fixture
def small_preset(assets, tmp_path, monkeypatch):
    """The changes that make the recipe's own command train the tiny model; a test may add to them."""
    save_tiny_flux(paths.FLUX)
    tiny_clip(paths.REWARD)
    (tmp_path / "prompts.txt").write_text("a red ball\na blue house\n")
    changes = [
        f"model={paths.FLUX}",
        f"reward={paths.REWARD}",
        f"prompts={tmp_path / 'prompts.txt'}",
        "objective.height=32",
        "objective.width=32",
        "objective.rollout_steps=2",
        "prompts_per_update=2",
        "max_sequence_length=32",
        "updates=2",
    ]
    real = recipe.subprocess.run

    def run(command, **options):
        return real([*command, *(part for change in changes for part in ("--set", change))], **options)

    monkeypatch.setattr(recipe.subprocess, "run", run)
    return changes


def test_the_srpo_stage_stores_the_run_of_the_command_in_half_precision_with_its_curve(small_preset, assets):
    assert main(["srpo"]) == 0
    run = RunFolder.open(work_folder("runs") / "studio")
    trained, stored = load_file(run.weights), load_file(paths.SRPO)
    assert all(torch.equal(stored[name], value.half()) for name, value in trained.items())
    curve = json.loads(card.FIGURES.read_text())["curves"]["studio"]
    assert [point["update"] for point in curve] == [1, 2]
    assert curve[1]["denoise/difference"] == run.progress()[1].scores["denoise/difference"]


def test_a_run_that_cannot_begin_is_not_taken_for_a_finished_one(small_preset, assets, capsys):
    small_preset.append("lr=-1")
    assert main(["srpo"]) == 2
    assert "the training run of 'studio' is not begun (exit status 2)" in capsys.readouterr().err
    assert not paths.SRPO.exists()


def test_a_run_that_was_stopped_is_not_taken_for_a_finished_one(small_preset, assets, monkeypatch, capsys):
    """A stopped run ends with exit status 0 as well: the state in its folder tells."""
    command = recipe.subprocess.run

    def stop_afterwards(*arguments, **options):
        done = command(*arguments, **options)
        RunFolder.open(work_folder("runs") / "studio").write_state("stopped", 1)
        return done

    monkeypatch.setattr(recipe.subprocess, "run", stop_afterwards)
    assert main(["srpo"]) == 2
    assert "the training run of 'studio' is stopped (exit status 0)" in capsys.readouterr().err
