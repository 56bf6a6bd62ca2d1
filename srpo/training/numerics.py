"""Optimisers that keep small updates.

A bf16 number has eight bits: its neighbours are 0.4 to 0.8 % away. An update of AdamW moves a weight by about lr, and
one that is less than half the way to the neighbour is rounded back to nothing: at lr 5e-6 that is the fate of nearly
all. So weights are float32, or they are rounded up or down by chance, which is right on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from srpo.training.config import TrainConfig

MAX_LOST = 0.1  # share of the weights whose update may be rounded away


def make_optimizer(parameters: Sequence[torch.nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a run over its trained weights. ValueError where it would lose updates, or is not to be had."""
    dtypes = {parameter.dtype for parameter in parameters}
    in_bf16 = config.numerics in ("bf16", "bf16_stochastic") and config.weights == "full"
    expected = torch.bfloat16 if in_bf16 else torch.float32
    if wrong := dtypes - {expected}:
        raise ValueError(
            f"the policy's weights are {wrong.pop()}; numerics={config.numerics} trains {expected}, "
            "load it with that dtype"
        )
    settings = {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    if config.numerics == "bf16" and in_bf16:
        _require_kept_updates(parameters, config.lr)
    for parameter in parameters:
        if in_bf16 and not isinstance(parameter, DTensor):
            parameter.grad_dtype = torch.float32  # several passes add up without rounding
    if config.optimizer == "adamw8bit":
        return _adamw_8bit(parameters, settings, config.numerics == "bf16_stochastic")
    if config.numerics == "bf16_stochastic":
        return StochasticAdamW(parameters, **settings, seed=config.seed)
    return torch.optim.AdamW(parameters, **settings)


def lost_share(parameters: Iterable[Tensor], lr: float) -> float:
    """The share of the weights that a step of the size `lr` leaves where they are, after rounding to their dtype."""
    kept, count = 0, 0
    for weight in parameters:
        weight = weight.detach()
        moved = (weight.float() + lr).to(weight.dtype)
        kept, count = kept + int((moved != weight).sum()), count + weight.numel()
    return 1 - kept / count


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) on bf16 weights: computed in float32, then rounded up or down by chance.

    The moments are float32. The chance is a function of (seed, step), so a resumed run is the same bit for bit.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        seed: int = 0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "seed": seed})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step; gradients in any precision. A weight without a gradient stays."""
        for group in self.param_groups:
            generators: dict[torch.device, torch.Generator] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                moved = self._moved(weight, group)
                if weight.device not in generators:
                    place = group["seed"] * 1_000_003 + int(self.state[weight]["step"])
                    generators[weight.device] = torch.Generator(weight.device).manual_seed(place)
                round_stochastically_(_own_part(weight), _own_part(moved), generators[weight.device])

    def _moved(self, weight: Tensor, group: dict) -> Tensor:
        """The weight after its step, float32."""
        state, gradient = self.state[weight], weight.grad.float()
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        moved = weight.float() * (1 - group["lr"] * group["weight_decay"])
        return moved.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - beta1**step))


def round_stochastically_(target: Tensor, value: Tensor, generator: torch.Generator) -> None:
    """Writes float32 `value` into bf16 `target`, each rounded to a neighbour with the chance of its nearness to it.

    A bf16 is a float32 without its last 16 bits: adding 16 random bits before cutting them off carries upwards as often
    as those bits are large. The mean over many roundings is `value`.
    """
    bits = value.contiguous().view(torch.int32)
    chance = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    target.copy_(((bits + chance) & -(2**16)).view(torch.float32))


def _own_part(tensor: Tensor) -> Tensor:
    """What of a sharded tensor lies in this process; any other tensor as it is. It shares the memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _require_kept_updates(parameters: Sequence[torch.nn.Parameter], lr: float) -> None:
    if (lost := lost_share(parameters, lr)) > MAX_LOST:
        raise ValueError(
            f"with weights in bf16, rounded to the nearest, an update at lr {lr:g} leaves {lost:.0%} of the weights "
            "where they are: set numerics=bf16_stochastic or float32, or train a LoRA (weights=lora)"
        )


def _adamw_8bit(parameters: Sequence[torch.nn.Parameter], settings: dict, stochastic: bool) -> torch.optim.Optimizer:
    if any(parameter.device.type != "cuda" for parameter in parameters):
        raise ValueError("optimizer=adamw8bit needs CUDA: set optimizer=adamw, or device=cuda")
    try:
        from torchao.optim import AdamW8bit  # a second to import, so only where it is asked for
    except ImportError as error:
        raise ValueError("optimizer=adamw8bit needs torchao: pip install torchao, or set optimizer=adamw") from error
    return AdamW8bit(parameters, **settings, bf16_stochastic_round=stochastic)
