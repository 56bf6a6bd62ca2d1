"""Published weights on disk, and what has to be true of them before any memory is taken.

A PyTorch file is a pickle, and a pickle is a program. Published rewards come as such files all the same, so one is
believed only when its program does nothing but name tensors (it is read, not run), and when these have exactly the
names, types and shapes of the reward. Nothing is copied before: a tensor is a view of the file until somebody asks
for its numbers. The file's SHA-256 is remembered, and a changed file refused.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srpo.runs.atomic import write_text

Shapes = Mapping[str, tuple[int, ...]]

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # in the words of safetensors
STORAGES = ("FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage")
ALLOWED_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {kind}" for kind in STORAGES)}
NAMING_OPCODES = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # by which a pickle names what it calls
MAX_PICKLE_BYTES = 4_000_000  # the names of a thousand tensors are some 100 kB


def open_checkpoint(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name, as views of the file; those under "state_dict" where it has that.

    ValueError, one sentence, for a file that is missing or damaged, that is of the form before PyTorch 1.6, or that
    holds anything but tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    _require_tensors_only(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} is damaged: download it again") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(name, str) and isinstance(it, Tensor) for name, it in content.items()):
        raise ValueError(f"{file} holds no weights by name: choose the file that was published")
    return dict(content)


def _require_tensors_only(file: Path) -> None:
    """Nothing where the file's program names tensors and their containers alone; else ValueError."""
    try:
        with zipfile.ZipFile(file) as archive:
            programs = [entry for entry in archive.infolist() if Path(entry.filename).name == "data.pkl"]
            if len(programs) != 1 or any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile("not as torch.save writes it")
            if programs[0].file_size > MAX_PICKLE_BYTES:
                raise zipfile.BadZipFile(f"{programs[0].file_size} bytes of names")
            named = set(_names(archive.read(programs[0])))
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{file} is damaged, or no file that PyTorch 1.6 or later has written: download it again"
        ) from error
    if foreign := sorted(named - ALLOWED_NAMES):
        said = foreign[0].replace(" ", ".")
        raise ValueError(f"{file} is a program that calls {said}, not plain weights: it was not opened")


def _names(program: bytes) -> Iterator[str]:
    """Everything a pickle calls, "module name"; what it puts together while it runs counts as its opcode's name."""
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in NAMING_OPCODES:
            yield str(argument) if opcode.name == "GLOBAL" else f"pickle {opcode.name}"


def require_layout(
    file: Path,
    tensors: Mapping[str, Tensor],
    expected: Shapes,
    dtype: torch.dtype,
    *,
    what: str,
    ignored: str = "",
) -> None:
    """Nothing where the file has exactly the expected tensors in that type; else ValueError that names the first one.

    ignored: a regular expression of names that may be there as well.
    """
    names = {name for name in tensors if not (ignored and re.fullmatch(ignored, name))}
    _require_names(file, names, expected, what)
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise ValueError(f"{file} is not {what}: {name} is {tuple(tensors[name].shape)}, not {tuple(shape)}")
        if tensors[name].dtype != dtype or tensors[name].layout != torch.strided:
            raise ValueError(f"{file} is not {what} as published: {name} is {tensors[name].dtype}, not {dtype}")


def require_safetensors(file: Path, expected: Shapes, *, what: str, ignored: str = "") -> None:
    """Nothing where the file's header names exactly the expected tensors, in a type we read; else ValueError."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 no mapping
            shapes = {name: (tuple(entry.get_shape()), entry.get_dtype()) for name, entry in found.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged, or no safetensors file: download it again") from error
    _require_names(file, {name for name in shapes if not (ignored and re.fullmatch(ignored, name))}, expected, what)
    for name, shape in expected.items():
        if shapes[name][0] != tuple(shape):
            raise ValueError(f"{file} is not {what}: {name} is {shapes[name][0]}, not {tuple(shape)}")
        if shapes[name][1] not in DTYPES.values():
            raise ValueError(f"{file} holds {name} as {shapes[name][1]}: choose float32, float16 or bfloat16")


def _require_names(file: Path, names: set[str], expected: Shapes, what: str) -> None:
    missing, extra = sorted(expected.keys() - names), sorted(names - expected.keys())
    if missing:
        lacks = f"it lacks {len(missing)} of {len(expected)} weights, first {missing[0]}"
        raise ValueError(f"{file} is not {what}: {lacks}")
    if extra:
        raise ValueError(f"{file} is not {what}: it holds {len(extra)} weights too many, first {extra[0]}")


def write_safetensors(file: Path, tensors: Mapping[str, Callable[[], Tensor]]) -> None:
    """Writes a safetensors file, one tensor in memory at a time; each is called twice, and asked for its shape first.

    Source: the format's description in huggingface/safetensors: 8 bytes of length, that many of JSON, then the data.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        made = tensor()
        begin, end = end, end + made.nbytes
        header[name] = {"dtype": DTYPES[made.dtype], "shape": list(made.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            opened.write(tensor().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Known:
    """A file that was looked at: whoever sees another one under its name is told."""

    file: str  # its name
    sha256: str
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, file: Path) -> Known:
        """What the file is now; reads all of it."""
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return cls(file.name, sha256, file.stat().st_size, file.stat().st_mtime_ns)

    @classmethod
    def read(cls, record: Path) -> Known | None:
        """What was remembered there; None where nothing was. ValueError for a record that cannot be read."""
        try:
            return cls(**json.loads(record.read_text(encoding="utf-8"))["source"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record} cannot be read: remove it to look at the weights anew") from error

    def require(self, file: Path, record: Path) -> None:
        """Nothing where the file is still this one; ValueError with both hashes for another."""
        status = file.stat()
        if (status.st_size, status.st_mtime_ns) == (self.num_bytes, self.modified_ns):
            return
        if (now := Known.of(file).sha256) != self.sha256:
            raise ValueError(
                f"{file} has changed: its SHA-256 was {self.sha256} and is {now} now; "
                f"if you trust the new file, remove {record}"
            )

    def write(self, record: Path, **more: str) -> None:
        """Remembers it there."""
        write_text(record, json.dumps({**more, "source": asdict(self)}, indent=2) + "\n")


def require_known(file: Path) -> Known:
    """The account of a file, remembered beside it as NAME.known.json at the first call; ValueError once it changed.

    Where nothing can be written, it is looked at anew each time.
    """
    record = file.with_name(f"{file.name}.known.json")
    known = Known.read(record)
    if known is None:
        known = Known.of(file)
        with suppress(OSError):  # a folder of others, or a full disk: the weights serve all the same
            known.write(record)
        return known
    known.require(file, record)
    return known
