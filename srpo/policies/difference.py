"""The exact difference of two models' weights, half as long as a model in bfloat16, and turning one into the other.

A number's bits, read as an integer, count the numbers of its precision. What a tuning moved by few of them is kept as a
short integer that is added to the bits: one byte where a number has two. What moved further (a sign that changed, a
number near zero) is kept as its place and the exclusive or of its bits. Both ways undo to the very bits: nothing is
rounded. A weight for which that would be no shorter is kept as the exclusive or of all its bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = {2: torch.int16, 4: torch.int32}  # by the bytes of a number
SHORT = {2: torch.int8, 4: torch.int16}


@dataclass(frozen=True)
class Change:
    """What became of one weight; N numbers, E of which moved far."""

    steps: Tensor | None  # (N,) what is added to the bits, 0 for those that moved far
    places: Tensor  # (E,) where those are
    flips: Tensor  # (E,) the exclusive or of their bits; (N,) of all bits where there are no steps

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.steps, self.places, self.flips) if part is not None)

    def apply(self, weight: Tensor, *, undo: bool = False) -> None:
        """Turns the weight before into the weight after, in place; with `undo` the other way."""
        bits = _bits(weight)
        if self.steps is None:
            bits.bitwise_xor_(self.flips)
            return
        far = bits[self.places] ^ self.flips  # before anything is written: it takes memory
        if undo:
            bits.sub_(self.steps)
        else:
            bits.add_(self.steps)
        bits[self.places] = far


def change_of(before: Tensor, after: Tensor) -> Change | None:
    """What turns one weight into the other; None where they are the same, bit for bit.

    ValueError for other shapes or precisions, or a precision that is none of two or four bytes.
    """
    if before.shape != after.shape or before.dtype != after.dtype or before.itemsize not in BITS:
        raise ValueError(
            f"Two weights of one shape and precision of 2 or 4 bytes are needed, not {before.dtype} "
            f"{tuple(before.shape)} and {after.dtype} {tuple(after.shape)}."
        )
    ours, theirs = _bits(before.contiguous()), _bits(after.contiguous())
    if torch.equal(ours, theirs):
        return None
    short = SHORT[before.itemsize]
    limits = torch.iinfo(short)
    steps = theirs.long() - ours.long()
    far = (steps < limits.min) | (steps > limits.max)
    places = far.nonzero().flatten().int()  # no weight has 2^31 numbers
    flips = ours ^ theirs
    change = Change(steps.masked_fill_(far, 0).to(short), places, flips[places])
    return change if change.nbytes < flips.nbytes else Change(None, places[:0], flips)


@dataclass(frozen=True)
class Difference:
    """What turns one model's weights into another's."""

    changes: Mapping[str, Change]  # by the weight's name; what is not here is the same in both

    @classmethod
    def between(cls, before: Mapping[str, Tensor], after: Iterable[tuple[str, Tensor]]) -> Difference:
        """after: (name, weight) of each of the weights, on the same device; no more than one is looked at at a time."""
        changes = {}
        for name, weight in after:
            if (change := change_of(before[name], weight)) is not None:
                changes[name] = change
        return cls(changes)

    @property
    def nbytes(self) -> int:
        return sum(change.nbytes for change in self.changes.values())

    def apply(self, weights: Mapping[str, Tensor], *, undo: bool = False) -> None:
        """Turns all weights before into those after, in place. Where it fails, they are again what they were."""
        done: list[str] = []
        try:
            for name, change in self.changes.items():
                change.apply(weights[name], undo=undo)
                done.append(name)
        except BaseException:
            for name in done:
                self.changes[name].apply(weights[name], undo=not undo)
            raise


def _bits(weight: Tensor) -> Tensor:
    """The numbers' bits as integers, flat, in the same memory. RuntimeError for a weight that is not contiguous."""
    return weight.detach().view(BITS[weight.itemsize]).view(-1)
