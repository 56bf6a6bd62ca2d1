"""An update's prompts in parts side by side, each in a thread of its own: for the CPU.

Two cores that share every product of small matrices wait for one another at the end of each, thousands of times in an
update, and both wait where one is called away. Here each works on its own part of the prompts from the rollout to the
gradient, and they wait once. Parts are drawn and added up as those of several processes are (`Shard`), so an update is
the same as without but for rounding.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch

from srpo.objectives.base import Objective, Shard
from srpo.policies.base import TrainablePolicy

T = TypeVar("T")

NUM_LANES = 2  # more of them would each have fewer prompts at once, and wait for Python's lock


@dataclass(frozen=True)
class Lane:
    """What works on one part of an update's prompts."""

    policy: TrainablePolicy
    objective: Objective
    shard: Shard


def are_worth_it(num_prompts: int) -> bool:
    """True where this process may use several cores, and the prompts can be shared evenly."""
    return min(_num_cores(), torch.get_num_threads()) >= NUM_LANES and num_prompts % NUM_LANES == 0


def with_same_weights(transformer: torch.nn.Module) -> torch.nn.Module:
    """A second module whose weights are the same memory as the first one's, with gradients of its own."""
    shared = {
        id(weight): torch.nn.Parameter(weight.detach(), weight.requires_grad) for weight in transformer.parameters()
    }
    return copy.deepcopy(transformer, shared | {id(buffer): buffer for buffer in transformer.buffers()})


def add_gradients(lanes: Sequence[Lane]) -> None:
    """The first lane's weights have the mean of all lanes' gradients, added in their order; the others have none."""
    for first, *others in zip(*(lane.policy.parameters() for lane in lanes), strict=True):
        for other in others:
            if first.grad is None:
                first.grad = other.grad
            elif other.grad is not None:
                first.grad += other.grad
            other.grad = None
        if first.grad is not None and others:
            first.grad /= len(lanes)


class Threads:
    """One thread for each lane; each of them uses its share of the cores."""

    def __init__(self, count: int) -> None:
        cores = torch.get_num_threads()
        share = max(1, cores // count)
        self._pool = ThreadPoolExecutor(count, "lane", initializer=_take, initargs=(share,))
        self.run([threading.Barrier(count).wait] * count)  # every thread is there once all have met
        torch.set_num_threads(cores)  # theirs is not what other threads of the process begin with from now on

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """What each returns, in their order, once all have ended; what the first of them raised, else."""
        started = [self._pool.submit(job) for job in jobs]
        wait(started)
        return [future.result() for future in started]


def _take(num_threads: int) -> None:
    """This thread's products use so many threads from now on."""
    torch.get_num_threads()  # a thread's first question for their number sets it to the process's own
    torch.set_num_threads(num_threads)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
