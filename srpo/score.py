"""python -m srpo.score IMAGE ... --prompt TEXT --reward NAME: what rewards say of pictures.

--list              every reward with its card: range, bias, licence, size, and how to get it
--check hpsv2       the package hpsv2 on the same weights and pictures, beside ours
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from srpo.arguments import in_utf8
from srpo.miniature import paths
from srpo.rewards.catalogue import CARDS, Card, Named, read_name

# Ours is float32 everywhere; on a GPU the package multiplies in float16, whose last digit is worth 1e-3 near 1.
TOLERANCE, TOLERANCE_CUDA = 1e-5, 2e-3  # of a cosine


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 where --check finds a difference, or 2 with one sentence for what cannot be scored."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            print(json.dumps([asdict(card) for card in CARDS.values()], indent=2) if options.json else list_cards())
            return 0
        if not options.images or options.prompt is None:
            raise ValueError("name at least one picture, and the text with --prompt TEXT; or see --list")
        names = [read_name(name) for name in options.reward or [paths.REWARD]]
        if options.check:
            return check_hpsv2(names, options)
        rows = score_files(options.images, options.prompt, names, options.device, not options.download)
        print(json.dumps(rows, indent=2, ensure_ascii=False) if options.json else table(rows))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srpo.score", description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE", help="picture files")
    parser.add_argument("--prompt", metavar="TEXT", type=in_utf8, help="the text that every picture is scored under")
    parser.add_argument(
        "--reward",
        action="append",
        metavar="NAME",
        help="KIND:PLACE or a folder; repeatable (default: the miniature's)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--download", action="store_true", help="ids of the hub may be downloaded")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="print every reward's card and exit")
    parser.add_argument("--check", choices=["hpsv2"], help="compare with this package, on the same weights")
    parser.add_argument("--package", type=Path, metavar="DIR", help="where that package was installed to")
    return parser


def score_files(
    images: Sequence[Path], prompt: str, names: Sequence[Named], device: str = "cpu", local_files_only: bool = True
) -> list[dict[str, str | float | None]]:
    """One record for each picture and reward: image, prompt, reward, score, and the SHA-256 of published .pt weights.

    Rewards are loaded one after the other.

    ValueError, one sentence, for a picture that cannot be read or a reward that cannot be loaded.
    """
    from transformers.utils import logging

    from srpo.rewards.base import score_images  # torch: seconds, which --list and a wrong option need not take
    from srpo.rewards.load import load_reward

    logging.disable_progress_bar()  # of transformers: it would stand between the lines
    pictures = [_open(image) for image in images]
    rows = []
    for name in names:
        reward = load_reward(name, device=device, local_files_only=local_files_only)
        scores = score_images(reward, pictures, [prompt] * len(pictures))
        rows += [
            {"image": str(image), "prompt": prompt, "reward": str(name), "score": score, "sha256": reward.sha256}
            for image, score in zip(images, scores, strict=True)
        ]
    return rows


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"there is no picture {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def table(rows: Sequence[dict[str, str | float | None]]) -> str:
    """The records as lines for a terminal: a column for each reward, and which weights these were."""
    rewards = list(dict.fromkeys(str(row["reward"]) for row in rows))
    images = list(dict.fromkeys(str(row["image"]) for row in rows))
    scores = {(row["image"], row["reward"]): f"{row['score']:.4f}" for row in rows}
    lines = [["image", *rewards], *([image, *(scores[image, reward] for reward in rewards)] for image in images)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    hashes = dict.fromkeys((row["reward"], row["sha256"]) for row in rows if row["sha256"])
    said = [f"{reward}: SHA-256 {sha256}" for reward, sha256 in hashes]
    return "\n".join(["  ".join(_padded(line, widths)) for line in lines] + said)


def _padded(line: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The cells of a line, the first to the left and the numbers to the right."""
    for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
        yield cell.rjust(width) if column else cell.ljust(width)


def list_cards() -> str:
    """Every card, for a terminal."""
    return "\n\n".join(_card_text(card) for card in CARDS.values())


def _card_text(card: Card) -> str:
    kinds = "can be trained on, with control words" if card.is_dual_encoder else "judges only: it has no text vectors"
    facts = {
        "use": kinds,
        "reads": card.reads,
        "range": card.range,
        "bias": card.bias,
        "licence": card.licence,
        "download": card.download,
        "get it": card.get,
        "checked": card.checked,
    }
    lines = [f"{card.kind}: {card.title}"]
    for name, text in facts.items():
        lines += textwrap.wrap(
            text, 116, initial_indent=f"  {name:9} ", subsequent_indent=" " * 12, break_on_hyphens=False
        )
    return "\n".join(lines)


def check_hpsv2(names: Sequence[Named], options: argparse.Namespace) -> int:
    """Prints the package's cosines beside ours; 0 where they agree, 1 where they do not."""
    from srpo.rewards.hpsv2_package import package_scores

    if len(names) != 1 or names[0].kind not in ("hpsv2", "hpsv2.1") or not Path(names[0].place).is_file():
        raise ValueError("--check hpsv2 wants one published file: --reward hpsv2.1:HPS_v2.1_compressed.pt")
    if names[0].preprocessing != "official":
        raise ValueError("the package prepares pictures in its own way: leave +srpo away")
    rows = score_files(options.images, options.prompt, names, options.device)
    ours = [float(row["score"]) / names[0].card.scale for row in rows]
    theirs = package_scores(names[0].place, options.images, options.prompt, package=options.package)
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    from torch import cuda

    tolerance = TOLERANCE_CUDA if cuda.is_available() else TOLERANCE  # the package takes a GPU where it finds one
    agrees = largest <= tolerance
    if options.json:
        facts = {"ours": ours, "package": theirs, "largest_difference": largest, "tolerance": tolerance}
        print(json.dumps({"images": [str(image) for image in options.images], **facts}, indent=2))
    else:
        for image, mine, other in zip(options.images, ours, theirs, strict=True):
            print(f"{image}  ours {mine:.6f}  hpsv2 {other:.6f}  difference {mine - other:+.1e}")
        print(f"largest difference {largest:.1e}: {'they agree' if agrees else 'they differ'} (limit {tolerance:.0e})")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
