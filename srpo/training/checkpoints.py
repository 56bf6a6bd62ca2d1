"""Checkpoints of an unfinished run and its finished weights. Each appears whole or not at all.

checkpoints/update-000010/
    transformer.safetensors   what is trained, in the precision it is trained in; lora.safetensors for a LoRA
    optimizer.safetensors     every tensor of the trainer's state
    trainer.json              the rest of that state, place in the run included, and the settings it was made with
    manifest.json             size and SHA-256 of the other three, written last
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from srpo.runs import LORA_NAME, RunFolder
from srpo.runs.atomic import remove_folder, write_file, write_folder
from srpo.runs.folder import MANIFEST_NAME
from srpo.training.config import TrainConfig
from srpo.training.continuity import changed_settings, pinned_settings

OPTIMIZER_NAME, TRAINER_NAME = "optimizer.safetensors", "trainer.json"
FORMAT = 1
KEEP_LAST = 2
SLACK_BYTES = 1 << 20  # of a checkpoint, for headers and the JSON files


class Trainable(Protocol):
    """What of a trainer a checkpoint holds."""

    config: TrainConfig
    update: int  # the last finished one
    weights_name: str  # of the finished file
    weights_metadata: dict[str, str]

    def weights(self) -> dict[str, Tensor]:
        """What is trained, whole, on the CPU."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SaveError(RuntimeError):
    """Something could not be written; the sentence says what is missing and what is still whole."""


class Refused(ValueError):
    """A checkpoint that is not to be used; the sentence says why."""


@dataclass(frozen=True)
class Snapshot:
    """A trainer's state at one moment, on the CPU."""

    update: int
    weights: dict[str, Tensor]
    state: dict[str, Any]
    settings: dict[str, Any]
    weights_name: str
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        tensors, _ = _split(self.state)
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *tensors.values())) + SLACK_BYTES


@dataclass(frozen=True)
class Loaded:
    """Where a run goes on."""

    update: int  # 0: at the start
    passed_over: list[str] = field(default_factory=list)  # newer checkpoints, and why they were refused


def snapshot(trainer: Trainable) -> Snapshot:
    """The trainer's state. With several processes all of them must ask together."""
    return Snapshot(
        trainer.update,
        trainer.weights(),
        trainer.state_dict(),
        pinned_settings(trainer.config),
        trainer.weights_name,
        trainer.weights_metadata,
    )


def save_checkpoint(run: RunFolder, taken: Snapshot) -> Path:
    """The checkpoint's folder, safe on the disk. One that is there already and whole is left as it is.

    SaveError, naming the space that is needed, where it cannot be written; then every older one is as it was.
    """
    folder = run.checkpoint(taken.update)
    name = _file_name(taken.weights_name)
    tensors, rest = _split(taken.state)
    older = [update for update in run.checkpoint_updates() if update != taken.update]

    def write(temporary: Path) -> None:
        save_file(taken.weights, temporary / name, metadata=taken.metadata)
        save_file(tensors, temporary / OPTIMIZER_NAME)
        told = {"format": FORMAT, "update": taken.update, "settings": taken.settings, "state": rest}
        (temporary / TRAINER_NAME).write_text(json.dumps(told), encoding="utf-8")
        files = {part: _identity(temporary / part) for part in (name, OPTIMIZER_NAME, TRAINER_NAME)}
        (temporary / MANIFEST_NAME).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")

    if not is_whole(folder):
        try:
            _require_space(run.checkpoints, taken.nbytes)
            remove_folder(folder)  # spoiled since: whole ones only appear by a rename
            write_folder(folder, write)
        except (OSError, SafetensorError) as error:
            raise _save_error(f"the checkpoint of update {taken.update}", run, taken.nbytes, older, error) from error
    return folder


def load_checkpoint(run: RunFolder, trainer: Trainable, from_update: int | None = None) -> Loaded:
    """Where the run goes on, its newest usable checkpoint loaded; update 0 where it has none.

    from_update: that very one, or the start with 0. ValueError, naming each and why, where there are some and none can
    be used, or where the one asked for cannot.
    """
    if from_update is not None:
        candidates = [from_update] if from_update else []
    else:
        candidates = sorted(run.checkpoint_updates(), reverse=True)
    refused = []
    for update in candidates:
        try:
            _load(run.checkpoint(update), update, trainer)
            return Loaded(update, refused)
        except Refused as error:
            refused.append(f"the checkpoint {run.checkpoint(update).name} is refused: {error}")
    if refused:
        raise ValueError(
            "; ".join(refused) + f": start a new run, or this one anew with --resume {run.path} --from-update 0"
        )
    return Loaded(0)


def prune(run: RunFolder, best: int | None) -> None:
    """Removes checkpoints: all but the last two, the best, and those that the user wants to keep.

    What cannot be removed now is tried again after the next save.
    """
    updates = run.checkpoint_updates()
    keep = {*updates[-KEEP_LAST:], *run.kept(), best}
    for update in updates:
        if update not in keep:
            with suppress(OSError):
                remove_folder(run.checkpoint(update))


def save_finished(run: RunFolder, weights: Mapping[str, Tensor], name: str, metadata: Mapping[str, str]) -> None:
    """Writes the finished weights as one safetensors file, in one step. SaveError as for checkpoints."""
    needed = sum(tensor.nbytes for tensor in weights.values()) + SLACK_BYTES
    try:
        _require_space(run.path, needed)
        write_file(run.path / name, lambda file: save_file(dict(weights), file, metadata=dict(metadata)))
    except (OSError, SafetensorError) as error:
        raise _save_error("the finished weights", run, needed, run.checkpoint_updates(), error) from error


def read_weights(run: RunFolder, update: int) -> dict[str, Tensor]:
    """What was trained, from the checkpoint of that update. ValueError where there is none."""
    return load_file(run.checkpoint_weights(update))


def checkpoint_bytes(parameters: list[torch.nn.Parameter]) -> int:
    """About what one checkpoint takes: the weights, and AdamW's two moments in float32."""
    return sum(weight.numel() * (weight.element_size() + 8) for weight in parameters) + SLACK_BYTES


def require_disk_space(run_path: Path, parameters: list[torch.nn.Parameter], *, keeps_best: bool) -> None:
    """Nothing where a run's checkpoints and finished weights will find room beside what is there; else ValueError."""
    one = checkpoint_bytes(parameters)
    count = KEEP_LAST + keeps_best + 1  # one more while it is being written
    weights = sum(weight.numel() * weight.element_size() for weight in parameters)
    needed = count * one + weights
    there = next(folder for folder in (run_path, *run_path.resolve().parents) if folder.exists())
    taken = sum(file.stat().st_size for file in (run_path / "checkpoints").rglob("*") if file.is_file())
    if (free := shutil.disk_usage(there).free + taken) < needed:
        raise ValueError(
            f"{count} checkpoints of {in_bytes(one)} and the finished weights need {in_bytes(needed)}, and {there} has "
            f"{in_bytes(free)} free: free some space, put the run elsewhere, or train a LoRA (weights=lora)"
        )


def is_whole(folder: Path) -> bool:
    """True where the folder's files are the ones that were written."""
    try:
        _require_whole(folder)
    except Refused:
        return False
    return True


def in_bytes(count: int) -> str:
    """The number in words: "1.2 GB"."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.{1 if power > 1 else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def _load(folder: Path, update: int, trainer: Trainable) -> None:
    """Puts the checkpoint into the trainer. Refused, and the trainer as it was, where it is not this run's."""
    _require_whole(folder)
    told = _read_json(folder / TRAINER_NAME)
    if told.get("format") != FORMAT or told.get("update") != update:
        raise Refused(f"it says that it is update {told.get('update')} in format {told.get('format')}")
    if changes := changed_settings(told["settings"], pinned_settings(trainer.config)):
        raise Refused(f"it was made with other settings: {'; '.join(changes)}")
    file = folder / _file_name(trainer.weights_name)
    _require_same_layout(file, trainer.weights())
    trainer.load_weights(load_file(file))
    trainer.load_state_dict(_joined(told["state"], load_file(folder / OPTIMIZER_NAME)))


def _require_whole(folder: Path) -> None:
    """Nothing where the manifest is there and its files are the ones that were written; else Refused."""
    files = _read_json(folder / MANIFEST_NAME)
    if not {OPTIMIZER_NAME, TRAINER_NAME} < files.keys():
        raise Refused(f"its {MANIFEST_NAME} is not one of ours")
    for name, identity in files.items():
        try:
            if _identity(folder / Path(name).name) != identity:
                raise Refused(f"its {name} is not the one that was written")
        except OSError as error:
            raise Refused(f"its {name} cannot be read ({error.strerror})") from error


def _require_same_layout(file: Path, expected: Mapping[str, Tensor]) -> None:
    """Nothing where the file holds the names and shapes of this model's weights; else Refused."""
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Refused(f"it has no {file.name} that can be read") from error
    ours = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if foreign := sorted(name for name in {**shapes, **ours} if shapes.get(name) != ours.get(name)):
        raise Refused(
            f"it belongs to another model: {foreign[0]} is {shapes.get(foreign[0], 'missing')} there and "
            f"{ours.get(foreign[0], 'missing')} here"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"its {file.name} cannot be read") from error
    if not isinstance(value, dict):
        raise Refused(f"its {file.name} is not one of ours")
    return value


def _file_name(weights_name: str) -> str:
    return "lora.safetensors" if weights_name == LORA_NAME else "transformer.safetensors"


def _identity(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _require_space(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, "No space left on device")


def _save_error(what: str, run: RunFolder, needed: int, whole: list[int], error: Exception) -> SaveError:
    """The sentence for a save that failed. (The safetensors library tells the system's error in its text alone.)"""
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        free = in_bytes(shutil.disk_usage(run.path).free)
        reason = f"the disk is full: it needs {in_bytes(needed)} and {free} are free"
    else:
        reason = str(error)
    last = f"the checkpoint of update {whole[-1]} is as it was" if whole else "there is no earlier checkpoint"
    return SaveError(f"{what} could not be saved, {reason}; {last}: put that right, then resume the run")


# The trainer's state as tensors and JSON. JSON has neither tensors, tuples nor keys other than strings.


def _split(state: Any) -> tuple[dict[str, Tensor], Any]:
    """The state's tensors under numbers, and the rest with those numbers in their places."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"items": [[key, plain(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(item) for item in value]}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value

    return tensors, plain(state)


def _joined(rest: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_split` took apart."""
    if isinstance(rest, list):
        return [_joined(item, tensors) for item in rest]
    if not isinstance(rest, dict):
        return rest
    if "tensor" in rest:
        return tensors[rest["tensor"]]
    if "tuple" in rest:
        return tuple(_joined(item, tensors) for item in rest["tuple"])
    return {key: _joined(item, tensors) for key, item in rest["items"]}
