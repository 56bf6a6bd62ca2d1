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

from app.services.requests import BadInput, CompareRequest, parse, sentence
from app.services.uploads import UNREADABLE
from srpo import comfyui
from srpo.evaluation import records
from srpo.evaluation.sheets import FORMAT, KEY

# What a record may be of that is no picture of a comparison.
OTHERS = {"grid": "a sheet of many pictures", "recoveries": "a sheet of many pictures", "recovery": "a recovered one"}

UNREAD = "That file is not a PNG picture: drop one that was downloaded here."


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
    texts = records.comparison_texts(record, request.text(request.prompt), side, names, facts)
    file = facts.get("files", {}).get(request.left if side == "left" else request.right)
    if side != "difference" and file is not None:
        texts.add_text("workflow", json.dumps(comfyui.workflow(_for_comfyui(request, prompt_seed, file))))
    return texts


def _for_comfyui(request: CompareRequest, seed: int, file: dict[str, Any]) -> comfyui.Settings:
    """One side's picture as a workflow of ComfyUI draws it, from its own noise."""
    return comfyui.Settings(
        prompt=request.text(request.prompt),
        seed=seed,
        steps=request.steps,
        guidance=request.guidance,
        width=request.width,
        height=request.height,
        model=file.get("model"),
        loras=((file["lora"], file["weight"]),) if "lora" in file else (),
    )


def read_request(path: str | Path) -> Found:
    """What to restore from a PNG, or from a workflow of ComfyUI.

    A picture made here gives its whole request. One made elsewhere that carries a `parameters` text or a workflow gives
    the fields that it holds, as a dict. BadInput, one sentence, for everything else: not an image, no settings, or
    settings that were tampered with. Pixels are never decoded.
    """
    if (workflow := _json_text(Path(path))) is not None:
        return _comfyui({"prompt": workflow})
    try:
        with Image.open(path, formats=["PNG"]) as image:
            texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
    except UNREADABLE:
        raise BadInput(UNREAD) from None
    if KEY in texts:
        return _ours(texts[KEY])
    if "parameters" in texts:
        return Found(_a1111(str(texts["parameters"])), "Restored what the picture's “parameters” text says.", {})
    if (found := _comfyui(texts)) is not None:
        return found
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


def _json_text(path: Path) -> str | None:
    """The file's text where it begins as JSON does; no more of it than a workflow may be long."""
    try:
        with path.open("rb") as opened:
            start = opened.read(64).lstrip()
            if not start.startswith(b"{"):
                return None
            return (start + opened.read(comfyui.MAX_CHARACTERS)).decode(errors="replace")
    except OSError:
        raise BadInput(UNREAD) from None


def _comfyui(texts: dict[str, str]) -> Found | None:
    """What a workflow of ComfyUI says, as far as it can be had here; None where there is none."""
    try:
        reading = comfyui.read_texts(texts)
    except ValueError as error:
        raise BadInput(sentence(error)) from None
    if reading is None:
        return None
    said = ["Restored what the ComfyUI workflow says; its noise is another, so the same seed gives another picture."]
    raw: dict[str, Any] = {}
    for name in ("prompt", "seed", "steps", "guidance", "width", "height"):
        if (value := getattr(reading.settings, name)) is not None:
            try:
                request = parse(
                    CompareRequest, {"seed": 0, "prompt": "x", "left": "base", "right": "srpo", name: value}
                )
                raw[name] = getattr(request, name)
            except BadInput as error:
                said.append(f"Left out: {error}")
    said += reading.notes
    if drawn_with := ", ".join(filter(None, (reading.settings.model, *(name for name, _ in reading.settings.loras)))):
        said.append(f"It was drawn with {drawn_with[:120]}: choose the models here yourself.")
    return Found(raw, " ".join(said), {})


def _a1111(text: str) -> dict[str, Any]:
    """The fields of a `parameters` text that mean something here, each as the request calls it."""
    lines = text.strip().splitlines()
    at = next((i for i in range(len(lines) - 1, -1, -1) if re.match(r"\s*Steps: \d+", lines[i])), None)
    if at is None:
        raise BadInput("The “parameters” text in that PNG is not in the form other tools write.")
    head = [line for line in lines[:at] if not line.startswith("Negative prompt:")]
    found = {name.strip(): value.strip() for name, value in re.findall(r"([\w ]{1,60}): ([^,]*)", lines[at])}
    raw: dict[str, Any] = {"prompt": " ".join(head).strip()}
    for name, key in (("Seed", "seed"), ("Steps", "steps"), ("Distilled CFG Scale", "guidance")):
        if name in found:
            raw[key] = found[name]
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", found.get("Size", "")):
        raw["width"], raw["height"] = match.groups()
    sides = {"left": "base", "right": "srpo"}
    request = parse(CompareRequest, {"seed": 0, **raw, **sides})
    return {key: getattr(request, key) for key in raw}
