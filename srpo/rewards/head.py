"""The small head of the aesthetic predictors and of ImageReward: linear layers from a vector to a number.

Source: improved-aesthetic-predictor, which the others took it from. Nothing lies between the layers but dropout, which
is for training; an identity keeps the published numbers of the layers.
"""

from __future__ import annotations

from torch import nn


def new_head(width: int, *, has_last_dropout: bool = False) -> nn.Sequential:
    """The untrained head over vectors of that width; its layers are numbered as in the published files.

    has_last_dropout: Aesthetic v2.5 was trained with dropout before the last layer as well, so that one's number is 8.
    """
    return nn.Sequential(
        nn.Linear(width, 1024),
        nn.Identity(),
        nn.Linear(1024, 128),
        nn.Identity(),
        nn.Linear(128, 64),
        nn.Identity(),
        nn.Linear(64, 16),
        *([nn.Identity()] if has_last_dropout else []),
        nn.Linear(16, 1),
    )
