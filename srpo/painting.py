"""Pictures for the command lines: a base model, transformers over it, and the same settings and noise for each."""

from __future__ import annotations

import argparse
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from srpo.arguments import numbers
from srpo.evaluation.records import MAX_SEED, sha256_of
from srpo.evaluation.sampling import sample_images
from srpo.miniature import paths
from srpo.policies import hub, sizes
from srpo.policies.flux import FluxPolicy
from srpo.policies.load import load_policy, with_weights
from srpo.rewards.base import to_pil
from srpo.training.devices import require_device

WEIGHTS_HELP = "weights over it: a file, a folder or an id, a LoRA as FILE@0.8 (default: the miniature's SRPO)"
VERSIONS = ("torch", "diffusers", "transformers")  # the libraries that decide pixels


@dataclass(frozen=True)
class Settings:
    """What all pictures of one call share. ValueError, one sentence, for what nobody can paint."""

    steps: int = 28
    guidance: float = 3.5
    height: int = sizes.MINIATURE_SIDE  # pixels
    width: int = sizes.MINIATURE_SIDE

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"--steps must be 1 or more, not {self.steps}")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise ValueError(f"--guidance must be a finite number from 0, not {self.guidance:g}")
        for side in (self.height, self.width):
            if side % sizes.SIZE_MULTIPLE or not 0 < side <= sizes.MAX_SIDE:
                limits = f"multiples of {sizes.SIZE_MULTIPLE} up to {sizes.MAX_SIDE:,} pixels"
                raise ValueError(f"--size must be {limits}, not {side:,}")


@dataclass(frozen=True)
class Base:
    """Where the pipeline lies, and how it is run."""

    model: Path  # a pipeline's folder (srpo.policies.families), or an id of the hub that was downloaded
    device: str = "cpu"
    text_tokens: int | None = None  # None: what the model was made for

    def __post_init__(self) -> None:
        if self.text_tokens is not None:
            sizes.require_text_tokens(self.text_tokens)

    def require_there(self) -> None:
        """ValueError, one sentence, where there is no such model, or no such device."""
        if not self.place.exists():
            raise ValueError(f"there is no model at {self.model}: name a pipeline's folder, or its id on the hub")
        require_device(self.device)

    @property
    def is_miniature(self) -> bool:
        return self.model.resolve() == paths.FLUX.resolve()

    @property
    def name(self) -> str:
        repository = hub.repository_of(self.model)
        own = self.model.name if repository is None else repository.partition("/")[2]
        return "FLUX miniature" if self.is_miniature else own

    @property
    def place(self) -> Path:
        """Where its files lie. ValueError, one sentence, for an id that was not downloaded."""
        return hub.local(self.model)

    @property
    def max_sequence_length(self) -> int:
        return sizes.text_tokens(self.is_miniature) if self.text_tokens is None else self.text_tokens

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
        """The base model's. ValueError, one sentence, where no pipeline of a family that runs here can be loaded."""
        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.disable_progress_bar()  # it would stand between the lines
        return load_policy(
            self.base.place,
            device=self.base.device,
            dtype=self.base.dtype,
            max_sequence_length=self.base.max_sequence_length,
        )

    def policy_with(self, weights: str | Path | None) -> FluxPolicy:
        """The policy with these weights of a transformer, as `load.with_weights` names them; the base's for None."""
        return self.policy if weights is None else with_weights(self.policy, weights)

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

    def facts(self, weights: Mapping[str, str | Path | None]) -> dict[str, Any]:
        """What decides a picture's pixels beside its settings, as the page records it. weights: by a side's name."""
        places = {name: self.base.place if it is None else hub.located(it)[0] for name, it in weights.items()}
        hashes = {name: sha256_of(place) for name, place in places.items()}
        return {
            "base": {"name": self.base.name, "sha256": sha256_of(self.base.place)},
            "text_tokens": self.base.max_sequence_length,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "device": self.base.device,
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
            "weights_sha256": {name: value for name, value in hashes.items() if value},
        }


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
    parser.add_argument("--model", type=Path, default=paths.FLUX, help="a pipeline's folder or id (default: miniature)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps ...")
    parser.add_argument("--text-tokens", type=int, help="tokens of text (default: 64 for the miniature, else 512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--guidance", type=float, default=Settings.guidance)
    size = "height and width in pixels (default: what the model was trained for, 1024,1024 for FLUX)"
    parser.add_argument("--size", type=numbers(int, 2), metavar="H,W", help=size)


def read_options(options: argparse.Namespace) -> Painter:
    """The painter these options ask for; nothing is loaded. ValueError, one sentence, for settings out of range."""
    base = Base(options.model, options.device, options.text_tokens)
    base.require_there()
    height, width = options.size or (sizes.native_side(base.model),) * 2
    return Painter(base, Settings(options.steps, options.guidance, height, width))
