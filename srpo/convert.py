"""python -m srpo.convert PLACE: what lies there; with --to, a copy in another precision, made once and kept.

PLACE is a file, a folder, or an id of the Hugging Face hub that was downloaded. The copy lies below the cache folder
($SRPO_CACHE), in shards with an index, and is read wherever weights are named. A conversion that was interrupted goes
on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from srpo.policies import conversion
from srpo.policies.hub import local
from srpo.policies.places import find

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be read or converted."""
    parser = argparse.ArgumentParser(prog="python -m srpo.convert", description=__doc__.splitlines()[0])
    parser.add_argument("place", help="a file, a folder, or an id of the hub")
    parser.add_argument("--to", choices=DTYPES, help="make a copy in this precision")
    parser.add_argument("--cache", type=Path, help="where copies are kept (default: $SRPO_CACHE or ~/.cache)")
    options = parser.parse_args(arguments)
    try:
        found = find(local(options.place))
        print(found, file=sys.stderr)
        if found.notice:
            print(found.notice, file=sys.stderr)
        if options.to:
            print(_converted(local(options.place), DTYPES[options.to], options.cache))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _converted(place: Path, dtype: torch.dtype, cache: Path | None) -> Path:
    """The copy's folder. Prints how far it is once a second, and its throughput at the end."""
    started_s = said_s = time.monotonic()
    steps = conversion.convert(place, dtype, cache=cache)
    written = 0
    try:
        while True:
            step = next(steps)
            written += step.new_bytes
            if time.monotonic() - said_s > 1:
                said_s = time.monotonic()
                print(f"{step.done_bytes / 1e9:.1f} of {step.total_bytes / 1e9:.1f} GB", file=sys.stderr, flush=True)
    except StopIteration as end:
        took_s = time.monotonic() - started_s
        rate = f"{written / 1e9:.2f} GB written in {took_s:.1f} s, {written / took_s / 1e9:.2f} GB/s"
        print(rate if written else "It was there already.", file=sys.stderr)
        return end.value


if __name__ == "__main__":
    sys.exit(main())
