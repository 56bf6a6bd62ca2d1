"""One training loop for every part of the miniature: checkpoints, schedule, curve and progress."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo.miniature.data import CACHE
from srpo.miniature.storage import content_hash
from srpo.policies.conversion import cache_folder

Step = Callable[[int], tuple[Tensor, dict[str, float]]]  # update number -> loss and what to log


def work_folder(stage: str) -> Path:
    """The folder of one stage: its last checkpoint and its curve."""
    folder = cache_folder(CACHE) / stage
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def train(
    stage: str,
    modules: Mapping[str, nn.Module],
    step: Step,
    *,
    settings: Mapping[str, Any],
    updates: int,
    lr: float,
    matrices: Sequence[nn.Parameter] = (),
    matrix_lr: float = 2e-3,
    warmup: int = 100,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    log_every: int = 20,
    checkpoint_every: int = 200,
) -> list[dict[str, float]]:
    """The curve of `updates` updates under a cosine schedule, one record every `log_every` updates.

    AdamW moves the weights, Muon (Jordan et al. 2024, torch's) those named in `matrices`, each by its own rate.

    A checkpoint in the stage's work folder is taken up; each step's randomness must come from its update number alone,
    so an interrupted stage goes on as if it had never stopped. It is taken up only by the very training that wrote it:
    the numbers here, the caller's `settings` (plain values: seed, batch, hashes of the data) and the weights that the
    modules come with must be the same. ValueError otherwise, with what differs and the folder to delete.
    """
    folder = work_folder(stage)
    parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    optimisers = _optimisers(parameters, lr, matrices, matrix_lr, weight_decay)
    peaks = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    checkpoint, curve = folder / "last.pt", []
    first = 0
    made_with = {"updates": updates, "lr": lr, "warmup": warmup, "weight_decay": weight_decay, "clip": clip, **settings}
    if matrices:
        made_with |= {"matrices": sum(p.numel() for p in matrices), "matrix_lr": matrix_lr}
    made_with["start"] = content_hash(
        {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    )
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        _require_same(checkpoint, state.get("made_with", {}), made_with)
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        first, curve = state["update"], state["curve"]
        print(f"{stage}: taken up at update {first}", flush=True)
    began, sums = time.monotonic(), {}
    for update in range(first, updates):
        share = min(1.0, (update + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * update / updates))
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = share * peak
        loss, record = step(update)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{stage}: loss is {loss.item()} at update {update}; lower the learning rate ({lr})"
            )
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        for optimiser in optimisers:
            optimiser.step()
        for name, value in {"loss": loss.item(), **record}.items():
            sums[name] = sums.get(name, 0.0) + value
        if (update + 1) % log_every == 0:
            point = {"update": update + 1, **{name: value / log_every for name, value in sums.items()}}
            curve.append(point)
            sums = {}
            _report(stage, point, updates, (time.monotonic() - began) / (update + 1 - first))
        if (update + 1) % checkpoint_every == 0 or update + 1 == updates:
            state = {
                "modules": {name: module.state_dict() for name, module in modules.items()},
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                "made_with": made_with,
                "update": update + 1,
                "curve": curve,
            }
            torch.save(state, folder / "next.pt")
            os.replace(folder / "next.pt", checkpoint)
    (folder / "curve.json").write_text(json.dumps(curve))
    return curve


def _optimisers(
    parameters: Sequence[nn.Parameter],
    lr: float,
    matrices: Sequence[nn.Parameter],
    matrix_lr: float,
    weight_decay: float,
) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the matrices if there are any, its steps scaled to be as long as AdamW's."""
    apart = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in parameters if id(parameter) not in apart]
    adamw = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [adamw, muon]


def _require_same(checkpoint: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Nothing where the checkpoint was made with our settings; else ValueError."""
    names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
    if names:
        differences = ", ".join(f"{name} {theirs.get(name, 'unknown')} there, {ours.get(name)} here" for name in names)
        raise ValueError(
            f"{checkpoint} belongs to another training ({differences}): delete {checkpoint.parent} to train anew"
        )


def _report(stage: str, point: dict[str, float], updates: int, seconds: float) -> None:
    values = "  ".join(f"{name} {value:.4g}" for name, value in point.items() if name != "update")
    left = seconds * (updates - point["update"]) / 60
    print(f"{stage} {point['update']}/{updates}  {values}  {seconds:.2f} s/update  {left:.0f} min left", flush=True)
