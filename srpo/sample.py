"""python -m srpo.sample PROMPT ...: the base model and SRPO paint each prompt from the same noise.

The files are those of the page: their texts hold every setting, and dropped on its Compare tab they are restored.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from srpo.arguments import in_utf8
from srpo.evaluation.records import comparison_texts, file_stem
from srpo.evaluation.sheets import png_texts, sheet
from srpo.painting import WEIGHTS_HELP, Painter, add_options, read_options, require_seeds, require_srpo
from srpo.policies import hub
from srpo.runs.atomic import write_file

SIDES = {"left": "base", "right": "srpo"}  # as a request of the page calls its models
SHEET = "sheet.png"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be painted."""
    options = _parser().parse_args(arguments)
    try:
        for line in sample(options):
            print(line, flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def sample(options: argparse.Namespace) -> Iterator[str]:
    """A line for each picture once it is written, then one for the sheet. ValueError before anything is painted."""
    painter = read_options(options)
    weights = {"left": None, "right": require_srpo(painter.base, options.srpo)}
    hub.require_weights(weights["right"])
    prompts = list(dict.fromkeys(" ".join(prompt.split()) for prompt in options.prompts))
    require_seeds(options.seed)
    painter.require_paintable(prompts)
    _, weight = hub.located(weights["right"])
    title = "SRPO miniature" if painter.base.is_miniature else "SRPO"
    names = {"left": painter.base.name, "right": title if weight == 1 else f"{title} × {weight:g}"}
    policies = {side: painter.policy_with(place) for side, place in weights.items()}
    facts = painter.facts({SIDES[side]: place for side, place in weights.items()})

    options.out.mkdir(parents=True, exist_ok=True)
    cells = []
    for number, prompt in enumerate(prompts, 1):
        row = []
        for side, policy in policies.items():
            started_s = time.monotonic()
            image = painter.paint(policy, prompt, options.seed)
            seconds = time.monotonic() - started_s
            path = options.out / f"{number:02d}_{file_stem(prompt, options.seed, names[side])}.png"
            texts = comparison_texts(_request(painter, prompt, options.seed), prompt, side, names, facts)
            _save(path, image, texts)
            row.append(image)
            yield f"{path}  {names[side]}, seed {options.seed}, {seconds:.1f} s"
        cells.append(row)
    asked = {"prompts": prompts, "seed": options.seed, **asdict(painter.settings)}
    heading = f"seed {options.seed}, {painter.settings.steps} steps, guidance {painter.settings.guidance:g}"
    page = sheet(prompts, list(names.values()), cells, heading)
    _save(options.out / SHEET, page, png_texts({"kind": "grid", "request": asked, **facts}))
    yield f"{options.out / SHEET}"


def _request(painter: Painter, prompt: str, seed: int) -> dict[str, Any]:
    """The page's request for this pair."""
    return {"prompt": prompt, "seed": seed, "num_seeds": 1, "control_word": "", **asdict(painter.settings), **SIDES}


def _save(path: Path, image: Image.Image, texts: PngImagePlugin.PngInfo) -> None:
    write_file(path, lambda temporary: image.save(temporary, "PNG", pnginfo=texts), durable=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srpo.sample", description=__doc__.splitlines()[0])
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", type=in_utf8)
    add_options(parser)
    parser.add_argument("--srpo", type=Path, help=WEIGHTS_HELP)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder of the pictures (default: samples)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
