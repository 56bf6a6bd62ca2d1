"""What an update costs by count: the same on every machine, however busy."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from srpo.objectives.direct_align import NO_PROMPT, DirectAlign
from srpo.policies.base import TrainablePolicy
from srpo.rewards.base import EmbeddingReward
from srpo.training.config import TrainConfig

PROMPT = "a red ball"  # any will do: the model reads as many tokens of each


def update_flops(config: TrainConfig, policy: TrainablePolicy, reward: EmbeddingReward) -> int:
    """Floating-point operations of one update: rollout and gradient passes, counted on the real modules.

    One prompt is worked on and multiplied by their number, as nothing but the optimiser, whose share is below 0.1 %, is
    shared among them. Texts, which are encoded once a run, are left out; what is computed again in a backward pass
    counts again. Products and convolutions are counted, two operations for each multiplication and addition. The
    policy's weights stay, their gradients go. Layers must be torch's own.
    """
    objective, words = DirectAlign(config.objective, config.signal), config.signal.words
    reward.embed_text([PROMPT, *(words.apply(word, PROMPT) for word in words.positive + words.negative)])
    cond = policy.encode_prompts([PROMPT, NO_PROMPT])[:1]
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as counted:
        if policy.device.type == "cpu":  # torch does not count the CPU's fused attention
            counted.enter_context(sdpa_kernel(SDPBackend.MATH))
        counter = counted.enter_context(FlopCounterMode(display=False))
        rollout = objective.rollout(policy, [PROMPT], cond, generator)
        for loss in objective.losses(policy, rollout, reward, generator, 1):
            loss.value.backward()
    policy.transformer.zero_grad(set_to_none=True)
    return counter.get_total_flops() * config.prompts_per_update
