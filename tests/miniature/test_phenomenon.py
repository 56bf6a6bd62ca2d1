"""The table of the phenomenon: its claims by hand, and the whole command at its smallest."""

import json

import pytest

from srpo.evaluation.shares import Mean
from srpo.miniature import phenomenon
from srpo.miniature.phenomenon import ARMS, BASE, main, table
from srpo.training.config import with_settings
from srpo.training.presets import preset

COLUMNS = ("photo", "content", "hacked", "saturation", "sharpness", "raw reward", "positive minus negative")
SRPO, PLAIN, PAPER, DIRECT, EARLY, _, LATE = (arm.name for arm in ARMS)


def row(**means):
    """Each mean with an interval of +- 0.05; 0.5 for what is not named."""
    values = {name: means.get(name, 0.5) for name in COLUMNS}
    return {name: Mean(mean, mean - 0.05, mean + 0.05, 256) for name, mean in values.items()}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_preset_with_settings_that_exist(arm):
    config = with_settings(preset(arm.preset), [*arm.changes, "validation.every=0", "seed=2"])
    assert config.seed == 2
    assert "miniature" in config.model


def claims(rows, flops):
    return [line for line in table(rows, [0, 1], flops).splitlines() if line.startswith("- ")]


def test_a_claim_is_borne_out_only_where_intervals_do_not_overlap():
    rows = {
        BASE: row(photo=0.2),
        SRPO: row(photo=0.6),
        PLAIN: row(photo=0.1),
        PAPER: row(photo=0.55),  # overlaps 0.55 ... 0.65
        DIRECT: row(photo=0.45),
        EARLY: row(hacked=0.1),
        LATE: row(hacked=0.7),
    }
    lines = claims(rows, {SRPO: 3e12, PAPER: 3e12, DIRECT: 9e12})
    assert [line.endswith(": borne out") for line in lines] == [True, True, False, True, True]
    assert lines[2].endswith("(3.00 against 3.00 TFLOP): **not borne out**: not more photo")
    assert claims(rows | {LATE: row(hacked=0.2)}, {SRPO: 1, PAPER: 1, DIRECT: 1})[-1].endswith(
        "not borne out**: not more"
    )


def test_better_means_at_equal_content_and_by_count_at_no_more_compute():
    rows = {BASE: row(content=0.7), SRPO: row(photo=0.9), PAPER: row(content=0.3), DIRECT: row(photo=0.2)}
    base, paper, direct = claims(rows, {SRPO: 3e12, PAPER: 2e12, DIRECT: 3e12})
    assert base.endswith("at equal content: **not borne out**: less content")
    assert paper.endswith("(3.00 against 2.00 TFLOP): **not borne out**: more content, more compute")
    assert direct.endswith(": borne out")


def test_the_table_has_what_the_training_took():
    page = table({BASE: row(photo=0.2), SRPO: row()}, [0, 1], {SRPO: 4.56e12})
    assert "| base | 20.0% (15.0% to 25.0%) |" in page
    assert next(line for line in page.splitlines() if line.startswith("| base |")).endswith("| - |")
    assert next(line for line in page.splitlines() if line.startswith(f"| {SRPO} |")).endswith("| 4.56 |")


@pytest.mark.slow
def test_the_whole_command_writes_the_page_and_its_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(phenomenon, "ARMS", ARMS[:2])
    monkeypatch.setattr(phenomenon, "_claims", lambda rows, costs: [])
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
    # The two arms differ in the reward's words alone: one update of one prompt costs the same.
    assert figures["flops"][SRPO] == figures["flops"][PLAIN] > 1e9
    page = (tmp_path / "p.md").read_text()
    assert all(f"| {name} |" in page for name in figures["rows"])
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.safetensors")}
    assert len(times) == 4
    assert main(arguments) == 0  # finished runs are taken as they are
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
