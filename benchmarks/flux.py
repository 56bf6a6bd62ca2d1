"""Updates at FLUX.1-dev's size on random weights, beside what the GPU allows: a LoRA's and the full weights'.

Random weights cost what trained ones do. The text encoders are small, as texts are encoded once a run; all else has the
size of FLUX.1-dev and of HPSv2.1's ViT-H/14. The floor is the counted work over the 790 TFLOP/s of dense bf16 that one
H200 sustains.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from app.state import Options
from benchmarks.figures import Figure, LeftOut
from benchmarks.scale import Scale
from srpo.miniature.flux import new_scheduler
from srpo.miniature.tokens import clip_tokenizer, t5_tokenizer
from srpo.objectives.direct_align import DirectAlign
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.assemble import made_trainable
from srpo.training.config import TrainConfig
from srpo.training.flops import update_flops
from srpo.training.presets import studio_flux
from srpo.training.probe import forget_peak, peak_bytes
from srpo.training.trainer import Trainer

FLOP_PER_S = 790e12
PROMPTS = ("a red ball on a beach", "a blue house in the snow", "a green tree at night", "a white boat at sea")

FIGURES = tuple(
    Figure(f"FLUX.1-dev, {kind} at 512: {what}", unit)
    for kind in ("LoRA", "full weights")
    for what, unit in (
        ("update of 4 prompts", "s"),
        ("its floor at 790 TFLOP/s", "s"),
        ("share of 790 TFLOP/s", "%"),
        ("peak memory", "GB"),
    )
)


@dataclass(frozen=True)
class Size:
    """Of every part that counts, and what a run of it needs."""

    transformer: dict[str, Any]
    vae_channels: tuple[int, ...]
    vae_layers: int
    vision: dict[str, int]  # the reward's
    side: int  # pixels
    text_tokens: int
    optimizer: str  # of the full weights


FLUX_DEV = Size(
    transformer={
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    vision={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
    },
    side=512,
    text_tokens=512,
    optimizer="adamw8bit",
)
SMALL = Size(  # shows that the measurement runs
    transformer={
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    },
    vae_channels=(8, 8, 8, 8),
    vae_layers=1,
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    },
    side=32,
    text_tokens=16,
    optimizer="adamw",
)


def measure(options: Options, scale: Scale) -> Iterator[tuple[str, float]]:
    """(name, value) of the figures. LeftOut without CUDA, but for a quick look, which takes a small model."""
    if options.device.startswith("cuda"):
        size = FLUX_DEV
    elif scale.quick:
        size = SMALL
    else:
        raise LeftOut("FLUX.1-dev's size needs a CUDA device: choose one by --device cuda")
    for lora in (True, False):
        values = _measured(settings(size, options.device, lora=lora), size, scale.rounds_of_flux)
        own = FIGURES[:4] if lora else FIGURES[4:]
        for figure, value in zip(own, values, strict=True):
            yield figure.name, value


def settings(size: Size, device: str, *, lora: bool) -> TrainConfig:
    """The preset `studio_flux` with four prompts per update; full weights as they fit one card."""
    config = studio_flux()
    config = replace(
        config,
        device=device,
        max_sequence_length=size.text_tokens,
        objective=replace(config.objective, height=size.side, width=size.side),
        prompts_per_update=len(PROMPTS),
    )
    if lora:
        return config
    return replace(config, weights="full", numerics="bf16_stochastic", optimizer=size.optimizer)


def _measured(config: TrainConfig, size: Size, rounds: int) -> tuple[float, float, float, float]:
    """Seconds of an update, its floor in seconds, the share of the floor in percent, and the peak memory in GB."""
    forget_peak(config.device)
    policy = made_trainable(new_policy(size, config), config)
    reward = new_reward(size, config.device)
    trainer = Trainer(policy, DirectAlign(config.objective, config.signal), reward, list(PROMPTS), config)
    trainer.run_update()  # what happens once only: texts, memory
    seconds = statistics.median(trainer.run_update().seconds for _ in range(rounds))
    peak = peak_bytes(config.device)
    floor = update_flops(config, policy, reward) / FLOP_PER_S
    del trainer, policy, reward
    gc.collect()
    if config.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return seconds, floor, 100 * floor / seconds, peak / 1e9


def new_policy(size: Size, config: TrainConfig) -> FluxPolicy:
    """A policy of random weights in bf16, made on the device itself; a seed makes them the same again."""
    clip, t5, wide = clip_tokenizer(), t5_tokenizer(), size.transformer
    torch.manual_seed(0)
    with torch.device(config.device), _in_bf16():
        transformer = FluxTransformer2DModel(in_channels=64, guidance_embeds=True, **wide)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=size.vae_channels,
            layers_per_block=size.vae_layers,
            norm_num_groups=min(32, size.vae_channels[0] // 2),
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        text_encoder = CLIPTextModel(_text_config(wide["pooled_projection_dim"], clip))
        width = wide["joint_attention_dim"]
        text_encoder_2 = T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
        )
    pipe = FluxPipeline(
        scheduler=new_scheduler(),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=clip,
        text_encoder_2=text_encoder_2,
        tokenizer_2=t5,
        transformer=transformer,
    )
    return FluxPolicy(pipe, max_sequence_length=config.max_sequence_length, checkpoint_decode=config.checkpoint_decode)


def new_reward(size: Size, device: str) -> ClipReward:
    """A reward of random weights, float32; its text tower is small."""
    tokenizer, side = clip_tokenizer(), size.vision["image_size"]
    text = _text_config(32, tokenizer)
    text.projection_dim = size.vision["projection_dim"]
    with torch.device(device):
        model = CLIPModel(
            CLIPConfig(
                text_config=text.to_dict(), vision_config=size.vision, projection_dim=size.vision["projection_dim"]
            )
        )
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return ClipReward(model.to(device), tokenizer, processor, name="random")


@contextmanager
def _in_bf16() -> Iterator[None]:
    """What is made meanwhile is bf16 at once: float32 would need twice the memory for a moment."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _text_config(width: int, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
