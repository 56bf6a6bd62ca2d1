"""What went wrong, as one sentence that says what to do; and what an update that failed was about to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from srpo.runs import RunFolder
from srpo.runs.atomic import write_text
from srpo.training.checkpoints import SaveError, in_bytes
from srpo.training.config import TrainConfig, config_dict
from srpo.training.trainer import NonFiniteError

TELLING = (NonFiniteError, SaveError, ValueError)  # their text is a sentence already


def sentence(error: Exception, config: TrainConfig) -> str:
    """What to tell of an error that has ended a run."""
    if is_out_of_memory(error):
        return out_of_memory(config)
    if isinstance(error, TELLING):
        return str(error)
    if isinstance(error, OSError):
        return f"the run folder could not be written ({error}): put that right, then resume the run"
    first_line = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first_line}"


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's error, for Python's, and for the one of torch's CPU allocator, which has no type of its own."""
    told = str(error)
    cpu = isinstance(error, RuntimeError) and ("not enough memory" in told or "can't allocate memory" in told)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or cpu


def out_of_memory(config: TrainConfig) -> str:
    """The device, its peak and free memory where it tells them, and the settings that lower the need."""
    used = ""
    if config.device.startswith("cuda") and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(config.device)
        peak = torch.cuda.max_memory_allocated(config.device)
        used = f" (at most {in_bytes(peak)} were used, {in_bytes(free)} of {in_bytes(total)} are free)"
    return f"out of memory on {config.device}{used}: start a new run with {', or '.join(_smaller(config))}"


def _smaller(config: TrainConfig) -> list[str]:
    """Settings that need less memory, those that leave the method as it is first."""
    objective = config.objective
    together = objective.prompts_per_forward or config.prompts_per_update
    ways = []
    if together > 1:
        ways.append(f"objective.prompts_per_forward={max(1, together // 2)}")
    if not config.checkpoint_decode:
        ways.append("checkpoint_decode=true")
    if not config.gradient_checkpointing:
        ways.append("gradient_checkpointing=true")
    if config.weights == "full":
        ways.append("weights=lora")
    height, width = (max(16, side // 32 * 16) for side in (objective.height, objective.width))
    return [*ways, f"objective.height={height} and objective.width={width}"]


def free_memory(trainer: Any) -> None:
    """Gives back what an update that ran out of memory still holds."""
    trainer.forget_gradient()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def dump(run: RunFolder, error: NonFiniteError, config: TrainConfig) -> Path:
    """The file that says what the failed update was about to do: everything random in it follows from these."""
    told = {
        "update": error.update,
        "seed": config.seed,
        "prompts": error.prompts,
        "error": str(error),
        "settings": config_dict(config),
    }
    file = run.path / "dump" / f"update-{error.update:06d}.json"
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(told, indent=2) + "\n")
    return file
