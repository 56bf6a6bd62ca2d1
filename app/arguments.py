"""The command-line options that name weights, for everything that is started on them: the app and its benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from app.state import Options

NAMES = ("model", "srpo", "reward", "judge", "text_tokens", "device")  # fields of Options


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each of NAMES. What is not named stays None: only Options knows whose weights fit."""
    default = Options()
    own = "(default: the miniature's, over the miniature alone)"
    parser.add_argument(
        "--model", type=Path, default=default.model, help="base model, a FluxPipeline folder or its id on the hub"
    )
    parser.add_argument(
        "--srpo", type=Path, help=f"SRPO weights over it: a file, a folder or an id, a LoRA as FILE@0.8 {own}"
    )
    parser.add_argument("--reward", type=Path, help=f"reward that scores, KIND:PLACE or a CLIPModel folder {own}")
    parser.add_argument("--judge", type=Path, help=f"the independent judge's folder {own}")
    parser.add_argument("--text-tokens", type=int, help="tokens of text (default: 64 for the miniature, else 512)")
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, mps ...")


def weights(asked: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as arguments of Options."""
    return {name: getattr(asked, name) for name in NAMES}


def as_arguments(options: Options) -> list[str]:
    """The words of a command line that `add_weights` reads as these options."""
    named = {name: getattr(options, name) for name in NAMES}
    return [
        word
        for name, value in named.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
