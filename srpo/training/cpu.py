"""What makes the CPU faster without changing what is computed: products by oneDNN, and memory that is not given back.

Both are worth it for the miniature, whose updates are many products of small matrices and many tensors of a few MB; a
GPU needs neither.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # as in glibc's malloc.h
LARGE = 32 * 2**20  # bytes; the most that glibc takes for a threshold: what is larger is given back all the same


def keep_freed_memory() -> bool:
    """True where the C library keeps what this process frees from now on; False where it cannot be told so.

    By itself glibc hands every freed tensor of some MB back to the system, which clears its pages anew for the next
    one, and threads have memory of their own that is handed back whatever is said: they share the main one now. The
    largest memory of the process grows by about a tenth.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl has none
        return False
    kept = ((M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all(libc.mallopt(name, value) for name, value in kept)


def has_fast_products() -> bool:
    """True where oneDNN's products of float32 matrices are to be preferred to those of torch's own choice.

    Torch multiplies by MKL, which leaves AVX-512 unused on processors that are not Intel's: oneDNN takes half the time
    there. A function of the machine and of torch alone, so that a resumed run is the same bit for bit.
    """
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return has_avx512 and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def speed_up_products(module: nn.Module) -> None:
    """Its linear layers, on the CPU in float32, multiply by oneDNN from now on, forward and backward.

    Only how sums are rounded changes. Weights, names and hooks stay; layers of other classes are left alone.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear


class OneDnnLinear(nn.Linear):
    """A linear layer by oneDNN; anything but float32 on the CPU goes torch's way."""

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b, (..., out_features)."""
        if x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu":
            return _Linear.apply(x, self.weight, self.bias)
        return super().forward(x)


class _Linear(torch.autograd.Function):
    """x W^T + b and its gradients: x (..., K), W (N, K), b (N,) or None."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)  # a frozen weight needs no input later
        ctx.shape = x.shape
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        gradient = gradient.reshape(-1, len(weight))  # (M, N)
        return (
            _product(gradient, weight.t()).reshape(ctx.shape) if of_x else None,
            _product(gradient.t(), x.reshape(len(gradient), -1).t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by the operator into which torch's compiler turns linear layers; it has no public name."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
