"""The models at work: loading, one pair from one noise, scores. The only service that imports torch at the top.

Page code reaches it through `studio.py`, which imports it in the background once the page is up.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from app.services.device import StopFlag
from app.services.models import BASE, Catalogue, Model
from app.services.requests import BadInput, Settings
from app.services.scores import Row, Scorer
from app.state import Options
from srpo.flow.samplers import Step as SamplerStep
from srpo.flow.samplers import euler
from srpo.loading import one_at_a_time
from srpo.policies import conversion, hub, places
from srpo.policies.acceleration import Acceleration, choose_acceleration, require_alike
from srpo.policies.base import Conditioning
from srpo.policies.checkpoints import require_fit
from srpo.policies.families import PIPELINES
from srpo.policies.flux import FluxPolicy
from srpo.policies.load import load_policy
from srpo.policies.placement import RESIDENT, Placement, Sizes, choose, in_seconds, require_room
from srpo.policies.residency import Residency, loading_device, measure, residency
from srpo.rewards.base import to_pil

log = logging.getLogger(__name__)

# Bytes of transformers kept beside the base's own where the device is the CPU, whose memory is not ours alone: many
# miniatures. A GPU is filled up to what a picture needs.
CPU_BUDGET = 2**29
# What torch says, as a plain RuntimeError, where memory that is not CUDA's is at its end.
EXHAUSTED = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Step:
    """All sides have taken the same step."""

    done: int
    total: int
    previews: tuple[Image.Image, ...]  # the clean picture each model would jump to, an eighth of the size


@dataclass(frozen=True)
class Finished:
    """All sides have arrived."""

    images: tuple[Tensor, ...]  # (1, 3, H, W) in [0, 1] each
    latents: tuple[Tensor, ...]  # (1, C, H/8, W/8) each, what the images were decoded from


class Engine:
    """The base pipeline and the transformers that were asked for, sharing text encoders and VAE."""

    def __init__(
        self,
        base: FluxPolicy,
        scorer: Scorer,
        max_side: int,
        *,
        models: Residency | None = None,
        placement: Placement = Placement(RESIDENT),  # noqa: B008 (frozen)
        budget: int | None = None,
    ) -> None:
        """max_side: the longest side of a picture, in pixels, that `check` lets pass.

        models: what loads others over the base and keeps them; beside one another where it is None.
        budget: bytes of transformers kept beside the base's own; CPU_BUDGET where it is None.
        """
        self.base, self.scorer, self.max_side = base, scorer, max_side
        self.models = models or Residency(base, Acceleration())
        self.placement, self._budget = placement, budget
        self._resident: OrderedDict[tuple[str, float, float], FluxPolicy] = OrderedDict()
        self._converting = threading.Lock()
        self._loading = threading.Lock()  # what the page shows at first is loaded beside the first requests

    @classmethod
    @one_at_a_time
    def load(cls, options: Options) -> Engine:
        """The engine of these options. ValueError, one sentence, where a folder is missing or foreign."""
        if not options.model.is_dir():
            if hub.is_id(options.model):
                raise BadInput(hub.absent(options.model))
            raise BadInput(
                f"The base model is not at {options.model}: start the app with --model FOLDER, a {PIPELINES}."
            )
        device, dtype, catalogue = device_for(options), dtype_for(options), Catalogue(options)
        sizes = Sizes.of(options.model, dtype.itemsize, catalogue.native_side)
        try:
            placement = choose(options.memory, sizes, measure(device))
            acceleration = choose_acceleration(options.compile, options.attention, device, placement)
        except ValueError as error:
            raise BadInput(str(error)) from None
        with memory_named(f"load {options.model.name}"):
            base = load_policy(
                options.model,
                device=loading_device(placement, device),
                dtype=dtype,
                local_files_only=True,
                max_sequence_length=options.max_sequence_length,
            )
            models = residency(base, placement, acceleration, device)
            free = measure(device)
            room = (free.host if placement.takes_turns else free.free) - sizes.work
            return cls(
                base,
                Scorer.load(options.reward, options.judge),
                catalogue.max_side,
                models=models,
                placement=placement,
                budget=None if device.type == "cpu" else max(0, room),
            )

    def convert(self, models: Sequence[Model], stop: StopFlag) -> Iterator[str]:
        """Messages while large float32 weights are converted to the base's precision, once and for all starts.

        BadInput for weights that cannot be read. Where there is no room for the copy they are read as they are.
        """
        while not self._converting.acquire(timeout=0.25):
            stop.check()
            yield "Waiting for weights that are being converted, this once."
        try:
            yield from self._convert(models, stop)
        finally:
            self._converting.release()

    def _convert(self, models: Sequence[Model], stop: StopFlag) -> Iterator[str]:
        for model in models:
            if model.weights is None or (pending := self._unconverted(model)) is None:
                continue
            try:
                for step in conversion.convert(pending, self._dtype):
                    stop.check()
                    done, total = step.done_bytes / 1e9, step.total_bytes / 1e9
                    yield f"Converting {model.label}, this once: {done:.1f} of {total:.1f} GB"
            except (ValueError, OSError) as error:
                log.warning("%s is not converted, but read whole each time: %s", model.label, error)

    @property
    def _dtype(self) -> torch.dtype:
        return self.base.dtype

    def _unconverted(self, model: Model) -> Path | None:
        """The place of weights that are worth a conversion and have none yet."""
        try:
            found = places.find(model.weights)
            if not conversion.is_worth_converting(found, self._dtype):
                return None
            require_fit(found, self.models.reference, weight=model.weight)
            if not conversion.is_converted(conversion.converted_folder(found, self._dtype)):
                return model.weights
        except (ValueError, OSError) as error:
            raise BadInput(_sentence(error)) from None
        return None

    def _place(self, model: Model) -> Path:
        """Where the model's weights are read: from their converted copy, where there is one."""
        found = places.find(model.weights)
        if conversion.is_worth_converting(found, self._dtype):
            folder = conversion.converted_folder(found, self._dtype)
            return folder if conversion.is_converted(folder) else model.weights
        return model.weights

    def policies(self, models: Sequence[Model]) -> list[FluxPolicy]:
        """One policy per model. Weights are loaded at the first request, and anew when their file has changed.

        The longest unused ones make room first. BadInput, one sentence, for weights that cannot be loaded.
        """
        with self._loading:
            asked = [None if model.id == BASE else _version(model) for model in models]
            self._make_room(set(asked) - {None})
            return [
                self.base if key is None else self._load(key, model) for key, model in zip(asked, models, strict=True)
            ]

    def _make_room(self, asked: set[tuple[str, float, float]]) -> None:
        """Forgets weights until those asked for fit the budget beside what stays; all have the base's size."""
        budget = CPU_BUDGET if self._budget is None else self._budget
        num_bytes = sum(weight.nbytes for weight in self.models.reference.parameters())
        unused = [key for key in self._resident if key not in asked]
        for key in unused[: max(0, len(unused) + len(asked) - budget // num_bytes)]:
            del self._resident[key]

    def _load(self, key: tuple[str, float, float], model: Model) -> FluxPolicy:
        if key not in self._resident:
            try:
                place = self._place(model)
                require_room(model.label, self.models.num_bytes(place), measure(self.base.device).free)
                with memory_named(f"load {model.label} beside the base model"):
                    self._resident[key] = self.models.load(place, model.weight)
            except (ValueError, OSError) as error:
                raise BadInput(_sentence(error)) from None
        self._resident.move_to_end(key)
        return self._resident[key]

    def check(self, settings: Settings, prompts: Sequence[str]) -> None:
        """BadInput where the text encoder cannot read a whole prompt or the model cannot draw the size."""
        if max(settings.width, settings.height) > self.max_side:
            raise BadInput(
                f"Width and height may be at most {self.max_side} pixels with this model, not "
                f"{settings.width} × {settings.height}."
            )
        for prompt in prompts:
            count, limit = self.base.count_tokens(settings.text(prompt))
            if count > limit:
                raise BadInput(f"The prompt has {count} tokens and this model reads {limit}: please shorten it.")
        try:
            self.base.latent_shape(settings.height, settings.width)
        except ValueError as error:
            raise BadInput(str(error)) from None

    @torch.no_grad()
    def encode(self, text: str) -> Conditioning:
        with memory_named("read the prompt"):
            return self.base.encode_prompts([text])

    def paint(
        self, policies: Sequence[FluxPolicy], cond: Conditioning, settings: Settings, seed: int, stop: StopFlag
    ) -> Iterator[Step | Finished]:
        """One picture per policy from the same noise, schedule and text, all taking each step together.

        Where a change of model is dear, they are painted one after the other, and those that wait show the noise.
        Raises Stopped before the next evaluation of a model once `stop` is set.
        """
        require_alike(policies)
        height, width = settings.height, settings.width
        noise = self.base.initial_noise(seed, height, width)
        sigmas = self.base.schedule(settings.steps, height, width)

        # A generator may be resumed on another thread and autograd's mode belongs to a thread: no_grad wraps each call.
        def velocity_of(policy: FluxPolicy):
            @torch.no_grad()
            def velocity(x_t: Tensor, sigma: float) -> Tensor:
                stop.check()
                return policy.velocity(x_t, sigma, cond, settings.guidance)

            return velocity

        paths = [euler(velocity_of(policy), noise, sigmas) for policy in policies]
        rounds = _in_turn(paths) if self.placement.takes_turns else zip(*paths, strict=True)
        total = settings.steps * (len(paths) if self.placement.takes_turns else 1)
        steps: tuple[SamplerStep | None, ...] = ()
        with memory_named(f"draw {width} × {height} pixels", "choose a smaller size"):
            for done, steps in enumerate(rounds, 1):
                seen = (noise if step is None else step.x0 for step in steps)
                yield Step(done, total, tuple(to_pil(self.base.preview(x0)) for x0 in seen))
            stop.check()
            latents = tuple(step.x_t for step in steps)
            yield Finished(tuple(self._decode(x0) for x0 in latents), latents)

    @torch.no_grad()
    def _decode(self, x0: Tensor) -> Tensor:
        return self.base.decode(x0)

    def run_facts(self) -> dict[str, Any]:
        """How all models are run, for a picture's record: what of it moves pixels, and what does not."""
        placement, acceleration = self.placement, self.models.acceleration
        return {
            "memory": placement.mode,
            "compile": acceleration.compiles,
            "attention": acceleration.attention,
            **({"rounded_to": placement.form} if not placement.is_faithful else {}),
        }

    def manner(self) -> str:
        """How the models are kept and run, why, and what it costs, in sentences for the page."""
        seconds, acceleration = self.models.change_seconds, self.models.acceleration
        took = f" The last change of model took {in_seconds(seconds)}." if seconds is not None else ""
        compiled = ", compiled" if acceleration.compiles else ""
        return f"{self.placement}{took} Attention: {acceleration.attention}{compiled}, for all models alike."

    def scores(self, left: Tensor, right: Tensor, prompt: str) -> list[Row]:
        return self.scorer.rows(left, right, prompt)


def _in_turn(paths: Sequence[Iterator[SamplerStep]]) -> Iterator[tuple[SamplerStep | None, ...]]:
    """The latest step of every path, after each step: the first path to its end, then the second; None before it."""
    latest: list[SamplerStep | None] = [None] * len(paths)
    for number, path in enumerate(paths):
        for step in path:
            latest[number] = step
            yield tuple(latest)


def device_for(options: Options) -> torch.device:
    """The device of these options. BadInput where it is not here."""
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise BadInput(f"There is no kind of device {options.device!r}: choose cpu, cuda, cuda:1 or mps.") from None
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= found:
        raise BadInput(f"There is no device {options.device} here: start with --device cpu.")
    return device


def dtype_for(options: Options) -> torch.dtype:
    """The precision of the models: bfloat16 on a GPU, as FLUX.1-dev is run; float32 for the miniature everywhere.

    The miniature's SRPO weights differ from its base's by about 1e-4, of which bfloat16 forgets half.
    """
    return torch.float32 if options.device == "cpu" or options.is_miniature else torch.bfloat16


@contextmanager
def memory_named(task: str, advice: str = "free some, or use a larger device") -> Iterator[None]:
    """Turns running out of memory, on any device, into BadInput that says what could not be done and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        named = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not named and not any(text in str(error) for text in EXHAUSTED):
            raise
        traceback.clear_frames(error.__traceback__)  # which hold on to their tensors
        torch.cuda.empty_cache()
        raise BadInput(f"The device has too little free memory to {task}: {advice}.") from None


def versions() -> dict[str, str]:
    """The libraries that decide pixels, for a picture's record."""
    import diffusers
    import transformers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}


def _version(model: Model) -> tuple[str, float, float]:
    """A model's weights at their present state, and a LoRA's weight. BadInput where they are gone, or closed to us."""
    try:
        return str(model.weights.resolve()), model.weights.stat().st_mtime, model.weight
    except OSError as error:
        raise BadInput(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """What went wrong with a file, for the page."""
    if isinstance(error, OSError) and error.strerror:
        name = Path(error.filename).name if error.filename else "A file of the model"
        return f"{name} cannot be read ({error.strerror}): choose another model."
    return str(error)
