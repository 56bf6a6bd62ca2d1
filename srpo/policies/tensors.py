"""Tensors off the disk one by one, in the precision that is asked for.

Files are read, not mapped: a machine with less memory than the file is long refuses to map it. What is stored in
blocks of GGUF is unpacked by the package gguf in float32, then rounded once; fp8 is multiplied by its scale in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srpo.policies.headers import QUANTISED
from srpo.policies.places import FP8, Piece, Pieces

DTYPES = {  # by their names in a header
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
NEEDS_GGUF = "GGUF weights need the package gguf: install it with `pip install gguf`, or choose a .safetensors file."


def require_gguf() -> Any:
    """The package gguf. ValueError, one sentence, where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise ValueError(NEEDS_GGUF) from error
    return gguf


def shape_of(pieces: Pieces) -> tuple[int, ...]:
    """The shape of the weight that the pieces make; () for a single number."""
    first = pieces[0].shape
    return (sum(piece.shape[0] for piece in pieces), *first[1:]) if first else ()


def read_weight(pieces: Pieces, dtype: torch.dtype | None = None) -> Tensor:
    """The weight, on the CPU; in the type it is stored in where `dtype` is None and it is a plain one.

    ValueError where a file has become shorter, or is no longer there.
    """
    parts = [_read_piece(piece, dtype) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def is_finite(weight: Tensor) -> bool:
    """Whether no number is infinite or none: its extremes say so, in a fiftieth of the time of `isfinite`."""
    return not weight.numel() or all(bool(extreme.isfinite()) for extreme in weight.aminmax())


def read_blocks(pieces: Pieces) -> Tensor:
    """The weight's bytes as they are stored, (rows, bytes per row) uint8: for who unpacks GGUF's blocks later."""
    parts = [_bytes(piece).reshape(piece.last - piece.first, -1) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _read_piece(piece: Piece, dtype: torch.dtype | None) -> Tensor:
    entry = piece.entry
    if entry.dtype in QUANTISED:
        gguf = require_gguf()
        rows = _bytes(piece).reshape(piece.last - piece.first, -1).numpy()
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(QUANTISED[entry.dtype]))
        tensor = torch.from_numpy(values).reshape(piece.shape)
    else:
        tensor = _bytes(piece).view(DTYPES[entry.dtype]).reshape(piece.shape)
    if entry.dtype in FP8 and dtype is None:
        dtype = torch.bfloat16  # holds every fp8 number exactly
    if piece.scale is not None:
        tensor = tensor.float() * _scale(piece)
    return tensor if dtype is None else tensor.to(dtype)


def _scale(piece: Piece) -> Tensor:
    """One number for all, or one for each of the piece's rows, float32, ready to be multiplied by."""
    scale = piece.scale
    values = _bytes(Piece.whole(scale)).view(DTYPES[scale.dtype]).float()
    if values.numel() > 1:
        values = values[piece.first : piece.last]
        return values.reshape(-1, *[1] * (len(piece.shape) - 1))
    return values.reshape(())


def _bytes(piece: Piece) -> Tensor:
    """The piece's bytes, uint8, flat."""
    entry = piece.entry
    per_row = entry.num_bytes // entry.shape[0] if entry.shape and entry.shape[0] else entry.num_bytes
    rows = piece.last - piece.first
    taken = torch.empty(rows * per_row, dtype=torch.uint8)
    with entry.file.open("rb") as opened:
        opened.seek(entry.start + piece.first * per_row)
        if taken.numel() and opened.readinto(taken.numpy()) != taken.numel():
            raise ValueError(f"{entry.file} changed while it was read; load it again.")
    return taken
