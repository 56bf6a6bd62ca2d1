"""The rewards that can be named, each with its card: what it reads, says, prefers and costs, and on what terms.

A reward is named as KIND:PLACE, such as hpsv2.1:models/HPS_v2.1_compressed.pt, or by its folder alone. This module
reads names and says what is known; `load.py` loads. No torch.

Sources: the authors' repositories and papers; ranges on FLUX.1-dev and biases from the paper of SRPO (its Table 1 and
its section on reward hacking). Papers' figures differ with their settings: compare only what was measured alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

HPSV2_REPOSITORY, HPSV2_REVISION = "xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"
HPSV2_FILES = {"hpsv2": "HPS_v2_compressed.pt", "hpsv2.1": "HPS_v2.1_compressed.pt"}
PICKSCORE_REPOSITORY = "yuvalkirstain/PickScore_v1"
CLIP_FILES = "config.json model.safetensors preprocessor_config.json tokenizer.json tokenizer_config.json"
RECORD = "reward.json"  # in a folder of converted weights: which reward it is, and of which file it was made


@dataclass(frozen=True)
class Card:
    """What a person should know of a reward before believing its scores."""

    kind: str  # what a name begins with
    title: str
    reads: str  # what its score depends on
    range: str  # what to expect, in the unit that `srpo.score` prints
    bias: str
    licence: str
    download: str
    get: str  # what to do to have it
    checked: str  # against what our scores were compared
    scale: float = 1.0  # what multiplies the cosine of a dual encoder
    is_dual_encoder: bool = False  # True: SRPO's control words can be used, so it can be trained on


def _hpsv2(kind: str, title: str, expect: str) -> Card:
    file = HPSV2_FILES[kind]
    return Card(
        kind=kind,
        title=title,
        reads="the picture and 77 tokens of text; 224 pixels, the whole picture padded with black (+srpo crops it)",
        range=expect,
        bias="reddish pictures, smooth and low in detail",
        licence="Apache-2.0",
        download="1.97 GB, and as much again for the converted copy beside it",
        get=f"hf download {HPSV2_REPOSITORY} {file} --revision {HPSV2_REVISION} --local-dir models/HPSv2, "
        f"then name it {kind}:models/HPSv2/{file}",
        checked="the package hpsv2 1.2.0 on the same random weights",
        scale=100.0,
        is_dual_encoder=True,
    )


_CARDS = (
    Card(
        kind="clip",
        title="CLIP, or any CLIPModel folder (ViT-L/14, ViT-H/14, the miniature's)",
        reads="the picture and 77 tokens of text; 224 pixels, the middle",
        range="cosine, 0.2 to 0.35",
        bias="counts what the text names and hardly sees how well it is done",
        licence="MIT (the weights of OpenAI and of LAION)",
        download="1.71 GB (openai/clip-vit-large-patch14), 3.94 GB (laion/CLIP-ViT-H-14-laion2B-s32B-b79K)",
        get=f"hf download openai/clip-vit-large-patch14 {CLIP_FILES} "
        "--local-dir models/clip-vit-large-patch14, then name that folder",
        checked="CLIPModel's own forward pass on the same random weights",
        is_dual_encoder=True,
    ),
    Card(
        kind="pickscore",
        title="PickScore v1",
        reads="the picture and 77 tokens of text; 224 pixels, the middle",
        range="100 x cosine, 19 to 26; FLUX.1-dev 22.7",
        bias="purple pictures, smooth and low in detail",
        licence="MIT",
        download="3.94 GB",
        get=f"hf download {PICKSCORE_REPOSITORY} {CLIP_FILES} "
        "--local-dir models/PickScore_v1, then name it pickscore:models/PickScore_v1",
        checked="CLIPModel's own forward pass on the same random weights",
        scale=100.0,
        is_dual_encoder=True,
    ),
    _hpsv2("hpsv2", "HPSv2", "100 x cosine, 28 to 31; not comparable with v2.1"),
    _hpsv2(
        "hpsv2.1",
        "HPSv2.1",
        "100 x cosine, 28 to 31; FLUX.1-dev 28.9, tuned on it up to 41; not comparable with v2.0",
    ),
    Card(
        kind="imagereward",
        title="ImageReward v1.0",
        reads="the picture and 35 tokens of text; 224 pixels, the middle",
        range="0 is the mean of its authors' pictures and 1 their deviation; FLUX.1-dev 1.1",
        bias="over-exposed pictures, smooth and low in detail",
        licence="Apache-2.0",
        download="1.79 GB",
        get="hf download THUDM/ImageReward ImageReward.pt --local-dir models/ImageReward and "
        "hf download google-bert/bert-base-uncased vocab.txt --local-dir models/ImageReward, "
        "then name it imagereward:models/ImageReward",
        checked="the package image-reward 1.5 on the same random weights",
    ),
    Card(
        kind="aesthetic",
        title="LAION aesthetic predictor v2 (CLIP ViT-L/14 and a small head)",
        reads="the picture alone; 224 pixels, the middle",
        range="1 to 10, mostly 4 to 7",
        bias="reads no text; models tuned on it drift to painterly pictures (Black et al. 2023, arXiv 2305.13301)",
        licence="Apache-2.0 (head), MIT (CLIP)",
        download="3.7 MB, over CLIP ViT-L/14 of 1.71 GB",
        get="put sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/improved-aesthetic-predictor into "
        "the folder of openai/clip-vit-large-patch14 (see clip), then name it aesthetic:FOLDER",
        checked="an independent transcription of the published forward pass on the same random weights",
    ),
    Card(
        kind="aesthetic-v2.5",
        title="Aesthetic predictor v2.5 (SigLIP so400m/14-384 and a head)",
        reads="the picture alone; 384 pixels",
        range="1 to 10; FLUX.1-dev 5.87",
        bias="reads no text; the paper of SRPO reports it as a measure and studies no bias of it",
        licence="AGPL-3.0 (the head, which you fetch yourself; nothing of its package is here), Apache-2.0 (SigLIP)",
        download="3.51 GB (google/siglip-so400m-patch14-384), and a head of about 5 MB",
        get="hf download google/siglip-so400m-patch14-384 config.json model.safetensors preprocessor_config.json "
        "--local-dir models/aesthetic-v2.5, put models/aesthetic_predictor_v2_5.pth of "
        "github.com/discus0434/aesthetic-predictor-v2-5 into that folder, "
        "then name it aesthetic-v2.5:models/aesthetic-v2.5",
        checked="the package aesthetic-predictor-v2-5 on the same random weights",
    ),
    Card(
        kind="hpsv3",
        title="HPSv3 (Qwen2-VL-7B and a head)",
        reads="the picture and the text; about 200,000 pixels",
        range="the mean of a Gaussian; FLUX.1-dev about 13.5",
        bias="not studied by the paper of SRPO",
        licence="MIT (HPSv3), Apache-2.0 (Qwen2-VL-7B-Instruct)",
        download="about 17 GB",
        get="hf download MizzenAI/HPSv3 HPSv3.safetensors --local-dir models/HPSv3, "
        "hf download Qwen/Qwen2-VL-7B-Instruct config.json tokenizer.json tokenizer_config.json --local-dir "
        "models/HPSv3 and, for its instruction, pip install --no-deps --target models/HPSv3 hpsv3==1.0.0, "
        "then name it hpsv3:models/HPSv3; use a GPU, of which its weights take 17 GB",
        checked="the package hpsv3 1.0.0 over transformers 4.45 on the same random weights",
    ),
)
CARDS: dict[str, Card] = {card.kind: card for card in _CARDS}


@dataclass(frozen=True)
class Named:
    """A reward by its name: what it is, how it prepares pictures, and where it lies."""

    kind: str
    place: str  # a folder, a file, or the id of a model on the hub
    preprocessing: str = "official"

    @property
    def card(self) -> Card:
        return CARDS[self.kind]

    def __str__(self) -> str:
        plus = "" if self.preprocessing == "official" else f"+{self.preprocessing}"
        return f"{self.kind}{plus}:{self.place}"


def read_name(name: str | Path) -> Named:
    """The reward of that name: KIND:PLACE, KIND+srpo:PLACE, or PLACE alone, whose kind is then looked up.

    A place alone is what its reward.json says, HPSv2 or PickScore where it is called so, and else CLIP. ValueError, one
    sentence, for an unknown kind, or a preprocessing that a reward has not.
    """
    text = str(name).strip()
    head, colon, place = text.partition(":")
    if not colon or Path(text).exists():
        return Named(_kind_of(text), text)
    kind, plus, preprocessing = head.partition("+")
    if kind not in CARDS:
        raise ValueError(f"there is no kind of reward {kind!r}: choose {', '.join(CARDS)}, or name a folder alone")
    if plus and (preprocessing != "srpo" or kind not in ("hpsv2", "hpsv2.1")):
        raise ValueError(f"{kind} has no preprocessing {preprocessing!r}: only hpsv2+srpo and hpsv2.1+srpo have one")
    if not place.strip():
        raise ValueError(f"{text!r} names no place: {CARDS[kind].get}")
    return Named(kind, place.strip(), preprocessing or "official")


def card_of(name: str | Path | None) -> Card | None:
    """The card of a reward that its name tells; None for a CLIPModel of unknown origin, or where none is named."""
    try:
        named = None if name is None else read_name(name)
    except ValueError:  # loading says what is wrong with it
        return None
    return None if named is None or named.kind == "clip" else named.card


def place_of(name: str | Path) -> str:
    """Where the reward of that name lies: what to look at to see whether it has changed, or has its licence known."""
    head, colon, place = str(name).partition(":")
    return place if colon and head.partition("+")[0] in CARDS and not Path(str(name)).exists() else str(name)


def resolved(name: str | Path) -> str:
    """The same name with its place as an absolute path, where it is one here; what begins a process elsewhere."""
    text, place = str(name), place_of(name)
    return text[: len(text) - len(place)] + str(Path(place).resolve()) if Path(place).exists() else text


def _kind_of(place: str) -> str:
    """The kind of a reward of which only the place is given."""
    folder = Path(place)
    recorded = _setting(folder / RECORD, "reward")
    if recorded in CARDS:
        return recorded
    for kind, file in HPSV2_FILES.items():
        if folder.name == file:
            return kind
    said = f"/{folder.absolute().as_posix()}/{_setting(folder / 'config.json', '_name_or_path')}/"
    names = (PICKSCORE_REPOSITORY, PICKSCORE_REPOSITORY.rpartition("/")[2])
    forms = {f"/{form}/" for name in names for form in (name, f"models--{name.replace('/', '--')}")}
    return "pickscore" if any(form.casefold() in said.casefold() for form in forms) else "clip"


def _setting(file: Path, name: str) -> str:
    """That setting of a JSON file; "" where there is none."""
    try:
        return str(json.loads(file.read_text(encoding="utf-8")).get(name, ""))
    except (OSError, ValueError, AttributeError):
        return ""
