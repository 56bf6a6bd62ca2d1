"""python -m srpo.rounding: what each form of weights rounds away, beside what SRPO changed.

The tuned weights are rounded as each form would round them and compared with themselves. The yardstick is the distance
from the base: 1 means that the rounding is as large as all that SRPO changed. Weights, velocities and pictures are
compared; the last decide what somebody sees.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from srpo.evaluation.fidelity import fidelity
from srpo.miniature import paths
from srpo.painting import Base, Settings, require_seeds
from srpo.policies.checkpoints import load_transformer, with_weights
from srpo.policies.hub import local
from srpo.policies.load import load_policy
from srpo.policies.rounding import forms

PROMPTS = ("a red ball on a beach", "a white house in the snow")
HEAD = ("| form | weights | velocities | pictures |", "|---|---:|---:|---:|")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be measured."""
    options = _options(arguments)
    try:
        for line in table(options):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@torch.no_grad()
def table(options: argparse.Namespace) -> Iterator[str]:
    """The lines of a Markdown table, one per form. ValueError for weights that do not fit."""
    place = Base(options.base, options.device, options.text_tokens)
    place.require_there()
    require_seeds(*options.seeds)
    chosen = Settings(options.steps, options.guidance, options.size, options.size)
    base = load_policy(place.place, device=options.device, max_sequence_length=place.max_sequence_length)
    base.latent_shape(chosen.height, chosen.width)
    tuned = base.with_transformer(load_transformer(local(options.tuned), base.transformer))
    before, after = base.transformer.state_dict(), tuned.transformer.state_dict()
    changed = _norm(after[name] - before[name] for name in after)
    if not changed:
        raise ValueError("Both are the same weights, so there is no change to measure by; name two others.")
    yield from HEAD
    for name, form in forms().items():
        weights = {key: form(it.cpu()).to(it.device) for key, it in after.items()}
        lost = _norm(weights[key] - it for key, it in after.items())
        rounded = with_weights(base.transformer, weights)
        settings = {"num_steps": options.steps, "guidance": options.guidance, "side": options.size}
        near = fidelity(base, tuned, base.with_transformer(rounded), options.prompt, options.seeds, **settings)
        yield f"| {name} | {lost / changed:.2f} | {near.velocity_error:.3f} | {near.picture_error:.3f} |"


def _norm(differences: Iterator[torch.Tensor]) -> float:
    return sum(float(it.double().square().sum()) for it in differences) ** 0.5


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m srpo.rounding", description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default=paths.FLUX, type=Path, help="a pipeline (default: the miniature)")
    parser.add_argument("tuned", nargs="?", default=paths.SRPO, type=Path, help="whole weights over it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--size", type=int, default=128, help="pixels per side")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--text-tokens", type=int, default=64)
    options = parser.parse_args(arguments)
    options.prompt = options.prompt or list(PROMPTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
