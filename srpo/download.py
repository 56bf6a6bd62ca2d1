"""python -m srpo.download ID ...: fetches weights of the Hugging Face hub, saying first what and how large.

ID is OWNER/NAME, or OWNER/NAME/FILE where a repository holds several. An interrupted download goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

if __name__ == "__main__":  # before huggingface_hub is imported; whoever calls this asks for the network
    os.environ.pop("HF_HUB_OFFLINE", None)

from srpo.policies import hub


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be downloaded."""
    parser = argparse.ArgumentParser(prog="python -m srpo.download", description=__doc__.splitlines()[0])
    parser.add_argument("ids", nargs="+", metavar="ID")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and fetch nothing")
    parser.add_argument("--json", action="store_true", help="progress as one JSON object per line")
    options = parser.parse_args(arguments)
    try:
        for planned in [hub.plan(name) for name in options.ids]:  # all of them first: one may be refused
            print(planned, file=sys.stderr, flush=True)
            if not options.dry_run:
                print(_fetched(planned, as_json=options.json))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _fetched(planned: hub.Plan, *, as_json: bool) -> str:
    """The folder. Says how far it is about once a second."""
    steps, said_s = hub.download(planned), time.monotonic()
    try:
        while True:
            step = next(steps)
            if time.monotonic() - said_s > 1:
                said_s = time.monotonic()
                done, total = step.done_bytes, step.total_bytes
                text = f"{planned.repository}: {done / 1e9:.1f} of {total / 1e9:.1f} GB"
                said = json.dumps({"repository": planned.repository, "done": done, "total": total}) if as_json else text
                print(said, file=sys.stderr, flush=True)
    except StopIteration as end:
        return str(end.value)


if __name__ == "__main__":
    sys.exit(main())
