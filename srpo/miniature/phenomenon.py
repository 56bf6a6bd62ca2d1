"""python -m srpo.miniature.phenomenon: the paper's claims on the miniature, over several seeds, as a table in docs/.

Three questions. Does SRPO make photos where Direct-Align with the plain reward and the base do not? Does our default do
better than the reference's recipes? Is a reward hacked more where only late, clean noise levels are trained?

Runs that are finished are taken as they are, so the command may be stopped and started again.

S seeds, N prompts
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srpo.evaluation import measures
from srpo.evaluation.shares import Mean
from srpo.miniature import paths
from srpo.miniature.figures import judged, mean_by_prompt, reward_scores
from srpo.miniature.judge import Judge
from srpo.miniature.world import Scene, neutral_prompts
from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.runs import RunFolder
from srpo.training.config import config_from_dict
from srpo.training.flops import update_flops

RUNS, TABLE = Path("runs") / "phenomenon", paths.REPOSITORY / "docs" / "phenomenon.md"
FIRST_SEED = 120_000  # of the noise: no figure and no tuning has seen it
TEXT_TOKENS = 64
OUTLIERS = 0.05  # share of the base's pictures that count as too saturated, and as too smooth
BASE = "base"


@dataclass(frozen=True)
class Arm:
    """One recipe of the comparison: a preset and what is changed of it."""

    name: str
    preset: str
    changes: tuple[str, ...] = ()


_NO_DISCOUNT = ("objective.inversion=false",)  # Direct-Align as in the paper's figure on hacking: denoise alone, plain
ARMS = (
    Arm("SRPO (`studio`)", "studio"),
    Arm("Direct-Align, plain reward (`plain`)", "plain"),
    Arm("the paper's trainer (`paper_miniature`)", "paper_miniature"),
    Arm("the later trainer (`direct`)", "direct"),
    Arm(
        "Direct-Align, early quarter: sigma 0.75 to 0.95",
        "plain",
        (*_NO_DISCOUNT, "objective.levels.sigma_min=0.75", "objective.levels.sigma_max=0.95"),
    ),
    Arm(
        "Direct-Align, all levels: sigma 0.16 to 0.95",
        "plain",
        (*_NO_DISCOUNT, "objective.levels.sigma_min=0.16", "objective.levels.sigma_max=0.95"),
    ),
    Arm(
        "Direct-Align, late quarter: sigma 0.16 to 0.36",
        "plain",
        (*_NO_DISCOUNT, "objective.levels.sigma_min=0.16", "objective.levels.sigma_max=0.36"),
    ),
)


def train_arm(arm: Arm, seed: int, root: Path, changes: Sequence[str] = ()) -> RunFolder:
    """The arm's finished run of that seed, made by the training's own command where it is not there yet.

    ValueError where it did not finish.
    """
    words = "".join(letter if letter.isalnum() else " " for letter in arm.name).split()
    run = RunFolder(root / "-".join([*words, f"seed{seed}"]).lower())
    if not run.weights.is_file():
        settings = [*arm.changes, "validation.every=0", "checkpoint_every=1000", f"seed={seed}", *changes]
        options = [option for setting in settings for option in ("--set", setting)]
        command = [sys.executable, "-m", "srpo.training", "--preset", arm.preset, "--out", str(run.path), *options]
        if subprocess.run(command, cwd=paths.REPOSITORY, check=False).returncode or not run.weights.is_file():
            raise ValueError(f"the training of {arm.name!r} with seed {seed} did not finish: see {run.path}")
    return run


def measure(
    runs: Mapping[str, Sequence[RunFolder]], prompts: Sequence[tuple[str, Scene]]
) -> dict[str, dict[str, Mean]]:
    """Figures of each arm by their names, the base first: means over prompts of the means over seeds, and intervals.

    Every model paints the same prompts from the same noise.
    """
    base = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    judge, reward = Judge.from_pretrained(paths.JUDGE), ClipReward.from_pretrained(paths.REWARD)
    texts = [text for text, _ in prompts]

    def values(policy: FluxPolicy) -> dict[str, Tensor]:
        samples = judged(judge, policy, prompts, FIRST_SEED)
        scores = reward_scores(reward, samples.images, texts)
        return {
            "photo": samples.photo.double(),
            "content": samples.content.double(),
            "saturation": samples.saturation,
            "sharpness": measures.sharpness(samples.images),
            "raw reward": scores["raw reward"],
            "positive minus negative": scores["positive minus negative"],
        }

    of_base = values(base)
    too_saturated = of_base["saturation"].quantile(1 - OUTLIERS)
    too_smooth = of_base["sharpness"].quantile(OUTLIERS)

    def row(found: Sequence[dict[str, Tensor]]) -> dict[str, Mean]:
        for one in found:
            one["hacked"] = ((one["saturation"] > too_saturated) | (one["sharpness"] < too_smooth)).double()
        joined = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        return {name: mean_by_prompt(all_seeds, texts * len(found)) for name, all_seeds in joined.items()}

    rows = {BASE: row([of_base])}
    for name, folders in runs.items():
        policies = (base.with_transformer(load_transformer(run.weights, base.transformer)) for run in folders)
        rows[name] = row([values(policy) for policy in policies])
    return rows


def costs(runs: Mapping[str, Sequence[RunFolder]]) -> dict[str, float]:
    """Floating-point operations of each arm's finished runs, the mean over seeds, by count: rollouts and gradients."""
    policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    reward = ClipReward.from_pretrained(paths.REWARD)
    found = {}
    for name, folders in runs.items():
        num_updates = sum(1 for run in folders for _ in run.progress()) / len(folders)
        # Seeds share all settings but the seed.
        found[name] = num_updates * update_flops(config_from_dict(folders[0].config()), policy, reward)
    return found


def table(rows: Mapping[str, Mapping[str, Mean]], seeds: Sequence[int], costs: Mapping[str, float]) -> str:
    """The Markdown page: the rows, and which of the paper's claims their intervals and their costs bear out."""
    columns = ("photo", "content", "hacked", "saturation", "sharpness", "raw reward", "positive minus negative")
    prompts = next(iter(rows.values()))["photo"].count
    head = ["| model | " + " | ".join(columns) + " | training, TFLOP |", "|---" * (len(columns) + 2) + "|"]
    lines = [
        f"| {name} | {' | '.join(_cell(column, row[column]) for column in columns)} | "
        f"{f'{costs[name] / 1e12:.2f}' if name in costs else '-'} |"
        for name, row in rows.items()
    ]
    return f"""# SRPO's phenomenon on the miniature

Written by `python -m srpo.miniature.phenomenon`; seeds {", ".join(map(str, seeds))}, {prompts} neutral test prompts,
the same noise for every model. In brackets 95 % intervals over prompts of the means over seeds. *Hacked*: more
saturated than {1 - OUTLIERS:.0%} of the base's pictures, or smoother than {1 - OUTLIERS:.0%} of them: what the
miniature's reward likes whatever the prompt says.
*Training* counts the operations of a run's updates, rollouts and gradient passes, the same on every machine.

{chr(10).join(head + lines)}

{chr(10).join(_claims(rows, costs))}

Photos are *more* where the intervals do not overlap. Content is *equal* where they overlap.
"""


def _cell(column: str, value: Mean) -> str:
    if column in ("photo", "content", "hacked", "saturation"):
        return f"{value.mean:.1%} ({max(value.low, 0):.1%} to {min(value.high, 1):.1%})"  # shares of a whole
    return f"{value.mean:.4f} ({value.low:.4f} to {value.high:.4f})"


def _claims(rows: Mapping[str, Mapping[str, Mean]], costs: Mapping[str, float]) -> list[str]:
    """One line per claim, and where it is not borne out, what of it fails."""
    srpo, plain, paper, direct, early, _, late = (arm.name for arm in ARMS)
    lines = []
    for other in (BASE, plain, paper, direct):
        if srpo not in rows or other not in rows:
            continue
        claim, failing = f"more photo with {srpo} than with {other} at equal content", []
        if not _is_more(rows[srpo]["photo"], rows[other]["photo"]):
            failing.append("not more photo")
        if (content := _compared(rows[srpo]["content"], rows[other]["content"])) != "equal":
            failing.append(f"{content} content")
        if other in (paper, direct):  # the reference's recipes
            own, theirs = costs[srpo], costs[other]
            claim += f" and no more compute ({own / 1e12:.2f} against {theirs / 1e12:.2f} TFLOP)"
            failing += ["more compute"] if own > theirs else []
        lines.append(_line(claim, failing))
    if late in rows and early in rows:
        more = _is_more(rows[late]["hacked"], rows[early]["hacked"])
        lines.append(_line(f"more hacked with {late} than with {early}", [] if more else ["not more"]))
    return lines


def _line(claim: str, failing: Sequence[str]) -> str:
    return f"- {claim}: " + (f"**not borne out**: {', '.join(failing)}" if failing else "borne out")


def _is_more(value: Mean, other: Mean) -> bool:
    return _compared(value, other) == "more"


def _compared(value: Mean, other: Mean) -> str:
    """ "more" or "less" where the intervals do not overlap, else "equal"."""
    if value.low > other.high:
        return "more"
    return "less" if value.high < other.low else "equal"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m srpo.miniature.phenomenon", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--prompts", type=int, default=256, metavar="N", help="pictures per model (default: 256)")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="the page; figures beside it as .json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all runs")
    options = parser.parse_args(arguments)
    prompts = neutral_prompts("test")[: options.prompts]
    if len(prompts) < 2:
        parser.error(f"--prompts is {options.prompts}; expected at least 2")
    try:
        runs = {arm.name: [train_arm(arm, seed, options.runs, options.set) for seed in options.seeds] for arm in ARMS}
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows, found = measure(runs, prompts), costs(runs)
    figures: dict[str, Any] = {
        "seeds": options.seeds,
        "rows": rows,
        "flops": found,
    }
    options.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    options.out.write_text(table(rows, options.seeds, found), encoding="utf-8")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
