"""HPSv2 and HPSv2.1: the published open_clip weights, run through transformers' CLIPModel.

The package `hpsv2` needs torchvision, re-reads 2 GB at every call and gives no gradient; its weights need none of that.
`HPS_v2_compressed.pt` is converted once, to a folder that any CLIPModel reads; the package itself is the oracle of the
tests and of `python -m srpo.score --check hpsv2`.

Source: Wu et al. 2023, arXiv 2306.09341, and the package hpsv2 1.2.0.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import cached_file

from srpo.rewards.catalogue import CARDS, HPSV2_FILES, HPSV2_REPOSITORY, HPSV2_REVISION, RECORD
from srpo.rewards.clip import ClipReward, Fit
from srpo.rewards.weights import Known, Shapes, open_checkpoint, require_layout, write_safetensors
from srpo.runs.atomic import write_folder

FITS: dict[str, Fit] = {"official": "pad", "srpo": "crop"}  # equal for square pictures only
TOKENIZER_ID = "openai/clip-vit-large-patch14"  # every CLIP of open_clip and OpenAI has this one vocabulary
NUM_MERGES = 49152 - 256 - 2
PROBE = ("a photo of a cat", [49406, 320, 1125, 539, 320, 2368, 49407])  # tells CLIP's vocabulary from others
PUBLISHED_DTYPE = torch.float16


@dataclass(frozen=True)
class Architecture:
    """The sizes of an open_clip dual encoder; heads are those of both towers."""

    text_width: int = 1024
    text_layers: int = 24
    vision_width: int = 1280
    vision_layers: int = 32
    heads: int = 16
    embedding: int = 1024
    image_size: int = 224
    patch: int = 14
    vocabulary: int = 49408
    context: int = 77

    def config(self) -> CLIPConfig:
        """The same in CLIPModel's words. open_clip's GELU is the exact one, and the end token its largest."""
        text = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.context,
            "hidden_act": "gelu",
            "projection_dim": self.embedding,
            "bos_token_id": self.vocabulary - 2,
            "eos_token_id": self.vocabulary - 1,
            "pad_token_id": 0,
        }
        vision = {
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.heads,
            "image_size": self.image_size,
            "patch_size": self.patch,
            "hidden_act": "gelu",
            "projection_dim": self.embedding,
        }
        return CLIPConfig(text_config=text, vision_config=vision, projection_dim=self.embedding)


VIT_H_14 = Architecture()


def load_hpsv2(
    place: str | Path,
    kind: str,
    *,
    preprocessing: str = "official",
    scale: float | None = None,
    device: str | torch.device = "cpu",
    local_files_only: bool = True,
) -> ClipReward:
    """The reward of a published file or of a converted folder; a file is converted first, beside itself, once.

    kind: "hpsv2" or "hpsv2.1", whose scores are not comparable. preprocessing: "official" fits the whole picture in,
    padded with black; "srpo" crops the middle, as the reference trainer does. place: the authors' repository, always
    at the one revision known here, is understood as well. ValueError, one sentence, for weights that are missing, not
    HPSv2's, or not the remembered ones.
    """
    if preprocessing not in FITS:
        raise ValueError(f"{kind} has the preprocessings {' and '.join(FITS)}, not {preprocessing!r}")
    place = _published_file(kind, local_files_only) if str(place) == HPSV2_REPOSITORY else Path(place)
    folder = converted_folder(place)
    record = read_record(folder)
    if record is None:
        if place.is_dir():
            raise ValueError(f"{place} is no converted HPSv2 (it has no {RECORD}): name the published .pt file instead")
        _convert_beside(place, folder, kind, local_files_only)
    elif record["reward"] != kind:
        raise ValueError(f"{folder} is {record['reward']}, not {kind}: their scores are not comparable")
    elif folder != place and place.exists():  # the original may be gone: the folder is complete
        Known.read(folder / RECORD).require(place, folder)
    reward = ClipReward.from_pretrained(
        folder,
        name=kind,
        scale=CARDS[kind].scale if scale is None else scale,
        fit=FITS[preprocessing],
        clean=clean_text,
        device=device,
    )
    reward.sha256 = read_record(folder)["sha256"]
    return reward


def _convert_beside(file: Path, folder: Path, kind: str, local_files_only: bool) -> None:
    try:
        convert(file, folder, kind, local_files_only=local_files_only)
    except OSError as error:
        if read_record(folder) is None:  # it is there where another process was faster
            raise ValueError(
                f"{file} cannot be converted beside itself ({error.strerror or error}): "
                "copy it to a folder that can be written and has 2 GB free"
            ) from error


def _published_file(kind: str, local_files_only: bool) -> Path:
    """The file of the authors' repository, of the hub's cache or downloaded. ValueError where neither can be."""
    try:
        options = {"revision": HPSV2_REVISION, "local_files_only": local_files_only}
        return Path(cached_file(HPSV2_REPOSITORY, HPSV2_FILES[kind], **options))
    except OSError as error:
        raise ValueError(f"the weights of {kind} are not on this machine: {CARDS[kind].get}") from error


def converted_folder(place: Path) -> Path:
    """Where the converted weights of that file lie: HPS_v2.1_compressed.clip/ beside it. A folder is its own."""
    return place if place.is_dir() else place.with_suffix(".clip")


def read_record(folder: Path) -> dict[str, str] | None:
    """What a converted folder says of itself; None where it is none. ValueError where that cannot be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {"reward": str(record["reward"]), "sha256": str(record["source"]["sha256"])}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} cannot be read: remove {folder} to convert the weights again") from error


def convert(
    file: str | Path,
    folder: str | Path,
    kind: str,
    *,
    architecture: Architecture = VIT_H_14,
    tokenizer: CLIPTokenizer | None = None,
    local_files_only: bool = True,
) -> Known:
    """The account of the file, which is converted in the new folder now: weights in float16, tokenizer, preprocessor.

    Everything is checked before the folder is begun, and it appears whole or not at all. One tensor is in memory at a
    time. ValueError as in `load_hpsv2`; OSError where the folder cannot be written.
    """
    file, folder = Path(file), Path(folder)
    if not file.is_file():
        raise ValueError(f"there are no weights of {kind} at {file}: {CARDS[kind].get}")
    if file.name in HPSV2_FILES.values() and file.name != HPSV2_FILES[kind]:
        raise ValueError(f"{file} is the other version of HPSv2, not {kind}: their scores are not comparable")
    tensors = open_checkpoint(file)
    sources = open_clip_sources(architecture)
    require_layout(
        file, tensors, open_clip_layout(architecture), PUBLISHED_DTYPE, what=f"{CARDS[kind].title} (ViT-H-14)"
    )
    tokenizer = tokenizer or published_tokenizer(file.parent, local_files_only)
    known = Known.of(file)

    def write(temporary: Path) -> None:
        made = {name: partial(source.of, tensors) for name, source in sources.items()}
        write_safetensors(temporary / "model.safetensors", made)
        config = architecture.config()
        config.architectures = ["CLIPModel"]
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        size = architecture.image_size
        CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
            temporary
        )
        known.write(temporary / RECORD, reward=kind)

    write_folder(folder, write)
    return known


@dataclass(frozen=True)
class Source:
    """Where one of CLIPModel's weights lies among open_clip's."""

    name: str
    third: int | None = None  # of the rows: queries, keys and values are one matrix there
    transposed: bool = False  # projections multiply from the right there

    def of(self, tensors: dict[str, Tensor]) -> Tensor:
        tensor = tensors[self.name]
        if self.third is not None:
            tensor = tensor.chunk(3)[self.third]
        return tensor.T if self.transposed else tensor

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The whole tensor's shape there, from the shape here."""
        if self.third is not None:
            return (3 * ours[0], *ours[1:])
        return ours[::-1] if self.transposed else ours


RENAMED: tuple[tuple[str, str], ...] = (  # from CLIPModel's names to open_clip's, each where it fits
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # spelt so there
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


def open_clip_sources(architecture: Architecture) -> dict[str, Source]:
    """For each of CLIPModel's weights, the one of open_clip that it comes from."""
    return {name: _source(name) for name in _clip_shapes(architecture)}


def open_clip_layout(architecture: Architecture) -> Shapes:
    """Names and shapes of open_clip's weights."""
    return {(source := _source(name)).name: source.shape(shape) for name, shape in _clip_shapes(architecture).items()}


def _source(name: str) -> Source:
    there = name
    for pattern, replacement in RENAMED:
        there = re.sub(pattern, replacement, there)
    part = re.search(r"\.self_attn\.([qkv])_proj\.", name)
    return Source(there, "qkv".index(part[1]) if part else None, "projection.weight" in name)


def _clip_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = CLIPModel(architecture.config())
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def clean_text(text: str) -> str:
    """The text as open_clip's tokenizer reads it: broken Unicode mended, HTML's names of characters resolved twice."""
    import ftfy  # 0.1 s, for this reward alone

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def published_tokenizer(folder: Path, local_files_only: bool = True) -> CLIPTokenizer:
    """CLIP's tokenizer, of vocab.json and merges.txt in the folder, of an installed open_clip, or of the hub.

    ValueError, one sentence, where it is in none of these, or is another vocabulary.
    """
    vocab, merges = _vocabulary(folder, local_files_only)
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=VIT_H_14.context)
    text, expected = PROBE
    if len(tokenizer) != VIT_H_14.vocabulary or tokenizer(text).input_ids != expected:
        raise ValueError(f"the vocabulary found for {folder} is not CLIP's: put its vocab.json and merges.txt there")
    return tokenizer


def _vocabulary(folder: Path, local_files_only: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces by their numbers, and the merges in their order."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _read_vocabulary(folder / "vocab.json", folder / "merges.txt")
    package = importlib.util.find_spec("open_clip")  # not imported: that would bring torchvision
    if package is not None and package.origin:
        packed = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
        if packed.is_file():
            return _unpack_vocabulary(packed)
    try:
        names = ("vocab.json", "merges.txt")
        files = [Path(cached_file(TOKENIZER_ID, name, local_files_only=local_files_only)) for name in names]
    except OSError as error:
        raise ValueError(
            "the weights come without CLIP's tokenizer: copy vocab.json and merges.txt beside them, from FLUX.1-dev's "
            f"folder tokenizer, or by hf download {TOKENIZER_ID} vocab.json merges.txt --local-dir {folder}"
        ) from error
    return _read_vocabulary(*files)


def _read_vocabulary(vocab: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    return json.loads(vocab.read_text(encoding="utf-8")), pairs


def _unpack_vocabulary(packed: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The same from OpenAI's file of merges: the pieces are numbered bytes first, then merges, then the two marks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    return {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}, merges
