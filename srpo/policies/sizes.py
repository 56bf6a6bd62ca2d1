"""What a base model is asked for where nobody says otherwise: pixels and tokens of text, by its folder. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from srpo.policies import hub

MINIATURE_SIDE, FULL_SIDE = 128, 1024  # pixels
SIZE_MULTIPLE = 16  # 8 x by the VAE, 2 x by the packing of latents into tokens
MAX_SIDE = 2048
MINIATURE_TOKENS, FULL_TOKENS = 64, 512  # of text: the miniature's captions are short
# Of the transformer of FLUX.1 dev and schnell, of their fine-tunes and pruned forms, and of FLUX.2 klein 4B; 9B's is
# larger.
FULL_WIDTH = 3072


def is_full_size(model_folder: Path) -> bool:
    """Whether the pipeline's transformer is as wide as FLUX's, told by its configuration.

    What has not been downloaded yet is taken for it, as all pipelines of the hub that are named here are.
    """
    if hub.is_id(model_folder):
        return True
    try:
        config = json.loads((model_folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        return config.get("num_attention_heads", 24) * config.get("attention_head_dim", 128) >= FULL_WIDTH
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def native_side(model_folder: Path) -> int:
    """The side, in pixels, of the square pictures that the pipeline was trained for."""
    return FULL_SIDE if is_full_size(model_folder) else MINIATURE_SIDE


def text_tokens(is_miniature: bool) -> int:
    """How many tokens of text are read."""
    return MINIATURE_TOKENS if is_miniature else FULL_TOKENS


def require_text_tokens(count: int) -> None:
    """Nothing where a model of the family can read so many tokens of text; ValueError, one sentence, else."""
    if not 1 <= count <= FULL_TOKENS:
        raise ValueError(f"--text-tokens must be 1 to {FULL_TOKENS}, not {count:,}")
