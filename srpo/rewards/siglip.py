"""SigLIP's eye: pictures to unit vectors, differentiable.

The whole picture is squeezed to a square, whatever its proportions, as SigLIP's own image processor does it.

Source: Zhai et al. 2023, arXiv 2303.15343, by transformers' classes.

B images, D width of the vision tower
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import cached_file

from srpo.loading import one_at_a_time
from srpo.rewards.preprocess import normalize, resize
from srpo.rewards.weights import require_safetensors

BICUBIC = 3
PREFIX = "vision_model."  # of the names in a file that holds both towers
OTHER_TOWER = r"text_model\..*|logit_(scale|bias)"


class SiglipEncoder:
    """A frozen float32 vision tower with its pooling head."""

    def __init__(self, model: SiglipVisionModel, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    @one_at_a_time
    def from_pretrained(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> SiglipEncoder:
        """The vision tower of a folder with a SiglipModel and its image processor; the text tower is not read.

        ValueError, one sentence, where a part is missing or damaged, or where weights do not fit config.json.
        """
        try:
            config = SiglipVisionConfig.from_pretrained(folder, local_files_only=True)
            processor = SiglipImageProcessorPil.from_pretrained(folder, local_files_only=True)
            file = Path(cached_file(folder, "model.safetensors", local_files_only=True))
            with torch.device("meta"):
                names = SiglipVisionModel(config).state_dict()
            shapes = {PREFIX + name.removeprefix(PREFIX): tuple(weight.shape) for name, weight in names.items()}
            # transformers itself would fill what is missing with random numbers.
            require_safetensors(file, shapes, what="the SiglipModel of the config.json beside it", ignored=OTHER_TOWER)
            model = SiglipVisionModel.from_pretrained(
                folder, config=config, local_files_only=True, dtype=torch.float32, use_safetensors=True
            )
        except OSError as error:
            raise ValueError(
                f"no SigLIP at {str(folder)!r}: expected a folder with a SiglipModel (config.json, model.safetensors) "
                "and its preprocessor_config.json"
            ) from error
        square = {"height": config.image_size, "width": config.image_size}
        if processor.resample != BICUBIC or dict(processor.size) != square:
            raise ValueError(
                f"the image processor at {str(folder)!r} resizes to {dict(processor.size)} by {processor.resample}; "
                f"expected {square}, bicubic (3)"
            )
        return cls(model.to(device), mean=processor.image_mean, std=processor.image_std)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, D) unit vectors of images (B, 3, H, W) in [0, 1]; gradients reach the image."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        side = self.model.config.image_size
        pixels = normalize(resize(image.to(self.device, torch.float32), side, side), self.mean, self.std)
        return F.normalize(self.model(pixel_values=pixels).pooler_output, dim=-1)
