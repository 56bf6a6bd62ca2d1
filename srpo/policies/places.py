"""One door for weights: whatever place a user gives, what is there, told by its headers alone.

a pipeline's folder        model_index.json; its transformer is meant
a transformer's folder     one safetensors file, or shards with their index
a run's folder             its finished weights, whole or as a LoRA
a file                     safetensors or GGUF: the whole transformer in the layout of diffusers (tencent/SRPO) or of
                           Black Forest Labs (with ComfyUI's prefix or without), or a LoRA
an id of a hub             what of it has been downloaded (srpo.policies.hub)

Numbers are float32, float16, bfloat16, fp8 (with a scale per tensor or row, or none) or GGUF's blocks. Standard library
only, so the page may ask.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from srpo.policies import bfl
from srpo.policies.headers import MAX_HEADER_BYTES, QUANTISED, Entry, read_header

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
LORA_NAME = "pytorch_lora_weights.safetensors"  # where FluxPipeline.load_lora_weights looks
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FP8 = {"F8_E4M3": "fp8 (e4m3fn)", "F8_E5M2": "fp8 (e5m2)"}
READ = {**FLOATS, **FP8, **{name: f"GGUF {name}" for name in QUANTISED}}  # in words

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")
BESIDE = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")  # ComfyUI's other parts
SCALE_NAMES = ("scale_weight", "weight_scale")  # ComfyUI's, in its order of invention
IGNORED_NAMES = ("scale_input", "input_scale", "comfy_quant")  # of the activations; and what the header says anyhow
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps r and alpha, in a LoRA's header
PEFT_PREFIX, PEFT_SETTINGS = "base_model.model.", "adapter_config.json"  # peft keeps them in a file beside it
BFL_PREFIXES = ("lora_unet_", "diffusion_model.", "model.diffusion_model.")  # of a LoRA's names
BFL_NAMES = ("double_blocks", "single_blocks", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer")
LORA_KEY = re.compile(r".*\.(lora_[AB]|lora_down|lora_up|lora\.down|lora\.up)(\.default)?\.(weight|bias)")
LORA_BESIDE = re.compile(r".*\.(alpha|diff|diff_b|norm_q\.weight|norm_k\.weight|norm_added_[qk]\.weight)")
OTHER_ADAPTERS = {"lokr_": "a LoKr", "hada_": "a LoHa", "dora_scale": "a DoRA", "oft_": "an OFT", "boft_": "a BOFT"}
TEXT_ENCODERS = ("lora_te", "text_encoder")  # how the names of a LoRA's other part begin

MAX_WEIGHT = 4.0

FP8_NOTICE = (
    "These weights are stored in fp8, which keeps three bits of a number’s fraction. Converted straight from SRPO’s "
    "float32 file, fp8 loses much of what SRPO changed and pictures may stay half denoised: use bfloat16, or an fp8 "
    "file that was made for SRPO with a recipe of its own."
)
GGUF_NOTICE = (
    "These weights are quantised to {bits} bits: their rounding can be larger than what SRPO changed, so a difference "
    "from a model in another precision is not SRPO’s alone."
)
TEXT_NOTICE = "This LoRA changes a text encoder as well; that part is left out, so pictures differ from other tools’."


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor on disk."""

    entry: Entry
    first: int
    last: int
    scale: Entry | None = None  # what its numbers are multiplied by: one for all, or one per row

    @classmethod
    def whole(cls, entry: Entry, scale: Entry | None = None) -> Piece:
        return cls(entry, 0, entry.shape[0] if entry.shape else 1, scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.last - self.first, *self.entry.shape[1:]) if self.entry.shape else ()


Pieces = tuple[Piece, ...]  # one weight: their rows, one after the other


@dataclass(frozen=True)
class Found:
    """Weights that lie somewhere, as far as their headers tell."""

    place: Path  # what was asked for
    files: tuple[Path, ...]
    kind: str  # "transformer" or "lora"
    layout: str  # whose names: "diffusers" or "bfl"; those of a LoRA are told apart where it is read
    entries: Mapping[str, Entry]  # the transformer's own, without a prefix
    scales: Mapping[str, Entry]  # by the name of the weight
    metadata: Mapping[str, Any]
    left_out: int = 0  # tensors of a LoRA that belong to a text encoder

    @cached_property
    def dtype(self) -> str:
        """The type of most of the numbers, in the words of the format."""
        numbers = Counter()
        for entry in self.entries.values():
            numbers[entry.dtype] += entry.num_bytes
        return numbers.most_common(1)[0][0]

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries.values())

    @property
    def is_quantised(self) -> bool:
        """Whether some numbers lie in GGUF's blocks."""
        return any(entry.dtype in QUANTISED for entry in self.entries.values())

    def __str__(self) -> str:
        """In words, for people."""
        what = "LoRA" if self.kind == "lora" else "transformer"
        names = {"diffusers": "diffusers", "bfl": "Black Forest Labs"}[self.layout]
        files = f"{len(self.files)} files" if len(self.files) > 1 else "one file"
        scaled = " with scales" if self.scales else ""
        return (
            f"{what} in {READ[self.dtype]}{scaled}, named as by {names}, {len(self.entries)} tensors, "
            f"{self.num_bytes / 1e9:.2f} GB in {files}"
        )

    @property
    def notice(self) -> str:
        """What somebody should know before pictures are compared; nothing for full precision."""
        said = [TEXT_NOTICE] if self.left_out else []
        if self.kind == "transformer" and self.dtype in FP8:
            said.append(FP8_NOTICE)
        elif self.dtype in QUANTISED:
            said.append(GGUF_NOTICE.format(bits=re.search(r"\d", self.dtype)[0]))
        return " ".join(said)

    @property
    def rounding(self) -> str:
        """The form that rounds these weights by several times what SRPO changed, in words; nothing for a finer one.

        `python -m srpo.rounding` measures them: fp8 and fewer than eight bits are ten and more times as coarse as
        SRPO's change, Q8_0 is nearly as fine as bfloat16. A LoRA is merged into the base's numbers, whatever its own.
        """
        if self.kind == "lora" or (self.dtype not in FP8 and self.dtype not in QUANTISED) or self.dtype == "Q8_0":
            return ""
        return READ[self.dtype]

    def recipe(self) -> dict[str, Pieces]:
        """diffusers' name of every weight -> what it is made of. ValueError for what is no weight of FLUX."""
        if self.kind != "transformer":
            raise ValueError(f"{self.place} holds a LoRA, not a whole transformer.")
        if self.layout == "diffusers":
            return {name: (Piece.whole(entry, self.scales.get(name)),) for name, entry in self.entries.items()}
        try:
            rows = bfl.rows_by_weight({name: entry.shape for name, entry in self.entries.items()})
        except ValueError as error:
            raise ValueError(f"{self.place} does not fit FLUX: {error}.") from error
        return {
            name: tuple(
                Piece(self.entries[part.name], part.first, part.last, self.scales.get(part.name)) for part in parts
            )
            for name, parts in rows.items()
        }


def split_weight(place: str | Path) -> tuple[Path, float]:
    """(place, weight) of PLACE@WEIGHT, as a LoRA may be written; weight 1 where none is. ValueError beyond -4 ... 4."""
    text = str(place)
    head, _, written = text.rpartition("@")
    if not head or not re.fullmatch(r"[-+]?\d{1,3}(\.\d{1,6})?", written) or Path(text).exists():
        return Path(text), 1.0
    if abs(weight := float(written)) > MAX_WEIGHT:
        raise ValueError(
            f"The weight of a LoRA must lie between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}, not at {weight:g}."
        )
    return Path(head), weight


def find(place: str | Path) -> Found:
    """What lies at a file or folder. Reads headers only.

    ValueError, one sentence, where there are no weights, or none that are read here.
    """
    place = Path(place)
    files = find_files(place)
    entries: dict[str, Entry] = {}
    metadata: dict[str, Any] = {}
    for file in files:
        header = read_header(file)
        if repeated := sorted(entries.keys() & header.entries.keys()):
            raise ValueError(f"{file} repeats {repeated[0]} of another file; download the model again.")
        entries |= header.entries
        metadata |= header.metadata
    architecture = metadata.get("general.architecture", "flux") if header.form == "gguf" else "flux"
    if architecture != "flux":
        raise ValueError(f"{place} holds the model {str(architecture)[:40]!r}, not FLUX.1; choose another file.")
    if not entries:
        raise ValueError(f"{place} holds no tensors; choose another file.")
    return _told(place, tuple(files), entries, metadata)


def _told(place: Path, files: tuple[Path, ...], entries: dict[str, Entry], metadata: dict[str, Any]) -> Found:
    """The file's kind and layout, by its names."""
    for mark, kind in OTHER_ADAPTERS.items():
        if any(mark in name for name in entries):
            raise ValueError(f"{place} holds {kind}; of adapters, only LoRA is read here.")
    if any(LORA_KEY.fullmatch(name) for name in entries):
        return _told_lora(place, files, entries, metadata)
    prefix = next((it for it in PREFIXES if it + bfl.MARK in entries), None)
    layout = "diffusers" if prefix is None else "bfl"
    if prefix is None:
        prefix = next((it for it in PREFIXES if it + "x_embedder.weight" in entries), "")
    own, scales = {}, {}
    for name, entry in entries.items():
        if prefix and name.startswith(BESIDE):
            continue  # a checkpoint of ComfyUI may hold the whole pipeline
        name = name.removeprefix(prefix)
        layer, _, kind = name.rpartition(".")
        if kind in SCALE_NAMES:
            scales[f"{layer}.weight"] = entry
        elif kind not in IGNORED_NAMES and name != "scaled_fp8":
            own[name] = entry
    _require_read(place, own, scales)
    return Found(place, files, "transformer", layout, own, scales, metadata)


def _told_lora(place: Path, files: tuple[Path, ...], entries: dict[str, Entry], metadata: dict[str, Any]) -> Found:
    own = {name: entry for name, entry in entries.items() if not name.startswith(TEXT_ENCODERS)}
    if not own:
        raise ValueError(f"{place} holds a LoRA of the text encoders alone; choose one of the transformer.")
    if foreign := [name for name in own if not (LORA_KEY.fullmatch(name) or LORA_BESIDE.fullmatch(name))]:
        raise ValueError(f"{place} holds a LoRA and {foreign[0][:100]}, which belongs to none; choose another file.")
    _require_read(place, own, {})
    settings = files[0].parent / PEFT_SETTINGS
    if METADATA_KEY not in metadata and any(name.startswith(PEFT_PREFIX) for name in own) and settings.is_file():
        if settings.stat().st_size > MAX_HEADER_BYTES:
            raise ValueError(f"{settings} is too long for the settings of a LoRA; download it again.")
        metadata = metadata | {METADATA_KEY: settings.read_text(encoding="utf-8", errors="replace")}
    theirs = tuple(f"{prefix}{name}" for prefix in BFL_PREFIXES for name in BFL_NAMES)
    layout = "bfl" if any(name.startswith(theirs) for name in own) else "diffusers"
    return Found(place, files, "lora", layout, own, {}, metadata, left_out=len(entries) - len(own))


def _require_read(place: Path, entries: Mapping[str, Entry], scales: Mapping[str, Entry]) -> None:
    """Nothing where every tensor's numbers are of a kind that is read here; else ValueError."""
    for name, entry in entries.items():
        if entry.dtype not in READ:
            raise ValueError(
                f"{place} holds {name[:100]} as {entry.dtype}; choose weights in float32, float16, bfloat16, fp8 "
                "or GGUF's blocks."
            )
    for name, scale in scales.items():
        weight = entries.get(name)
        if weight is None or scale.dtype not in FLOATS or scale.shape not in _possible_scales(weight):
            raise ValueError(f"{place} scales {name[:100]} in a way that is not read here; choose another file.")


def _possible_scales(weight: Entry) -> tuple[tuple[int, ...], ...]:
    """One number for all of a tensor, or one per row."""
    rows = weight.shape[:1]
    return (), (1,), (1, 1), rows, (*rows, 1)


def find_files(place: Path) -> list[Path]:
    """The files of weights behind a place; ValueError where there are none, or where a shard is missing."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"There is nothing at {place}; choose a model folder, or a .safetensors or .gguf file.")
    folder = place / "transformer" if (place / "model_index.json").is_file() else place
    index = folder / f"{WEIGHTS_NAME}.index.json"
    if index.is_file():
        return _read_index(index)
    for name in (WEIGHTS_NAME, LORA_NAME):
        if (folder / name).is_file():
            return [folder / name]
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".gguf"))
    if len(files) == 1:
        return files
    if files:
        raise ValueError(f"{folder} holds {len(files)} files of weights; name one of them, such as {files[0]}.")
    raise ValueError(f"{folder} holds no {WEIGHTS_NAME}; choose a pipeline or transformer folder, or a file.")


def _read_index(index: Path) -> list[Path]:
    if index.stat().st_size > MAX_HEADER_BYTES:
        raise ValueError(f"{index} is too long for an index of weights; download the model again.")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of weights; download the model again.") from error
    if foreign := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise ValueError(f"{index} points outside its folder, to {foreign[0]!r}; it is not to be trusted.")
    if not names:
        raise ValueError(f"{index} is no index of weights; download the model again.")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"{index.parent} lacks {len(missing)} of {len(names)} files, first {missing[0]}.")
    return [index.parent / name for name in names]
