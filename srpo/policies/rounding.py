"""What each form of weights makes of a number: the roundings that `python -m srpo.rounding` measures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srpo.policies.blocks import BLOCK
from srpo.policies.headers import QUANTISED
from srpo.policies.tensors import require_gguf


def forms() -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> what the form makes of a weight, float32 in and out; vectors stay, as every published file keeps them."""
    return {
        "bfloat16": lambda weight: weight.bfloat16().float(),
        "GGUF Q8_0": _gguf("Q8_0"),
        "fp8 e4m3fn": _fp8(torch.float8_e4m3fn, scaled=False),
        "fp8 e4m3fn with scales": _fp8(torch.float8_e4m3fn, scaled=True),
        "fp8 e5m2": _fp8(torch.float8_e5m2, scaled=False),
        **{f"GGUF {kind}": _gguf(kind) for kind in ("Q5_1", "Q5_0", "Q4_1", "Q4_0")},  # gguf cannot write Q_K
    }


def _fp8(dtype: torch.dtype, *, scaled: bool) -> Callable[[Tensor], Tensor]:
    """scaled: each matrix fills the form's range, by one scale."""

    def rounded(weight: Tensor) -> Tensor:
        if weight.ndim < 2:
            return weight
        scale = weight.abs().max() / torch.finfo(dtype).max if scaled else torch.ones(())
        return (weight / scale).to(dtype).float() * scale

    return rounded


def _gguf(kind: str) -> Callable[[Tensor], Tensor]:
    def rounded(weight: Tensor) -> Tensor:
        if weight.ndim < 2 or weight.shape[-1] % BLOCK:
            return weight
        quants, number = require_gguf().quants, require_gguf().GGMLQuantizationType(QUANTISED[kind])
        return torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), number), number)).reshape(
            weight.shape
        )

    return rounded
