"""Complete configurations with a name. Each says where its numbers come from, what it costs and what to expect.

A preset is a function of the model's size: `studio` is for the miniature, `studio_flux` the same recipe for FLUX.1-dev;
`paper` is for FLUX.1-dev, `paper_miniature` the same for the miniature. Each trains the whole transformer or, with
`weights="lora"`, adapters beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from srpo.miniature import paths
from srpo.objectives.direct_align import DirectAlignConfig
from srpo.objectives.levels import StepLevels, TableLevels, UniformLevels
from srpo.objectives.srpo import TextSignal
from srpo.rewards.control_words import (
    PAPER_DISCOUNTS,
    PAPER_WORDS,
    PICKSCORE_DISCOUNTS,
    PICKSCORE_SCALE,
    ControlWords,
    Discounts,
)
from srpo.training.config import PROMPTS, LoraConfig, OfflineConfig, TrainConfig, ValidationConfig

FLUX_MODEL, FLUX_REWARD, FLUX_PROMPTS = "black-forest-labs/FLUX.1-dev", "models/hpsv2.1", "prompts.txt"

# On the miniature the judge stands for the raters: the run keeps the checkpoint with most photos among those that lost
# no more than four of 32 pictures' content.
MINIATURE_VALIDATION = ValidationConfig(
    every=5,
    num_prompts=32,
    prompts=str(PROMPTS),
    num_steps=12,
    judge=str(paths.JUDGE),
    maximise="photo",
    limits={"content": (-0.125, 1.0)},
)
# Without a judge: the crispest checkpoint that did not become more garish, more clipped or more alike.
FLUX_VALIDATION = ValidationConfig(
    every=5,
    num_prompts=8,
    num_steps=28,
    maximise="sharpness",
    limits={"saturation": (-1.0, 0.05), "clipped": (-1.0, 0.02), "diversity": (-0.05, 1.0)},
)


def studio() -> TrainConfig:
    """SRPO on the miniature, our default: continuous noise levels, no collapse of the step, own noise per prompt.

    Source: the paper's objective without the reference trainer's collapse of the step at both ends of its range, and
    without its hinge, which belongs to HPSv2's cosines near 0.3: the miniature's reward reaches 0.9.
    Cost: 18 updates of 8 prompts, about a minute on two cores. Expect: light and colours turn natural, then surfaces,
    and the share of neutral prompts judged photo rises several times over with content kept: the measured rise is in
    assets/miniature/README.md. More updates, or lr 3e-5, print the tokens' grid onto the pictures.
    """
    return TrainConfig(
        objective=DirectAlignConfig(
            height=128,
            width=128,
            rollout_steps=12,
            rollout_guidance=3.5,
            rollout_shift=None,
            guidance=3.5,
            levels=UniformLevels(sigma_min=0.70, sigma_max=0.95, d_sigma=0.08),
            inversion=True,
            hinge=None,
        ),
        signal=TextSignal(form="cfg_like", words=PAPER_WORDS, discounts=Discounts((0.2, 0.2), (0.2, 0.2))),
        validation=MINIATURE_VALIDATION,
        lr=2e-5,
        updates=18,
        prompts_per_update=8,
    )


def studio_flux() -> TrainConfig:
    """SRPO on FLUX.1-dev with HPSv2.1, our recipe: a LoRA of rank 64 at 512 x 512, weights in bf16.

    Source: `studio`; hinge and discounts are the paper's, for HPSv2's cosines, and its rate times ten, as a LoRA needs.
    Needs the model, reward and prompts that `paper` needs, and 34 to 40 GB by our estimate; `weights=full` wants
    `numerics=bf16_stochastic` and `optimizer=adamw8bit`, about 105 GB. Cost: 30 updates of 16 prompts, 12 rollout steps
    each, some 200 PFLOP by count of passes. Expect: not measured yet; see docs/ before you believe any figure.
    """
    return _on_flux(
        replace(
            studio(),
            lr=5e-5,
            updates=30,
            prompts_per_update=16,
            objective=replace(studio().objective, hinge=0.7),
            signal=TextSignal(form="cfg_like", words=PAPER_WORDS, discounts=PAPER_DISCOUNTS),
        )
    )


def plain() -> TrainConfig:
    """Direct-Align without SRP: `studio`, but the reward is the plain score under the prompt.

    Source: the paper's row "Direct-Align". Cost: as `studio`. Expect: the raw reward rises and the pictures take on
    what the reward likes whatever the prompt says; the share judged photo does not rise as with `studio`.
    """
    return replace(studio(), signal=TextSignal(form="plain"))


def plain_flux() -> TrainConfig:
    """Direct-Align without SRP on FLUX.1-dev: `studio_flux`, but the reward is the plain score under the prompt.

    Source: the paper's row "Direct-Align". Cost: as `studio_flux`. Expect: in the paper's table realism rated
    "excellent" falls, 8.2 % -> 5.9 %, while HPSv2.1 rises, 0.289 -> 0.294; with this recipe not measured yet.
    """
    return replace(studio_flux(), signal=TextSignal(form="plain"))


def direct() -> TrainConfig:
    """The later reference trainer on the miniature: denoise branch alone, two draws per picture, a multiplied discount.

    Source: the reference's Qwen-Image trainer of February 2026 (github.com/Tencent-Hunyuan/SRPO): T = 100 levels from
    0.9 to 0.2, steps of up to 0.29, SRP with k = 0, loss -r lambda(s), the image brought to 0 ... 1 by its own range,
    rollouts of 26 steps with two-pass guidance 4. What it does in two passes FLUX's embedding is told as 1, in the
    training pass as well; every update has a noise of its own, not one for all updates, and takes 8 prompts, where it
    had one per device.
    Cost: 50 updates of 8 prompts, each three times the transformer passes of `studio`. Expect: not measured yet; see
    docs/. Its lr, 3e-6, is a thirteenth of what moves the miniature in `studio`.
    """
    return TrainConfig(
        objective=DirectAlignConfig(
            height=128,
            width=128,
            rollout_steps=26,
            rollout_guidance=1.0,
            rollout_cfg_scale=4.0,
            rollout_shift=3.0,
            guidance=1.0,
            levels=StepLevels(),
            num_injections=2,
            inversion=False,
            hinge=None,
            discount_shift=3.0,
            image_range="own",
            shared_noise=True,
            noise_in_bf16=True,
            truncate_timestep=True,
        ),
        # Its updates count from 0, ours from 1: the words stand one place further, so that the first comes first.
        signal=TextSignal(
            form="srp",
            words=ControlWords(
                ("Real", "Natural-lighting", "Detail", "Detailed"), ("Anime", "Concept art", "Painting")
            ),
            discounts=Discounts((0.0, 0.0), (0.0, 0.0)),
        ),
        validation=MINIATURE_VALIDATION,
        updates=50,
        prompts_per_update=8,
        lr=3e-6,
        clip_norm=50.0,
    )


def direct_flux() -> TrainConfig:
    """The later reference trainer's recipe on FLUX.1-dev with HPSv2.1, full weights in float32 under autocast.

    Source: as `direct`; there the model is Qwen-Image, so no published figure belongs to this. Needs what `paper`
    needs; `weights=lora numerics=bf16` fits one card. Cost: per prompt 52 passes for the rollout and two with gradient,
    50 updates of 8. Expect: not measured yet; see docs/.
    """
    return _on_flux(direct(), weights="full", numerics="autocast", size=720)


def offline() -> TrainConfig:
    """`studio` on pictures from a folder instead of rollouts: set `offline.folder`; `offline.until=N` samples after N.

    Source: the offline mode of the reference's later trainer. The folder holds images with metadata.jsonl (Hugging
    Face's imagefolder) or a .txt beside each image, or latents stored by `python -m srpo.training.store`. Cost: an
    update is the training pass alone, a third of `studio`'s work or less. Expect: not measured yet; pictures that are
    photos already leave the words little to add.
    """
    return replace(studio(), offline=OfflineConfig(folder="offline"))


def offline_flux() -> TrainConfig:
    """`studio_flux` on pictures from a folder instead of rollouts: set `offline.folder`.

    Source: as `offline`. Cost: no rollout, which is three quarters of the paper's work per prompt. Expect: not measured
    yet; see docs/.
    """
    return replace(studio_flux(), offline=OfflineConfig(folder="offline"))


def paper() -> TrainConfig:
    """The reference trainer on FLUX.1-dev with HPSv2.1: the same draws, levels, scores, losses and gradients.

    Source: arXiv 2509.06942 and its code of September 2025 (github.com/Tencent-Hunyuan/SRPO), here in float32
    throughout. Needs FLUX.1-dev in the local cache, HPSv2.1 in CLIPModel's layout (set `reward`), the HPDv2 training
    prompts (set `prompts`), and a device (set `device`) with room for float32 weights, gradients and AdamW's moments:
    about 190 GB. Cost: 767 PFLOP. Expect: realism rated "excellent" 8 % -> 39 % by people, HPSv2.1 flat at 0.289.
    """
    return TrainConfig(
        model=FLUX_MODEL,
        max_sequence_length=512,
        reward=FLUX_REWARD,
        objective=DirectAlignConfig(
            height=720,
            width=720,
            rollout_steps=25,
            rollout_guidance=1.0,
            rollout_shift=3.0,
            guidance=3.5,
            levels=TableLevels(),
            num_injections=1,
            inversion=True,
            hinge=0.7,
            shared_noise=True,
            noise_in_bf16=True,
            truncate_timestep=True,
            prompts_per_forward=1,
        ),
        signal=TextSignal(form="cfg_like", words=PAPER_WORDS, discounts=PAPER_DISCOUNTS),
        validation=FLUX_VALIDATION,
        checkpoint_decode=True,
        gradient_checkpointing=True,
        updates=19,
        prompts_per_update=32,
        lr=5e-6,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-4,
        clip_norm=0.1,
    )


def paper_miniature() -> TrainConfig:
    """The reference trainer's update on the miniature: `paper` but for size, batch and reward.

    Source: as `paper`; 128 x 128, all 8 prompts of an update in one pass, the miniature's reward, whose scores reach
    0.9 and so often pass the hinge at 0.7. Cost: 19 updates of 8 prompts, under twice the passes of `studio` each.
    Expect: not measured yet; see docs/. The paper's lr, 5e-6, is an eighth of what moves the miniature in `studio`.
    """
    return _on_miniature(paper())


def paper_pickscore() -> TrainConfig:
    """The reference trainer with PickScore as its reward: other end points, rollout guidance 2, scores times 100 / 20.

    Source and cost: as `paper`. Expect: no published table of its own; PickScore of FLUX.1-dev is 22.67, SRPO's 23.04.
    """
    base = paper()
    return replace(
        base,
        reward="yuvalkirstain/PickScore_v1",
        reward_scale=PICKSCORE_SCALE,
        objective=replace(base.objective, rollout_guidance=2.0, levels=TableLevels(cleanest_step=30)),
        signal=replace(base.signal, discounts=PICKSCORE_DISCOUNTS),
    )


def paper_pickscore_miniature() -> TrainConfig:
    """The reference trainer's update with PickScore's numbers on the miniature: but for size, batch and reward.

    Source and cost: as `paper_miniature`; the scale is the miniature's. Expect: not measured yet; see docs/.
    """
    return _on_miniature(paper_pickscore())


def _on_flux(config: TrainConfig, *, weights: str = "lora", numerics: str = "bf16", size: int = 512) -> TrainConfig:
    """The recipe for FLUX.1-dev: its model, reward and lengths, and what keeps its memory in bounds."""
    return replace(
        config,
        model=FLUX_MODEL,
        max_sequence_length=512,
        reward=FLUX_REWARD,
        prompts=FLUX_PROMPTS,
        device="cuda",
        weights=weights,
        lora=LoraConfig(rank=64, alpha=64.0),
        numerics=numerics,
        gradient_checkpointing=True,
        checkpoint_decode=True,
        objective=replace(config.objective, height=size, width=size, prompts_per_forward=1),
        validation=FLUX_VALIDATION,
    )


def _on_miniature(config: TrainConfig) -> TrainConfig:
    """The recipe for the miniature: its model, reward, prompts and size, all prompts in one pass."""
    small = TrainConfig()
    return replace(
        config,
        model=small.model,
        max_sequence_length=small.max_sequence_length,
        reward=small.reward,
        reward_scale=small.reward_scale,
        prompts=small.prompts,
        gradient_checkpointing=False,
        checkpoint_decode=False,
        objective=replace(config.objective, height=128, width=128, prompts_per_forward=None),
        validation=MINIATURE_VALIDATION,
        prompts_per_update=8,
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    preset.__name__: preset
    for preset in (
        *(studio, plain, direct, offline, paper_miniature, paper_pickscore_miniature),
        *(studio_flux, plain_flux, direct_flux, offline_flux, paper, paper_pickscore),
    )
}


def preset(name: str) -> TrainConfig:
    """The configuration of that name. ValueError with the known names for another."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: choose {', '.join(PRESETS)}")
    return PRESETS[name]()
