"""A painted picture's name and texts: enough to paint it again, for the page and for the command lines alike.

Two texts travel in each file. `srpo_studio` is ours, JSON (`sheets.png_texts`). `parameters` is the line the
AUTOMATIC1111 web UI introduced and most tools read; FLUX's distilled guidance is called "Distilled CFG Scale" there,
as in Forge.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import PngImagePlugin

from srpo.evaluation.sheets import SOFTWARE, png_texts
from srpo.runs import WEIGHTS_NAME

MAX_SEED = 2**32 - 1  # what other tools' PNG texts can carry
MAX_HASHED_BYTES = 2**30  # a 48 GB file would take minutes


def file_stem(prompt: str, seed: int, suffix: str) -> str:
    """A short, plain file name of a prompt: "a-red-ball-on-a-beach_seed-7_flux"."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-") or "picture"
    tail = re.sub(r"[^a-z0-9]+", "-", suffix.lower()).strip("-")[:32]
    return f"{words}_seed-{seed}_{tail}"


def parameters_text(text: str, settings: Mapping[str, Any], model: str) -> str:
    """The conventional `parameters` text: the prompt as the model saw it, then one line of settings.

    settings: steps, guidance, seed, width and height.
    """
    fields = {
        "Steps": settings["steps"],
        "Sampler": "Euler",
        "Schedule type": "Simple",
        "CFG scale": 1,
        "Distilled CFG Scale": f"{settings['guidance']:g}",
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model": re.sub(r"[,:\n]+", " ", model),
        "Version": SOFTWARE,
    }
    return text + "\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())


def comparison_texts(
    request: Mapping[str, Any], text: str, side: str, names: Mapping[str, str], facts: Mapping[str, Any]
) -> PngImagePlugin.PngInfo:
    """The texts of one picture of a comparison.

    request: of one seed, with the fields of the page's CompareRequest; text: what the text encoders saw of its prompt.
    `side` is "left", "right" or "difference", `names` the models as the page calls them; `facts` is anything more to
    record (versions, hashes, scores).
    """
    record = {"kind": "compare", "side": side, "names": dict(names), "request": dict(request), **facts}
    model = names.get(side, f"difference of {names['left']} and {names['right']}")
    return png_texts(record, parameters_text(text, request, model))


def weights_file(place: Path) -> Path | None:
    """The one file of weights that is, or lies in, this path; None where there is none, or where they are several."""
    candidates = (place, place / "transformer" / WEIGHTS_NAME, place / WEIGHTS_NAME)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def sha256_of(place: Path) -> str | None:
    """The hash of a transformer's weights; None where they are several files, a very large one, or gone."""
    try:
        file = weights_file(place)
        if file is None or file.stat().st_size > MAX_HASHED_BYTES:
            return None
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None
