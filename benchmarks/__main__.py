"""python -m benchmarks: measures the studio on this machine and prints every figure beside its goal."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from app.arguments import add_weights, weights
from app.state import Options
from benchmarks.figures import LEFT_OUT, Figure, fill, table
from benchmarks.scale import FULL, QUICK

# The app's process first: this one must not have read the libraries that its cold start reads.
GROUPS = ("app_process", "pairs", "overhead", "inside", "renderer", "training", "page", "updates", "studies")
FLUX = ("flux_pictures", "flux_memory", "flux_updates")  # at FLUX.1-dev's size: all of them by --only flux


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, also where a goal is missed; 1 where a figure could not be measured."""
    asked = _parser().parse_args(arguments)
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):  # nothing is looked up, and no progress bars between the lines
        os.environ.setdefault(name, "1")
    options = Options(**weights(asked))
    scale = QUICK if asked.quick else FULL
    print(_machine(), flush=True)
    if asked.quick:
        print("quick: this shows that every measurement runs; the figures mean nothing", flush=True)
    figures: list[Figure] = []
    for name in _chosen(asked.only):
        print(f"measuring: {name} ...", file=sys.stderr, flush=True)
        group = importlib.import_module(f"benchmarks.{name}")
        figures += fill(group.FIGURES, group.measure(options, scale))
    print(table(figures))
    if asked.json is not None:
        content = {
            "machine": _machine(),
            "quick": asked.quick,
            "figures": [asdict(f) | {"verdict": f.verdict} for f in figures],
        }
        asked.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(figure.value is None and not figure.note.startswith(LEFT_OUT) for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_weights(parser)
    names = (*GROUPS, "flux", *FLUX)
    parser.add_argument("--only", nargs="+", choices=names, help="measure these alone; flux: all at FLUX.1-dev's size")
    parser.add_argument("--quick", action="store_true", help="a minute that shows that every measurement runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    return parser


def _chosen(names: Sequence[str] | None) -> list[str]:
    """The groups in the order of asking, all of them where none is named."""
    asked = (*GROUPS, *FLUX) if names is None else names
    return list(dict.fromkeys(group for name in asked for group in (FLUX if name == "flux" else (name,))))


def _machine() -> str:
    """The machine in a line, with its load before anything is measured: a busy machine spoils the figures."""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}{load}"


if __name__ == "__main__":
    sys.exit(main())
