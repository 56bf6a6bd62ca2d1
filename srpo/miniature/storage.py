"""How the miniature's parts are stored, 16-bit weights under configs that say float32, and how they are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def store_in_half(folder: Path) -> None:
    """Round every safetensors file below the folder to float16, in place.

    The configs stay as they are: transformers would otherwise load text encoders in half precision and diffusers the
    rest in float32, and `FluxPipeline.from_pretrained(folder)` could not run.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    for path in sorted(folder.rglob("config.json")):  # diffusers writes where the weights were loaded from
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits that are the same for the same names, types, shapes and values, in whatever order."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
