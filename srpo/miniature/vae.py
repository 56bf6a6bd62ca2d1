"""The miniature's VAE: diffusers' AutoencoderKL in FLUX's form (8x, 16 latent channels, no quant convolutions)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

from srpo.miniature.data import Pictures, batches, scenes_hash
from srpo.miniature.loop import train

KL_WEIGHT = 1e-4
EDGE_WEIGHT = 0.5
CROP_SHARE = 0.85  # of the updates see a 64 x 64 quarter of each picture, the rest whole pictures, half as many


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,  # with few channels a group, normalisation would take the mean colour away
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=128,
    )


@torch.no_grad()
def carry_colour(vae: AutoencoderKL) -> AutoencoderKL:
    """The VAE, initialised to hand the mean colour of each 8 x 8 block through its first three latents.

    Residual branches start at zero, and six channels of every layer carry +RGB and -RGB: silu(c) - silu(-c) = c undoes
    the last non-linearity. From random weights the colours took more updates to appear than all the rest.
    """
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            _set_zero(module.conv2, slice(None))
            if module.conv_shortcut is not None:
                _pass_through(module.conv_shortcut, ((0, 0),))
        elif isinstance(module, Downsample2D):
            _pass_through(module.conv, ((0, 0), (0, 1), (1, 0), (1, 1)))
        elif isinstance(module, Upsample2D):
            _pass_through(module.conv, ((1, 1),))
        elif isinstance(module, Attention):
            _set_zero(module.to_out[0], slice(None))
    for half in (vae.encoder, vae.decoder):
        _set_zero(half.conv_in, slice(6))
        _set_zero(half.conv_out, slice(3))
        for c in range(3):
            half.conv_in.weight[c, c, 1, 1], half.conv_in.weight[c + 3, c, 1, 1] = 1.0, -1.0
            half.conv_out.weight[c, c, 1, 1], half.conv_out.weight[c, c + 3, 1, 1] = 1.0, -1.0
    log_variance = slice(vae.config.latent_channels, None)
    _set_zero(vae.encoder.conv_out, log_variance)
    vae.encoder.conv_out.bias[log_variance] = -6.0
    return vae


def _set_zero(layer: nn.Conv2d | nn.Linear, outputs: slice) -> None:
    layer.weight[outputs] = 0.0
    layer.bias[outputs] = 0.0


def _pass_through(conv: nn.Conv2d, taps: Sequence[tuple[int, int]]) -> None:
    """The first six output channels become the mean of the same input channels at the taps."""
    _set_zero(conv, slice(6))
    for channel in range(6):
        for row, column in taps:
            conv.weight[channel, channel, row, column] = 1 / len(taps)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """() mean absolute and squared error, plus the error of neighbouring differences: it keeps outlines and texture."""
    error = output - target
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    return error.abs().mean() + 2 * error.square().mean() + EDGE_WEIGHT * edges


def train_vae(
    pictures: Pictures,
    *,
    updates: int,
    batch: int = 16,
    lr: float = 1.5e-3,
    seed: int = 0,
    start: AutoencoderKL | None = None,
) -> AutoencoderKL:
    """The trained VAE, from `start` or from carried colours; its scale and shift are still to be set."""
    torch.manual_seed(seed)
    vae = (start or carry_colour(new_vae())).train()
    return _fit("vae", vae, pictures, updates=updates, batch=batch, lr=lr, seed=seed)


def polish_decoder(
    vae: AutoencoderKL, pictures: Pictures, *, updates: int, batch: int = 16, lr: float = 3e-4, seed: int = 1
) -> AutoencoderKL:
    """The VAE with its decoder trained further. Latents stay what they are: models trained on them stay valid."""
    vae.encoder.requires_grad_(False)
    return _fit("vae-decoder", vae.train(), pictures, updates=updates, batch=batch, lr=lr, seed=seed)


def _fit(
    stage: str, vae: AutoencoderKL, pictures: Pictures, *, updates: int, batch: int, lr: float, seed: int
) -> AutoencoderKL:
    frozen = not next(vae.encoder.parameters()).requires_grad
    order = None

    def step(update: int) -> tuple[Tensor, dict[str, float]]:
        nonlocal order
        order = order or batches(len(pictures), batch, seed, start=update)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + update)
        image = pictures.images(next(order)) * 2 - 1
        if update < CROP_SHARE * updates:
            row, column = torch.randint(0, 65, (2,), generator=generator).tolist()
            image = image[..., row : row + 64, column : column + 64]
        else:
            image = image[: batch // 2]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(not frozen):
                posterior = vae.encode(image).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            latents = mean + std * torch.randn(mean.shape, generator=generator)
            output = vae.decode(latents).sample.float()
        loss = reconstruction_loss(output, image)
        if not frozen:
            kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
            loss = loss + KL_WEIGHT * kl
        mse = F.mse_loss(output.detach().clamp(-1, 1), image) / 4
        return loss, {"psnr": float(-10 * torch.log10(mse)), "latent_std": float(mean.detach().std())}

    settings = {"seed": seed, "batch": batch, "scenes": scenes_hash(pictures.scenes)}
    train(stage, {"vae": vae}, step, settings=settings, updates=updates, lr=lr)
    return vae.eval().requires_grad_(True)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, pictures: Pictures, *, batch: int = 64) -> Tensor:
    """(N, 16, 16, 16) raw posterior means of all pictures, float16."""
    means = []
    for start in range(0, len(pictures), batch):
        image = pictures.images(np.arange(start, min(start + batch, len(pictures))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            means.append(vae.encode(image * 2 - 1).latent_dist.mean.half())
        if start // batch % 50 == 0:
            print(f"encoded {start + len(image)} of {len(pictures)}", flush=True)
    return torch.cat(means)


def set_scale(vae: AutoencoderKL, latents: Tensor) -> None:
    """Write the latents' shift and scale into the VAE's config, where FluxPipeline looks for them."""
    values = latents.float()
    vae.register_to_config(
        shift_factor=round(float(values.mean()), 4), scaling_factor=round(float(1 / values.std()), 4)
    )
