"""Faster products and kept memory: the same numbers within rounding, and fewer pages fetched anew."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from srpo.training import cpu
from srpo.training.assemble import assemble
from srpo.training.presets import studio
from tests.training.test_trainer import on_disk, small  # noqa: F401 a fixture

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no such operator"
)


def pair_of_layers(bias=True):
    """The same layer twice, by torch and by oneDNN."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(24, 40, bias=bias), nn.Linear(24, 40, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    cpu.speed_up_products(ours)
    return ours, theirs


def gradients(layer, x):
    """Output and all gradients of a random sum of outputs."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return [out.detach(), x.grad, *(weight.grad for weight in layer.parameters())]


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x", [torch.randn(5, 24), torch.randn(2, 3, 7, 24), torch.randn(24, 9).t()], ids=len)
def test_output_and_gradients_are_those_of_torchs_layer_within_rounding(x, bias):
    ours, theirs = pair_of_layers(bias)
    for own, expected in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(own, expected, atol=2e-6, rtol=2e-6)


@needs_onednn
def test_a_frozen_layer_passes_gradients_on_and_keeps_no_input_for_later():
    ours, theirs = (layer.requires_grad_(False) for layer in pair_of_layers())
    x = torch.randn(5, 24)
    torch.testing.assert_close(gradients(ours, x)[1], gradients(theirs, x)[1], atol=2e-6, rtol=2e-6)
    assert ours.weight.grad is None
    assert ours(x.requires_grad_()).grad_fn.saved_tensors[0] is None


def test_other_precisions_go_torchs_way_and_names_stay():
    ours, theirs = (layer.bfloat16() for layer in pair_of_layers())
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert isinstance(ours, nn.Linear)


@needs_onednn
@pytest.mark.parametrize("weights", ["full", "lora"])
def test_an_update_with_faster_products_is_the_same_update(weights, on_disk, monkeypatch):  # noqa: F811
    config = replace(small(studio(), **on_disk), weights=weights)
    records, layers = [], []
    for fast in (False, True):
        monkeypatch.setattr(cpu, "has_fast_products", lambda fast=fast: fast)
        trainer = assemble(config)
        layers.append(sum(type(layer) is cpu.OneDnnLinear for layer in trainer.policy.transformer.modules()))
        records.append(trainer.run_update())
    assert layers[0] == 0 < layers[1]
    assert records[1].loss == pytest.approx(records[0].loss, abs=2e-6)
    assert records[1].grad_norm == pytest.approx(records[0].grad_norm, rel=2e-5)


PAGES = """
import resource, sys, torch
from srpo.training.cpu import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def fault():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [torch.zeros(2**21) for _ in range(4)]  # 8 MB each
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fault()
print(fault())
"""


def test_freed_memory_is_used_again_without_fetching_its_pages_anew():
    def faults(mode):
        return subprocess.run([sys.executable, "-c", PAGES, mode], capture_output=True, text=True, check=False)

    kept = faults("keep")
    if kept.returncode == 3:
        pytest.skip("this C library cannot be told to keep memory")
    anew = int(faults("default").stdout)
    if not anew:
        pytest.skip("this system gives huge pages: hardly one is fetched anew whatever is kept")
    assert int(kept.stdout) < 0.1 * anew
