"""What each of two processes does in `test_distributed.py`: a module of its own, so that a fresh process finds it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from srpo.training import distributed
from srpo.training.assemble import assemble
from srpo.training.config import TrainConfig


def train_part(rank: int, size: int, port: int, config: TrainConfig, out: Path) -> None:
    """Two updates, a state put into a new trainer, and a third; what came of it is left in `out`, by rank."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed.session(config.device) as world:
        trainer = assemble(config)
        require_shared(trainer, config)
        records = [trainer.run_update(), trainer.run_update()]
        weights, state = trainer.weights(), trainer.state_dict()
        again = assemble(config)
        again.load_weights(weights)
        again.load_state_dict(state)
        records += [trainer.run_update(), again.run_update()]
        told = {
            "records": [(record.loss, record.grad_norm, record.scores["denoise/sigma"]) for record in records],
            "weights": trainer.weights(),
            "resumed": again.weights(),
            "noise": trainer._kept[0].noise,
            "agree": (world.agree(rank == 1), world.agree(False)),
        }
        torch.save(told, out / f"rank-{rank}.pt")
        del trainer, again


def require_shared(trainer: object, config: TrainConfig) -> None:
    """That the weights are really sharded, or the gradients really averaged: both can silently be neither."""
    policy = trainer.policy
    if config.weights == "lora":
        assert isinstance(policy.called, DistributedDataParallel)
        assert not any(isinstance(weight, DTensor) for weight in policy.parameters())
        return
    blocks = (policy.transformer, *policy.transformer.transformer_blocks, *policy.transformer.single_transformer_blocks)
    assert all(isinstance(block, FSDPModule) for block in blocks)
    assert all(isinstance(weight, DTensor) for weight in policy.parameters())
    own = sum(weight.to_local().numel() for weight in policy.parameters())
    whole = sum(weight.numel() for weight in policy.parameters())
    assert own < 0.6 * whole
