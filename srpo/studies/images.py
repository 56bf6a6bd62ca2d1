"""Pictures for a study: brought as folders or files, checked, and rewritten so that nothing but pixels is left.

A served picture is a PNG without metadata below a random name, with the same date as all others; models are handled in
a random order, so that not even the order of the files tells which is which. The mapping is in the store alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import re
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from srpo.runs.atomic import write_file
from srpo.studies.schedule import Shown, pictures
from srpo.studies.schema import MAX_SEED, Plan, Prompt
from srpo.studies.store import Picture, Store, Study

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TABLES = ("prompts.csv", "prompts.jsonl")
RECORD = "srpo_studio"  # the text in which this program's own pictures say how they were made
MAX_PIXELS = 4096 * 4096
MAX_TABLE_BYTES = 64 * 2**20
MAX_NAMED = 3  # problems that a refusal lists
BLOCKS = 12  # across a spoiled picture
FILE_NAME = r"[0-9a-f]{32}\.png"  # of every served file
DATE_S = 315_532_800  # of every served file: 1980, before which some archives cannot count
BROKEN = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work is."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class Gathered:
    """Sets of pictures that belong together: every prompt with every seed by every model."""

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    files: dict[tuple[int, int, str], Path]  # by the prompt's place, the seed and the model's key


@dataclass(frozen=True)
class _Seen:
    """A picture that was read: its size and the hash of its pixels."""

    size: tuple[int, int]
    pixels: str


def gather(
    sources: Mapping[str, Path | Sequence[Path]], table: Path | None = None
) -> Generator[Progress, None, Gathered]:
    """Progress while every picture is read; returns the sets. ValueError, one sentence, for all that is wrong.

    sources: a folder or a list of files by the model's key. Files of one name (without its ending) belong together.
    What they show says `table`, or a prompts.csv or prompts.jsonl beside them with the columns file, prompt and, where
    wanted, seed and category; or the files themselves, if they are PNGs that this program saved.
    """
    if len(sources) < 1:
        raise ValueError("There are no pictures: choose a folder for each model.")
    sets = {model: _files(model, source) for model, source in sources.items()}
    _require_equal(sets)
    seen: dict[str, dict[str, _Seen]] = {model: {} for model in sets}
    total, done, problems = sum(map(len, sets.values())), 0, []
    for model, files in sets.items():
        for stem, path in files.items():
            try:
                seen[model][stem] = _read(path)
            except BROKEN as error:
                problems.append(f"{_name(path)} cannot be read ({_reason(error)})")
            done += 1
            yield Progress(done, total, f"Reading {done:,} of {total:,} pictures")
    problems += _unequal_sizes(seen) + _duplicates(seen)
    _refuse(problems)
    return _arrange(sets, _captions(sets, table))


def keep(folder: Path, shown: Shown, image: Image.Image, source_sha256: str) -> Picture:
    """The record of a served picture, written to the folder; spoiled if it is to be the wrong half of a gold pair.

    source_sha256: of the file it comes from, or of whatever else says so.
    """
    image = plain(image)
    data = encode(spoil(image) if shown.spoiled else image)
    file = f"{secrets.token_hex(16)}.png"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / file, lambda path: path.write_bytes(data))
    os.utime(folder / file, (DATE_S, DATE_S))
    return Picture(shown, file, hashlib.sha256(data).hexdigest(), source_sha256, *image.size)


def bring(store: Store, study: Study, files: Mapping[tuple[int, int, str], Path], folder: Path) -> Iterator[Progress]:
    """Progress while the study's pictures are written to `folder` and noted in the store, as many as are still lacking.

    Whatever ends it, it can be started again. files: as `gather` returns them. ValueError for one that is gone, and
    where the served files would tell a model.
    """
    noted = {shown for shown, made in store.pictures(study.id).items() if (folder / made.file).exists()}
    wanted = pictures(study.plan)
    lacking = [shown for shown in wanted if shown not in noted]
    random.SystemRandom().shuffle(lacking)
    for number, shown in enumerate(lacking, 1):
        path = files[shown.prompt, shown.seed, shown.model]
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                made = keep(folder, shown, image, hashlib.sha256(data).hexdigest())
        except BROKEN as error:
            raise ValueError(f"{_name(path)} cannot be read ({_reason(error)}): bring it anew.") from error
        store.add_pictures(study.id, [made], study.sha256)
        done = len(wanted) - len(lacking) + number
        yield Progress(done, len(wanted), f"Preparing {done:,} of {len(wanted):,} pictures")
    remove_strangers(store, study, folder)
    if told := leaks(study.plan, store.pictures(study.id).values()):
        raise ValueError(f"The models could be told apart: {told[0]}")


def remove_strangers(store: Store, study: Study, folder: Path) -> None:
    """Removes files that the store does not know: written just before somebody stopped the work."""
    known = {made.file for made in store.pictures(study.id).values()}
    for path in folder.glob("*.png"):
        if path.name not in known:
            path.unlink(missing_ok=True)


def plain(image: Image.Image) -> Image.Image:
    """The picture as people see it: turned as its EXIF says, sRGB, over white where it is transparent."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" or "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):  # one that cannot be used says nothing
            image = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"))
    clean = Image.new("RGB", image.size)  # takes over the pixels and nothing else
    clean.paste(image)
    return clean


def encode(image: Image.Image) -> bytes:
    """A PNG of nothing but the pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def spoil(image: Image.Image) -> Image.Image:
    """The picture in coarse blocks of few colours: nobody who looks can call it better."""
    width, height = image.size
    side = max(1, max(width, height) // BLOCKS)
    small = image.resize((max(1, width // side), max(1, height // side)), Image.Resampling.BOX)
    return ImageOps.posterize(small, 3).resize((width, height), Image.Resampling.NEAREST)


def leaks(plan: Plan, made: Iterable[Picture]) -> list[str]:
    """One sentence for everything about the served files, their bytes aside, by which a model could be told."""
    by_scene: dict[tuple[int, int], dict[str, Picture]] = {}
    said = []
    for picture in made:
        if not picture.shown.spoiled:
            by_scene.setdefault((picture.shown.prompt, picture.shown.seed), {})[picture.shown.model] = picture
        if not re.fullmatch(FILE_NAME, picture.file):
            said.append(f"The file name {picture.file[:40]!r} is not a random one.")
    for (prompt, seed), models in by_scene.items():
        sizes = {(picture.width, picture.height) for picture in models.values()}
        if len(sizes) > 1:
            said.append(f"The pictures of {plan.prompts[prompt].text[:60]!r} (seed {seed}) differ in size.")
    return said


# Checks


def _files(model: str, source: Path | Sequence[Path]) -> dict[str, Path]:
    """The pictures of one model by their names without endings."""
    if isinstance(source, Path):
        if not source.is_dir():
            raise ValueError(f"{source.name or source} is no folder: choose the one with the pictures of {model}.")
        paths = sorted(source.iterdir())
    else:
        paths = sorted(Path(path) for path in source)
    found: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in found:
                raise ValueError(f"{model} has two pictures of the name {path.stem[:80]!r}: keep one of them.")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{model} has no pictures: PNG, JPEG and WebP files are read.")
    return found


def _require_equal(sets: Mapping[str, Mapping[str, Path]]) -> None:
    """Nothing where all models have files of the same names; else ValueError that says what is missing where."""
    everything = {stem for files in sets.values() for stem in files}
    problems = []
    for model, files in sets.items():
        if missing := sorted(everything - set(files)):
            more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
            problems.append(f"{model} lacks {', '.join(stem[:80] for stem in missing[:MAX_NAMED])}{more}")
    _refuse(problems)


def _read(path: Path) -> _Seen:
    """Decodes the picture. One of BROKEN where that cannot be done."""
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        pixels = plain(image)
    return _Seen(pixels.size, hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest())


def _unequal_sizes(seen: Mapping[str, Mapping[str, _Seen]]) -> list[str]:
    found = []
    for stem in next(iter(seen.values())):
        sizes = sorted({known[stem].size for known in seen.values() if stem in known})
        if len(sizes) > 1:
            words = " and ".join(f"{width} x {height}" for width, height in sizes)
            found.append(f"{stem[:80]} is {words}, by which the models could be told apart")
    return found


def _duplicates(seen: Mapping[str, Mapping[str, _Seen]]) -> list[str]:
    """Pictures that one model has twice. (Two models may agree on one: that is a tie.)"""
    found = []
    for model, known in seen.items():
        first: dict[str, str] = {}
        for stem, picture in known.items():
            if (other := first.setdefault(picture.pixels, stem)) != stem:
                found.append(f"{other[:80]} and {stem[:80]} of {model} are the same picture")
    return found


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - MAX_NAMED:,} more" if len(problems) > MAX_NAMED else ""
        raise ValueError(f"The pictures do not fit: {'; '.join(problems[:MAX_NAMED])}{more}.")


def _name(path: Path) -> str:
    return path.name[:80]


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no PNG, JPEG or WebP picture"
    return " ".join(str(error).split())[:120] or type(error).__name__


# What the pictures show


@dataclass(frozen=True)
class _Caption:
    prompt: Prompt
    seed: int


def _captions(sets: Mapping[str, Mapping[str, Path]], table: Path | None) -> dict[str, _Caption]:
    """What every file shows, by its name without ending."""
    stems = list(next(iter(sets.values())))
    if table is None:
        folders = {path.parent for files in sets.values() for path in files.values()}
        table = next(
            (folder / name for folder in sorted(folders) for name in TABLES if (folder / name).is_file()), None
        )
    if table is not None:
        found = _read_table(table)
        if missing := [stem for stem in stems if stem not in found]:
            raise ValueError(f"{_name(table)} says nothing about {missing[0][:80]}: add a line for each picture.")
        return {stem: found[stem] for stem in stems}
    captions = {}
    for files in sets.values():
        for stem, path in files.items():
            caption = _recorded(path)
            if caption is None:
                raise ValueError(
                    "Nothing says what the pictures show: put a prompts.csv with the columns file and prompt "
                    "beside them."
                )
            if captions.setdefault(stem, caption) != caption:
                raise ValueError(f"The pictures named {stem[:80]!r} were made from different prompts or seeds.")
    return captions


def _recorded(path: Path) -> _Caption | None:
    """What a PNG of this program says of itself; None where it says nothing."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            request = json.loads(image.info[RECORD])["request"]
        seed = request["seed"]
        return _Caption(Prompt(text=request["prompt"]), _seed(seed))
    except (KeyError, TypeError, RecursionError, *BROKEN):
        return None


def _read_table(path: Path) -> dict[str, _Caption]:
    """The captions of a prompts.csv or prompts.jsonl by file. ValueError, naming the line, for what cannot be read."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise ValueError("it is too large")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{_name(path)} cannot be read ({_reason(error)}).") from error
    found: dict[str, _Caption] = {}
    for number, row in enumerate(rows, 1):
        try:
            stem = Path(str(row["file"])).name
            stem = Path(stem).stem if Path(stem).suffix.lower() in SUFFIXES else stem
            prompt = Prompt(text=row["prompt"], category=row.get("category") or "")
            caption = _Caption(prompt, _seed(row.get("seed") or 0))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"Entry {number} of {_name(path)} cannot be read: it needs the columns file and prompt, "
                "and seeds are whole numbers."
            ) from error
        if stem in found:
            raise ValueError(f"{_name(path)} names {stem[:80]} twice: keep one line.")
        found[stem] = caption
    return found


def _seed(value: object) -> int:
    number = int(str(value))
    if isinstance(value, bool) or not 0 <= number <= MAX_SEED:
        raise ValueError(f"a seed is a whole number from 0 to {MAX_SEED}")
    return number


def _arrange(sets: Mapping[str, Mapping[str, Path]], captions: Mapping[str, _Caption]) -> Gathered:
    """The sets as prompts x seeds. ValueError where they are no full grid."""
    by_text: dict[str, dict[int, str]] = {}
    prompts: dict[str, Prompt] = {}
    for stem, caption in captions.items():
        key = caption.prompt.text.casefold()
        prompts.setdefault(key, caption.prompt)
        seeds = by_text.setdefault(key, {})
        if caption.seed in seeds:
            raise ValueError(
                f"{seeds[caption.seed][:80]} and {stem[:80]} have the same prompt and seed: keep one, or say their "
                "seeds."
            )
        seeds[caption.seed] = stem
    first = next(iter(by_text.values()))
    for key, seeds in by_text.items():
        if set(seeds) != set(first):
            raise ValueError(
                f"The prompt {prompts[key].text[:60]!r} has the seeds {sorted(seeds)[:8]}, another one "
                f"{sorted(first)[:8]}: bring the same seeds for every prompt."
            )
    places = {key: place for place, key in enumerate(by_text)}
    files = {
        (places[key], seed, model): known[stem]
        for key, seeds in by_text.items()
        for seed, stem in seeds.items()
        for model, known in sets.items()
    }
    return Gathered(tuple(prompts[key] for key in by_text), tuple(sorted(first)), files)
