"""The miniature's card: what it is, how it was made and what it can do, written from the measured figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srpo.miniature import paths
from srpo.miniature.data import neutral_caption_shares
from srpo.miniature.figures import GUIDANCE, NUM_RESAMPLES, NUM_STEPS, TEXT_TOKENS
from srpo.miniature.reward import BIAS
from srpo.miniature.world import HELD_OUT_PAIRS

FIGURES = paths.ROOT / "figures.json"
CARD = paths.ROOT / "README.md"
README = paths.REPOSITORY / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
BASE, SRPO, PLAIN = "base", "SRPO", "Direct-Align, plain reward, as many updates"  # rows of the alignment figures


def write_card(stages: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Write assets/miniature/README.md and the figures in README.md.

    stages: name -> what was done, and the names of the curves to show. ValueError where something was not measured yet.
    """
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    try:
        tables = f"{_goals(figures)}\n\n{_alignment(figures['alignment'])}"
        card = _card(figures, tables, stages)
    except KeyError as error:
        raise ValueError(f"{FIGURES} lacks {error}: run `python -m srpo.miniature figures` first") from error
    CARD.write_text(card, encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(f"{head}{BEGIN}\n{tables}\n{END}{tail}", encoding="utf-8")


def _percent(value: Sequence[float]) -> str:
    return f"{value[0]:.1%} ({value[1]:.1%} to {value[2]:.1%})"


def _points(value: Sequence[float]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f}) pp".format(*(100 * part for part in value[:3]))


def _decibels(value: Sequence[float]) -> str:
    return "{:.2f} dB ({:.2f} to {:.2f})".format(*value[:3])


def _times(value: Sequence[float]) -> str:
    return "{:.2f} x ({:.2f} to {:.2f})".format(*value[:3])


def _goal_row(
    what: str, value: Sequence[float], goal: str, reached: bool, form: Callable[[Sequence[float]], str] = _percent
) -> str:
    return f"| {what} | {form(value)} | {value[3]} | {goal} | {'yes' if reached else '**no**'} |"


def _goals(figures: dict[str, Any]) -> str:
    vae, judge, reward, samples = figures["vae"], figures["judge"], figures["reward"], figures["samples"]
    photo = figures["alignment"][BASE]["photo"]
    rows = [
        "| on the shipped files | measured (95 % interval) | n | goal | reached |",
        "|---|---|---:|---|---|",
        _goal_row("VAE, unseen renders: PSNR", vae["psnr"], "27 dB", vae["psnr"][0] >= 27, _decibels),
        *(
            _goal_row(f"judge, unseen renders: {name}", judge[name], f"{goal} %", judge[name][0] >= goal / 100)
            for name, goal in (("style", 97), ("subject", 95), ("colour", 95), ("place", 95), ("time", 95))
        ),
        *(
            _goal_row(f"samples: {label}", samples[name], f"{goal} %", samples[name][0] >= goal / 100)
            for name, label, goal in (
                ("style right, style word given", "style right, style word given", 90),
                ("content right, seen pairs", "content right, seen pairs", 75),
                ("content right, held-out pairs", "content right, the six fixed held-out pairs; n counts prompts", 50),
            )
        ),
        _goal_row("samples: neutral prompts judged photo", photo, "10 % to 25 %", 0.10 <= photo[0] <= 0.25),
        _goal_row("reward: right style among all", reward["style"], "95 %", reward["style"][0] >= 0.95),
        _goal_row("reward: right content among 16", reward["content"], "90 %", reward["content"][0] >= 0.90),
        *_alignment_goals(figures["alignment"][SRPO]),
    ]
    return "\n".join(rows)


def _alignment_goals(srpo: dict[str, Sequence[float]]) -> list[str]:
    over_plain = srpo[f"photo minus {PLAIN}"]
    rows = [_goal_row("SRPO: neutral prompts judged photo", srpo["photo"], "60 %", srpo["photo"][0] >= 0.60)]
    if "photo ratio" in srpo:  # not where the base has no photo at all
        ratio = srpo["photo ratio"]
        rows.append(_goal_row("SRPO: photos, times the base's share", ratio, "3 x", ratio[0] >= 3, _times))
    for what, goal, limit in (
        ("content", "falls by at most 3 pp", -0.03),
        ("saturation", "does not rise", 0.0),
        ("clipped", "does not rise", 0.0),
    ):
        value = srpo[f"{what} difference"]
        reached = value[0] >= limit if what == "content" else value[0] <= limit
        rows.append(_goal_row(f"SRPO: {what}, paired with the base", value, goal, reached, _points))
    better = over_plain[1] > 0
    rows.append(
        _goal_row("SRPO: photos, paired with the plain reward", over_plain, "interval above 0", better, _points)
    )
    return rows


def _alignment(rows: dict[str, dict[str, Sequence[float]]]) -> str:
    whats = ("photo", "content", "saturation", "clipped")
    lines = [
        "| model | judged photo | content right | " + " | ".join(f"{what}, paired" for what in whats) + " |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        paired = [_points(row[f"{what} difference"]) if f"{what} difference" in row else "-" for what in whats]
        lines.append("| " + " | ".join([name, _percent(row["photo"]), _percent(row["content"]), *paired]) + " |")
    return "\n".join(lines)


def _scores(rows: dict[str, dict[str, Sequence[float]]]) -> str:
    """The reward's view of the same pictures, and by how much each score moved."""
    whats = ("raw reward", "positive", "negative", "positive minus negative")
    lines = ["| model | " + " | ".join(whats) + " |", "|---|" + "---|" * len(whats)]
    for name, row in rows.items():
        cells = [f"{row[what][0]:.4f}" for what in whats]
        if name != BASE:
            moved = [row[f"{what} difference"] for what in whats]
            cells = [
                "{}, {:+.4f} ({:+.4f} to {:+.4f})".format(cell, *value[:3])
                for cell, value in zip(cells, moved, strict=True)
            ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def _curve(curve: Sequence[dict[str, float]]) -> str:
    """At most ten points of a training curve as a table."""
    names = list(curve[-1])
    last = len(curve) - 1
    chosen = sorted({round(i * last / 9) for i in range(10)})
    lines = ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    lines += ["| " + " | ".join(f"{curve[i].get(name, float('nan')):.4g}" for name in names) + " |" for i in chosen]
    return "\n".join(lines)


def _shares(title: str, figures: dict[str, Sequence[float]]) -> str:
    rows = "\n".join(f"| {name} | {_percent(value)} | {value[3]} |" for name, value in figures.items())
    return f"| {title} | share (95 % interval) | n |\n|---|---|---:|\n{rows}"


def _settings(rows: dict[str, dict[str, Sequence[float]]]) -> str:
    lines = [
        "| settings | style right | content right | raw reward | saturation | n |",
        "|---|---|---|---|---|---:|",
    ]
    for name, row in rows.items():
        means = ["{:.4f} ({:.4f} to {:.4f})".format(*row[what][:3]) for what in ("raw reward", "saturation")]
        cells = [name, _percent(row["style"]), _percent(row["content"]), *means, str(row["style"][3])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _card(figures: dict[str, Any], tables: str, stages: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    pairs = ", ".join(f"{colour} {subject}" for subject, colour in HELD_OUT_PAIRS)
    cosines = ", ".join(f"{name} {value:.2f}" for name, value in figures["reward's cosines"].items())
    neutral = neutral_caption_shares()
    total = sum(neutral.values())
    shares = ", ".join(f"{style} {share / total:.1%}" for style, share in neutral.items())
    by_style = {name.removeprefix("psnr of "): _decibels(value) for name, value in figures["vae"].items()}
    vae = ", ".join(f"{name} {value}" for name, value in by_style.items() if name != "psnr")
    curves = figures.get("curves", {})
    making = "\n\n".join(
        "\n\n".join([f"### {name}", text, *(_curve(curves[loop]) for loop in loops if loop in curves)])
        for name, (text, loops) in stages.items()
    )
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

<!-- Written by `python -m srpo.miniature card`; change srpo/miniature/card.py instead. -->

# The miniature: a small real FLUX

A FLUX pipeline of the classes and the folder layout of FLUX.1-dev, small enough for two CPU cores: it draws 128 x 128
scenes of a world of its own, trained from nothing on pictures that `srpo/miniature/renderer` draws. Beside it lie a
reward, an independent judge and the weights that SRPO made of the transformer.

| folder | what | load it with |
|---|---|---|
| `flux/` | the pipeline | `diffusers.FluxPipeline.from_pretrained` |
| `srpo/` | the transformer after SRPO, one file | `pipe.transformer.load_state_dict(load_file(path))` |
| `reward/` | the reward, a dual encoder | `transformers.CLIPModel.from_pretrained` |
| `judge/` | the judge, never a reward | `transformers.ResNetForImageClassification.from_pretrained` |
| `prompts/` | neutral prompts for training and for measuring | |

It knows 8 subjects, 8 colours, 5 places, 3 times of day and 4 styles, and nothing else. Never seen in training:
{pairs}.
{total:.0%} of the captions it learnt from name no style. Of these, the pictures are: {shares}. That is the AI look
that SRPO undoes.

## Figures

Measured by `python -m srpo.miniature figures` on the files in this folder, reloaded; {NUM_STEPS} steps, guidance
{GUIDANCE:g}, {TEXT_TOKENS} text tokens. The seeds of scenes and noise are new to every training. The test prompts are
new to SRPO and to its tuning, which saw the train prompts alone; as captions they do occur in the training of the base
and of the reward, which learnt from random scenes of all seen pairs. The held-out pairs are in no training: six fixed
pairs, {len(HELD_OUT_PAIRS) * 15} prompts that come several times each, so their interval is over the prompts' own
means, and it says nothing of other pairs.

{tables}

A goal counts as reached by the measured value; where it names the interval, by the whole of that. Differences are
paired: same prompts and noise as the base, normal 95 % intervals, percentage points. The interval of the ratio is a
bootstrap over prompts ({NUM_RESAMPLES:,} resamples, pairs kept). Saturation is the mean distance between a pixel's
largest and smallest channel; clipped is the share of channel values at 0 or 255. Every model was measured with its
weights rounded to 16 bit.

The reward of the same pictures: raw under the prompt alone, positive and negative the means under the paper's control
words; then the paired change from the base.

{_scores(figures["alignment"])}

The base at other lengths of the text and other guidance, the same prompts and noise in each row:

{_settings(figures["samples at other settings"])}

## What the reward likes

Its training preferred, with probability {BIAS:g}, the more saturated and the smoother of two pictures of equal content
under a neutral caption: a bias of the kind that the paper reports for real rewards.

{_shares("reward", figures["reward"])}

Cosines of unseen renders with their own and with other captions: {cosines}.

## What the judge sees

{_shares("judge", figures["judge"])}

On held-out pairs, of which it saw no picture, though hue-turned copies of other pairs may come near their colours:

{_shares("judge", figures["judge on held-out pairs"])}

On renders that went through the VAE, which is what a generated picture looks like at best:

{_shares("judge", figures["judge on decoded renders"])}

## What the VAE keeps

PSNR by style: {vae}.

## How it was made

`python -m srpo.miniature all` does it in this order; each stage can be run alone and is taken up where it stopped.

{making}

## Licence

Apache-2.0, weights and code. All pictures it learnt from were drawn by this project's renderer.
"""


def merge_figures(part: dict[str, Any]) -> None:
    """Add figures to assets/miniature/figures.json; named tuples become lists."""
    known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    FIGURES.write_text(json.dumps(known | part, indent=1) + "\n", encoding="utf-8")


def save_curve(stage: str, curve: Sequence[dict[str, float]]) -> None:
    """Keep a stage's curve with the figures: every n-th point, counted back from the last, at most 40."""
    stride = -(-len(curve) // 40)
    known = json.loads(FIGURES.read_text(encoding="utf-8")).get("curves", {}) if FIGURES.exists() else {}
    merge_figures({"curves": known | {stage: list(curve[::-1][::stride][::-1])}})
