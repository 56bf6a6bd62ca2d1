"""The miniature's FLUX: text encoders and transformer, trained on cached latents, then distilled for guidance.

All parts are the classes FLUX.1-dev uses, in its `save_pretrained` layout: `FluxPipeline.from_pretrained` is all it
takes.

B pictures, T text tokens, H W latent height and width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from srpo.flow.packing import image_ids, pack, text_ids, unpack
from srpo.flow.path import interpolate, velocity_between
from srpo.flow.schedule import shift_sigmas
from srpo.miniature.data import batches, scenes_hash, training_caption
from srpo.miniature.loop import train
from srpo.miniature.storage import content_hash, store_in_half
from srpo.miniature.tokens import clip_tokenizer, t5_tokenizer
from srpo.miniature.world import Scene

# Number of T5 tokens and share of the updates that see it, long texts in smaller batches: the padding carries no mask.
TEXT_LENGTHS = ((32, 0.70), (64, 0.22), (128, 0.05), (256, 0.02), (512, 0.01))
TOKENS_PER_UPDATE = 32 * (64 + 64)
GUIDANCE_RANGE = (1.0, 7.0)
SIGMA_SHIFT = 1.6  # FLUX's own time shift at 64 image tokens


class FluxText(nn.Module):
    """Both text encoders: trained together with the transformer, frozen ever after."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer(), t5_tokenizer()
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.clip_tokenizer),
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=self.clip_tokenizer.bos_token_id,
                eos_token_id=self.clip_tokenizer.eos_token_id,
                pad_token_id=self.clip_tokenizer.pad_token_id,
            )
        )
        self.t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokenizer),
                d_model=128,
                d_kv=32,
                d_ff=384,
                num_layers=3,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
            )
        )

    def forward(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """(B, length, 128) one vector per T5 token and (B, 128) one per text, as FluxPipeline computes them."""
        t5 = self.t5_tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        # CLIP reads from left to right and pools where the text ends: more padding would change nothing.
        clip = self.clip_tokenizer(list(texts), padding=True, max_length=77, truncation=True, return_tensors="pt")
        return self.t5(t5.input_ids)[0], self.clip(clip.input_ids).pooler_output

    @classmethod
    def from_pipeline(cls, pipe: FluxPipeline) -> FluxText:
        """The encoders of a stored pipeline, to be trained further."""
        text = cls()
        text.clip.load_state_dict(pipe.text_encoder.state_dict())
        text.t5.load_state_dict(pipe.text_encoder_2.state_dict())
        return text


def new_transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )


def hidden_matrices(transformer: FluxTransformer2DModel) -> list[nn.Parameter]:
    """The weights of attention and feed-forward layers, which Muon is made for: no embedding, modulation or output."""
    named = transformer.named_parameters()
    return [p for name, p in named if p.ndim == 2 and "blocks." in name and "norm" not in name]


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's settings."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def velocity(
    transformer: nn.Module, x_t: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor], guidance: Tensor
) -> Tensor:
    """(B, 16, H, W) predicted velocity, float32, of a transformer that still learns."""
    height, width = x_t.shape[-2:]
    embeds, pooled = text
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):  # the faster one below 200 tokens
        packed = transformer(
            hidden_states=pack(x_t),
            timestep=sigma,
            guidance=guidance,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            txt_ids=text_ids(embeds.shape[1]),
            img_ids=image_ids(height, width),
            return_dict=False,
        )[0]
    return unpack(packed.float(), height, width)


def _draw_sigma(count: int, generator: torch.Generator) -> Tensor:
    """(count,) noise levels: logit-normal with FLUX's shift, a tenth of them uniform."""
    level = torch.sigmoid(torch.randn(count, generator=generator))
    uniform = torch.rand(count, generator=generator)
    level = torch.where(torch.rand(count, generator=generator) < 0.1, uniform, level)
    return shift_sigmas(level, SIGMA_SHIFT)


class _Batch:
    """Everything random about one update, from its number alone."""

    def __init__(self, latents: Tensor, scenes: Sequence[Scene], seed: int) -> None:
        self.latents, self.scenes, self.seed = latents, scenes, seed
        self.order = None

    @property
    def settings(self) -> dict[str, int | str]:
        """What a checkpoint must have been made with, to be taken up with these batches."""
        data = {"latents": content_hash({"latents": self.latents}), "scenes": scenes_hash(self.scenes)}
        return {"seed": self.seed, **data}

    def draw(self, update: int, *, empty_share: float) -> tuple[Tensor, list[str], int, torch.Generator]:
        """(B, 16, H, W) clean latents, captions, the text length, and a generator for what follows."""
        rng = np.random.default_rng((self.seed, update))
        length = int(rng.choice([n for n, _ in TEXT_LENGTHS], p=[share for _, share in TEXT_LENGTHS]))
        size = min(32, TOKENS_PER_UPDATE // (64 + length))
        self.order = self.order or batches(len(self.scenes), 32, self.seed, start=update)
        index = next(self.order)[:size]
        captions = [training_caption(self.scenes[i], rng, empty_share=empty_share) for i in index]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        return self.latents[index].float(), captions, length, generator


def train_flux(
    latents: Tensor,
    scenes: Sequence[Scene],
    *,
    updates: int,
    lr: float = 1e-3,
    matrix_lr: float = 2e-3,
    seed: int = 0,
    start: tuple[FluxText, FluxTransformer2DModel] | None = None,
) -> tuple[FluxText, FluxTransformer2DModel]:
    """Text encoders and transformer after rectified-flow training at guidance 1, from `start` or from random weights.

    latents: (N, 16, H, W), shifted and scaled to deviation 1.
    """
    torch.manual_seed(seed)
    text, transformer = start or (FluxText(), new_transformer())
    text.train(), transformer.train()
    draw = _Batch(latents, scenes, seed + 10)

    def step(update: int) -> tuple[Tensor, dict[str, float]]:
        x0, captions, length, generator = draw.draw(update, empty_share=0.1)
        noise = torch.randn(x0.shape, generator=generator)
        sigma = _draw_sigma(len(x0), generator)
        predicted = velocity(
            transformer, interpolate(x0, noise, sigma), sigma, text(captions, length), torch.ones(len(x0))
        )
        return F.mse_loss(predicted, velocity_between(x0, noise)), {}

    train(
        "flux",
        {"text": text, "transformer": transformer},
        step,
        settings=draw.settings,
        updates=updates,
        lr=lr,
        matrices=hidden_matrices(transformer),
        matrix_lr=matrix_lr,
        warmup=200,
        log_every=50,
        checkpoint_every=250,
    )
    return text.eval(), transformer.eval()


def distil_guidance(
    text: FluxText,
    teacher: FluxTransformer2DModel,
    latents: Tensor,
    scenes: Sequence[Scene],
    *,
    updates: int,
    lr: float = 5e-4,
    matrix_lr: float = 1e-3,
    seed: int = 0,
) -> FluxTransformer2DModel:
    """A transformer that does in one pass what the teacher does in two: v_empty + g (v_text - v_empty).

    g is drawn uniformly from `GUIDANCE_RANGE`. Source: Meng et al., arXiv 2210.03142, stage one.
    """
    student = copy.deepcopy(teacher).requires_grad_(True).train()
    teacher.requires_grad_(False)
    text.requires_grad_(False)
    draw = _Batch(latents, scenes, seed + 20)

    def step(update: int) -> tuple[Tensor, dict[str, float]]:
        x0, captions, length, generator = draw.draw(update, empty_share=0.0)
        noise = torch.randn(x0.shape, generator=generator)
        sigma = _draw_sigma(len(x0), generator)
        low, high = GUIDANCE_RANGE
        guidance = low + (high - low) * torch.rand(len(x0), generator=generator)
        x_t = interpolate(x0, noise, sigma)
        with torch.no_grad():
            cond, empty = text(captions, length), text([""] * len(x0), length)
            one = torch.ones(len(x0))
            v_text, v_empty = velocity(teacher, x_t, sigma, cond, one), velocity(teacher, x_t, sigma, empty, one)
        target = v_empty + guidance.reshape(-1, 1, 1, 1) * (v_text - v_empty)
        error = (velocity(student, x_t, sigma, cond, guidance) - target).square().mean(dim=(1, 2, 3))
        return (error / guidance).mean(), {}

    # The student starts from the teacher's weights, so these are part of what a checkpoint is known by.
    settings = draw.settings | {"text": content_hash(text.state_dict())}
    train(
        "guidance",
        {"transformer": student},
        step,
        settings=settings,
        updates=updates,
        lr=lr,
        matrices=hidden_matrices(student),
        matrix_lr=matrix_lr,
        log_every=50,
        checkpoint_every=250,
    )
    return student.eval()


def save_flux(folder: Path, text: FluxText, transformer: FluxTransformer2DModel, vae: AutoencoderKL) -> None:
    """Write the pipeline folder, 16-bit."""
    pipe = FluxPipeline(
        scheduler=new_scheduler(),
        vae=vae,
        text_encoder=text.clip,
        tokenizer=text.clip_tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.t5_tokenizer,
        transformer=transformer,
    )
    pipe.save_pretrained(folder)
    store_in_half(folder)
