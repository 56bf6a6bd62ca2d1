"""Where the parts of two models lie while pictures are drawn: the modes, what each needs, and which one fits.

resident    both transformers, the text encoders and the VAE stay on the device
swap        the device holds one transformer's weights at a time, and they become the other's where the other is asked:
            by their exact difference (srpo.policies.difference), which stays on the device, or from pinned memory
offload     both transformers and the text encoders lie in the machine's memory, and layers come as they are needed
quantized   both are rounded to 8 or 4 bits a number; for single pictures alone, as rounding hides what SRPO changed

The first three draw the same pictures, bit for bit. Decisions only, and the standard library only: the page may ask.
`srpo.policies.residency` does what is decided here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from srpo.policies.headers import read_header

AUTO, RESIDENT, SWAP, OFFLOAD, QUANTIZED = MODES = ("auto", "resident", "swap", "offload", "quantized")
ATTENTION = ("auto", "native", "cudnn", "flash", "flash3")  # the kernels that can be asked for
DIFFERENCE, PINNED = "difference", "pinned"  # the forms of a swap
BITS = {"Q8_0": 8.5, "Q4_0": 4.5}  # forms of `quantized`, and what a number takes with its share of a block's scale
WEIGHT_FILE = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")

# Estimates, by which prices are told before anything was measured; the page says what a change of model really took.
BYTES_PER_PIXEL = 4096  # of activations, in two-byte numbers: the VAE's widest layers, mostly
BYTES_PER_S = {"cuda": 1.5e12, "link": 25e9, "cpu": 4e9}  # within a GPU, from pinned memory to it, within a machine


@dataclass(frozen=True)
class Sizes:
    """Bytes of a pipeline's parts in the precision they are run in."""

    transformer: int
    layer: int  # the largest of its blocks, about
    encoders: int
    vae: int
    work: int  # what a picture takes beside them, an estimate
    bytes_per_number: int = 2

    @classmethod
    def of(cls, pipeline: Path, bytes_per_number: int, side: int) -> Sizes:
        """What the headers of a pipeline's folder say; side: of the largest usual picture, in pixels.

        A part whose files are missing, or are none that is read here, counts nothing: loading says what is wrong.
        """
        transformer = bytes_per_number * _numbers(pipeline / "transformer")
        return cls(
            transformer,
            transformer // 30,  # FLUX.1's double blocks are a thirty-fifth each
            bytes_per_number * (_numbers(pipeline / "text_encoder") + _numbers(pipeline / "text_encoder_2")),
            bytes_per_number * _numbers(pipeline / "vae"),
            BYTES_PER_PIXEL * side**2 * bytes_per_number // 2,
            bytes_per_number,
        )

    @property
    def difference(self) -> int:
        return difference_bytes(self.transformer, self.bytes_per_number)


@dataclass(frozen=True)
class Memory:
    """What was free when it was measured, in bytes."""

    kind: str  # of the device: "cuda", "cpu", "mps"
    free: int  # on the device
    host: int  # in the machine; the same memory where the device is the CPU

    @property
    def is_one(self) -> bool:
        """Whether the device's memory is the machine's."""
        return self.kind != "cuda"


@dataclass(frozen=True)
class Placement:
    """A mode, and what somebody should know of it."""

    mode: str  # one of MODES but "auto"
    form: str = ""  # of a swap, or the kind of blocks of `quantized`
    reason: str = "It was asked for."  # a sentence
    price: str = ""  # a sentence

    @property
    def takes_turns(self) -> bool:
        """Whether the sides of a comparison are drawn one after the other: a change of model is dear."""
        return self.form == PINNED or self.mode == OFFLOAD

    @property
    def is_faithful(self) -> bool:
        """Whether it draws what the weights as they are draw."""
        return self.mode != QUANTIZED

    def __str__(self) -> str:
        name = f"{self.mode} ({self.form})" if self.form else self.mode
        return f"Memory: {name}. {self.reason} {self.price}".strip()


@dataclass(frozen=True)
class Need:
    """What a mode takes, in bytes."""

    device: int
    host: int

    def fits(self, memory: Memory) -> bool:
        return self.device <= memory.free and self.host <= memory.host


def needs(mode: str, form: str, sizes: Sizes, memory: Memory) -> Need:
    """What two models take in that mode. ValueError for a mode that does not exist."""
    whole, kept = sizes.transformer, sizes.vae + sizes.work
    if mode == RESIDENT:
        device, host = 2 * whole + sizes.encoders + kept, 0
    elif mode == SWAP and form == DIFFERENCE:
        device, host = whole + sizes.difference + sizes.encoders + kept, 0
    elif mode == SWAP:
        device, host = whole + sizes.encoders + kept, 2 * whole
    elif mode == OFFLOAD:
        device, host = 2 * sizes.layer + kept, 2 * whole + sizes.encoders
    elif mode == QUANTIZED:
        # They are packed one after the other, from the numbers in the machine's memory.
        device = int(2 * whole * BITS[form] / 8 / sizes.bytes_per_number) + kept
        host = 2 * whole + sizes.encoders
    else:
        raise ValueError(f"The memory mode is one of {', '.join(MODES)}, not {mode!r}.")
    return Need(device + host, device + host) if memory.is_one else Need(device, host)


def choose(asked: str, sizes: Sizes, memory: Memory) -> Placement:
    """The placement that was asked for, or for "auto" the fastest that fits and loses nothing.

    ValueError, one sentence, for a mode that does not exist, or that the free memory does not allow.
    """
    if asked not in MODES:
        raise ValueError(f"The memory mode is one of {', '.join(MODES)}, not {asked!r}.")
    ways = [way for way in _ways(memory) if way[0] == asked or (asked == AUTO and way[0] != QUANTIZED)]
    for mode, form in ways:
        need = needs(mode, form, sizes, memory)
        if need.fits(memory):
            reason = _reason(asked, mode, need, sizes, memory)
            return Placement(mode, form, reason, price(mode, form, sizes, memory))
    raise ValueError(_refusal(asked, ways, sizes, memory))


def _ways(memory: Memory) -> list[tuple[str, str]]:
    """Every mode with its forms, the fastest first. Where there is one memory, nothing can be kept outside of it."""
    if memory.is_one:
        return [(RESIDENT, ""), (SWAP, DIFFERENCE), (OFFLOAD, ""), (QUANTIZED, "Q8_0"), (QUANTIZED, "Q4_0")]
    return [
        *((RESIDENT, ""), (SWAP, DIFFERENCE), (SWAP, PINNED), (OFFLOAD, "")),
        *((QUANTIZED, "Q8_0"), (QUANTIZED, "Q4_0")),
    ]


def price(mode: str, form: str, sizes: Sizes, memory: Memory) -> str:
    """What a mode costs, in a sentence; seconds are estimates."""
    within = BYTES_PER_S["cuda" if memory.kind == "cuda" else "cpu"]
    if mode == RESIDENT:
        return "Nothing is moved while they draw."
    if mode == SWAP and form == DIFFERENCE:
        took = in_seconds((2 * sizes.transformer + sizes.difference) / within)
        return f"The weights of one become the other’s by their exact difference, twice a step: {took} each (estimate)."
    if mode == SWAP:
        took = in_seconds(sizes.transformer / BYTES_PER_S["link"])
        return (
            f"One model’s weights at a time are copied from pinned memory, {took} (estimate), so the sides are drawn "
            "one after the other."
        )
    if mode == OFFLOAD:
        took = in_seconds(sizes.transformer / (within if memory.is_one else BYTES_PER_S["link"]))
        return (
            f"All layers are brought anew at each step, {took} or more (estimate), so the sides are drawn one after "
            "the other."
        )
    return (
        f"Weights are rounded to {int(BITS[form])} bits a number, by more than SRPO changed them: for single pictures "
        "alone."
    )


def difference_bytes(whole: int, bytes_per_number: int) -> int:
    """What the difference of two transformers takes, an estimate: one byte for a number of two.

    Float32 holds what a tuning left of each number, which is nearly all of its bits.
    """
    return whole // 2 if bytes_per_number == 2 else whole


def require_room(label: str, num_bytes: int, free: int) -> None:
    """Nothing where another model's weights fit; ValueError, one sentence, before memory is taken."""
    if num_bytes > free:
        raise ValueError(
            f"The device has too little free memory to load {label} beside the base model: {_gb(num_bytes)} are "
            f"needed and {_gb(free)} are free; free some, or start with --memory swap or --memory offload."
        )


def _reason(asked: str, mode: str, need: Need, sizes: Sizes, memory: Memory) -> str:
    has = f"{_gb(need.device)} are needed and {_gb(memory.free)} are free"
    if asked != AUTO:
        return f"It was asked for; {has}."
    if mode == RESIDENT:
        return f"Two transformers, text encoders and VAE fit: {has}."
    whole = needs(RESIDENT, "", sizes, memory)
    return f"Two transformers would need {_gb(whole.device)}; for this {has}."


def _refusal(asked: str, ways: list[tuple[str, str]], sizes: Sizes, memory: Memory) -> str:
    least = min((needs(*way, sizes, memory) for way in ways), key=lambda need: need.device)
    name = "any memory mode that loses nothing" if asked == AUTO else f"--memory {asked}"
    needed, free = f"{_gb(least.device)} on the device", f"{_gb(memory.free)} are free"
    if not memory.is_one:
        needed += f" and {_gb(least.host)} in the machine"
        free = f"{_gb(memory.free)} and {_gb(memory.host)} are free"
    others = [mode for mode, form in _ways(memory) if needs(mode, form, sizes, memory).fits(memory)]
    alone = " for single pictures" if others[:1] == [QUANTIZED] else ""
    advice = f"start with --memory {others[0]}{alone}" if others else "free some, or use a larger device"
    return f"Two models take {needed} with {name}, and {free}: {advice}."


def in_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.01 else "under 0.01 s"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.0f} MB"


def _numbers(folder: Path) -> int:
    """How many numbers the weights of a part have, by their headers."""
    try:
        files = [file for file in folder.iterdir() if WEIGHT_FILE.fullmatch(file.name)]
        entries = [entry for file in files for entry in read_header(file).entries.values()]
    except (OSError, ValueError):
        return 0
    return sum(math.prod(entry.shape) for entry in entries)
