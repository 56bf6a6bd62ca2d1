"""python -m srpo.miniature: trains, measures and describes the miniature, stage by stage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from srpo.miniature import card
from srpo.miniature.loop import work_folder
from srpo.miniature.recipe import STAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m srpo.miniature",
        description="Trains, measures and describes the miniature. An interrupted stage is taken up where it stopped.",
        epilog="stages: " + "; ".join(f"{name}: {stage.text}" for name, stage in STAGES.items()),
    )
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "all"], metavar="STAGE", help="in the order given")
    parser.add_argument(
        "--from-shipped",
        action="store_true",
        help="start the training from the weights in assets/, not from random ones",
    )
    options = parser.parse_args(arguments)
    names = list(STAGES) if "all" in options.stages else options.stages
    if options.from_shipped and (cannot := [name for name in names if not STAGES[name].can_start_shipped]):
        print(
            f"error: {', '.join(cannot)} cannot start from shipped weights: leave out --from-shipped", file=sys.stderr
        )
        return 2
    try:
        for name in names:
            STAGES[name].run(options.from_shipped)
            for loop in STAGES[name].loops:
                card.save_curve(loop, json.loads((work_folder(loop) / "curve.json").read_text()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
