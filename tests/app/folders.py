"""Run folders as a training leaves them, written by hand: what the page shows needs no model to be tested."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from srpo.runs import RunFolder, UpdateRecord, ValidationRecord
from srpo.runs.processes import this_job
from srpo.runs.records import BestRecord, Heartbeat

CONFIG = {
    "model": "assets/miniature/flux",
    "reward": "assets/miniature/reward",
    "prompts": "prompts/train.txt",
    "weights": "full",
    "updates": 10,
    "prompts_per_update": 8,
    "lr": 4e-5,
    "seed": 0,
    "objective": {
        "height": 128,
        "width": 128,
        "rollout_steps": 12,
        "rollout_guidance": 3.5,
        "levels": {"kind": "uniform", "d_sigma": 0.08},
        "inversion": True,
        "hinge": None,
    },
    "signal": {"form": "cfg_like", "words": {"positive": ["Real"], "negative": ["Flat", "Oil"]}},
}


def record(update: int, **changes: object) -> UpdateRecord:
    """An update whose numbers follow from its own: positive update / 100, negative half of that."""
    scores = {"clip_norm": 0.1, "clipped": 1.0}
    for branch, sign in (("denoise", 1), ("inversion", -1)):
        scores |= {
            f"{branch}/positive": update / 100,
            f"{branch}/negative": update / 200,
            f"{branch}/difference": update / 200,
            f"{branch}/plain": 0.8,
            f"{branch}/loss": sign * update / 10,
        }
    values = {"loss": 0.5, "grad_norm": 0.2, "lr": 4e-5, "seconds": 2.0, "scores": scores} | changes
    return UpdateRecord(update, **values)


def validated(update: int, photo: float) -> ValidationRecord:
    return ValidationRecord(update, {"photo": photo}, {"photo": (photo - 0.05, photo + 0.05)}, 4.0)


def make_run(
    root: Path, name: str = "one", updates: int = 3, status: str = "stopped", config: dict | None = None
) -> RunFolder:
    """A run that has done so many of its ten updates, validated and sampled before and after them."""
    settings = CONFIG | (config or {})
    run = RunFolder.create(root / name, settings, {place: settings[place] for place in ("model", "reward", "prompts")})
    for update in range(1, updates + 1):
        run.append_progress(record(update))
    for update, photo in ((0, 0.2), (updates, 0.3)):
        run.append_validation(validated(update, photo))
        run.write_samples(update, ["a ball", "a boat"], [1, 2], lambda folder, update=update: paint(folder, update))
    run.write_best(BestRecord(updates, 0.3, "the highest photo share", None))
    run.write_state(status, updates, phase="training" if status == "running" else "", updates=10)
    return run


def paint(folder: Path, update: int) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (20 * update, 100 * number, 50)).save(folder / f"{number:02d}.png")


def checkpoint(run: RunFolder, update: int, weights: bytes = b"weights") -> None:
    """A checkpoint's folder as far as a page looks at it."""
    folder = run.checkpoint(update)
    folder.mkdir(parents=True)
    (folder / "transformer.safetensors").write_bytes(weights)
    (folder / "manifest.json").write_text("{}")


def pretend_to_run(run: RunFolder, time: float, update: int) -> None:
    """Makes this very process the run's job, with a sign of life at that time."""
    run.write_job(this_job("cpu", in_process=True))
    run.write_heartbeat(Heartbeat(time, "training", update, time))
    assert run.job().pid == os.getpid()
