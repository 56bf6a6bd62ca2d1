"""Models of FLUX.1-dev's size on random weights, which cost what trained ones do; and small ones for a quick look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from benchmarks.figures import LeftOut
from benchmarks.scale import Scale
from srpo.miniature.flux import new_scheduler
from srpo.miniature.tokens import clip_tokenizer, t5_tokenizer
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward

FLOP_PER_S = 790e12  # of dense bf16 that one H200 sustains


@dataclass(frozen=True)
class Size:
    """Of every part that counts, and what a run of it needs."""

    transformer: dict[str, Any]
    vae_channels: tuple[int, ...]
    vae_layers: int
    vision: dict[str, int]  # the reward's
    t5: dict[str, int]
    side: int  # pixels, of the pictures that a LoRA is trained on
    paper_side: int  # ... that the preset `paper` is trained on
    picture_side: int  # ... that are painted
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
    t5={"d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    side=512,
    paper_side=720,
    picture_side=1024,
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
    t5={"d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
    side=32,
    paper_side=48,
    picture_side=32,
    text_tokens=16,
    optimizer="adamw",
)


def size_for(options: Options, scale: Scale) -> Size:
    """FLUX.1-dev's on CUDA. LeftOut elsewhere, but for a quick look, which takes a small model."""
    if options.device.startswith("cuda"):
        return FLUX_DEV
    if scale.quick:
        return SMALL
    raise LeftOut("FLUX.1-dev's size needs a CUDA device: choose one by --device cuda")


def new_policy(
    size: Size, device: str | torch.device, *, checkpoint_decode: bool = False, whole_t5: bool = False
) -> FluxPolicy:
    """A policy of random weights in bf16, made on the device itself; a seed makes them the same again.

    whole_t5: T5 has its size as well; else it is small, as texts are encoded once.
    """
    clip, t5, wide = clip_tokenizer(), t5_tokenizer(), size.transformer
    torch.manual_seed(0)
    with torch.device(device), _in_bf16():
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
        settings = size.t5 if whole_t5 else SMALL.t5
        text_encoder_2 = T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=width, feed_forward_proj="gated-gelu", **settings)
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
    return FluxPolicy(pipe, max_sequence_length=size.text_tokens, checkpoint_decode=checkpoint_decode)


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
