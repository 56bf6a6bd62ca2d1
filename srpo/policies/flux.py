"""FLUX as a policy: the one place that knows its packed tokens, guidance embedding, timestep and VAE scale.

B batch, C latent channels (16), H W image height and width in pixels, T text tokens
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from srpo.flow.packing import PATCH, image_ids, pack, text_ids, unpack
from srpo.flow.path import require_full_precision
from srpo.flow.schedule import flux_sigmas, linear_sigmas, shift_sigmas
from srpo.loading import one_at_a_time
from srpo.policies.base import Conditioning
from srpo.policies.checkpoints import WEIGHTS_NAME
from srpo.policies.families import FLUX, Family, family_of
from srpo.policies.hub import is_id
from srpo.policies.lora import LORA_NAME, has_lora, lora_metadata, lora_weights

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
PREVIEW_CELLS = (3, 6, 12, 24)  # colour patches per side of the pictures that a preview is fitted on
PREVIEW_SIZE = 128  # pixels per side of those pictures
TEXT_CACHE_BYTES = 2**31  # of encoded prompts, on the CPU: 500 of FLUX.1-dev's in bfloat16


class TokenCount(NamedTuple):
    """How long a prompt is for the text encoder and how long it may be; what is over is cut off."""

    tokens: int  # all that the encoder reads, its end mark or its frame included
    limit: int


class FluxPolicy:
    """A `Policy` over the parts of a diffusers FluxPipeline. Latents are unpacked float32 (B, C, H/8, W/8).

    The transformer keeps its precision: inputs are converted to it, the velocity to float32. Gradients reach its
    weights, the latents and the image, where the caller enables them. Text encoders and VAE are frozen, and all parts
    are in eval mode.

    A model that differs in what is named here, and in the methods that say so, is a subclass (`flux2.py`).
    """

    family: ClassVar[Family] = FLUX
    pipeline_class: ClassVar[type] = FluxPipeline
    parts: ClassVar[tuple[str, ...]] = PARTS
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    # In which settings a second transformer must equal the first: those of other families differ in one of them.
    shared_settings: ClassVar[tuple[str, ...]] = ("in_channels", "joint_attention_dim", "pooled_projection_dim")

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        max_sequence_length: int = 512,
        checkpoint_decode: bool = False,
        autocast: bool = False,
    ) -> None:
        """A policy over the pipeline's parts, which stay shared with it.

        max_sequence_length: text tokens per prompt, 1 to 512 (the pipeline's default); fewer are faster.
        checkpoint_decode: recompute the VAE's decoder in the backward pass instead of keeping its activations.
        autocast: the transformer's products are computed in bf16, whatever its weights; its timestep is rounded too.
        ValueError for another pipeline, one that lacks a part, another sampler, or a length out of range.
        """
        if not isinstance(pipe, self.pipeline_class):
            raise ValueError(f"A {self.pipeline_class.__name__} is needed, not a {type(pipe).__name__}.")
        if missing := [part for part in self.parts if getattr(pipe, part, None) is None]:
            raise ValueError(f"The FLUX pipeline lacks {', '.join(missing)}: load it with all its parts.")
        if not isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(f"FLUX needs a FlowMatchEulerDiscreteScheduler, not a {type(pipe.scheduler).__name__}.")
        if not 1 <= max_sequence_length <= 512:
            raise ValueError(f"max_sequence_length must be 1 to 512 tokens, not {max_sequence_length}.")
        for name in ("vae", *self.text_encoders):
            getattr(pipe, name).requires_grad_(False).eval()
        pipe.transformer.eval()
        if checkpoint_decode:
            pipe.vae.enable_gradient_checkpointing()  # block by block, so the peak falls as well
        self.pipe = pipe
        self.max_sequence_length = max_sequence_length
        self.autocast = autocast
        self.called: torch.nn.Module | None = None  # what velocity calls instead of the transformer: a DDP around it
        # Entered around each call of the model: where models take turns in one memory, it brings this one's weights.
        self.staged: Callable[[], AbstractContextManager[None]] = nullcontext
        self._image_ids: dict[tuple[int, int, torch.device], Tensor] = {}
        self._preview_map: dict[torch.device, Tensor] = {}
        self._text_cache: OrderedDict[tuple[str, int], Conditioning] = OrderedDict()  # the latest used last
        self._text_lock = threading.Lock()  # a training's threads share the cache

    @classmethod
    def from_pipeline(
        cls, pipe: FluxPipeline, *, max_sequence_length: int = 512, checkpoint_decode: bool = False
    ) -> FluxPolicy:
        """The policy of a loaded pipeline; the keywords are those of the class."""
        return cls(pipe, max_sequence_length=max_sequence_length, checkpoint_decode=checkpoint_decode)

    @classmethod
    @one_at_a_time
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        local_files_only: bool = True,
        max_sequence_length: int = 512,
        checkpoint_decode: bool = False,
        autocast: bool = False,
    ) -> FluxPolicy:
        """The policy of a saved FLUX pipeline: of a folder, or of a Hugging Face id in the local cache.

        With local_files_only=False an id may be downloaded. ValueError where no such pipeline can be loaded.
        `load.load_policy` chooses the class by what the folder holds.
        """
        if not is_id(folder_or_id) and (found := family_of(folder_or_id)) is not cls.family:
            raise ValueError(f"{folder_or_id} holds a {found.pipeline}, not a {cls.family.pipeline}: use load_policy.")
        try:
            pipe = cls.pipeline_class.from_pretrained(folder_or_id, dtype=dtype, local_files_only=local_files_only)
        except (OSError, ValueError, SafetensorError) as error:
            where = "is incomplete or damaged" if Path(folder_or_id).is_dir() else "is no folder and not downloaded"
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"The FLUX pipeline {str(folder_or_id)!r} {where}: {reason}") from error
        return cls(
            pipe.to(device),
            max_sequence_length=max_sequence_length,
            checkpoint_decode=checkpoint_decode,
            autocast=autocast,
        )

    def with_transformer(self, transformer: FluxTransformer2DModel) -> FluxPolicy:
        """A second policy with this transformer; text encoders, VAE, schedule and caches are shared with the first.

        ValueError for a transformer that does not read this policy's latents and texts.
        """
        for name in self.shared_settings:
            ours, theirs = self.transformer.config[name], transformer.config[name]
            if ours != theirs:
                raise ValueError(f"The transformer's {name} must be {ours}, as the first one's, not {theirs}.")
        second = copy.copy(self)
        second.called, second.staged = None, nullcontext
        second.pipe = self._pipeline({**self.pipe.components, "transformer": transformer.eval()})
        return second

    def _pipeline(self, parts: dict) -> FluxPipeline:
        """A pipeline of these parts, with this one's settings."""
        return FluxPipeline(**parts)

    @property
    def transformer(self) -> FluxTransformer2DModel:
        return self.pipe.transformer

    @property
    def device(self) -> torch.device:
        """Where pictures are computed: where the VAE is, as a transformer may be kept elsewhere until it is called."""
        return self.pipe.vae.device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        # Of the layer that reads the latents: transformer.dtype would walk through every module at each step.
        reader = self.transformer.x_embedder
        return getattr(reader, "compute_dtype", reader.weight.dtype)  # a layer of GGUF's blocks computes in another

    def parameters(self) -> list[torch.nn.Parameter]:
        """The transformer's weights that take a gradient: all, or its adapters' where those are trained alone."""
        return [weight for weight in self.transformer.parameters() if weight.requires_grad]

    @property
    def weights_name(self) -> str:
        return LORA_NAME if has_lora(self.transformer) else WEIGHTS_NAME

    @property
    def weights_metadata(self) -> dict[str, str]:
        return lora_metadata(self.transformer) if has_lora(self.transformer) else {"format": "pt"}

    def trained_weights(self) -> dict[str, Tensor]:
        """The adapters under diffusers' names, or all of the transformer: the tensors themselves, not copies."""
        return lora_weights(self.transformer) if has_lora(self.transformer) else self.transformer.state_dict()

    # Sizes and noise levels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H/8, W/8) of an image of that many pixels. ValueError for a size that is not a multiple of 16."""
        scale = self.pipe.vae_scale_factor
        multiple = scale * PATCH
        if height < multiple or width < multiple or height % multiple or width % multiple:
            raise ValueError(f"Height and width must be multiples of {multiple} pixels, not {height} x {width}.")
        return self.pipe.vae.config.latent_channels, height // scale, width // scale

    def schedule(self, num_steps: int, height: int, width: int) -> Tensor:
        """(num_steps + 1,) noise levels 1 ... 0 on the CPU, equal to those of FluxPipeline.__call__ for that size.

        ValueError for a size that is not a multiple of 16, no steps, or a sampler set to sigmas other than FLUX's.
        """
        config = self.pipe.scheduler.config
        foreign = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal", "invert_sigmas")
        if set_ones := [name for name in foreign if config.get(name)]:
            raise ValueError(f"The scheduler must have FLUX's settings; unset {', '.join(set_ones)}.")
        _, rows, columns = self.latent_shape(height, width)
        if not config.use_dynamic_shifting:
            return shift_sigmas(linear_sigmas(num_steps), config.shift)
        return self._shifted_sigmas(num_steps, rows * columns // PATCH**2)

    def _shifted_sigmas(self, num_steps: int, num_tokens: int) -> Tensor:
        """(num_steps + 1,) noise levels, shifted by the number of image tokens."""
        config = self.pipe.scheduler.config
        return flux_sigmas(
            num_steps,
            num_tokens=num_tokens,
            base_tokens=config.base_image_seq_len,
            max_tokens=config.max_image_seq_len,
            base_shift=config.base_shift,
            max_shift=config.max_shift,
        )

    def initial_noise(self, seed: int, height: int, width: int) -> Tensor:
        """(1, C, H/8, W/8) the noise that FluxPipeline draws for a CPU generator of that seed, float32.

        It is drawn in the text encoder's precision, as the pipeline does: a bf16 model's noise is another one.
        ValueError for a size that is not a multiple of 16.
        """
        generator = torch.Generator().manual_seed(seed)
        shape = (1, *self.latent_shape(height, width))
        noise = torch.randn(shape, generator=generator, dtype=self.pipe.text_encoder_2.dtype)
        return noise.to(self.device, torch.float32)

    # Text

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """What the pipeline's encode_prompt makes of the prompts, padded to max_sequence_length; without gradient.

        A prompt is encoded alone and remembered, so what the model sees of it never depends on what else was asked.
        ValueError for no prompts, or for one string instead of a list.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"A list of one or more prompts is needed, not {prompts!r}.")
        with self._text_lock:
            return Conditioning.cat([self._encoded(prompt) for prompt in prompts]).to(self.device)

    def _encoded(self, prompt: str) -> Conditioning:
        """One prompt's encoding on the CPU, from the bounded cache where it is there."""
        key = (prompt, self.max_sequence_length)
        if key not in self._text_cache:
            self._text_cache[key] = self._encode(prompt).to("cpu")
        self._text_cache.move_to_end(key)
        room = max(1, TEXT_CACHE_BYTES // self._text_cache[key].nbytes)
        while len(self._text_cache) > room:
            self._text_cache.popitem(last=False)
        return self._text_cache[key]

    def _encode(self, prompt: str) -> Conditioning:
        """One prompt's encoding, computed."""
        prompt_embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=prompt, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return Conditioning(prompt_embeds, pooled)

    def count_tokens(self, prompt: str) -> TokenCount:
        """The prompt's length in T5 tokens, and the most that are read."""
        tokens = self.pipe.tokenizer_2(prompt, truncation=False, verbose=False).input_ids
        return TokenCount(len(tokens), self.max_sequence_length)

    # The model

    def velocity(self, x_t: Tensor, sigma: float | Tensor, cond: Conditioning, guidance: float | Tensor) -> Tensor:
        """noise - x0 (B, C, H/8, W/8) as the model sees it, float32.

        x_t (B, C, H/8, W/8); sigma and guidance a number or (B,); guidance is ignored by a model without its embedding.
        ValueError for half precision, or where the numbers of latents, prompts, noise levels and guidances differ.
        """
        require_full_precision(x_t=x_t)
        batch, _, rows, columns = x_t.shape
        if len(cond) != batch:
            raise ValueError(f"One prompt per image is needed: {len(cond)} prompts came with {batch} latents.")
        transformer, dtype, device = self.transformer, self.dtype, x_t.device
        with self.staged(), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            packed = (self.called or transformer)(
                hidden_states=pack(x_t).to(dtype),
                timestep=one_each("sigma", sigma, x_t),  # the model multiplies by 1000 itself
                guidance=one_each("guidance", guidance, x_t) if transformer.config.guidance_embeds else None,
                img_ids=self._position_ids(rows, columns, device),
                return_dict=False,
                **self._text_inputs(cond, device, dtype),
            )[0]
        return unpack(packed, rows, columns).float()

    def _text_inputs(self, cond: Conditioning, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the transformer is given of the prompts, by its own names."""
        return {
            "encoder_hidden_states": cond.prompt_embeds.to(device, dtype),
            "pooled_projections": cond.pooled.to(device, dtype),
            "txt_ids": text_ids(cond.prompt_embeds.shape[1], device),
        }

    def _position_ids(self, rows: int, columns: int, device: torch.device) -> Tensor:
        key = (rows, columns, device)
        if key not in self._image_ids:
            self._image_ids[key] = self._new_image_ids(rows, columns, device)
        return self._image_ids[key]

    def _new_image_ids(self, rows: int, columns: int, device: torch.device) -> Tensor:
        return image_ids(rows, columns, device)

    # Images

    def encode_image(self, image: Tensor) -> Tensor:
        """Clean latents (B, C, H/8, W/8), float32, of an image (B, 3, H, W) in [0, 1]: the mode of the VAE's posterior.

        ValueError for another shape, or a size that is not a multiple of 16.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"An image must be (B, 3, H, W), not {tuple(image.shape)}.")
        self.latent_shape(*image.shape[-2:])
        vae = self.pipe.vae
        return self._normalized(vae.encode((2 * image - 1).to(vae.dtype)).latent_dist.mode().float())

    def decode(self, x0: Tensor, clamp: bool = True) -> Tensor:
        """Image (B, 3, H, W) of clean latents (B, C, H/8, W/8), float32, differentiable.

        Clamped to [0, 1] unless `clamp` is False. ValueError for half precision.
        """
        require_full_precision(x0=x0)
        vae = self.pipe.vae
        image = vae.decode(self._denormalized(x0).to(vae.dtype), return_dict=False)[0].float()
        image = image / 2 + 0.5
        return image.clamp(0, 1) if clamp else image

    def _normalized(self, latents: Tensor) -> Tensor:
        """The VAE's latents as the transformer knows them; same shape."""
        config = self.pipe.vae.config
        return (latents - config.shift_factor) * config.scaling_factor

    def _denormalized(self, x0: Tensor) -> Tensor:
        """The transformer's clean latents as the VAE knows them: the inverse of `_normalized`."""
        config = self.pipe.vae.config
        return x0 / config.scaling_factor + config.shift_factor

    @torch.no_grad()
    def preview(self, x0: Tensor) -> Tensor:
        """A rough image (B, 3, H/8, W/8) in [0, 1] of clean latents: one linear map from channels to colours.

        The map is fitted on first use, by least squares, to this VAE's own encoding of random colour patches.
        """
        if x0.device not in self._preview_map:
            self._preview_map[x0.device] = self._fit_preview().to(x0.device)
        colours, offset = self._preview_map[x0.device].split([x0.shape[1], 1])
        return (torch.einsum("bchw,cr->brhw", x0, colours) + offset.reshape(1, 3, 1, 1)).clamp(0, 1)

    def _fit_preview(self) -> Tensor:
        """(C + 1, 3) colours per latent channel, and their offset in the last row."""
        generator = torch.Generator().manual_seed(0)
        patches = [torch.rand(1, 3, cells, cells, generator=generator) for cells in PREVIEW_CELLS]
        smooth = [F.interpolate(p, size=(PREVIEW_SIZE, PREVIEW_SIZE), mode="bicubic") for p in patches]
        images = torch.cat(smooth).clamp(0, 1)
        latents = self.encode_image(images.to(self.device)).cpu().double()
        channels = latents.shape[1]
        inputs = F.pad(rearrange(latents, "b c h w -> (b h w) c"), (0, 1), value=1.0)
        colours = rearrange(F.avg_pool2d(images, self.pipe.vae_scale_factor).double(), "b r h w -> (b h w) r")
        # A little ridge keeps the map calm on what is no encoding of a picture, such as the first predictions.
        ridge = (1e-3 * len(inputs)) ** 0.5 * latents.std() * torch.eye(channels, channels + 1, dtype=torch.float64)
        inputs, colours = torch.cat([inputs, ridge]), torch.cat([colours, torch.zeros(channels, 3).double()])
        return torch.linalg.lstsq(inputs, colours).solution.float()


def one_each(name: str, value: float | Tensor, latents: Tensor) -> Tensor:
    """(B,) float32 on the latents' device. ValueError for a tensor that is neither () nor (B,)."""
    batch = len(latents)
    if not isinstance(value, Tensor):
        return torch.full((batch,), value, dtype=torch.float32, device=latents.device)
    if value.shape not in ((), (batch,)):
        raise ValueError(f"`{name}` must be a number or one number per image ({batch}), not {tuple(value.shape)}.")
    return value.to(latents.device, torch.float32).expand(batch)
