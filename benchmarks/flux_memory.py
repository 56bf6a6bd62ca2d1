"""What each memory mode takes and costs at FLUX.1-dev's size on random weights, T5 included; and a conversion's speed.

The second model is the first with each number changed by some thousandths of itself, as SRPO changes them. On the CPU
of a quick look the peak is that of the process.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from app.services.device import StopFlag
from app.services.engine import Engine, Step
from app.services.requests import BadInput, Settings
from app.state import Options
from benchmarks.figures import Figure, LeftOut
from benchmarks.flux_models import Size, new_policy, size_for
from benchmarks.overhead import GUIDANCE, PROMPT
from benchmarks.scale import Scale
from srpo.policies.acceleration import Acceleration
from srpo.policies.checkpoints import save_transformer
from srpo.policies.conversion import convert
from srpo.policies.placement import DIFFERENCE, OFFLOAD, PINNED, QUANTIZED, RESIDENT, SWAP, Placement
from srpo.policies.residency import loading_device, residency
from srpo.training.probe import forget_peak, peak_bytes

CHANGE = 2.4e-3  # of a number, by SRPO: as the miniature's (python -m srpo.rounding measures by it)
MODES = {
    "resident": Placement(RESIDENT),
    "swap by the difference": Placement(SWAP, DIFFERENCE),
    "swap from pinned memory": Placement(SWAP, PINNED),
    "offload": Placement(OFFLOAD),
    "quantized to 8 bits": Placement(QUANTIZED, "Q8_0"),
    "quantized to 4 bits": Placement(QUANTIZED, "Q4_0"),
}
SWAPS = [name for name, placement in MODES.items() if placement.mode == SWAP]
DIFFERENCE_SIZE = "FLUX.1-dev, the exact difference / a model's weights"
FIGURES = (
    *(Figure(f"FLUX.1-dev, {name}: peak memory", "GB") for name in MODES),
    *(Figure(f"FLUX.1-dev, {name}: a step of a pair", "s") for name in MODES),
    *(Figure(f"FLUX.1-dev, {name}: a change of model", "s", at_most=1.0) for name in SWAPS),
    Figure(DIFFERENCE_SIZE, "", at_most=0.6),
    Figure("FLUX.1-dev, float32 to bfloat16", "GB/s of float32"),
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. LeftOut without CUDA, but for a quick look, which takes a small model."""
    size, device = size_for(options, scale), torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        yield "FLUX.1-dev, float32 to bfloat16", _conversion(size, device, Path(folder))
        tuned = _tuned(size, device, Path(folder) / "tuned.safetensors")
        lacking = []
        for name, placement in MODES.items():
            try:
                for what, value in _mode(size, device, placement, tuned, scale.steps_of_memory):
                    yield DIFFERENCE_SIZE if what == DIFFERENCE else f"FLUX.1-dev, {name}: {what}", value
            except (torch.OutOfMemoryError, BadInput):
                lacking.append(name)
                _free(device)
        if lacking:
            raise LeftOut(f"too little memory for {', '.join(lacking)}")


def _mode(
    size: Size, device: torch.device, placement: Placement, tuned: Path, steps: int
) -> Iterator[tuple[str, float]]:
    """(what, value) of one mode: what its figures are called, or DIFFERENCE for the share that one takes."""
    policy = new_policy(size, device, whole_t5=True)
    policy.pipe.to(loading_device(placement, device))
    _free(device)
    forget_peak(str(device))
    models = residency(policy, placement, Acceleration(), device)
    side = size.picture_side
    engine = Engine(policy, None, side, models=models, placement=placement)
    policies = [policy, models.load(tuned)]
    cond = engine.encode(PROMPT)
    for count in (1, steps):  # the first one warms up
        settings = Settings(seed=0, steps=count, guidance=GUIDANCE, width=side, height=side)
        began_s = time.perf_counter()
        for event in engine.paint(policies, cond, settings, 0, StopFlag()):
            if isinstance(event, Step):  # the pictures come after the last one, whose decoding is no part of a step
                took_s = time.perf_counter() - began_s  # a preview has waited for the device
    yield "peak memory", peak_bytes(str(device)) / 1e9
    yield "a step of a pair", took_s / steps
    if models.change_seconds is not None:
        yield "a change of model", models.change_seconds
    if placement.form == DIFFERENCE:
        whole = sum(weight.nbytes for weight in policy.transformer.parameters())
        yield DIFFERENCE, policies[1].transformer.difference.nbytes / whole
    del engine, models, policies, policy
    _free(device)


@torch.no_grad()
def _tuned(size: Size, device: torch.device, file: Path) -> Path:
    """The file of the second model's weights, in bfloat16."""
    transformer = new_policy(size, device).transformer
    generator = torch.Generator(device).manual_seed(1)
    for weight in transformer.parameters():
        factor = 1 + CHANGE * torch.randn(weight.shape, generator=generator, device=device)
        weight.copy_(weight.float() * factor)
    save_transformer(transformer, file, torch.bfloat16)
    del transformer
    _free(device)
    return file


def _conversion(size: Size, device: torch.device, folder: Path) -> float:
    """GB of float32 that are converted in a second: of some of the layers, as all would fill a small disk."""
    few = {"num_layers": min(2, size.transformer["num_layers"]), "num_single_layers": 1}
    with torch.device(device):
        transformer = FluxTransformer2DModel(in_channels=64, guidance_embeds=True, **size.transformer | few)
    file = save_transformer(transformer, folder / "float32.safetensors", torch.float32)
    began_s = time.perf_counter()
    for _ in convert(file, torch.bfloat16, cache=folder / "cache"):
        pass
    seconds = time.perf_counter() - began_s
    gigabytes = file.stat().st_size / 1e9
    file.unlink()
    del transformer
    _free(device)
    return gigabytes / seconds


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
