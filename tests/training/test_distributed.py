"""Two gloo processes on the CPU against one: DDP for a LoRA, FSDP2 for full weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from srpo.runs import RunFolder
from srpo.training.assemble import assemble
from srpo.training.config import ValidationConfig, config_dict
from srpo.training.distributed import World, like, session, whole, world
from srpo.training.presets import studio
from tests.app.serving import PATIENCE_S
from tests.training.ranks import train_part

PROMPTS = ["a red ball", "a blue house", "a green tree", "a yellow boat", "a flower"]


@pytest.fixture
def config(flux_folder, clip_folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    config = studio()
    return replace(
        config,
        model=str(flux_folder),
        reward=str(clip_folder),
        prompts=str(prompts),
        max_sequence_length=16,
        prompts_per_update=4,
        updates_per_rollout=2,
        updates=3,
        lr=1e-3,
        eps=1e-3,  # with the usual 1e-8 a gradient of nothing but rounding moves a weight as far as any other
        validation=ValidationConfig(),
        objective=replace(config.objective, height=32, width=32, rollout_steps=2, shared_noise=True),
    )


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_two_processes_train_as_one_does(weights, config, tmp_path):
    """Losses, gradient norms, levels and weights after three updates, and after a resume before the third."""
    config = replace(config, weights=weights)
    alone = assemble(config)
    records = list(alone.updates())
    torch.multiprocessing.spawn(train_part, (2, free_port(), config, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))

    for told in (first, second):
        assert told["agree"] == (True, False)
        for (loss, norm, sigma), record in zip(told["records"], [*records, records[2]], strict=True):
            assert loss == pytest.approx(record.loss, abs=1e-5)
            assert norm == pytest.approx(record.grad_norm, rel=1e-4, abs=1e-6)
            assert sigma == pytest.approx(record.scores["denoise/sigma"], rel=1e-6)  # the mean over all prompts
        assert torch.equal(told["noise"][0], first["noise"][0])
        for after in ("weights", "resumed"):
            assert told[after].keys() == alone.weights().keys()
            difference = max((told[after][name] - value).abs().max().item() for name, value in alone.weights().items())
            assert difference < 1e-5
        assert all(torch.equal(told["weights"][name], value) for name, value in told["resumed"].items())


@pytest.mark.slow
@pytest.mark.parametrize("told", ["launcher", "main process"])
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_two_processes_save_together_and_exit_with_0_whoever_is_told_to_stop(told, weights, config, tmp_path):
    """torchrun's own status is 0 where every process's is. A launcher that is told itself says 1 all the same."""
    run = RunFolder(tmp_path / "run")
    settings = replace(config, weights=weights, updates=100_000)
    options = [f"--set={name}={json.dumps(value)}" for name, value in config_dict(settings).items()]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        job = subprocess.Popen(
            [*launcher, "-m", "srpo.training", *options, f"--out={run.path}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SRPO_RUNTIME_DIR": str(tmp_path / "locks")},
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(run.progress()) < 2:
            assert job.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        os.kill(job.pid if told == "launcher" else run.job().pid, signal.SIGTERM)
        status = job.wait(PATIENCE_S)
    finally:
        job.terminate()
        job.wait()
    assert status == (1 if told == "launcher" else 0), log.read_text()
    state = run.state()
    assert (state.status, state.message) == ("stopped", ""), log.read_text()
    assert state.update == run.progress()[-1].update == run.checkpoint_updates()[-1] >= 2
    assert f"stopped: go on with --resume {run.path}" in log.read_text()


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(0, 1)
    with session("cpu") as here:
        assert here.is_main and here.agree(True) and not here.agree(False)
        assert here.mean({"a": 0.1}) == {"a": 0.1}
        assert here.gather("x") == ["x"]
    assert not torch.distributed.is_initialized()


def test_what_is_kept_of_a_run_is_copied_to_its_depth():
    tensor = torch.ones(2)
    tree = {"a": [tensor, 1], "b": (tensor.t(), "text")}
    copied = whole(tree)
    tensor.zero_()
    assert copied["a"][0].tolist() == [1, 1] and copied["b"][0].tolist() == [1, 1]
    assert (copied["a"][1], copied["b"][1]) == (1, "text")
    assert like(tensor, torch.ones(3)) is tensor
