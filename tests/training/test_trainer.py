"""The trainer on a tiny random model: what an update does, and what is kept of it."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

from srpo.objectives.base import Loss
from srpo.objectives.direct_align import DirectAlign
from srpo.policies.checkpoints import load_transformer
from srpo.policies.flux import FluxPolicy
from srpo.rewards.clip import ClipReward
from srpo.training.assemble import assemble, cut_prompts
from srpo.training.config import OfflineConfig, ValidationConfig
from srpo.training.order import prompts_of_update, update_generator
from srpo.training.presets import PRESETS, preset, studio
from srpo.training.trainer import NonFiniteError, Trainer
from tests.tiny import tiny_clip, tiny_flux_pipeline

PROMPTS = ["a red ball", "a blue house", "a green tree", "a yellow boat", "a flower"]


def small(config, **changes):
    """A preset's settings at a size that a test can afford; everything else as it is."""
    objective = replace(config.objective, height=32, width=32, rollout_steps=3)
    least = {"prompts_per_update": 2, "updates": 2, "max_sequence_length": 32, "validation": ValidationConfig()}
    return replace(config, objective=objective, **{**least, **changes})


def trainer_of(config):
    """A new trainer of the tiny model, and its transformer."""
    policy = FluxPolicy(tiny_flux_pipeline(), max_sequence_length=config.max_sequence_length)
    reward = ClipReward(*tiny_clip(), scale=config.reward_scale)
    trainer = Trainer(policy, DirectAlign(config.objective, config.signal), reward, PROMPTS, config)
    return trainer, policy.transformer


@pytest.fixture
def on_disk(flux_folder, clip_folder, tmp_path):
    """Changes that make a configuration load the tiny model."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return {
        "model": str(flux_folder),
        "reward": str(clip_folder),
        "prompts": str(prompts),
        "device": "cpu",
        "offline": OfflineConfig(),
    }


def weights(transformer):
    return torch.cat([value.flatten() for value in transformer.state_dict().values()]).clone()


def without_seconds(records):
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("name", PRESETS)
def test_two_updates_of_each_preset_move_what_is_trained_and_log_every_branch(name, on_disk):
    config = small(preset(name), **on_disk)
    trainer = assemble(config)
    before = trainer.weights()
    records = list(trainer.updates())
    assert [record.update for record in records] == [1, 2]
    assert any(not torch.equal(before[name], value) for name, value in trainer.weights().items())
    assert all(".lora_" in name for name in before) == (config.weights == "lora")
    branches = ("denoise", "inversion") if config.objective.inversion else ("denoise",)
    of_branch = ("difference", "loss", "negative", "plain", "positive", "reward", "shortened", "sigma", "sigma_target")
    logged = [f"{branch}/{name}" for branch in branches for name in of_branch]
    assert list(records[0].scores) == [*logged, "clip_norm", "clipped"]
    for record in records:
        mean_loss = sum(record.scores[f"{branch}/loss"] for branch in branches) / len(branches)
        assert record.loss == pytest.approx(mean_loss, rel=1e-5, abs=1e-6)
        assert record.scores["clipped"] == (record.grad_norm > config.clip_norm)


# Losses and gradient norms of four updates, as they were at lr 4e-5 before both branches shared a forward pass.
CURVES = {
    "studio": [(0.0142227, 0.0548694), (0.0426084, 0.1371861), (0.0604069, 0.0239498), (0.0244234, 0.0839605)],
    "plain": [
        (-2.69711e-05, 0.1069988),
        (-8.942783e-4, 0.1252236),
        (6.315112e-05, 0.0585774),
        (5.531237e-4, 0.1008171),
    ],
}


@pytest.mark.parametrize("name", CURVES)
def test_the_seeded_curve_of_a_preset_stays_what_it_was(name):
    trainer, _ = trainer_of(small(preset(name), updates=4, lr=4e-5))
    for record, (loss, norm) in zip(trainer.updates(), CURVES[name], strict=True):
        assert record.loss == pytest.approx(loss, abs=2e-6)
        assert record.grad_norm == pytest.approx(norm, rel=2e-5)


def test_the_first_step_is_adamw_of_the_clipped_gradient():
    """At step 1 both moments are the gradient's own: w <- w (1 - lr wd) - lr g / (|g| + eps), g clipped to norm 0.1."""
    config = small(studio())
    trainer, transformer = trainer_of(config)
    before = weights(transformer)
    record = trainer.run_update()
    gradient = torch.cat([weight.grad.flatten() for weight in trainer.parameters])
    assert gradient.norm().item() == pytest.approx(min(record.grad_norm, config.clip_norm), rel=1e-4)
    expected = before * (1 - config.lr * config.weight_decay) - config.lr * gradient / (gradient.abs() + config.eps)
    torch.testing.assert_close(weights(transformer), expected, atol=1e-8, rtol=1e-6)


def test_a_seed_repeats_a_run_bit_for_bit_and_another_does_not():
    runs = []
    for seed in (0, 0, 1):
        trainer, transformer = trainer_of(small(studio(), seed=seed))
        runs.append((without_seconds(trainer.updates()), weights(transformer)))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert runs[0][0] != runs[2][0]


def test_training_lowers_the_loss_of_draws_it_has_not_seen():
    """One generator's noise and levels, never drawn in training, before and after eight updates at a high rate."""
    config = small(studio(), lr=1e-3)
    trainer, _ = trainer_of(replace(config, updates=8))

    def loss_now():
        generator = update_generator(99, 1)
        cond = trainer.policy.encode_prompts(PROMPTS)
        rollout = trainer.objective.rollout(trainer.policy, PROMPTS, cond, generator)
        values = trainer.objective.losses(trainer.policy, rollout, trainer.reward, generator, 1)
        return sum(loss.value.item() for loss in values)

    before = loss_now()
    list(trainer.updates())
    assert loss_now() < before


def test_prompts_come_in_shuffled_passes_that_depend_on_seed_and_update_alone():
    updates = [prompts_of_update(PROMPTS, 7, update, 3) for update in range(1, 6)]  # 15 prompts: three passes of five
    row = [prompt for prompts in updates for prompt in prompts]
    for start in (0, 5, 10):
        assert sorted(row[start : start + 5]) == sorted(PROMPTS)
    assert row[:5] != row[5:10]
    assert prompts_of_update(PROMPTS, 7, 4, 3) == updates[3]
    assert len(prompts_of_update(PROMPTS, 7, 1, 12)) == 12  # more than there are


def test_the_generator_is_a_function_of_seed_and_update():
    def draw(seed, update):
        return torch.rand(2, generator=update_generator(seed, update)).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*pair)) for pair in [(1, 2), (2, 1), (1, 3), (12, 0), (0, 12)]}) == 5


class Spoiled:
    """An objective whose second update spoils what is named."""

    def __init__(self, objective, what):
        self.objective, self.rollout, self.what = objective, objective.rollout, what

    def losses(self, policy, rollout, reward, generator, update):
        for loss in self.objective.losses(policy, rollout, reward, generator, update):
            if update == 1:
                yield loss
            elif self.what == "loss":
                yield Loss(loss.value * float("nan"), loss.record)
            elif self.what == "score":
                yield Loss(loss.value, loss.record | {"denoise/reward": float("inf")})
            else:  # the gradient of sqrt at 0 is infinite, and 0 times it NaN
                yield Loss(loss.value + (policy.parameters()[0] * 0).abs().sqrt().sum(), loss.record)


@pytest.mark.parametrize(
    ("what", "message"), [("loss", "the loss"), ("score", "denoise/reward"), ("gradient", "gradient")]
)
def test_nan_or_inf_stops_before_the_update_and_keeps_the_last_good_weights(what, message):
    config = small(studio())
    trainer, transformer = trainer_of(config)
    trainer.objective = Spoiled(trainer.objective, what)
    with pytest.raises(NonFiniteError, match=rf"{message}.* became (nan|inf) in update 2 .*prompts \[") as caught:
        list(trainer.updates())
    assert caught.value.update == 2
    assert caught.value.prompts == prompts_of_update(PROMPTS, config.seed, 2, 2)
    good, good_transformer = trainer_of(config)
    good.run_update()
    assert torch.equal(weights(transformer), weights(good_transformer))
    assert trainer.update == 1


def test_half_precision_weights_are_refused_where_float32_is_asked_for():
    config = small(studio())
    policy = FluxPolicy(tiny_flux_pipeline())
    policy.transformer.bfloat16()
    with pytest.raises(ValueError, match=r"weights are torch\.bfloat16; numerics=float32 trains torch\.float32"):
        Trainer(policy, DirectAlign(config.objective, config.signal), None, PROMPTS, config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weights": "lora"},
        {"weights": "lora", "numerics": "bf16"},
        {"numerics": "bf16_stochastic"},
        {"numerics": "autocast", "gradient_checkpointing": True, "checkpoint_decode": True},
        {"updates_per_rollout": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "plain",
)
def test_weights_and_state_take_up_a_run_bit_for_bit(changes, on_disk):
    """Three updates in a row, against one, its state put into a new trainer, and two more there."""
    config = small(studio(), updates=3, **on_disk, **changes)
    straight = assemble(config)
    records = list(straight.updates())

    first = assemble(config)
    first.run_update()
    kept, state = first.weights(), first.state_dict()
    first.run_update()  # what was kept must not move with it
    second = assemble(config)
    second.load_weights(kept)
    second.load_state_dict(state)
    assert without_seconds(second.updates()) == without_seconds(records[1:])
    expected = straight.weights()
    assert all(torch.equal(value, expected[name]) for name, value in second.weights().items())


def test_a_state_of_another_seed_is_refused():
    trainer, _ = trainer_of(small(studio()))
    other, _ = trainer_of(small(studio(), seed=5))
    with pytest.raises(ValueError, match="made with seed 0, not 5"):
        other.load_state_dict(trainer.state_dict())


def test_updates_that_share_a_rollout_sample_once_and_draw_new_levels():
    trainer, _ = trainer_of(small(studio(), updates=4, updates_per_rollout=2))
    rollouts, sample = [], trainer.objective.rollout
    trainer.objective.rollout = lambda *arguments: rollouts.append(sample(*arguments)) or rollouts[-1]
    records = list(trainer.updates())
    assert len(rollouts) == 2
    assert records[0].scores["denoise/sigma"] != records[1].scores["denoise/sigma"]
    assert rollouts[1].prompts == prompts_of_update(PROMPTS, 0, 2, 2)  # the second rollout's, not the third update's


def test_a_lora_run_leaves_the_file_that_the_loader_merges(on_disk, tmp_path):
    trainer = assemble(small(studio(), weights="lora", lr=1e-2, **on_disk))
    list(trainer.updates())
    path = tmp_path / trainer.weights_name
    save_file(trainer.weights(), path, metadata=trainer.weights_metadata)
    base = tiny_flux_pipeline()
    merged = FluxPolicy(base, max_sequence_length=32).with_transformer(load_transformer(path, base.transformer))
    cond, x_t = merged.encode_prompts(PROMPTS[:1]), torch.randn(1, 16, 4, 4)
    with torch.no_grad():
        ours = trainer.policy.velocity(x_t, 0.5, cond, 3.5)
        torch.testing.assert_close(merged.velocity(x_t, 0.5, cond, 3.5), ours, atol=1e-5, rtol=1e-4)


def test_texts_are_encoded_once_for_all_updates(on_disk, monkeypatch):
    """Five prompts in six updates of two; three texts of each for the reward, with words that take turns."""
    trainer = assemble(small(studio(), updates=6, **on_disk))
    seen, rewarded = [], []
    encode, embed = FluxPipeline.encode_prompt, trainer.reward._encode_text
    monkeypatch.setattr(
        FluxPipeline, "encode_prompt", lambda pipe, **kw: seen.append(kw["prompt"]) or encode(pipe, **kw)
    )
    monkeypatch.setattr(trainer.reward, "_encode_text", lambda text: rewarded.append(text) or embed(text))
    list(trainer.updates())
    assert sorted(seen) == sorted(PROMPTS)
    assert len(rewarded) == len(set(rewarded))


def test_prompts_that_the_model_or_the_reward_cuts_off_are_announced(on_disk):
    trainer = assemble(small(studio(), **on_disk))
    assert cut_prompts(trainer) == []
    trainer.prompts = [*PROMPTS, "a red ball " * 40]
    model, reward = cut_prompts(trainer)
    assert model == "the model reads 32 tokens; 1 of 6 prompts are longer and cut off"
    assert reward.startswith("the reward, with its control word, reads 77 tokens; 1 of 6")


def test_prompts_that_do_not_divide_among_the_processes_are_refused():
    from srpo.training.distributed import World

    config = small(studio())
    policy = FluxPolicy(tiny_flux_pipeline())
    with pytest.raises(ValueError, match="2 prompts per update cannot be shared by 3 processes"):
        Trainer(policy, DirectAlign(config.objective, config.signal), None, PROMPTS, config, world=World(0, 3))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"device": "cuda"}, "no CUDA device is available here: set device=cpu"),
        ({"prompts": "nowhere.txt"}, "no prompts in 'nowhere.txt'"),
        ({"offline": OfflineConfig("nowhere")}, "there is no folder nowhere"),
        ({"optimizer": "adamw8bit"}, "optimizer=adamw8bit needs CUDA"),
        ({"validation": ValidationConfig(every=1, maximise="photo")}, "no score 'photo' here: choose among saturation"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence_before_anything_is_trained(wrong, message, on_disk):
    if wrong.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ValueError, match=message):
        assemble(small(studio(), **{**on_disk, **wrong}))
