"""Several processes on one run: a LoRA by DDP, full weights by FSDP2. One process is the same without any of it.

Every process draws the same noise and levels for all prompts of an update and works on its own part of them, so the
update does not depend on how many there are but for rounding. Started by torchrun or `accelerate launch`, which set
RANK, WORLD_SIZE and MASTER_ADDR.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from srpo.objectives.base import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True in the one process that writes and prints."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        return Shard(self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in their order. All must ask together, here and below."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agree(self, flag: bool) -> bool:
        """True in every process where it is true in one."""
        return any(self.gather(flag))

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The means over processes, which must have the same names."""
        everyones = self.gather(dict(values))
        return {name: sum(one[name] for one in everyones) / self.size for name in values}


def world() -> World:
    """This process's place: from the process group where one is set up, else from the launcher's environment."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextmanager
def session(device: str) -> Iterator[World]:
    """The process group while the context lasts; nothing at all for one process.

    With CUDA each process takes the device of its local rank.
    """
    here = world()
    if here.size == 1:
        yield here
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", here.rank)))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield here
        dist.barrier()
    finally:
        gc.collect()  # gloo aborts at exit where a sharded model outlives its group
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: with several on CUDA, the one of its local rank."""
    if device.startswith("cuda") and world().size > 1:
        return f"cuda:{os.environ.get('LOCAL_RANK', world().rank)}"
    return device


def shard_weights(transformer: torch.nn.Module) -> None:
    """Shards all weights over the processes by FSDP2, block by block; gradients are averaged in float32."""
    device_type = next(transformer.parameters()).device.type
    mesh = init_device_mesh(device_type, (world().size,))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)


def replicate(transformer: torch.nn.Module) -> DistributedDataParallel:
    """The module to call instead, whose backward passes average the gradients over the processes."""
    device = next(transformer.parameters()).device
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(transformer, device_ids=device_ids, forward_sync_buffers=False)


@contextmanager
def kept_whole(transformer: torch.nn.Module) -> Iterator[None]:
    """Sharded weights are gathered once, not in every step, while the context lasts. Nothing for other modules."""
    if not isinstance(transformer, FSDPModule):
        yield
        return
    transformer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        transformer.set_reshard_after_forward(True)
        for module in transformer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def whole(tree: Any) -> Any:
    """The same nested dicts, lists and tuples with every tensor copied to the CPU, sharded ones gathered.

    All processes must ask together.
    """
    if isinstance(tree, Tensor):
        tree = tree.full_tensor() if isinstance(tree, DTensor) else tree
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value) for value in tree)
    return tree


def like(value: Tensor, model: Tensor) -> Tensor:
    """`value` sharded as `model` is, where it is and has its shape; else as it came."""
    if isinstance(model, DTensor) and value.shape == model.shape and not isinstance(value, DTensor):
        return distribute_tensor(value.to(model.device), model.device_mesh, model.placements)
    return value
