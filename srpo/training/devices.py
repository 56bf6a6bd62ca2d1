"""Which devices can be computed on here."""

from __future__ import annotations

import torch


def require_device(device: str) -> None:
    """Nothing where torch can compute on the device; else ValueError."""
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; expected cpu, cuda, cuda:1 ... or mps") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but no CUDA device is available here: set device=cpu")
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but {torch.cuda.device_count()} CUDA devices are here, from cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device is {device!r}, but there is no such device here: set device=cpu")
