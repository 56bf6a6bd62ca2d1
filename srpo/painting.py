"""Pictures for the command lines: a base model, transformers over it, and the same settings and noise for each."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from srpo.evaluation.records import MAX_SEED
from srpo.evaluation.sampling import sample_images
from srpo.miniature import paths
from srpo.policies.checkpoints import WEIGHTS_NAME, load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.policies.places import split_weight
from srpo.rewards.base import to_pil

MINIATURE_SIDE, FULL_SIDE = 128, 1024  # pixels
MINIATURE_TOKENS, FULL_TOKENS = 64, 512
MAX_HASHED_BYTES = 2**30  # a 48 GB file would take minutes
VERSIONS = ("torch", "diffusers", "transformers")  # the libraries that decide pixels


@dataclass(frozen=True)
class Settings:
    """What all pictures of one call share. ValueError, one sentence, for what nobody can paint."""

    steps: int = 28
    guidance: float = 3.5
    height: int = MINIATURE_SIDE  # pixels
    width: int = MINIATURE_SIDE

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps must be 1 or more, not {self.steps}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"--guidance must be a finite number from 0, not {self.guidance:g}")


@dataclass(frozen=True)
class Base:
    """Where the pipeline lies, and how it is run."""

    model: Path  # a FluxPipeline folder, or an id in the local cache of the hub
    device: str = "cpu"
    text_tokens: int | None = None  # None: what the model was made for

    @property
    def is_miniature(self) -> bool:
        return self.model.resolve() == paths.FLUX.resolve()

    @property
    def name(self) -> str:
        return "FLUX miniature" if self.is_miniature else self.model.name

    @property
    def max_sequence_length(self) -> int:
        return self.text_tokens or (MINIATURE_TOKENS if self.is_miniature else FULL_TOKENS)

    @property
    def dtype(self) -> torch.dtype:
        """float32 for the miniature everywhere: bfloat16 forgets half of what SRPO changed in it."""
        return torch.float32 if self.device == "cpu" or self.is_miniature else torch.bfloat16

    @property
    def srpo(self) -> Path | None:
        """The SRPO weights that come with the base; None where they have to be named."""
        return paths.SRPO if self.is_miniature else None


class Painter:
    """Paints by the base model, or by other transformers over it. Weights are read when they are first needed."""

    def __init__(self, base: Base, settings: Settings) -> None:
        self.base, self.settings = base, settings

    @cached_property
    def policy(self) -> FluxPolicy:
        """The base model's. ValueError, one sentence, where no FLUX pipeline can be loaded."""
        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.disable_progress_bar()  # it would stand between the lines
        return FluxPolicy.from_pretrained(
            self.base.model,
            device=self.base.device,
            dtype=self.base.dtype,
            max_sequence_length=self.base.max_sequence_length,
        )

    def policy_with(self, weights: str | Path | None) -> FluxPolicy:
        """The policy with these weights of a transformer, a LoRA's as PLACE@WEIGHT; the base's own for None."""
        if weights is None:
            return self.policy
        place, weight = split_weight(weights)
        return self.policy.with_transformer(load_transformer(place, self.policy.transformer, weight=weight))

    def require_paintable(self, prompts: Sequence[str]) -> None:
        """ValueError, one sentence, for a prompt the model cannot read whole, or a size it cannot draw."""
        self.policy.latent_shape(self.settings.height, self.settings.width)
        for prompt in prompts:
            if not prompt.strip():
                raise ValueError("a prompt is empty: describe a picture")
            count, limit = self.policy.count_tokens(prompt)
            if count > limit:
                raise ValueError(f"a prompt has {count} tokens and this model reads {limit}: shorten {prompt[:60]!r}")

    def paint(self, policy: FluxPolicy, prompt: str, seed: int) -> Image.Image:
        """The picture of one prompt, painted alone, so that it never depends on its neighbours in a batch."""
        given = asdict(self.settings)
        return to_pil(sample_images(policy, [prompt], [seed], num_steps=given.pop("steps"), **given))

    def facts(self, weights: Mapping[str, Path | None]) -> dict[str, Any]:
        """What decides a picture's pixels beside its settings, as the page records it. weights: by a side's name."""
        hashes = {name: sha256_of(self.base.model if path is None else path) for name, path in weights.items()}
        return {
            "base": {"name": self.base.name, "sha256": sha256_of(self.base.model)},
            "text_tokens": self.base.max_sequence_length,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "device": self.base.device,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
            "weights_sha256": {name: value for name, value in hashes.items() if value},
        }


def sha256_of(weights: Path) -> str | None:
    """The hash of a transformer's weights; None where they are several files, very large, or not on this disk."""
    candidates = (weights, weights / "transformer" / WEIGHTS_NAME, weights / WEIGHTS_NAME)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None or file.stat().st_size > MAX_HASHED_BYTES:
        return None
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def require_seeds(*seeds: int) -> None:
    """ValueError, one sentence, for a seed that the page, or a picture's texts, could not carry."""
    if outside := [seed for seed in seeds if not 0 <= seed <= MAX_SEED]:
        raise ValueError(f"seeds go from 0 to {MAX_SEED:,}, not to {outside[0]:,}: choose another --seed")


def require_srpo(base: Base, named: Path | None) -> Path:
    """The SRPO weights to paint by. ValueError, one sentence, where there are none."""
    weights = named or base.srpo
    if weights is None:
        raise ValueError(f"{base.name} comes without SRPO weights: name them with --srpo FILE")
    return weights


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command that paints can be told; `read_options` reads it."""
    parser.add_argument("--model", type=Path, default=paths.FLUX, help="a FluxPipeline folder (default: the miniature)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--text-tokens", type=int, help="tokens of text (default: 64 for the miniature, else 512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--guidance", type=float, default=Settings.guidance)
    size = "height and width in pixels (default: 128,128 for the miniature, else 1024,1024)"
    parser.add_argument("--size", type=numbers(int, 2), metavar="H,W", help=size)


def read_options(options: argparse.Namespace) -> Painter:
    """The painter these options ask for; nothing is loaded. ValueError, one sentence, for settings out of range."""
    base = Base(options.model, options.device, options.text_tokens)
    height, width = options.size or (MINIATURE_SIDE if base.is_miniature else FULL_SIDE,) * 2
    return Painter(base, Settings(options.steps, options.guidance, height, width))


def numbers(kind: type, count: int | None = None) -> Callable[[str], tuple]:
    """Reads numbers with commas between them; exactly `count`, where that is given."""

    def read(text: str) -> tuple:
        found = tuple(kind(part) for part in text.split(","))
        if count is not None and len(found) != count:
            raise argparse.ArgumentTypeError(f"expected {count} numbers with a comma between them, got {text!r}")
        return found

    return read
