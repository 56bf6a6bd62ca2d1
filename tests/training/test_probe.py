"""The probe: real figures of a real update, and nothing touched."""

import json
from pathlib import Path

import pytest

from srpo.training.probe import main


def folder_bytes(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture
def options(flux_folder, clip_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball\na blue house\na green tree\n")
    changes = [
        *(f"model={flux_folder}", f"reward={clip_folder}", f"prompts={prompts}", "max_sequence_length=32"),
        *("objective.height=32", "objective.width=32", "objective.rollout_steps=2", "prompts_per_update=2"),
        *("validation.judge=none", "validation.maximise=sharpness", "validation.limits={}", "validation.num_steps=2"),
        *("validation.num_prompts=4", "validation.prompts=none"),
    ]
    return [part for change in changes for part in ("--set", change)]


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_it_measures_an_update_and_leaves_the_files_as_they_are(weights, options, flux_folder, capsys):
    before = folder_bytes(flux_folder)
    assert main([*options, "--set", f"weights={weights}"]) == 0
    cost = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert folder_bytes(flux_folder) == before
    assert all(cost[name] > 0 for name in cost)
    assert cost["peak_bytes"] > 100e6  # torch alone takes more
    # Weights and AdamW's two moments, float32, and a count for each tensor.
    assert cost["checkpoint_bytes"] == pytest.approx(12 * cost["num_trained"], rel=0.05)
    assert (cost["num_trained"] > 20_000) == (weights == "full")


def test_without_validation_it_costs_nothing(options, capsys):
    assert main([*options, "--set", "validation.every=0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["validation_seconds"] == 0


def test_what_could_not_begin_is_said_in_one_sentence(options, capsys):
    assert main([*options, "--set", "prompts=nowhere.txt"]) == 2
    assert capsys.readouterr().err.startswith("error: no prompts in 'nowhere.txt'")
    assert main(["--preset", "studo"]) == 2
    assert "there is no preset 'studo'" in capsys.readouterr().err
