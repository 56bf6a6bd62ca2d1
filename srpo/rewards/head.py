"""The small head that the LAION aesthetic predictor and ImageReward share: linear layers from a vector to a number.

Source: improved-aesthetic-predictor, which ImageReward took it from. Nothing lies between the layers but dropout, which
is for training; an identity keeps the published numbers of the layers.
"""

from __future__ import annotations

from torch import nn


def new_head(width: int) -> nn.Sequential:
    """The untrained head over vectors of that width; its layers are numbered as in the published files."""
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        nn.Linear(16, 1),
    )
