"""From a reward's name to the reward: the one place that knows all of them."""

from __future__ import annotations

from pathlib import Path

import torch

from srpo.loading import one_at_a_time
from srpo.rewards.base import Reward
from srpo.rewards.catalogue import Named, read_name


@one_at_a_time
def load_reward(
    name: str | Path | Named,
    *,
    scale: float | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = True,
) -> Reward:
    """The reward of that name, frozen, in float32; a dual encoder is an EmbeddingReward.

    name: as `catalogue.read_name` explains.
    scale: what multiplies a dual encoder's cosine; None takes its card's, the unit its authors publish.
    ValueError, one sentence, for a reward that is unknown, missing, damaged or not what its name says; a missing one
    says how to get it.
    """
    named = name if isinstance(name, Named) else read_name(name)
    place = Path(named.place)
    if not place.exists() and named.kind in ("imagereward", "aesthetic", "aesthetic-v2.5", "hpsv3"):
        raise ValueError(f"{named.card.title} is not at {named.place}: {named.card.get}")
    if named.kind == "imagereward":
        from srpo.rewards.image_reward import ImageReward

        return ImageReward.from_published(place, device=device)
    if named.kind == "aesthetic":
        from srpo.rewards.aesthetic import AestheticReward

        return AestheticReward.from_published(place, device=device)
    if named.kind == "aesthetic-v2.5":
        from srpo.rewards.aesthetic import AestheticReward

        return AestheticReward.from_published_v25(place, device=device)
    if named.kind == "hpsv3":
        from srpo.rewards.hpsv3 import HPSv3Reward

        return HPSv3Reward.from_published(place, device=device)
    options = {"scale": named.card.scale if scale is None else scale, "device": device}
    options["local_files_only"] = local_files_only
    if named.kind in ("hpsv2", "hpsv2.1"):
        from srpo.rewards.hpsv2 import load_hpsv2

        return load_hpsv2(named.place, named.kind, preprocessing=named.preprocessing, **options)
    from srpo.rewards.clip import ClipReward

    own_name = None if named.kind == "clip" else named.kind  # a folder of CLIP is called by the folder's name
    return ClipReward.from_pretrained(named.place, name=own_name, **options)
