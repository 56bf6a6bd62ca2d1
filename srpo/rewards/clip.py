"""CLIP-like rewards: CLIP itself, PickScore, the miniature's; and HPSv2, once its weights have CLIPModel's layout.

B images, N texts, D embedding dimensions, T text tokens.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import cached_file

from srpo.loading import one_at_a_time
from srpo.rewards.preprocess import center_crop, normalize, pad_to_square, resize_longest, resize_shortest
from srpo.rewards.weights import require_safetensors

BICUBIC = 3  # PIL's number, as image processor configs write it
CACHED_TEXTS = 4096
POSITION_IDS = r".*\.position_ids"  # a list of 0, 1, 2 ..., which earlier versions of transformers saved

Fit = Literal["crop", "pad"]  # a picture that is not square loses its ends, or gains black ones


class ClipReward:
    """A frozen float32 dual encoder behind the EmbeddingReward protocol (`rewards/base.py`).

    A text is encoded alone and remembered, so its embedding never depends on what else was asked: a resumed run scores
    bit for bit as an uninterrupted one.
    """

    sha256: str | None = None  # of the published file, where the weights were converted from one

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        image_processor: CLIPImageProcessorPil,
        *,
        name: str = "clip",
        scale: float = 1.0,
        fit: Fit = "crop",
        clean: Callable[[str], str] | None = None,
    ) -> None:
        """`scale` multiplies the cosine. `clean` is done to a text before its tokens are counted or read."""
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
        self.name, self.scale, self.fit, self.clean = name, scale, fit, clean
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.resize_to = image_processor.size["shortest_edge"]
        self.crop_to = (image_processor.crop_size["height"], image_processor.crop_size["width"])
        if fit == "pad" and self.crop_to != (self.resize_to, self.resize_to):
            raise ValueError(f"pictures are padded to squares of {self.resize_to} pixels, not to {self.crop_to}")
        self.mean, self.std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
        self._text_cache: OrderedDict[str, Tensor] = OrderedDict()
        self._text_lock = threading.Lock()  # a training's threads share the cache

    @classmethod
    @one_at_a_time
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        name: str | None = None,
        scale: float = 1.0,
        fit: Fit = "crop",
        clean: Callable[[str], str] | None = None,
        device: str | torch.device = "cpu",
        local_files_only: bool = True,
    ) -> ClipReward:
        """The reward stored in a folder (or hub id) that holds a CLIPModel, its tokenizer and its image processor.

        `scale` multiplies the cosine: 1 for CLIP and HPSv2, `control_words.PICKSCORE_SCALE` for PickScore. ValueError
        where a part is missing or damaged, or where weights do not fit config.json: told before any are read.
        """
        try:
            _require_weights(folder, local_files_only)
            model = CLIPModel.from_pretrained(
                folder, local_files_only=local_files_only, dtype=torch.float32, use_safetensors=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=local_files_only)
            processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=local_files_only)
        except OSError as error:
            raise ValueError(
                f"no CLIP reward at {str(folder)!r}: expected a folder with a CLIPModel "
                "(config.json, model.safetensors), its tokenizer and its preprocessor_config.json"
            ) from error
        name = name or Path(folder).name
        return cls(model.to(device), tokenizer, processor, name=name, scale=scale, fit=fit, clean=clean)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """D, the length of the vectors."""
        return self.model.config.projection_dim

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scaled cosines of images (B, 3, H, W) in [0, 1] and one text each."""
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        return self.scale * (self.embed_image(image) * self.embed_text(texts)).sum(-1)

    def embed_image(self, image: Tensor) -> Tensor:
        """(B, D) unit vectors of images (B, 3, H, W) in [0, 1]; gradients reach the image."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        image = image.to(self.device, torch.float32)
        if self.fit == "pad":
            image = pad_to_square(resize_longest(image, self.resize_to))
        else:
            image = center_crop(resize_shortest(image, self.resize_to), *self.crop_to)
        features = self.model.get_image_features(pixel_values=normalize(image, self.mean, self.std)).pooler_output
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit vectors of texts, cut to the model's limit (`count_tokens` tells), without gradient."""
        with self._text_lock:
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
        return len(self.tokenizer(self._cleaned(text), truncation=False, verbose=False).input_ids), self._token_limit

    @property
    def _token_limit(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def _cleaned(self, text: str) -> str:
        return text if self.clean is None else self.clean(text)

    def _encode_text(self, text: str) -> Tensor:
        tokens = self.tokenizer(self._cleaned(text), truncation=True, max_length=self._token_limit, return_tensors="pt")
        features = self.model.get_text_features(**tokens.to(self.device)).pooler_output  # (1, D)
        return F.normalize(features, dim=-1)


def _require_weights(folder: str | Path, local_files_only: bool) -> None:
    """Nothing where model.safetensors holds what config.json asks for; else ValueError. OSError where one is missing.

    transformers itself would fill what is missing with random numbers.
    """
    config = CLIPConfig.from_pretrained(folder, local_files_only=local_files_only)
    file = cached_file(folder, "model.safetensors", local_files_only=local_files_only)
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in CLIPModel(config).state_dict().items()}
    require_safetensors(Path(file), expected, what="the CLIPModel of the config.json beside it", ignored=POSITION_IDS)
