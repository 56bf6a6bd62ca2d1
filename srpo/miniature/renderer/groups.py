"""Drawing that differs by kind (place, subject, style): each kind draws its own scenes, in one go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw_by_group(keys: Sequence[str], draw: Callable[[str, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `draw(key, positions)` returns for each group of equal keys, put together in the order of `keys`.

    Every returned tensor has the group's scenes along its first axis.
    """
    groups = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    parts = [draw(key, torch.tensor(where)) for key, where in groups.items()]
    order = torch.argsort(torch.tensor([position for where in groups.values() for position in where]))
    return tuple(torch.cat(values)[order] for values in zip(*parts, strict=True))
