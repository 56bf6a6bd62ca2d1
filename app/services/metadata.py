"""A picture that knows how it was made: settings written into PNG files, and read back.

What is written is told in `srpo.evaluation.records`: our JSON as iTXt (any script survives), enough to run the
comparison again, and the `parameters` line that most tools read.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from app.services.requests import BadInput, CompareRequest, parse
from app.services.uploads import UNREADABLE
from srpo.evaluation import records
from srpo.evaluation.sheets import FORMAT, KEY

# What a record may be of that is no picture of a comparison.
OTHERS = {"grid": "a sheet of many pictures", "recoveries": "a sheet of many pictures", "recovery": "a recovered one"}


class Found(NamedTuple):
    """What a picture says of its making."""

    settings: CompareRequest | dict[str, Any]  # the whole request, or the fields that are known
    note: str  # a sentence about it
    made_with: dict[str, Any]  # the base model and the text tokens, as `Studio.made_with` gives them; unchecked


def comparison_texts(
    request: CompareRequest, prompt_seed: int, side: str, names: dict[str, str], facts: dict[str, Any]
) -> PngImagePlugin.PngInfo:
    """The texts of one picture of a comparison.

    `side` is "left", "right" or "difference", `names` the models as the page called them; `facts` is anything more to
    record (versions, hashes, scores). The stored request is that of this one seed.
    """
    record = {**request.model_dump(), "seed": prompt_seed, "num_seeds": 1}
    return records.comparison_texts(record, request.text(request.prompt), side, names, facts)


def read_request(path: str | Path) -> Found:
    """What to restore from a PNG.

    A picture made here gives its whole request. One made elsewhere that carries a `parameters` text gives the fields
    that text holds, as a dict. BadInput, one sentence, for everything else: not an image, no settings, or settings
    that were tampered with. Pixels are never decoded.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
    except UNREADABLE:
        raise BadInput("That file is not a PNG picture: drop one that was downloaded here.") from None
    if KEY in texts:
        return _ours(texts[KEY])
    if "parameters" in texts:
        return Found(_a1111(str(texts["parameters"])), "Restored what the picture's “parameters” text says.", {})
    raise BadInput("That PNG carries no settings: drop one that was downloaded here.")


def differences(made_with: dict[str, Any], here: dict[str, Any]) -> str:
    """A sentence on what here will give other pixels than where the picture was made; nothing where nothing is known.

    Both are `Studio.made_with`. The first comes from a file that anyone may have written.
    """
    said = []
    base, ours = made_with.get("base"), here["base"]
    # The hash decides; where either side has none, the name does.
    if isinstance(base, dict):
        key = "sha256" if base.get("sha256") and ours["sha256"] else "name"
        if base.get(key) != ours[key]:
            said.append(f"with another base model ({str(base.get('name'))[:60]})")
    tokens = made_with.get("text_tokens")
    if isinstance(tokens, int) and 0 < tokens < 10_000 and tokens != here["text_tokens"]:
        said.append(f"with {tokens} text tokens, not {here['text_tokens']}")
    return f"It was made {' and '.join(said)}: here the same settings give other pictures." if said else ""


def _ours(text: str) -> Found:
    damaged = "The settings in that PNG are damaged or were edited"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"{damaged}: they are not readable as JSON.") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), int):
        raise BadInput(f"{damaged}: the record has no format number.")
    if record["format"] > FORMAT:
        raise BadInput("That PNG was made by a newer version of this app: update to restore it.")
    if (other := OTHERS.get(str(record.get("kind")))) is not None:
        raise BadInput(f"That PNG is {other}: drop a single picture to restore its settings.")
    if not isinstance(record.get("request"), dict):
        raise BadInput(f"{damaged}: the record has no request.")
    try:
        return Found(parse(CompareRequest, record["request"]), "Restored every setting of that picture.", record)
    except BadInput as error:
        raise BadInput(f"{damaged}: {str(error)[0].lower()}{str(error)[1:]}") from None


def _a1111(text: str) -> dict[str, Any]:
    """The fields of a `parameters` text that mean something here, each as the request calls it."""
    lines = text.strip().splitlines()
    at = next((i for i in range(len(lines) - 1, -1, -1) if re.match(r"\s*Steps: \d+", lines[i])), None)
    if at is None:
        raise BadInput("The “parameters” text in that PNG is not in the form other tools write.")
    head = [line for line in lines[:at] if not line.startswith("Negative prompt:")]
    found = {name.strip(): value.strip() for name, value in re.findall(r"([\w ]+): ([^,]*)", lines[at])}
    raw: dict[str, Any] = {"prompt": " ".join(head).strip()}
    for name, key in (("Seed", "seed"), ("Steps", "steps"), ("Distilled CFG Scale", "guidance")):
        if name in found:
            raw[key] = found[name]
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", found.get("Size", "")):
        raw["width"], raw["height"] = match.groups()
    sides = {"left": "base", "right": "srpo"}
    request = parse(CompareRequest, {"seed": 0, **raw, **sides})
    return {key: getattr(request, key) for key in raw}
