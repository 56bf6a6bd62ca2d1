"""python -m srpo.training.probe: what a run would cost here, by one real update that leaves nothing behind.

Prints one line of JSON. Run it in a process of its own: its memory is then the run's.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from srpo.training.assemble import assemble
from srpo.training.config import TrainConfig
from srpo.training.options import add_options, config_of
from srpo.training.trainer import Trainer


@dataclass(frozen=True)
class Cost:
    """Measured on this machine, with what else ran on it."""

    load_seconds: float  # of models, reward and judge
    first_update_seconds: float  # texts are encoded, memory is taken
    seconds_per_update: float  # a later one
    validation_seconds: float  # of one validation, by a few of its pictures; 0 without any
    peak_bytes: int  # of the device, or of this process on the CPU
    checkpoint_bytes: int  # weights and optimiser
    num_trained: int  # weights


def probe(config: TrainConfig) -> Cost:
    """What a run of these settings costs: two updates of its own copy of the weights, which is dropped.

    Files are only read. ValueError where the run could not begin.
    """
    start = time.perf_counter()
    forget_peak(config.device)
    trainer = assemble(config)
    load_seconds = time.perf_counter() - start
    first, second = trainer.run_update().seconds, trainer.run_update().seconds
    validation_seconds = _validation_seconds(trainer)
    return Cost(
        load_seconds,
        first,
        second,
        validation_seconds,
        peak_bytes(config.device),
        _checkpoint_bytes(trainer),
        sum(weight.numel() for weight in trainer.parameters),
    )


def _validation_seconds(trainer: Trainer) -> float:
    """Seconds of a validation, from a batch of its pictures: at most eight are painted."""
    validation = trainer.validation
    if validation is None:
        return 0.0
    count = len(validation.prompts)
    few = min(count, validation.batch, 8)
    part = replace(validation.config, num_prompts=max(few, 2), num_samples=0)
    seconds = validation.with_config(part).validate(trainer.policy, 0).seconds
    return seconds * count / part.num_prompts


def _checkpoint_bytes(trainer: Trainer) -> int:
    moments = [value for values in trainer.optimizer.state.values() for value in values.values()]
    tensors = [value for value in moments if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in (*trainer.policy.trained_weights().values(), *tensors))


def forget_peak(device: str) -> None:
    """Peaks of the past are none of this run's. On the CPU Linux can forget them; elsewhere they count."""
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats(device)
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="ascii")  # the kernel's word for: reset the peak


def peak_bytes(device: str) -> int:
    """The largest memory since then: of the device, or of this process on the CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m srpo.training.probe", description=__doc__.splitlines()[0])
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        cost = probe(config_of(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(cost)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
