"""Classifier-free guidance in two passes, for models without a distilled guidance embedding or set to 1 of it.

B batch, C latent channels, h w latent height and width
"""

from __future__ import annotations

import torch
from torch import Tensor

from srpo.flow.packing import pack, unpack
from srpo.flow.path import require_full_precision


def cfg_velocity(cond: Tensor, uncond: Tensor, cfg_scale: float) -> Tensor:
    """(B, C, h, w) uncond + cfg_scale (cond - uncond), each token brought back to the length it has in `cond`.

    cond, uncond (B, C, h, w): the velocities with and without the prompt. The norm is over a packed token, four
    latents, as pipelines for Qwen-Image have it; it keeps a large scale from over-saturating. ValueError for half
    precision.
    """
    require_full_precision(cond=cond, uncond=uncond)
    guided, wanted = pack(uncond + cfg_scale * (cond - uncond)), pack(cond).norm(dim=-1, keepdim=True)
    length = guided.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(guided.dtype).tiny)
    return unpack(guided * (wanted / length), *cond.shape[-2:])
