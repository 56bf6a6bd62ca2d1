"""The command-line options that name weights, for everything that is started on them: the app and its benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from app.state import Options
from srpo.policies.placement import ATTENTION, MODES
from srpo.policies.sizes import require_text_tokens

NAMES = ("model", "srpo", "reward", "judge", "text_tokens", "device", "memory", "attention")  # fields of Options
FLAGS = ("compile",)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds an option for all of NAMES and FLAGS. What is not named stays None: only Options knows whose weights fit."""
    default = Options()
    own = "(default: the miniature's, over the miniature alone)"
    parser.add_argument(
        "--model", type=Path, default=default.model, help="base model, a pipeline's folder or its id on the hub"
    )
    parser.add_argument(
        "--srpo", type=Path, help=f"SRPO weights over it: a file, a folder or an id, a LoRA as FILE@0.8 {own}"
    )
    parser.add_argument("--reward", type=Path, help=f"reward that scores, KIND:PLACE or a CLIPModel folder {own}")
    parser.add_argument("--judge", type=Path, help=f"the independent judge's folder {own}")
    parser.add_argument(
        "--text-tokens", type=_text_tokens, help="tokens of text (default: 64 for the miniature, else 512)"
    )
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, mps ...")
    parser.add_argument(
        "--memory",
        choices=MODES,
        default=default.memory,
        help="how two models share the device; auto measures what is free, and never rounds (docs/memory.md)",
    )
    parser.add_argument("--attention", choices=ATTENTION, default=default.attention, help="kernels of the attention")
    parser.add_argument(
        "--compile", action="store_true", help="compile the repeated blocks: faster after a slow first picture"
    )


def weights(asked: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of Options."""
    return {name: getattr(asked, name) for name in NAMES + FLAGS}


def _text_tokens(text: str) -> int:
    count = int(text)
    try:
        require_text_tokens(count)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return count


def as_arguments(options: Options) -> list[str]:
    """The words of a command line that `add_weights` reads as these options."""
    named = {name: getattr(options, name) for name in NAMES}
    words = [
        word
        for name, value in named.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return words + [f"--{name}" for name in FLAGS if getattr(options, name)]
