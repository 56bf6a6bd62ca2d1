"""ImageReward: BLIP reads the text while it looks at the picture, and a small head says how well both go together.

The published file is read into transformers' BLIP classes, whose blocks are those of the original under other names.
It has no text vector of its own, so control words' differences cannot be taken of it; it judges.

Source: Xu et al. 2023, arXiv 2304.05977, and the package image-reward 1.5.

B images, T text tokens, P patches and the class token, D width of the text
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from srpo.loading import one_at_a_time
from srpo.rewards.catalogue import CARDS
from srpo.rewards.head import new_head
from srpo.rewards.preprocess import center_crop, normalize, resize_shortest
from srpo.rewards.weights import open_checkpoint, require_known, require_layout

WEIGHTS_NAME, VOCABULARY_NAME = "ImageReward.pt", "vocab.txt"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output over the authors' pictures
MAX_TOKENS = 35
# What BLIP's pretraining leaves in the file and no score uses.
UNUSED = r"blip\.((vision|text)_proj(_m)?\..*|itm_head\..*|temp|.*position_ids)"


@dataclass(frozen=True)
class Architecture:
    """BLIP-large over BERT-base, as published."""

    image_size: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vocabulary: int = 30524  # BERT's 30522, and two marks that BLIP adds
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_feed_forward: int = 3072
    positions: int = 512


PUBLISHED = Architecture()


class ImageReward:
    """A frozen float32 reward behind the Reward protocol (`rewards/base.py`)."""

    name = "imagereward"

    def __init__(self, model: Network, tokenizer: BertTokenizer, *, sha256: str | None = None) -> None:
        if len(tokenizer) > model.architecture.vocabulary:
            raise ValueError(
                f"the tokenizer knows {len(tokenizer)} pieces and ImageReward {model.architecture.vocabulary}: "
                "expected the vocab.txt of bert-base-uncased"
            )
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self._lock = threading.Lock()  # a training's threads share the tokenizer, which has settings of the call
        self.sha256 = sha256  # of the file it was read from

    @classmethod
    @one_at_a_time
    def from_published(
        cls, place: str | Path, *, architecture: Architecture = PUBLISHED, device: str | torch.device = "cpu"
    ) -> ImageReward:
        """The reward in a folder that holds ImageReward.pt and BERT's vocab.txt, or of that file with it beside.

        ValueError, one sentence, where one is missing, damaged, changed, or not ImageReward's.
        """
        file = Path(place) / WEIGHTS_NAME if Path(place).is_dir() else Path(place)
        vocabulary = file.with_name(VOCABULARY_NAME)
        if missing := [path for path in (file, vocabulary) if not path.is_file()]:
            raise ValueError(f"ImageReward lacks {missing[0]}: {CARDS['imagereward'].get}")
        with torch.device("meta"):
            model = Network(architecture)
        tensors, names = open_checkpoint(file), {name: published_name(name) for name in model.state_dict()}
        expected = {names[name]: tuple(weight.shape) for name, weight in model.state_dict().items()}
        require_layout(file, tensors, expected, torch.float32, what="ImageReward v1.0", ignored=UNUSED)
        sha256 = require_known(file).sha256
        model.load_state_dict({ours: tensors[theirs].clone() for ours, theirs in names.items()}, assign=True)
        model.restore_buffers()
        return cls(model.to(device), read_vocabulary(vocabulary), sha256=sha256)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) scores of images (B, 3, H, W) in [0, 1] and one text each; gradients reach the image."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        side = self.model.architecture.image_size
        pixels = normalize(center_crop(resize_shortest(image.to(self.device, torch.float32), side), side, side))
        with self._lock:
            tokens = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
        raw = self.model(pixels, tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))
        return (raw - MEAN) / STD

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens the text has, start and end included, and how many are read: the rest is cut off."""
        return len(self.tokenizer(text, truncation=False, verbose=False).input_ids), MAX_TOKENS


class Network(nn.Module):
    """Picture and tokens to one number: vision tower, text tower that attends to it, linear head."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = of = architecture
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=of.vision_width,
                intermediate_size=4 * of.vision_width,
                num_hidden_layers=of.vision_layers,
                num_attention_heads=of.vision_heads,
                image_size=of.image_size,
                patch_size=of.patch,
                layer_norm_eps=1e-6,  # the original's; transformers' own default is 1e-5
            )
        )
        self.text = BlipTextModel(
            BlipTextConfig(
                vocab_size=of.vocabulary,
                hidden_size=of.text_width,
                encoder_hidden_size=of.vision_width,
                intermediate_size=of.text_feed_forward,
                num_hidden_layers=of.text_layers,
                num_attention_heads=of.text_heads,
                max_position_embeddings=of.positions,
            ),
            add_pooling_layer=False,
        )
        self.head = new_head(of.text_width)

    @property
    def device(self) -> torch.device:
        return self.head[0].weight.device

    def restore_buffers(self) -> None:
        """Gives a network that was built without memory the numbers 0, 1, 2 ... that are in no file."""
        positions = torch.arange(self.architecture.positions).expand(1, -1)
        self.text.embeddings.position_ids = positions

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B,) outputs of the head for pixels (B, 3, S, S), tokens (B, T) and their mask."""
        seen = self.vision(pixel_values=pixels).last_hidden_state  # (B, P, vision width)
        read = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state  # (B, T, D)
        return self.head(read[:, 0])[:, 0]


RENAMED: tuple[tuple[str, str], ...] = (  # from our names to the published ones, each where it fits
    (r"^head\.", "mlp.layers."),
    (r"^text\.", "blip.text_encoder."),
    (r"^vision\.embeddings\.class_embedding$", "blip.visual_encoder.cls_token"),
    (r"^vision\.embeddings\.position_embedding$", "blip.visual_encoder.pos_embed"),
    (r"^vision\.embeddings\.patch_embedding\.", "blip.visual_encoder.patch_embed.proj."),
    (r"^vision\.post_layernorm\.", "blip.visual_encoder.norm."),
    (r"^vision\.encoder\.layers\.", "blip.visual_encoder.blocks."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.layer_norm([12])\.", r".norm\1."),
)


def published_name(name: str) -> str:
    """What one of our weights is called in ImageReward.pt."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def read_vocabulary(file: Path) -> BertTokenizer:
    """BERT's tokenizer, letter case ignored, of a file with one piece per line."""
    pieces = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if missing := {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(pieces):
        raise ValueError(f"{file} lacks {sorted(missing)[0]}: expected the vocab.txt of bert-base-uncased")
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, do_lower_case=True)
