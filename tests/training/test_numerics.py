"""Small updates of bf16 weights: what plain rounding loses, and what rounding by chance keeps."""

import pytest
import torch

from srpo.training.config import TrainConfig
from srpo.training.numerics import StochasticAdamW, lost_share, make_optimizer, round_stochastically_


def parameter(values, dtype=torch.bfloat16):
    return torch.nn.Parameter(torch.as_tensor(values).to(dtype, copy=True))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rounding_by_chance_takes_a_neighbour_and_is_right_on_average():
    """1 + 2^-7 / 4 lies a quarter of the way from 1 to its bf16 neighbour 1 + 2^-7; and so below 0."""
    count, step = 40_000, 2.0**-7
    for sign in (1.0, -1.0):
        target = torch.empty(count, dtype=torch.bfloat16)
        round_stochastically_(target, torch.full((count,), sign * (1 + step / 4)), generator())
        assert set(target.tolist()) == {sign, sign * (1 + step)}
        share = (target != sign).float().mean().item()
        assert share == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / count) ** 0.5)


def test_what_bf16_holds_exactly_stays():
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-120, 3e38]).bfloat16()
    target = torch.empty_like(values)
    round_stochastically_(target, values.float(), generator())
    assert torch.equal(target, values)


def test_the_lost_share_counts_weights_that_a_step_cannot_move():
    """Half the spacing of bf16 is 2^-8 from 1 to 2 and 2^-14 at 2^-6: lr 1e-3 moves only the second."""
    weights = parameter([1.0, 1.5, 2.0**-6, 2.0**-6])
    assert lost_share([weights], 1e-3) == 0.5
    assert lost_share([weights], 1e-2) == 0.0
    assert lost_share([parameter([1.0], torch.float32)], 1e-6) == 0.0


def steps(optimizer, weight, gradients):
    weight.grad_dtype = gradients[0].dtype
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()


def test_in_float32_it_is_torchs_adamw():
    gradients = [torch.randn(50, generator=generator(number)) for number in range(5)]
    start = torch.randn(50, generator=generator(9)).bfloat16()
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    exact = parameter(start, torch.float32)
    steps(torch.optim.AdamW([exact], **settings), exact, gradients)
    ours = parameter(start)
    ours.grad_dtype, one = torch.float32, StochasticAdamW([ours], **settings)
    ours.grad = gradients[0]
    moved = one._moved(ours, one.param_groups[0])
    reference = parameter(start, torch.float32)
    steps(torch.optim.AdamW([reference], **settings), reference, gradients[:1])
    torch.testing.assert_close(moved, reference.detach(), rtol=1e-6, atol=1e-7)
    means = torch.zeros(50)
    for seed in range(64):  # each rounds five times; the mean of many comes near the exact path
        ours = parameter(start)
        steps(StochasticAdamW([ours], **settings, seed=seed), ours, gradients)
        means += ours.detach().float() / 64
    assert (means - exact.detach()).abs().max() < 0.01
    assert (means - exact.detach()).abs().mean() < 0.002


def test_small_steps_arrive_where_plain_rounding_stands_still():
    """400 steps of 1e-4 down from 1: float32 arrives at 0.96, rounding to the nearest never leaves 1."""
    gradients = [torch.ones(2000)] * 400
    by_chance, nearest = parameter(torch.ones(2000)), parameter(torch.ones(2000))
    steps(StochasticAdamW([by_chance], lr=1e-4, weight_decay=0.0), by_chance, gradients)
    steps(torch.optim.AdamW([nearest], lr=1e-4, weight_decay=0.0), nearest, [g.bfloat16() for g in gradients])
    assert by_chance.float().mean().item() == pytest.approx(0.96, abs=0.002)
    assert (nearest == 1).all()


def test_the_chance_is_a_function_of_seed_and_step():
    def run(seed, stop_after=None):
        weight = parameter(torch.ones(100))
        optimizer = StochasticAdamW([weight], lr=1e-3, seed=seed)
        steps(optimizer, weight, [torch.ones(100)] * 4)
        return weight.detach().clone()

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_plain_bf16_is_refused_at_a_low_rate_with_the_reason_and_taken_at_a_high_one():
    weights = [parameter(torch.randn(1000, generator=generator()) * 0.02)]
    low = TrainConfig(numerics="bf16", lr=5e-6)
    with pytest.raises(ValueError, match=r"an update at lr 5e-06 leaves \d+% of the weights where they are"):
        make_optimizer(weights, low)
    assert isinstance(make_optimizer(weights, TrainConfig(numerics="bf16", lr=1e-3)), torch.optim.AdamW)
    assert isinstance(make_optimizer(weights, TrainConfig(numerics="bf16_stochastic", lr=5e-6)), StochasticAdamW)


def test_gradients_of_bf16_weights_add_up_in_float32():
    """256 times 1 and then 1: in bf16 the last is lost."""
    weight = parameter(torch.zeros(1))
    make_optimizer([weight], TrainConfig(numerics="bf16_stochastic"))
    for size in (256.0, 1.0):
        (weight.float() * size).sum().backward()
    assert (weight.grad.dtype, weight.grad.item()) == (torch.float32, 257.0)


def test_weights_of_another_precision_than_asked_for_are_refused():
    with pytest.raises(ValueError, match=r"weights are torch\.bfloat16; numerics=float32 trains torch\.float32"):
        make_optimizer([parameter([1.0])], TrainConfig())
    with pytest.raises(ValueError, match=r"weights are torch\.float32; numerics=bf16_stochastic trains"):
        make_optimizer([parameter([1.0], torch.float32)], TrainConfig(numerics="bf16_stochastic"))
    with pytest.raises(ValueError, match="need no stochastic rounding"):
        TrainConfig(weights="lora", numerics="bf16_stochastic")
