"""Aesthetic predictors: how much people like a picture, whatever it shows.

A unit vector of the picture and a small head over it. They read no text, so no control word can move them; what can be
made relative is the picture: its score minus that of the same picture with a little noise.

v2      OpenAI's CLIP ViT-L/14; Schuhmann, improved-aesthetic-predictor (sac+logos+ava1-l14-linearMSE)
v2.5    Google's SigLIP so400m/14-384; discus0434, aesthetic-predictor-v2-5. That package and its head are under
        AGPL-3.0: a user fetches the head, and none of the package's code is here.

B images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from srpo.loading import one_at_a_time
from srpo.rewards.catalogue import CARDS
from srpo.rewards.clip import ClipReward
from srpo.rewards.head import new_head
from srpo.rewards.siglip import SiglipEncoder
from srpo.rewards.weights import DTYPES, open_checkpoint, require_known, require_layout

WEIGHTS_NAME = "sac+logos+ava1-l14-linearMSE.pth"
V25_WEIGHTS_NAME = "aesthetic_predictor_v2_5.pth"
PREFIX, V25_PREFIX = "layers.", "scoring_head."  # of the names in the published files


class Encoder(Protocol):
    """What makes a vector of a picture: a CLIP reward, or SigLIP."""

    width: int  # of the vector

    @property
    def device(self) -> torch.device: ...

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, D) unit vectors of images (B, 3, H, W) in [0, 1]; gradients reach the image."""
        ...


class AestheticReward:
    """A frozen float32 reward behind the Reward protocol (`rewards/base.py`)."""

    def __init__(
        self, encoder: Encoder, head: nn.Sequential, *, name: str = "aesthetic", sha256: str | None = None
    ) -> None:
        """`encoder` may be shared with a CLIP reward in use; `sha256` is that of the head's file."""
        if encoder.width != head[0].in_features:
            wanted = {"aesthetic": "CLIP ViT-L/14 of OpenAI", "aesthetic-v2.5": "SigLIP so400m/14-384 of Google"}[name]
            raise ValueError(
                f"the aesthetic head reads {head[0].in_features} numbers and this encoder gives {encoder.width}: "
                f"expected {wanted}"
            )
        self.name = name
        self.encoder = encoder
        self.head = head.float().eval().requires_grad_(False).to(encoder.device)
        self.sha256 = sha256

    @classmethod
    @one_at_a_time
    def from_published(
        cls, folder: str | Path, *, width: int = 768, device: str | torch.device = "cpu"
    ) -> AestheticReward:
        """The reward in a folder of CLIP ViT-L/14 that holds the head's published file as well.

        ValueError, one sentence, where one is missing, damaged, changed, or another model's.
        """
        file = Path(folder) / WEIGHTS_NAME
        head, sha256 = _read_head(
            file, new_head(width), PREFIX, "aesthetic", "the LAION aesthetic head over CLIP ViT-L/14"
        )
        return cls(ClipReward.from_pretrained(folder, device=device), head, sha256=sha256)

    @classmethod
    @one_at_a_time
    def from_published_v25(
        cls, folder: str | Path, *, width: int = 1152, device: str | torch.device = "cpu"
    ) -> AestheticReward:
        """Aesthetic v2.5 in a folder of SigLIP so400m/14-384 that holds the head's published file as well.

        ValueError, one sentence, where one is missing, damaged, changed, or another model's.
        """
        file = Path(folder) / V25_WEIGHTS_NAME
        head, sha256 = _read_head(
            file, new_head(width, has_last_dropout=True), V25_PREFIX, "aesthetic-v2.5", "Aesthetic v2.5 over SigLIP"
        )
        return cls(SiglipEncoder.from_pretrained(folder, device=device), head, name="aesthetic-v2.5", sha256=sha256)

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scores of images (B, 3, H, W) in [0, 1]; the texts are counted and not read."""
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        return self.head(self.encoder.embed_image(image))[:, 0]

    def count_tokens(self, text: str) -> tuple[int, int]:
        """(0, 0): no token of a text is read, and so none is cut off."""
        return 0, 0


def _read_head(file: Path, head: nn.Sequential, prefix: str, kind: str, what: str) -> tuple[nn.Sequential, str]:
    """(the head with the file's weights, the file's SHA-256). ValueError as of `from_published`."""
    if not file.is_file():
        raise ValueError(f"the aesthetic predictor lacks {file}: {CARDS[kind].get}")
    tensors = open_checkpoint(file)
    expected = {prefix + name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    found = next(iter(tensors.values())).dtype
    require_layout(file, tensors, expected, found if found in DTYPES else torch.float32, what=what)
    sha256 = require_known(file).sha256
    head.load_state_dict({name.removeprefix(prefix): weight for name, weight in tensors.items()})
    return head, sha256
