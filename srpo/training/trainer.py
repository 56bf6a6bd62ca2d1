"""The trainer: for each loss, backward; then clip, step, log. It is the same for every objective.

Everything random in an update comes from one generator, seeded by (seed, update). So the place of a run in its random
stream is its update number, and a resumed run continues the very run that was stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from srpo.objectives.base import Loss, Objective, Rollout
from srpo.policies.base import TrainablePolicy
from srpo.rewards.base import Reward
from srpo.runs import UpdateRecord
from srpo.training.config import TrainConfig
from srpo.training.distributed import World, kept_whole, like, whole
from srpo.training.lanes import Lane, Threads, add_gradients
from srpo.training.numerics import make_optimizer
from srpo.training.offline import OfflinePictures
from srpo.training.order import prompts_of_update, update_generator
from srpo.training.validation import Validation


class NonFiniteError(RuntimeError):
    """A loss, a score or the gradient became NaN or infinite. The weights are still those of the update before."""

    def __init__(self, message: str, update: int, prompts: Sequence[str]) -> None:
        super().__init__(message)
        self.update = update  # the one that was given up
        self.prompts = list(prompts)


class Trainer:
    """A policy in training: `updates` yields one record per update, `state_dict` is what a resumed run needs.

    With several processes each has a trainer of its own, and all of them call the same methods together.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        objective: Objective,
        reward: Reward,
        prompts: Sequence[str],
        config: TrainConfig,
        *,
        offline: OfflinePictures | None = None,
        validation: Validation | None = None,
        world: World | None = None,
        lanes: Sequence[Lane] = (),
    ) -> None:
        """lanes: what works side by side on parts of an update's prompts, the first of them with this policy; none
        where policy and objective work on all.

        ValueError where weights do not fit `config.numerics`, or an update's prompts do not fit the processes.
        """
        self.policy, self.objective, self.reward = policy, objective, reward
        self.prompts, self.config = prompts, config
        self.offline, self.validation = offline, validation
        self.world = world or World()
        if config.prompts_per_update % self.world.size:
            raise ValueError(
                f"{config.prompts_per_update} prompts per update cannot be shared by {self.world.size} processes: "
                f"set prompts_per_update to a multiple of {self.world.size}"
            )
        self.parameters = policy.parameters()
        self.optimizer = make_optimizer(self.parameters, config)
        self.update = 0  # the last finished one
        # By lane, with updates_per_rollout above 1: what later updates draw levels for.
        self._kept: dict[int, Rollout] = {}
        self._lanes = tuple(lanes)
        self._threads = Threads(len(lanes)) if lanes else None

    def updates(self) -> Iterator[UpdateRecord]:
        """Runs the updates that are left, one record per asked for.

        NonFiniteError before an update that would spoil the weights.
        """
        while self.update < self.config.updates:
            yield self.run_update()

    def run_update(self) -> UpdateRecord:
        """The record of one update. What interrupts it leaves the weights as they were before."""
        start = time.perf_counter()
        record = self.begin_update()
        self.end_update()
        return replace(record, seconds=time.perf_counter() - start)

    def begin_update(self) -> UpdateRecord:
        """The record of the next update, whose gradient is ready; the weights stay as they are until `end_update`."""
        start, update = time.perf_counter(), self.update + 1
        self.forget_gradient()
        jobs = [partial(self._gradient, number, update) for number in range(len(self.lanes))]
        parts = self._threads.run(jobs) if self._threads else [job() for job in jobs]
        add_gradients(self.lanes)

        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)))
        prompts = list(chain.from_iterable(self._kept[number].prompts for number in range(len(parts))))
        self._require_finite({"the gradient's norm": norm}, update, prompts)
        records = list(chain.from_iterable(records for _, records in parts))
        scores = self.world.mean(_means(records) | {"loss": sum(loss for loss, _ in parts) / len(parts)})
        mean_loss = scores.pop("loss")
        scores |= {"clip_norm": self.config.clip_norm, "clipped": float(norm > self.config.clip_norm)}
        return UpdateRecord(update, mean_loss, norm, self.config.lr, time.perf_counter() - start, scores)

    def end_update(self) -> None:
        """Moves the weights by the gradient of `begin_update`."""
        self.optimizer.step()
        self.update += 1

    def forget_gradient(self) -> None:
        """Gives back the memory of a gradient, also of one that was interrupted."""
        for lane in self.lanes:
            for weight in lane.policy.parameters():
                weight.grad = None

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """What works on the parts of an update's prompts; a single one where nothing is shared."""
        return self._lanes or (Lane(self.policy, self.objective, self.world.shard),)

    @property
    def transformers(self) -> list[torch.nn.Module]:
        """Every module that an update, or a validation, passes through."""
        return [lane.policy.transformer for lane in self.lanes]

    # What a run folder keeps

    @property
    def weights_name(self) -> str:
        """The file name under which others expect such weights."""
        return self.policy.weights_name

    @property
    def weights_metadata(self) -> dict[str, str]:
        """What belongs into the header of that file."""
        return self.policy.weights_metadata

    def weights(self) -> dict[str, Tensor]:
        """What is trained, by name, whole, on the CPU, in the precision it is trained in."""
        return whole(self.policy.trained_weights())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Puts back what `weights` gave. KeyError where a name is missing."""
        with torch.no_grad():
            for name, weight in self.policy.trained_weights().items():
                weight.copy_(like(weights[name].to(weight.dtype), weight))

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state and the place in the run; the weights are saved beside it."""
        state = {"update": self.update, "seed": self.config.seed, "optimizer": whole(self.optimizer.state_dict())}
        if self._kept and self._keeps_rollout(self.update + 1):
            kept = [self._kept[number] for number in range(len(self.lanes))]
            own = whole([(list(part.prompts), part.x0, part.noise) for part in kept])
            prompts, x0, noise = zip(*chain(*self.world.gather(own)), strict=True)
            state["rollout"] = {"prompts": list(chain(*prompts)), "x0": torch.cat(x0), "noise": torch.cat(noise)}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a run where `state_dict` left it. ValueError for another seed's run."""
        if state["seed"] != self.config.seed:
            raise ValueError(f"the checkpoint was made with seed {state['seed']}, not {self.config.seed}")
        self.optimizer.load_state_dict(state["optimizer"])
        for index, values in state["optimizer"]["state"].items():  # it cast the moments to the weights' precision
            weight = self.parameters[index]
            moments = {name: value for name, value in values.items() if isinstance(value, Tensor)}
            back = {name: _as_moment(value, weight) for name, value in moments.items()}
            self.optimizer.state[weight].update(back)
        self.update = state["update"]
        self._kept = {}
        if rollout := state.get("rollout"):
            for number, lane in enumerate(self.lanes):
                own = lane.shard.part(len(rollout["prompts"]) // lane.shard.count)
                x0, noise = (rollout[name][own].to(self.policy.device) for name in ("x0", "noise"))
                prompts = rollout["prompts"][own]
                self._kept[number] = Rollout(prompts, self.policy.encode_prompts(prompts), x0, noise)

    # An update's parts

    def _gradient(self, number: int, update: int) -> tuple[float, list[dict[str, float]]]:
        """The loss of a lane's part of the prompts and what its terms recorded; its weights have their gradient."""
        lane, generator = self.lanes[number], update_generator(self.config.seed, update)
        rollout, total, records = self._rollout(number, update, generator), 0.0, []
        for loss in lane.objective.losses(lane.policy, rollout, self.reward, generator, update):
            total += self._backward(loss, update, rollout.prompts)
            records.append(loss.record)
        return total, records

    def _rollout(self, number: int, update: int, generator: torch.Generator) -> Rollout:
        """A lane's part of the pictures that an update noises again: new, or kept from the update before."""
        if not self._keeps_rollout(update) or number not in self._kept:
            lane = self.lanes[number]
            with kept_whole(lane.policy.transformer):
                self._kept[number] = self._new_rollout(lane, update, generator)
        return self._kept[number]

    def _keeps_rollout(self, update: int) -> bool:
        """True where the update takes the rollout of the one before it."""
        return (update - 1) % self.config.updates_per_rollout != 0

    def _new_rollout(self, lane: Lane, update: int, generator: torch.Generator) -> Rollout:
        number = (update - 1) // self.config.updates_per_rollout + 1
        count, seed = self.config.prompts_per_update, self.config.seed
        own = lane.shard.part(count // lane.shard.count)
        until = self.config.offline.until
        if self.offline is not None and (until is None or update <= until):
            captions, x0, noise = self.offline.latents(lane.policy, seed, number, count, own)
            cond = lane.policy.encode_prompts(captions)
            return lane.objective.offline_rollout(captions, cond, x0, noise, generator)
        prompts = prompts_of_update(self.prompts, seed, number, count)[own]
        return lane.objective.rollout(lane.policy, prompts, lane.policy.encode_prompts(prompts), generator)

    def _backward(self, loss: Loss, update: int, prompts: Sequence[str]) -> float:
        """The loss's value, after its gradient was added."""
        value = loss.value.item()
        # The scores too, as a hinge hides an infinite reward from the loss.
        self._require_finite({"the loss": value, **loss.record}, update, prompts)
        loss.value.backward()
        return value

    def _require_finite(self, values: dict[str, float], update: int, prompts: Sequence[str]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not self.world.agree(bool(wrong)):
            return
        what = f"{wrong[0]} became {values[wrong[0]]}" if wrong else "a value of another process became NaN or infinite"
        raise NonFiniteError(
            f"{what} in update {update} (seed {self.config.seed}, prompts {list(prompts)}); "
            f"the weights of update {update - 1} are kept: lower lr, or look at the reward and at these prompts",
            update,
            prompts,
        )


def _as_moment(value: Tensor, weight: Tensor) -> Tensor:
    """A copy of what an optimiser keeps of a weight, where and as the weight lies; a count stays on the CPU."""
    return like(value.to(weight.device, copy=True), weight) if value.shape == weight.shape else value.clone()


def _means(records: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what the losses recorded, each weighted by its number of prompts."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    for record in records:
        for name in record.keys() - {"prompts"}:
            sums[name] = sums.get(name, 0.0) + record[name] * record["prompts"]
            weights[name] = weights.get(name, 0.0) + record["prompts"]
    return {name: sums[name] / weights[name] for name in sorted(sums)}
