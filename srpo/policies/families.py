"""The families of models that run here, told by the pipeline's model_index.json. No torch.

FLUX.1 (FluxPipeline)                 dev, Krea and what was made of them; the miniature. Guidance is an input of the
                                      model, distilled into it.
FLUX.2 klein (Flux2KleinPipeline)     4B and 9B, read by Qwen3 alone. The distilled ones take few steps and no guidance;
                                      their bases are guided in two passes, with the text and without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Family:
    """Models of one architecture."""

    title: str
    pipeline: str  # its class in diffusers
    transformer: str
    policy: str  # MODULE:CLASS, imported where a model is loaded
    kohya: bool = False  # whether kohya's layout of a LoRA, and ComfyUI's workflow of SRPO, are for it


FLUX = Family("FLUX.1", "FluxPipeline", "FluxTransformer2DModel", "srpo.policies.flux:FluxPolicy", kohya=True)
FLUX2_KLEIN = Family(
    "FLUX.2 klein", "Flux2KleinPipeline", "Flux2Transformer2DModel", "srpo.policies.flux2:Flux2KleinPolicy"
)
FAMILIES = (FLUX, FLUX2_KLEIN)
# Source: the table of models in the README of black-forest-labs/flux2.
OPEN, NON_COMMERCIAL = "Apache-2.0", "FLUX Non-Commercial License of Black Forest Labs (non-commercial use)"
KLEIN_LICENCES = {
    "FLUX.2-klein-4B": OPEN,
    "FLUX.2-klein-base-4B": OPEN,
    "FLUX.2-klein-9B": NON_COMMERCIAL,
    "FLUX.2-klein-base-9B": NON_COMMERCIAL,
}
PIPELINES = " or a ".join(family.pipeline for family in FAMILIES)  # in a sentence, after "a"


def family_of(place: str | Path) -> Family:
    """The family of a pipeline's folder. ValueError, one sentence, where there is none, or one of no family here."""
    name = _index(Path(place))["_class_name"]
    for family in FAMILIES:
        if name == family.pipeline:
            return family
    raise ValueError(f"{place} holds a {name[:80]}; choose the folder of a {PIPELINES}.")


def is_flux1(place: str | Path) -> bool:
    """Whether the place is no folder of another family: what is not here yet, or cannot be read, counts as FLUX.1."""
    try:
        return family_of(place) is FLUX
    except ValueError:
        return True


def klein_of(place: str | Path) -> str | None:
    """The published FLUX.2 klein that an id, a folder or a path in the hub's cache is called by; None for others."""
    parts = {part.rpartition("--")[2].casefold() for part in Path(place).parts}
    return next((name for name in KLEIN_LICENCES if name.casefold() in parts), None)


def is_distilled(place: str | Path) -> bool:
    """Whether the place is the folder of a FLUX.2 klein that takes few steps and no guidance."""
    try:
        return _index(Path(place)).get("is_distilled") is True
    except ValueError:
        return False


def _index(folder: Path) -> dict[str, Any]:
    """What a pipeline's folder says of it. ValueError, one sentence, where it is none."""
    if folder.is_dir():
        try:
            found = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
            return {**found, "_class_name": str(found["_class_name"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder} is not a pipeline folder: it holds no readable model_index.json.") from error
    if folder.exists():
        raise ValueError(f"{folder} is a file; choose the folder of a {PIPELINES}.")
    raise ValueError(f"There is no folder {folder}; choose the folder of a {PIPELINES}.")
