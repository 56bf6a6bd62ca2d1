"""The table of the phenomenon: its claims by hand, and the whole command at its smallest."""

import json

import pytest

from srpo.evaluation.shares import Mean
from srpo.miniature import phenomenon
from srpo.miniature.phenomenon import ARMS, BASE, main, table
from srpo.training.config import with_settings
from srpo.training.presets import preset

COLUMNS = ("photo", "content", "hacked", "saturation", "sharpness", "raw reward", "positive minus negative")


def row(**means):
    """Each mean with an interval of +- 0.05; 0.5 for what is not named."""
    values = {name: means.get(name, 0.5) for name in COLUMNS}
    return {name: Mean(mean, mean - 0.05, mean + 0.05, 256) for name, mean in values.items()}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_preset_with_settings_that_exist(arm):
    config = with_settings(preset(arm.preset), [*arm.changes, "validation.every=0", "seed=2"])
    assert config.seed == 2
    assert "miniature" in config.model


def test_a_claim_is_borne_out_only_where_intervals_do_not_overlap():
    srpo, plain, paper, direct, early, _, late = (arm.name for arm in ARMS)
    rows = {
        BASE: row(photo=0.2),
        srpo: row(photo=0.6),
        plain: row(photo=0.1),
        paper: row(photo=0.55),  # overlaps 0.55 ... 0.65
        direct: row(photo=0.45),
        early: row(hacked=0.1),
        late: row(hacked=0.7),
    }
    lines = [line for line in table(rows, [0, 1], {srpo: 12.3}).splitlines() if line.startswith("- ")]
    assert [line.endswith(": borne out") for line in lines] == [True, True, False, True, True, True]
    assert "| base | 20.0% (15.0% to 25.0%) |" in table(rows, [0, 1], {})
    assert "| 12 |" in table(rows, [0, 1], {srpo: 12.3})


@pytest.mark.slow
def test_the_whole_command_writes_the_page_and_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(phenomenon, "ARMS", ARMS[:2])
    monkeypatch.setattr(phenomenon, "_claims", lambda rows: [])
    arguments = [
        "--seeds",
        "0",
        "1",
        "--prompts",
        "2",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "p.md"),
    ]
    for change in ("updates=1", "prompts_per_update=1", "objective.rollout_steps=1"):
        arguments += ["--set", change]
    assert main(arguments) == 0
    figures = json.loads((tmp_path / "p.json").read_text())
    assert list(figures["rows"]) == [BASE, ARMS[0].name, ARMS[1].name]
    page = (tmp_path / "p.md").read_text()
    assert all(f"| {name} |" in page for name in figures["rows"])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.safetensors")}
    assert len(times) == 4
    assert main(arguments) == 0  # finished runs are taken as they are
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
