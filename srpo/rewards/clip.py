"""CLIP-like rewards: CLIP itself, PickScore, the miniature's; and HPSv2, once its weights have CLIPModel's layout.

B images, N texts, D embedding dimensions, T text tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from srpo.rewards.preprocess import center_crop, normalize, resize_shortest

BICUBIC = 3  # PIL's number, as image processor configs write it
CACHED_TEXTS = 4096


class ClipReward:
    """A frozen float32 dual encoder behind the EmbeddingReward protocol (`rewards/base.py`).

    A text is encoded alone and remembered, so its embedding never depends on what else was asked: a resumed run scores
    bit for bit as an uninterrupted one.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        image_processor: CLIPImageProcessorPil,
        *,
        name: str = "clip",
        scale: float = 1.0,
    ) -> None:
        if image_processor.resample != BICUBIC:
            raise ValueError(
                f"the image processor resamples with {image_processor.resample}; only bicubic (3) is built"
            )
        if len(tokenizer) != model.config.text_config.vocab_size:  # a folder without tokenizer files loads an empty one
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} tokens and the model {model.config.text_config.vocab_size}: "
                "expected the tokenizer files of this model beside its weights"
            )
        if "shortest_edge" not in image_processor.size:
            raise ValueError(f"the image processor resizes to {dict(image_processor.size)}; expected a shortest_edge")
        self.name = name
        self.scale = scale
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.resize_to = image_processor.size["shortest_edge"]
        self.crop_to = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        self.mean, self.std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        self._text_cache: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        device: str | torch.device = "cpu",
        local_files_only: bool = True,
    ) -> ClipReward:
        """The reward stored in a folder (or hub id) that holds a CLIPModel, its tokenizer and its image processor.

        `scale` multiplies the cosine: 1 for CLIP and HPSv2, `control_words.PICKSCORE_SCALE` for PickScore. ValueError
        where a part is missing.
        """
        try:
            model = CLIPModel.from_pretrained(folder, local_files_only=local_files_only, dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=local_files_only)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=local_files_only)
        except OSError as error:
            raise ValueError(
                f"no CLIP reward at {str(folder)!r}: expected a folder with a CLIPModel "
                "(config.json, model.safetensors), its tokenizer and its preprocessor_config.json"
            ) from error
        return cls(model.to(device), tokenizer, processor, name=name or Path(folder).name, scale=scale)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scaled cosines of images (B, 3, H, W) in [0, 1] and one text each."""
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        return self.scale * (self.embed_image(image) * self.embed_text(texts)).sum(-1)

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, D) unit vectors of images (B, 3, H, W) in [0, 1]; gradients reach the image."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        image = center_crop(resize_shortest(image.to(self.device, torch.float32), self.resize_to), *self.crop_to)
        features = self.model.get_image_features(pixel_values=normalize(image, self.mean, self.std)).pooler_output
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit vectors of texts, cut to the model's limit (`count_tokens` tells), without gradient."""
        for text in dict.fromkeys(texts):
            if text not in self._text_cache:
                self._text_cache[text] = self._encode_text(text)
            self._text_cache.move_to_end(text)
        vectors = torch.cat([self._text_cache[text] for text in texts])
        while len(self._text_cache) > CACHED_TEXTS:
            self._text_cache.popitem(last=False)
        return vectors

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens the text has, start and end included, and how many the model reads: the rest is cut off."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids), self._token_limit

    @property
    def _token_limit(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def _encode_text(self, text: str) -> Tensor:
        tokens = self.tokenizer(text, truncation=True, max_length=self._token_limit, return_tensors="pt")
        features = self.model.get_text_features(**tokens.to(self.device)).pooler_output  # (1, D)
        return F.normalize(features, dim=-1)
