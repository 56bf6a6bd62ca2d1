"""Policies over several transformers that share one pipeline, kept in memory as a placement says.

Whoever calls a policy's `velocity` gets its model's velocity, in whatever order: where models take turns in one memory,
a policy brings its weights itself (`FluxPolicy.staged`), and holds them against others until its call has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import apply_group_offloading
from torch import Tensor

from srpo.policies import places
from srpo.policies.acceleration import Acceleration
from srpo.policies.checkpoints import load_transformer, quantised, read_weights, require_fit, with_weights
from srpo.policies.difference import Difference
from srpo.policies.flux import FluxPolicy
from srpo.policies.placement import DIFFERENCE, OFFLOAD, PINNED, QUANTIZED, Memory, Placement, difference_bytes

ALIGNMENT = 64  # bytes, of torch's memory on the CPU; that of a GPU is coarser


class Residency:
    """All transformers beside one another on the base's device."""

    def __init__(self, base: FluxPolicy, acceleration: Acceleration) -> None:
        """base: its parts lie where the mode wants them; its transformer is run as `acceleration` says from now on."""
        self.base, self.acceleration = base, acceleration
        self.change_seconds: float | None = None  # what the last change of model took; None before the first
        _align(base.transformer)
        acceleration.apply(base.transformer)

    @property
    def reference(self) -> FluxTransformer2DModel:
        """A transformer of the base's architecture, in the precision in which weights are read."""
        return self.base.transformer

    def load(self, place: Path, weight: float = 1.0) -> FluxPolicy:
        """A policy by the weights at a place. ValueError, one sentence, where they do not fit the base."""
        return self._policy(load_transformer(place, self.reference, weight=weight, device=self.base.device))

    def num_bytes(self, place: Path) -> int:
        """What `load` will keep on the device, an estimate. ValueError where there are no weights."""
        found = places.find(place)
        return found.num_bytes if found.is_quantised else self._whole_bytes

    @property
    def _whole_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.base.transformer.parameters())

    def _policy(self, transformer: FluxTransformer2DModel) -> FluxPolicy:
        return self.base.with_transformer(self.acceleration.apply(transformer))


class _Turns(Residency):
    """Models that take turns in the memory of one."""

    def __init__(self, base: FluxPolicy, acceleration: Acceleration) -> None:
        super().__init__(base, acceleration)
        self._lock = threading.RLock()
        # On the device; what they are changes.
        self._weights = {name: weight.detach() for name, weight in base.transformer.state_dict().items()}
        base.staged = partial(self._holding, base.transformer)

    def load(self, place: Path, weight: float = 1.0) -> FluxPolicy:
        found = places.find(place)
        require_fit(found, self.reference, weight=weight)
        if found.is_quantised:  # its blocks cannot take the place of numbers, so they stay beside them
            return super().load(place, weight)
        with self._holding(self.base.transformer):
            transformer = self._loaded(found, weight)
        policy = self._policy(transformer)
        policy.staged = partial(self._holding, transformer)
        return policy

    def num_bytes(self, place: Path) -> int:
        found = places.find(place)
        return found.num_bytes if found.is_quantised else self._bytes_beside

    @property
    def _bytes_beside(self) -> int:
        """What one more model keeps on the device."""
        raise NotImplementedError

    def _loaded(self, found: places.Found, weight: float) -> FluxTransformer2DModel:
        """A transformer that `_bring` can bring; the base's weights are there meanwhile."""
        raise NotImplementedError

    def _bring(self, transformer: FluxTransformer2DModel) -> bool:
        """Makes the weights on the device this transformer's; False where they are it already."""
        raise NotImplementedError

    @contextmanager
    def _holding(self, transformer: FluxTransformer2DModel) -> Iterator[None]:
        """This transformer's weights are there until the block ends, whoever else asks for others."""
        with self._lock:
            began_s = time.perf_counter()
            if self._bring(transformer):
                if self.base.device.type == "cuda":
                    torch.cuda.synchronize(self.base.device)  # or the time would be that of the asking
                self.change_seconds = time.perf_counter() - began_s
            yield


class ByDifference(_Turns):
    """One set of weights on the device, which becomes each model's by its exact difference from the base's."""

    def __init__(self, base: FluxPolicy, acceleration: Acceleration) -> None:
        super().__init__(base, acceleration)
        self._there: Difference | None = None  # what the weights have become; None: the base's own

    @property
    def _bytes_beside(self) -> int:
        return difference_bytes(self._whole_bytes, self.base.dtype.itemsize)

    def _loaded(self, found: places.Found, weight: float) -> FluxTransformer2DModel:
        # A LoRA's merged weights are a whole model, which is not for the device's memory.
        device = "cpu" if found.kind == "lora" else self.base.device
        read = read_weights(found, self.reference, weight=weight, device=device)
        difference = Difference.between(self._weights, ((name, it.to(self.base.device)) for name, it in read))
        transformer = with_weights(self.reference, self._weights)
        transformer.difference = difference  # forgotten with the model
        return transformer

    def _bring(self, transformer: FluxTransformer2DModel) -> bool:
        wanted: Difference | None = getattr(transformer, "difference", None)  # the base has none
        if wanted is self._there:
            return False
        if self._there is not None:
            self._there.apply(self._weights, undo=True)
            self._there = None
        if wanted is not None:
            wanted.apply(self._weights)
            self._there = wanted
        return True


class Pinned(_Turns):
    """Each model's weights in the machine's memory; those of the one that is called are copied to the device."""

    def __init__(self, base: FluxPolicy, acceleration: Acceleration) -> None:
        super().__init__(base, acceleration)
        base.transformer.home = {name: self._kept(it) for name, it in self._weights.items()}
        self._there: FluxTransformer2DModel | None = base.transformer  # None where a copy was broken off

    @property
    def _bytes_beside(self) -> int:
        return 0

    def _loaded(self, found: places.Found, weight: float) -> FluxTransformer2DModel:
        home = {name: self._kept(it) for name, it in read_weights(found, self.reference, weight=weight)}
        transformer = with_weights(self.reference, home)
        transformer.home = home  # forgotten with the model
        return transformer

    def _kept(self, weight: Tensor) -> Tensor:
        """A copy in the machine's memory, pinned where that makes its way to the device faster."""
        weight = weight.detach().to("cpu", copy=True)
        return weight.pin_memory() if self.base.device.type == "cuda" else weight

    def _bring(self, transformer: FluxTransformer2DModel) -> bool:
        if transformer is self._there:
            return False
        if self._there is not None:
            _point(self._there, self._there.home)
            self._there = None
        for name, weight in transformer.home.items():
            self._weights[name].copy_(weight, non_blocking=True)
        _point(transformer, self._weights)
        self._there = transformer
        return True


class Offloaded(Residency):
    """Transformers and text encoders in the machine's memory; each layer is on the device while it is called."""

    def __init__(self, base: FluxPolicy, acceleration: Acceleration, device: torch.device) -> None:
        super().__init__(base, acceleration)
        _offload_encoders(base, device)
        self._offload_blocks(base.transformer)

    def load(self, place: Path, weight: float = 1.0) -> FluxPolicy:
        if places.find(place).is_quantised:
            raise ValueError(
                f"{place} holds GGUF’s blocks, which are not moved layer by layer: start with --memory quantized, or "
                "choose weights in bfloat16."
            )
        transformer = load_transformer(place, self.reference, weight=weight, device="cpu")
        policy = self._policy(transformer)
        self._offload_blocks(transformer)
        return policy

    def num_bytes(self, place: Path) -> int:
        places.find(place)
        return 0

    def _offload_blocks(self, transformer: FluxTransformer2DModel) -> None:
        """Each block's turn; on a GPU the next one comes while one computes."""
        device = self.base.device
        _offload(
            transformer, device, offload_type="block_level", num_blocks_per_group=1, use_stream=device.type == "cuda"
        )


class Quantized(Residency):
    """Transformers rounded to GGUF's blocks on the device; the text encoders stay in the machine's memory, and so do
    the base's own numbers.
    """

    def __init__(self, base: FluxPolicy, acceleration: Acceleration, device: torch.device, kind: str) -> None:
        self._kind, self._whole = kind, base.transformer
        base.pipe.register_modules(transformer=quantised(base.transformer, kind, device))
        _offload_encoders(base, device)
        super().__init__(base, acceleration)

    @property
    def reference(self) -> FluxTransformer2DModel:
        return self._whole

    def load(self, place: Path, weight: float = 1.0) -> FluxPolicy:
        if places.find(place).is_quantised:
            return super().load(place, weight)
        whole = load_transformer(place, self._whole, weight=weight, device="cpu")
        return self._policy(quantised(whole, self._kind, self.base.device))


def residency(base: FluxPolicy, placement: Placement, acceleration: Acceleration, device: torch.device) -> Residency:
    """What keeps the models as the placement says. `base` lies on `loading_device(placement, device)`."""
    if placement.mode == OFFLOAD:
        return Offloaded(base, acceleration, device)
    if placement.mode == QUANTIZED:
        return Quantized(base, acceleration, device, placement.form)
    return {"": Residency, DIFFERENCE: ByDifference, PINNED: Pinned}[placement.form](base, acceleration)


def loading_device(placement: Placement, device: torch.device) -> torch.device:
    """Where the base is loaded to: the machine's memory, where the device never holds all of it."""
    return torch.device("cpu") if placement.mode in (OFFLOAD, QUANTIZED) else device


def measure(device: torch.device) -> Memory:
    """What is free now on the device and in the machine."""
    host = _free_in_machine()
    if device.type != "cuda":
        return Memory(device.type, host, host)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for itself
    return Memory("cuda", free + unused, host)


def _free_in_machine() -> int:
    """Bytes that programs can have without others being swapped out, as psutil tells it; a container's limit counts."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return free if limit == "max" else max(0, min(free, int(limit) - used))
    except (OSError, ValueError):
        return free


def _offload_encoders(base: FluxPolicy, device: torch.device) -> None:
    """The text encoders' layers come as they are called; the VAE, which is small and called by its parts, stays."""
    base.pipe.vae.to(device)
    for name in base.text_encoders:
        _offload(getattr(base.pipe, name), device, offload_type="leaf_level")


def _offload(module: torch.nn.Module, device: torch.device, **settings: object) -> None:
    apply_group_offloading(module, onload_device=device, offload_device=torch.device("cpu"), **settings)


def _align(transformer: FluxTransformer2DModel) -> None:
    """Puts every weight where torch would put a new one, without gaps.

    A file's numbers are used where they lie in it, and on the CPU sums are taken in another order there: the same
    weights in other memory would draw another last bit.
    """
    for weight in transformer.parameters():
        if weight.data_ptr() % ALIGNMENT or not weight.is_contiguous():
            weight.data = weight.data.clone(memory_format=torch.contiguous_format)


def _point(transformer: FluxTransformer2DModel, weights: dict[str, Tensor]) -> None:
    """Lets the transformer's parameters be these tensors."""
    for name, parameter in transformer.named_parameters():
        parameter.data = weights[name]
