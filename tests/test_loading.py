"""Loads of several threads at once, as a page and a training in its process make them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import torch

from srpo.loading import one_at_a_time
from srpo.policies.load import load_policy
from srpo.rewards.clip import ClipReward


def test_models_loaded_at_once_all_have_their_weights(flux_folder, clip_folder):
    """Without the turns most of these come out on the meta device, or with the classes of torch changed for good."""
    loads = [lambda: load_policy(flux_folder).transformer, lambda: ClipReward.from_pretrained(clip_folder).model]
    with ThreadPoolExecutor(8) as threads:
        models = list(threads.map(lambda load: load(), islice(cycle(loads), 32)))
    assert not any(weight.is_meta for model in models for weight in model.state_dict().values())
    for model, first in zip(models, cycle(models[:2]), strict=False):
        assert all(torch.equal(weight, first.state_dict()[name]) for name, weight in model.state_dict().items())
    assert not torch.nn.Linear(1, 1).weight.is_meta and torch.get_default_dtype() == torch.float32


def test_what_builds_a_model_may_have_its_parts_built():
    part = one_at_a_time(lambda: 1)
    assert one_at_a_time(lambda: part() + part())() == 2


def test_nobody_is_advised_to_install_what_nothing_here_wants():
    code = "import srpo.policies.flux, diffusers; diffusers.FluxPipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torchvision" not in done.stderr
