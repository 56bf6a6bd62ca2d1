"""Checkpoints: what is saved comes back to the bit, and what is not this run's is refused by name."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
import torch

from srpo.training import checkpoints
from srpo.training.checkpoints import (
    OPTIMIZER_NAME,
    TRAINER_NAME,
    SaveError,
    _joined,
    _split,
    checkpoint_bytes,
    in_bytes,
    is_whole,
    load_checkpoint,
    prune,
    require_disk_space,
    save_checkpoint,
    snapshot,
)
from tests.training.small import new_run, small_config, small_trainer

FILES = ("transformer.safetensors", OPTIMIZER_NAME, TRAINER_NAME, "manifest.json")


@pytest.fixture
def config():
    return small_config()


@pytest.fixture
def run(tmp_path, config):
    """A run with checkpoints of its updates 1 and 2."""
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config)
    for _ in range(2):
        trainer.run_update()
        save_checkpoint(run, snapshot(trainer))
    return run


def test_a_checkpoint_brings_back_weights_optimiser_and_place_to_the_bit(run, config):
    trainer, expected = small_trainer(config), small_trainer(config)
    assert load_checkpoint(run, trainer) == checkpoints.Loaded(2)
    expected.run_update(), expected.run_update()
    for _ in range(2):  # what it does next is the same as well
        assert trainer.update == expected.update
        for name, value in expected.weights().items():
            assert torch.equal(trainer.weights()[name], value)
        assert repr(trainer.state_dict()) == repr(expected.state_dict())
        trainer.run_update(), expected.run_update()


def test_its_files_are_named_and_the_manifest_is_of_all_others(run):
    folder = run.checkpoint(2)
    assert {file.name for file in folder.iterdir()} == set(FILES)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.keys() == set(FILES[:3])
    assert manifest[TRAINER_NAME]["bytes"] == (folder / TRAINER_NAME).stat().st_size
    assert run.checkpoint_weights(2) == folder / "transformer.safetensors"


def test_any_state_comes_back_with_its_types():
    state = {
        "a": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "b": {0: (1, 0.1), "c": [None, True, torch.tensor(2.5)]},
        "tensor": "not one",
        "items": {"tuple": ()},
    }
    tensors, rest = _split(state)
    back = _joined(json.loads(json.dumps(rest)), tensors)
    assert torch.equal(back.pop("a"), state.pop("a"))
    assert repr(back) == repr(state)


def test_without_a_checkpoint_a_run_begins_at_the_start(tmp_path, config):
    trainer = small_trainer(config)
    before = trainer.weights()
    assert load_checkpoint(new_run(tmp_path / "new", config), trainer).update == 0
    assert all(torch.equal(value, before[name]) for name, value in trainer.weights().items())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
def test_a_spoiled_checkpoint_is_refused_by_name_and_the_older_one_used(name, how, run, config):
    file = run.checkpoint(2) / name
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[:-2])
    else:
        content[-10] ^= 1
        file.write_bytes(content)
    assert not is_whole(run.checkpoint(2))
    loaded = load_checkpoint(run, small_trainer(config))
    assert loaded.update == 1
    if (name, how) == ("manifest.json", "missing"):  # then it was never there: nothing comes without its manifest
        assert loaded.passed_over == []
    else:
        [reason] = loaded.passed_over
        named = TRAINER_NAME if (name, how) == ("manifest.json", "changed") else name  # a hash in it was changed
        assert "update-000002 is refused" in reason and named in reason


def test_a_checkpoint_of_another_model_is_refused_and_the_older_one_used(run, config, tmp_path):
    other, wider = new_run(tmp_path / "other", config), small_trainer(config, width=5)
    wider.update = 2
    shutil.rmtree(run.checkpoint(2))
    shutil.copytree(save_checkpoint(other, snapshot(wider)), run.checkpoint(2))
    loaded = load_checkpoint(run, small_trainer(config))
    assert loaded.update == 1
    assert "belongs to another model: bias is (5,) there and (4,) here" in loaded.passed_over[0]


def test_a_checkpoint_under_another_s_name_is_refused(run, config):
    run.checkpoint(2).rename(run.checkpoint(3))
    loaded = load_checkpoint(run, small_trainer(config))
    assert loaded.update == 1
    assert "it says that it is update 2" in loaded.passed_over[0]


def test_changed_settings_are_refused_with_their_differences_listed(run, config):
    changed = replace(config, lr=2e-2, seed=5, updates=9, checkpoint_every=3)
    with pytest.raises(ValueError, match=r"lr was 0\.01 and is 0\.02 now; seed was 0 and is 5 now") as caught:
        load_checkpoint(run, small_trainer(changed))
    assert "updates was" not in str(caught.value)  # that one may change


def test_where_none_can_be_used_all_are_named_and_nothing_is_begun_anew_unasked(run, config):
    for update in (1, 2):
        (run.checkpoint(update) / TRAINER_NAME).write_text("{")
    with pytest.raises(ValueError, match=r"update-000002 is refused.*update-000001 is refused.*--from-update 0"):
        load_checkpoint(run, small_trainer(config))
    assert load_checkpoint(run, small_trainer(config), from_update=0).update == 0


def test_the_one_that_is_asked_for_is_used_or_refused_never_another(run, config):
    assert load_checkpoint(run, small_trainer(config), from_update=1).update == 1
    (run.checkpoint(1) / TRAINER_NAME).write_text("{")
    with pytest.raises(ValueError, match="update-000001 is refused"):
        load_checkpoint(run, small_trainer(config), from_update=1)


def test_a_spoiled_checkpoint_is_written_anew_and_a_whole_one_left_alone(run, config):
    trainer = small_trainer(config)
    load_checkpoint(run, trainer)
    inode = run.checkpoint(2).stat().st_ino
    save_checkpoint(run, snapshot(trainer))
    assert run.checkpoint(2).stat().st_ino == inode
    (run.checkpoint(2) / TRAINER_NAME).write_text("{")
    save_checkpoint(run, snapshot(trainer))
    assert is_whole(run.checkpoint(2))


def test_the_last_two_the_best_and_the_kept_ones_stay(tmp_path, config):
    run, trainer = new_run(tmp_path / "run", config), small_trainer(config)
    for trainer.update in range(1, 7):
        save_checkpoint(run, snapshot(trainer))
    run.keep(1)
    prune(run, best=3)
    assert run.checkpoint_updates() == [1, 3, 5, 6]
    prune(run, best=None)
    assert run.checkpoint_updates() == [1, 5, 6]


Usage = namedtuple("Usage", "total used free")


def test_too_little_space_for_one_is_said_with_how_much_it_takes(run, config, monkeypatch):
    trainer = small_trainer(config)
    load_checkpoint(run, trainer)
    trainer.run_update()
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(SaveError, match=r"update 3 .* full: it needs 1\.0 MB and 1 kB are free; .*update 2"):
        save_checkpoint(run, snapshot(trainer))
    assert run.checkpoint_updates() == [1, 2]
    assert {file.name for file in run.checkpoints.iterdir()} == {"update-000001", "update-000002"}


def test_the_disk_is_measured_against_the_number_of_parameters(tmp_path, monkeypatch):
    """1,000 float32 weights: 4 bytes each and 8 of moments, three checkpoints at once, and the finished file."""
    weights = [torch.nn.Parameter(torch.zeros(1000))]
    one = 12_000 + checkpoints.SLACK_BYTES
    assert checkpoint_bytes(weights) == one
    for keeps_best, count in ((False, 3), (True, 4)):
        needed = count * one + 4_000
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path, free=needed: Usage(0, 0, free))
        require_disk_space(tmp_path / "new" / "run", weights, keeps_best=keeps_best)
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path, free=needed - 1: Usage(0, 0, free))
        with pytest.raises(ValueError, match=rf"{count} checkpoints of 1\.1 MB .* MB free: free some space"):
            require_disk_space(tmp_path / "new" / "run", weights, keeps_best=keeps_best)


def test_bytes_are_told_in_words():
    told = [in_bytes(count) for count in (0, 999, 1000, 2_345_678, 95_600_000_000, 10**16)]
    assert told == ["0 bytes", "999 bytes", "1 kB", "2.3 MB", "95.6 GB", "10000.0 TB"]
