"""The LAION aesthetic predictor: how much people like a picture, whatever it shows.

CLIP's unit vector of the picture and a small head over it. It reads no text, so no control word can move it; what can
be made relative is the picture: its score minus that of the same picture with a little noise.

Source: Schuhmann, improved-aesthetic-predictor (sac+logos+ava1-l14-linearMSE), over OpenAI's CLIP ViT-L/14.

B images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from srpo.rewards.catalogue import CARDS
from srpo.rewards.clip import ClipReward
from srpo.rewards.head import new_head
from srpo.rewards.weights import open_checkpoint, require_known, require_layout

WEIGHTS_NAME = "sac+logos+ava1-l14-linearMSE.pth"
PREFIX = "layers."  # of the names in the published file


class AestheticReward:
    """A frozen float32 reward behind the Reward protocol (`rewards/base.py`)."""

    name = "aesthetic"

    def __init__(self, encoder: ClipReward, head: nn.Sequential, *, sha256: str | None = None) -> None:
        """`encoder` may be shared with a CLIP reward in use; `sha256` is that of the head's file."""
        if (width := encoder.model.config.projection_dim) != head[0].in_features:
            raise ValueError(
                f"the aesthetic head reads {head[0].in_features} numbers and this CLIP gives {width}: "
                "expected CLIP ViT-L/14 of OpenAI"
            )
        self.encoder = encoder
        self.head = head.float().eval().requires_grad_(False).to(encoder.device)
        self.sha256 = sha256

    @classmethod
    def from_published(
        cls, folder: str | Path, *, width: int = 768, device: str | torch.device = "cpu"
    ) -> AestheticReward:
        """The reward in a folder of CLIP ViT-L/14 that holds the head's published file as well.

        ValueError, one sentence, where one is missing, damaged, changed, or another model's.
        """
        file = Path(folder) / WEIGHTS_NAME
        if not file.is_file():
            raise ValueError(f"the aesthetic predictor lacks {file}: {CARDS['aesthetic'].get}")
        head = new_head(width)
        tensors = open_checkpoint(file)
        expected = {PREFIX + name: tuple(weight.shape) for name, weight in head.state_dict().items()}
        require_layout(file, tensors, expected, torch.float32, what="the LAION aesthetic head over CLIP ViT-L/14")
        sha256 = require_known(file).sha256
        head.load_state_dict({name.removeprefix(PREFIX): weight for name, weight in tensors.items()})
        return cls(ClipReward.from_pretrained(folder, device=device), head, sha256=sha256)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scores of images (B, 3, H, W) in [0, 1]; the texts are counted and not read."""
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        return self.head(self.encoder.embed_image(image))[:, 0]
