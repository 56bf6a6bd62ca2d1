"""Tiny weights laid out as the real ones are, and the app in a process of its own over them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.arguments import as_arguments
from app.state import Options

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300  # for any one thing that is waited for: a ceiling for a machine that is busy, and no more


def make_options(root: Path) -> Options:
    """Options over tiny weights written below `root`: a pipeline, SRPO weights, a reward, a judge and one run."""
    import torch

    from srpo.miniature.judge import new_judge
    from srpo.policies.checkpoints import save_transformer
    from srpo.runs import WEIGHTS_NAME, RunFolder
    from tests.tiny import save_tiny_flux, tiny_clip, tiny_flux_pipeline

    save_tiny_flux(root / "flux")
    save_transformer(tiny_flux_pipeline(seed=1).transformer, root / "srpo.safetensors", torch.float32)
    tiny_clip(root / "reward")
    new_judge().save_pretrained(root / "judge")
    run = RunFolder.create(root / "runs" / "first-run", {})
    save_transformer(tiny_flux_pipeline(seed=2).transformer, run.path / WEIGHTS_NAME, torch.float32)
    return Options(
        model=root / "flux",
        srpo=root / "srpo.safetensors",
        reward=root / "reward",
        judge=root / "judge",
        runs=root / "runs",
        studies=root / "studies",
    )


@contextmanager
def served(
    options: Options | None, log: Path, program: tuple[str, ...] = ("app.py",), folder: Path = ROOT, **environment: str
) -> Iterator[tuple]:
    """(address, process) of the app in that folder, started without any option where `options` is None.

    What it says goes to `log`. It must end well when it is asked to.
    """
    command = [sys.executable, *program]
    if options is not None:
        command += [*as_arguments(options), "--runs", str(options.runs), "--studies", str(options.studies)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while not (found := re.search(r"SRPO Studio is at (\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found[1], process
    finally:
        process.terminate()
        try:
            assert process.wait(PATIENCE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
