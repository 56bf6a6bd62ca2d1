"""The settings of a training, their rules, and how a command line or a file changes them."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from srpo.miniature import paths
from srpo.objectives.direct_align import DirectAlignConfig
from srpo.objectives.levels import Levels
from srpo.objectives.srpo import TextSignal

PROMPTS = paths.ROOT / "prompts" / "train.txt"


# The attention's projections of both kinds of blocks, as the published LoRA trainings of FLUX take them.
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
ATTENTION += ("to_qkv_mlp_proj",)  # of FLUX.2's single blocks, whose q, k and v are one layer with their MLP's input

Limits = dict[str, tuple[float, float]]
KINDS = {levels().kind: levels for levels in get_args(Levels)}  # of noise levels, by the name that chooses one


@dataclass(frozen=True)
class LoraConfig:
    """The adapters that a LoRA trains; their strength is alpha / rank."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] = ATTENTION  # names of linear layers, or their ends

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; expected at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha is {self.alpha}; expected a finite number above 0")
        if not self.targets:
            raise ValueError("lora.targets is empty; expected names of linear layers, such as to_q")


@dataclass(frozen=True)
class OfflineConfig:
    """Pictures that stand in for the rollouts: a folder of images with captions, or of stored latents."""

    folder: str | None = None  # None: every rollout is sampled
    until: int | None = None  # the last update that takes them; later ones sample. None: all updates take them

    def __post_init__(self) -> None:
        if self.until is not None and self.until < 1:
            raise ValueError(f"offline.until is {self.until}; expected at least 1, or none")


@dataclass(frozen=True)
class ValidationConfig:
    """Pictures of fixed prompts and seeds, scored by what the run does not train on, and the rule for the best."""

    every: int = 0  # updates; 0: never
    num_prompts: int = 32
    num_samples: int = 4  # the first of these pictures are kept in the run folder
    prompts: str | None = None  # text file; None: evenly spaced ones of the run's prompts
    first_seed: int = 71_000
    num_steps: int = 12
    guidance: float = 3.5
    judge: str | None = None  # folder of the miniature's judge: adds "photo" and "content"
    reward: str | None = None  # a second reward, named as below or of any other kind: adds "reward"
    maximise: str = "sharpness"  # the score that the best checkpoint has most of
    limits: Limits = field(default_factory=dict)  # how far other scores may move from the start: lowest, highest
    stop: bool = False  # True: the run ends once two validations confirm that it is over-optimised

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"validation.every is {self.every}; expected a number of updates, or 0 for never")
        if self.num_prompts < 2 or self.num_steps < 1:
            raise ValueError(
                f"validation has {self.num_prompts} prompts and {self.num_steps} steps; expected at least 2 and 1"
            )
        if not 0 <= self.num_samples <= self.num_prompts:
            raise ValueError(f"validation.num_samples is {self.num_samples}; expected 0 ... {self.num_prompts}")
        for name, (lowest, highest) in self.limits.items():
            if not lowest <= 0 <= highest:
                raise ValueError(
                    f"validation.limits.{name} is {lowest} ... {highest}; expected how far the score may fall "
                    "(0 or below) and rise (0 or above)"
                )
        if self.stop and not self.every:
            raise ValueError("validation.stop needs validations: set validation.every")


Numerics = Literal["float32", "autocast", "bf16_stochastic", "bf16"]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that makes a run: with the same settings, versions and device it is the same bit for bit."""

    model: str = str(paths.FLUX)  # folder (or hub id) of a FLUX pipeline
    max_sequence_length: int = 64  # text tokens the model reads
    reward: str = str(paths.REWARD)  # folder (or hub id) of a CLIPModel, or KIND:PLACE (`python -m srpo.score --list`)
    reward_scale: float = 1.0  # 1 for CLIP and HPSv2, 5 for PickScore
    prompts: str = str(PROMPTS)  # text file, one prompt per line
    device: str = "cpu"
    local_files_only: bool = True  # False: hub ids may be downloaded

    weights: Literal["full", "lora"] = "full"  # what is trained: the whole transformer, or adapters beside it
    lora: LoraConfig = field(default_factory=LoraConfig)
    # float32: throughout. autocast: float32 weights, products in bf16. bf16_stochastic: weights in bf16, rounded up or
    # down by chance. bf16: weights in bf16; a LoRA's adapters stay float32, full weights round to the nearest.
    numerics: Numerics = "float32"
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  # adamw8bit: moments in 8 bits, by torchao, on CUDA
    gradient_checkpointing: bool = False  # True: the transformer's blocks are computed again in the backward pass
    checkpoint_decode: bool = False  # True: the VAE's decoder as well

    objective: DirectAlignConfig = field(default_factory=DirectAlignConfig)
    signal: TextSignal = field(default_factory=TextSignal)
    offline: OfflineConfig = field(default_factory=OfflineConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    updates: int = 10
    prompts_per_update: int = 8  # of all devices together
    updates_per_rollout: int = 1  # above 1, later ones draw new noise levels for the pictures of the first
    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 0.1  # of the gradient, over all weights
    seed: int = 0
    checkpoint_every: int = 5  # updates
    max_pixels: int = 1024 * 1024  # refuses larger images before they exhaust the memory

    def __post_init__(self) -> None:
        counts = ("updates", "prompts_per_update", "updates_per_rollout", "checkpoint_every", "max_sequence_length")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("lr", "eps", "clip_norm", "reward_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a finite number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; expected 0 or a finite number above")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; expected two numbers from 0 to below 1")
        for height, width in self.objective.all_sizes:
            if height * width > self.max_pixels:
                raise ValueError(
                    f"{height} x {width} are {height * width} pixels, more than max_pixels "
                    f"{self.max_pixels}: lower the size, or raise the limit if the memory allows it"
                )
        if self.weights == "lora" and self.numerics == "bf16_stochastic":
            raise ValueError("a LoRA's adapters are float32 and need no stochastic rounding: set numerics=bf16")


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain dictionaries, lists, numbers and strings."""
    return json.loads(json.dumps(asdict(config)))


def config_from_dict(settings: dict[str, Any]) -> TrainConfig:
    """The settings that `config_dict` made plain; what is missing takes its default.

    ValueError, one sentence, for a wrong value, or for an unknown name with the nearest known ones.
    """
    try:
        config = TypeAdapter(TrainConfig).validate_python(settings)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from error
    known = list(_names(config_dict(config)))
    for name in _names(settings):
        if name not in known:
            raise ValueError(_unknown(name, known))
    return config


def with_settings(config: TrainConfig, assignments: Sequence[str]) -> TrainConfig:
    """The configuration after assignments like "lr=1e-5" or "objective.levels.d_sigma=0.05".

    Values are JSON, or plain text; "none" is None. A new `kind` starts from that kind's defaults. ValueError as in
    `config_from_dict`.
    """
    settings = config_dict(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} sets nothing: expected key=value")
        if name not in _names(settings):
            raise ValueError(_unknown(name, list(_names(settings))))
        *parents, leaf = name.split(".")
        owner = settings
        for parent in parents:
            owner = owner[parent]
        if leaf == "kind":
            kind = KINDS.get(text.strip('"'))
            if kind is None:
                raise ValueError(f"{name} is {text}; expected {', '.join(KINDS)}")
            owner.clear()
            owner.update(asdict(kind()))  # so that what follows finds the settings of that kind
        owner[leaf] = _value(text)
    return config_from_dict(settings)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a UTF-8 text file, one per line, empty lines left out. ValueError where there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"no prompts in {str(path)!r}: expected a UTF-8 text file with one prompt per line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{str(path)!r} holds no prompt: expected one per line")
    return prompts


def _names(settings: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every name that can be set, with dots: "objective", "objective.levels", "objective.levels.d_sigma" ..."""
    for name, value in settings.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")


def _unknown(name: str, known: list[str]) -> str:
    leaf = name.rsplit(".", 1)[-1]
    same_leaf = [other for other in known if other.rsplit(".", 1)[-1] == leaf]
    near = same_leaf or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"there is no setting {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else "")


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sentence(error: ValidationError) -> str:
    """The first complaint. A union complains once per member; one about `kind` is only that it was not that member."""
    complaints = sorted(error.errors(), key=lambda complaint: complaint["loc"][-1:] == ("kind",))
    place = ".".join(str(part) for part in complaints[0]["loc"])
    message = complaints[0]["msg"].removeprefix("Value error, ")
    if complaints[0]["type"] == "tuple_type":  # Python's word for it, which nobody can type
        message = 'expected a list, like ["a", "b"] or [0.1, 0.2]'
    return f"{place}: {message}" if place else message
