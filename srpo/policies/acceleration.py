"""How a transformer is run: compiled or not, and by which kernels its attention is computed.

Both move pixels by roundings, so all models of a process share them. Caches that skip steps are not offered: they draw
another picture, and some that diffusers accepts do nothing on FLUX.1 (docs/memory.md).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import FluxTransformer2DModel
from diffusers.utils import logging

from srpo.policies.flux import FluxPolicy
from srpo.policies.placement import ATTENTION, RESIDENT, SWAP, Placement

BACKENDS = {"native": "native", "cudnn": "_native_cudnn", "flash": "flash", "flash3": "_flash_3"}  # diffusers' names
PACKAGES = {"flash": "flash_attn", "flash3": "flash_attn_interface"}
HOPPER = (9, 0)  # compute capability: cuDNN's attention is faster than torch's own choice on it, and on no other


@dataclass(frozen=True)
class Acceleration:
    """What all transformers of a process share."""

    compiles: bool = False
    attention: str = "native"

    def apply(self, transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
        """The transformer itself, from now on run so."""
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # each call would say that the interface may change
        try:
            transformer.set_attention_backend(BACKENDS[self.attention])
        except RuntimeError as error:
            raise ValueError(f"The attention {self.attention!r} cannot be used here: {error}") from error
        finally:
            logging.set_verbosity(verbosity)
        if self.compiles:
            transformer.compile_repeated_blocks()
        return transformer


def choose_acceleration(compiles: bool, attention: str, device: torch.device, placement: Placement) -> Acceleration:
    """What was asked for, with "auto" decided. ValueError, one sentence, for what cannot work here."""
    here = available(device)
    if attention not in ATTENTION:
        raise ValueError(f"The attention is one of {', '.join(ATTENTION)}, not {attention!r}.")
    if attention == "auto":
        attention = _best(device, here)
    elif attention not in here:
        raise ValueError(f"There is no attention {attention!r} on {device} here: choose {_listed(here)}, or auto.")
    if compiles and placement.mode not in (RESIDENT, SWAP):
        raise ValueError(
            f"--compile needs weights that stay as they are while a model runs, and --memory {placement.mode} moves or "
            "unpacks them: leave one of the two out."
        )
    return Acceleration(compiles, attention)


class Manner(NamedTuple):
    """How a transformer is really run, read off the model itself."""

    dtype: torch.dtype
    device: torch.device
    attention: frozenset[str]
    is_compiled: bool


def manner(policy: FluxPolicy) -> Manner:
    """What of its running decides a model's pixels beside its weights."""
    transformer = policy.transformer
    backends = (processor._attention_backend for processor in transformer.attn_processors.values())
    blocks = (it for it in transformer.modules() if type(it).__name__ in transformer._repeated_blocks)
    compiled = any(block._compiled_call_impl is not None for block in blocks)
    return Manner(policy.dtype, policy.device, frozenset(str(backend) for backend in backends), compiled)


def require_alike(policies: Sequence[FluxPolicy]) -> None:
    """Nothing where all are run in the same way; else RuntimeError: a difference would not be the weights' alone."""
    manners = {manner(policy) for policy in policies}
    if len(manners) > 1:
        raise RuntimeError(f"The sides of a comparison would be run in different ways: {manners}.")


def available(device: torch.device) -> list[str]:
    """The kernels that can be chosen on this device with the packages that are installed."""
    if device.type != "cuda":
        return ["native"]
    return [name for name in BACKENDS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]


def _best(device: torch.device, here: list[str]) -> str:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != HOPPER:
        return "native"
    return "flash3" if "flash3" in here else "cudnn"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
