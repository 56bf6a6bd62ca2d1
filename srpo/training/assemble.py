"""From settings to a trainer: the one place of the training that knows which policy, reward and judge there are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from srpo.miniature.judge import Judge
from srpo.miniature.world import CONTENT_ATTRIBUTES, attributes, neutral_prompts
from srpo.objectives.base import Shard
from srpo.objectives.direct_align import DirectAlign
from srpo.policies.flux import FluxPolicy
from srpo.policies.load import load_policy
from srpo.policies.lora import add_lora
from srpo.rewards.base import EmbeddingReward
from srpo.rewards.catalogue import CARDS
from srpo.rewards.load import load_reward
from srpo.training import cpu, distributed, lanes
from srpo.training.config import Numerics, TrainConfig, ValidationConfig, read_prompts
from srpo.training.devices import require_device
from srpo.training.lanes import Lane
from srpo.training.offline import OfflinePictures
from srpo.training.trainer import Trainer
from srpo.training.validation import Measure, Validation

BF16, FLOAT32 = torch.bfloat16, torch.float32
# By the names of a pipeline's parts. Under autocast what is trained and the decoder it is judged through stay float32.
DTYPES: dict[Numerics, torch.dtype | dict[str, torch.dtype]] = {
    "float32": FLOAT32,
    "autocast": {"transformer": FLOAT32, "vae": FLOAT32, "default": BF16},
    "bf16": BF16,
    "bf16_stochastic": BF16,
}


def assemble(config: TrainConfig) -> Trainer:
    """The trainer of a run, everything loaded, nothing trained. With several processes, this one's part of it.

    ValueError, one sentence, for what is missing or does not fit; what can be looked at before loading is.
    """
    world, device = distributed.world(), distributed.own_device(config.device)
    prompts = read_prompts(config.prompts)
    require_device(device)
    offline = _offline(config)
    validation_prompts = read_prompts(config.validation.prompts) if config.validation.prompts else prompts
    if device == "cpu":
        cpu.keep_freed_memory()
    policy = _policy(config, device)
    reward = load_reward(
        config.reward, scale=config.reward_scale, device=device, local_files_only=config.local_files_only
    )
    if config.signal.form != "noise" and not isinstance(reward, EmbeddingReward):
        fit = ", ".join(card.kind for card in CARDS.values() if card.is_dual_encoder)
        raise ValueError(
            f"the reward {reward.name} has no text vectors for control words: choose one of {fit}, or signal.form=noise"
        )
    # Under autocast the products are bf16; weights shared over processes are left as torch's own layers expect them.
    if device == "cpu" and config.numerics == "float32" and world.size == 1 and cpu.has_fast_products():
        cpu.speed_up_products(policy.transformer)
    return Trainer(
        policy,
        DirectAlign(config.objective, config.signal, world.shard),
        reward,
        prompts,
        config,
        offline=offline,
        validation=_validation(config, validation_prompts, device),
        world=world,
        lanes=_lanes(policy, config) if device == "cpu" and world.size == 1 else (),
    )


def cut_prompts(trainer: Trainer) -> list[str]:
    """A sentence for each reader, the model and the reward, that cuts some of the prompts off; none where none does."""
    policy, reward, words = trainer.policy, trainer.reward, trainer.config.signal.words
    longest = max(words.positive + words.negative, key=len)
    counts = {
        "the model": [policy.count_tokens(prompt) for prompt in trainer.prompts],
        "the reward, with its control word,": [
            reward.count_tokens(words.apply(longest, prompt)) for prompt in trainer.prompts
        ],
    }
    return [
        f"{reader} reads {lengths[0][1]} tokens; {cut} of {len(lengths)} prompts are longer and cut off"
        for reader, lengths in counts.items()
        if (cut := sum(tokens > limit for tokens, limit in lengths))
    ]


def _offline(config: TrainConfig) -> OfflinePictures | None:
    if config.offline.folder is None:
        return None
    return OfflinePictures.open(config.offline.folder, config.objective.all_sizes)


def _policy(config: TrainConfig, device: str) -> FluxPolicy:
    """The policy of a run, on its device."""
    policy = load_policy(
        config.model,
        device=device,
        dtype=DTYPES[config.numerics],
        local_files_only=config.local_files_only,
        max_sequence_length=config.max_sequence_length,
        checkpoint_decode=config.checkpoint_decode,
        autocast=config.numerics == "autocast",
    )
    return made_trainable(policy, config)


def made_trainable(policy: FluxPolicy, config: TrainConfig) -> FluxPolicy:
    """The policy with what is to be trained in it, shared over the processes where there are several.

    ValueError for a size that does not fit it, or a LoRA that does not.
    """
    for height, width in config.objective.all_sizes:
        policy.latent_shape(height, width)  # refuses a size before the first update
    transformer = policy.transformer
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.weights == "lora":
        lora = config.lora
        add_lora(transformer, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, seed=config.seed)
    if distributed.world().size > 1:
        if config.weights == "lora":
            policy.called = distributed.replicate(transformer)
        else:
            distributed.shard_weights(transformer)
    return policy


def _lanes(policy: FluxPolicy, config: TrainConfig) -> list[Lane]:
    """What works side by side on the CPU; nothing where that is not worth it, or memory is bounded."""
    bounded = config.objective.prompts_per_forward is not None
    if bounded or config.numerics != "float32" or not lanes.are_worth_it(config.prompts_per_update):
        return []
    others = [lanes.with_same_weights(policy.transformer) for _ in range(1, lanes.NUM_LANES)]
    policies = [policy, *(policy.with_transformer(transformer) for transformer in others)]
    shards = [Shard(number, lanes.NUM_LANES) for number in range(lanes.NUM_LANES)]
    return [
        Lane(policy, DirectAlign(config.objective, config.signal, shard), shard)
        for policy, shard in zip(policies, shards, strict=True)
    ]


def _validation(config: TrainConfig, prompts: Sequence[str], device: str) -> Validation | None:
    chosen = config.validation
    if not chosen.every:
        return None
    return Validation(
        chosen,
        prompts,
        size=config.objective.all_sizes[0],
        updates=config.updates,
        batch=config.objective.prompts_per_forward,
        more=_loaded_measures(chosen, device, config.local_files_only),
    )


def _loaded_measures(chosen: ValidationConfig, device: str, local_files_only: bool) -> dict[str, Measure]:
    """What the judge and the second reward say, where there are such."""
    measures: dict[str, Measure] = {}
    if chosen.judge is not None:
        measures |= judge_measures(Judge.from_pretrained(chosen.judge))
    if chosen.reward is not None:
        second = load_reward(chosen.reward, device=device, local_files_only=local_files_only)
        measures["reward"] = lambda images, prompts: second.score(images, prompts).cpu()
    return measures


def judge_measures(judge: Judge) -> dict[str, Measure]:
    """ "photo": judged a photo; "content": subject, colour, place and time as the prompt says. ValueError for a prompt
    that is none of the miniature's, whose content nobody knows.
    """
    truth = {text: attributes(scene) for split in ("train", "test") for text, scene in neutral_prompts(split)}

    def photo(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([said["style"] == "photo" for said in judge.verdict(images)])

    def content(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if unknown := [prompt for prompt in prompts if prompt not in truth]:
            raise ValueError(f"the judge does not know what {unknown[0]!r} shows: leave validation.prompts as it is")
        return torch.tensor(
            [
                all(said[name] == truth[prompt][name] for name in CONTENT_ATTRIBUTES)
                for said, prompt in zip(judge.verdict(images), prompts, strict=True)
            ]
        )

    return {"photo": photo, "content": content}
