"""Weights by their id on the Hugging Face hub: where they lie once downloaded, and what a download takes.

OWNER/NAME        a repository: black-forest-labs/FLUX.1-dev, black-forest-labs/FLUX.1-Krea-dev, tencent/SRPO ...
OWNER/NAME/FILE   one file of it, where it holds several: wikeeyang/SRPO-Refine-Quantized-v1.0/....safetensors

Nothing is looked up or downloaded but by `plan` and `download`, which a user asks for; what has been downloaded is
found without the network. huggingface_hub does the work and is imported where it is needed. FLUX.1-dev is gated: its
licence is accepted on its page, by an account whose token the download carries.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from srpo.policies.places import LORA_NAME, WEIGHTS_NAME, find, split_weight
from srpo.runs.atomic import flock

ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/([\w. /-]+))?")
# A pipeline's parts, and no more: FLUX.1-dev's repository holds the same weights a second time, as single files.
PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
ENDINGS = ("json", "txt", "jinja", "model", "safetensors")  # what diffusers and transformers read of them
PIPELINE_PATTERNS = ("model_index.json", *(f"{part}/*.{ending}" for part in PARTS for ending in ENDINGS))
SUFFIXES = (".safetensors", ".gguf")
TOKEN = "set HF_TOKEN to a token of your account (huggingface.co/settings/tokens), or run `hf auth login`"
RESUMED_BYTES = 10_000_000  # smaller files are simply fetched again
CHUNK_BYTES = 2**20
ATTEMPTS = 4  # in a row that bring nothing, before a download gives up
COMMAND = "python -m srpo.download"


@dataclass(frozen=True)
class Plan:
    """What a download fetches."""

    repository: str
    commit: str
    files: tuple[tuple[str, int], ...]  # name, bytes
    missing_bytes: int  # of those that are not here yet
    is_gated: bool

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)

    def __str__(self) -> str:
        here = self.total_bytes - self.missing_bytes
        more = f", {here / 1e9:.1f} GB of them here already" if here else ""
        gated = " (gated: it needs your token)" if self.is_gated else ""
        size = f"{len(self.files)} files, {self.total_bytes / 1e9:.1f} GB"
        return f"{self.repository}{gated}: {size}{more}, to {cache_folder()}"


@dataclass(frozen=True)
class Progress:
    """How far a download is."""

    done_bytes: int
    total_bytes: int


def is_id(place: str | Path) -> bool:
    """Whether the place is written as an id, and is no path: not even the folder it begins with is here."""
    return bool(ID.fullmatch(str(place))) and not Path(Path(place).parts[0]).exists()


def repository_of(place: str | Path) -> str | None:
    """OWNER/NAME of an id, or of a folder or file in the hub's cache; None for any other path."""
    return ID.fullmatch(str(place))[1] if is_id(place) else repository_of_cached(place)


def repository_of_cached(place: str | Path) -> str | None:
    """OWNER/NAME of a folder or file in the hub's cache; None for any other path."""
    cached = [part for part in Path(place).absolute().parts if part.startswith("models--")]
    return cached[-1].removeprefix("models--").replace("--", "/", 1) if cached else None


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads: $HF_HUB_CACHE, or below $HF_HOME or the user's cache folder."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def downloaded(place: str | Path) -> Path | None:
    """The folder or file of an id in the cache; None where it was not wholly downloaded, or for what is no id."""
    if not is_id(place):
        return None
    repository, file = ID.fullmatch(str(place)).groups()
    root = cache_folder() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (root / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    found = root / "snapshots" / commit / (file or "")
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or ".." in found.parts or not found.exists():
        return None
    return found if file or _is_whole(repository, commit, found) else None


def _is_whole(repository: str, commit: str, folder: Path) -> bool:
    """Whether nothing is missing of what `plan` would fetch, as far as an earlier download has left the list."""
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        names = [entry.path for entry in get_cached_repo_tree(repository, revision=commit)]
        chosen = _chosen(repository, names)
    except errors.CachedRepoTreeNotFoundError:  # it came by another tool: what is there counts
        return True
    except ValueError:  # several files of weights: who asks for one by its name finds it
        return True
    return all((folder / name).exists() for name in chosen)


def local(place: str | Path) -> Path:
    """The path of a place: as it is, or an id's in the cache. ValueError for an id that was not downloaded."""
    if not is_id(place):
        return Path(place)
    if (found := downloaded(place)) is None:
        raise ValueError(absent(place))
    return found


def located(named: str | Path) -> tuple[Path, float]:
    """(path, weight) of weights as a user names them: a path or an id, a LoRA's weight behind an @.

    ValueError, one sentence, for an id that was not downloaded, or a weight out of range.
    """
    place, weight = split_weight(named)
    return local(place), weight


def require_weights(named: str | Path) -> None:
    """Nothing where `located` finds weights of a form that is read here, by their headers; ValueError, one sentence."""
    find(located(named)[0])


def absent(place: str | Path) -> str:
    """The sentence about an id that is not here: where it was looked for, and how to get it."""
    return f"{place} is not in {cache_folder()}; download it first, with `{COMMAND} {place}` (it says how large it is)."


def plan(place: str) -> Plan:
    """What `download` would fetch of an id, by the hub's own list. ValueError, one sentence, where it says no.

    A pipeline's parts in the layout of diffusers; else the transformer's weights; else the one file that is named.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not (match := ID.fullmatch(str(place))):
        raise ValueError(f"{place} is no id of the hub; write OWNER/NAME, or OWNER/NAME/FILE.")
    repository, file = match.groups()
    with _in_a_sentence(repository):
        info = HfApi().model_info(repository, files_metadata=True)
    sizes = {it.rfilename: it.size or 0 for it in info.siblings or ()}
    chosen = [file] if file else _chosen(repository, list(sizes))
    if unknown := [name for name in chosen if name not in sizes]:
        raise ValueError(f"{repository} has no file {unknown[0]}; it has {_some(sorted(sizes))}.")
    files = tuple((name, sizes[name]) for name in chosen)

    def is_here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name, revision=info.sha), str)

    missing = sum(size for name, size in files if not is_here(name))
    return Plan(repository, info.sha, files, missing, bool(info.gated))


def _chosen(repository: str, names: list[str]) -> list[str]:
    """What of a repository's files is fetched. ValueError, one sentence, where a name is needed."""
    if "model_index.json" not in names:
        return _weights_among(repository, names)
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=list(PIPELINE_PATTERNS)))


def _weights_among(repository: str, names: list[str]) -> list[str]:
    """The files of a transformer: under diffusers' name, in shards, or the only one there is."""
    index = f"{WEIGHTS_NAME}.index.json"
    for folder in ("", "transformer/"):
        beside = [name for name in (f"{folder}config.json",) if name in names]
        if folder + index in names:
            shards = re.compile(rf"{re.escape(folder)}diffusion_pytorch_model-\d+-of-\d+\.safetensors")
            return [folder + index, *beside, *(name for name in names if shards.fullmatch(name))]
        for name in (folder + WEIGHTS_NAME, folder + LORA_NAME):
            if name in names:
                return [name, *beside]
    weights = [name for name in names if name.endswith(SUFFIXES)]
    if len(weights) == 1:
        return weights
    if not weights:
        raise ValueError(f"{repository} holds no weights as .safetensors or .gguf; choose another repository.")
    raise ValueError(f"{repository} holds {len(weights)} files of weights; name one: {_some(weights, repository)}.")


def _some(names: list[str], owner: str = "") -> str:
    """At most eight names, in words."""
    listed = ", ".join(f"{owner}/{name}" if owner else name for name in names[:8])
    return listed + (" ..." if len(names) > 8 else "")


def download(planned: Plan, *, every_s: float = 0.5) -> Generator[Progress, None, Path]:
    """Progress until all is here; returns the folder. What came before an interruption is not fetched again.

    It goes on when the generator is closed: a download is ended with its process. ValueError, one sentence, where the
    hub refuses, breaks off or cannot be reached, or where the disk is too small.
    """
    folder = cache_folder()
    free = shutil.disk_usage(_existing(folder)).free
    if free < planned.missing_bytes:
        raise ValueError(
            f"{planned.repository} needs {planned.missing_bytes / 1e9:.1f} GB more below {folder} and "
            f"{free / 1e9:.1f} GB are free; make room, or set HF_HOME to a folder on another disk."
        )
    fetched = _Fetch(planned)
    fetched.thread.start()
    while fetched.thread.is_alive():
        fetched.thread.join(every_s)
        done = planned.total_bytes - planned.missing_bytes + fetched.num_bytes
        yield Progress(min(done, planned.total_bytes), planned.total_bytes)
    with _in_a_sentence(planned.repository):
        if fetched.failure is not None:
            raise fetched.failure
    return fetched.folder


class _Fetch:
    """A download on a thread of its own, and how many bytes have come."""

    def __init__(self, planned: Plan) -> None:
        self.planned = planned
        self.num_bytes = 0
        self.failure: Exception | None = None
        self.folder = Path()
        self.thread = threading.Thread(target=self._run, name=f"download {planned.repository}", daemon=True)

    def _run(self) -> None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm

        outer = self

        class Counting(tqdm):
            """Counts the bytes on disk, those of an earlier attempt included, and shows nothing."""

            def __init__(self, *arguments, name: str | None = None, **keywords) -> None:
                self.counts = name == "huggingface_hub.snapshot_download"
                super().__init__(*arguments, name=name, **{**keywords, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                if self.counts:
                    outer.num_bytes += int(n or 0)
                return super().update(n)

        try:
            names = [name for name, _ in self.planned.files]
            for name, size in self.planned.files:
                if size >= RESUMED_BYTES:
                    self._fetch_resumably(name, size)
            self.folder = Path(
                snapshot_download(
                    self.planned.repository,
                    allow_patterns=[name.replace("[", "[[]") for name in names],
                    tqdm_class=Counting,
                    max_workers=4,
                )
            )
        except Exception as error:  # of any kind: it is raised again where the download is waited for
            self.failure = error

    def _fetch_resumably(self, name: str, size: int) -> None:
        """Puts a large file where huggingface_hub will find it. What has come of it survives the process.

        huggingface_hub itself begins a file anew in each process, and SRPO's is 47.6 GB.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.planned.repository, name, revision=self.planned.commit)
        blobs = cache_folder() / f"models--{self.planned.repository.replace('/', '--')}" / "blobs"
        failures = now = 0
        while failures < ATTEMPTS:
            if failures:
                time.sleep(2 ** (failures - 1))
            said = get_hf_file_metadata(url)  # anew each time: where it points to is signed for some minutes
            blob = blobs / said.etag
            if blob.exists():
                return
            blobs.mkdir(parents=True, exist_ok=True)
            part = blob.with_name(f"{said.etag}.part")
            with part.open("ab") as opened:
                _lock(opened, name)
                before = opened.tell()
                self.num_bytes += before
                try:
                    self._append(opened, said.location, size)
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError) and error.code not in (408, 429, 500, 502, 503, 504):
                        raise
                if (now := opened.tell()) == size:
                    os.fsync(opened.fileno())
                    _require_content(part, said.etag)
                    os.replace(part, blob)
                    return
            self.num_bytes -= now
            failures = failures + 1 if now == before else 0
        raise OSError(f"{name} broke off after {now / 1e9:.1f} of {size / 1e9:.1f} GB")

    def _append(self, opened: BinaryIO, url: str, size: int) -> None:
        """Adds what the file lacks, as far as it comes."""
        from huggingface_hub.utils import build_hf_headers

        first = opened.tell()
        headers = build_hf_headers() if urlsplit(url).hostname == urlsplit(_endpoint()).hostname else {}
        request = urllib.request.Request(url, headers={**headers, "Range": f"bytes={first}-"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            if first and answer.status != 206:  # all of it once more
                opened.truncate(0)
                self.num_bytes -= first
            while opened.tell() < size and (chunk := answer.read(CHUNK_BYTES)):
                opened.write(chunk)
                self.num_bytes += len(chunk)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _lock(opened: BinaryIO, name: str) -> None:
    """Nobody else writes that file until it is closed; ValueError where somebody does."""
    if not flock(opened.fileno(), exclusive=True):
        raise ValueError(f"{name} is being downloaded by another process; wait until it is done.")
    opened.seek(0, os.SEEK_END)


def _require_content(part: Path, etag: str) -> None:
    """Nothing where its SHA-256 is the one that the hub names, if it names one; else it is removed, and ValueError."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        with part.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if sha256 != etag:
            part.unlink()
            raise ValueError(f"What came is not the file that the hub names (SHA-256 {sha256}); download it again.")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(it for it in (folder, *folder.absolute().parents) if it.exists())


@contextmanager
def _in_a_sentence(repository: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into ValueError, one sentence that says what to do."""
    from huggingface_hub import errors, get_token

    page = f"huggingface.co/{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        if get_token() is None:
            raise ValueError(f"{repository} is gated: accept its licence on {page}, then {TOKEN}.") from error
        raise ValueError(
            f"{repository} is gated, and your token may not read it: accept its licence on {page} with the token's own "
            f"account, or {TOKEN} that may read gated repositories."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(f"The hub knows no {repository}, or it is private; check the name, or {TOKEN}.") from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"The hub refused {repository}: {reason}; what has come is kept, try again later.") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, errors.HTTPError) as error:
        raise ValueError(
            f"The hub cannot be reached, or HF_HUB_OFFLINE forbids it, and {repository} is not whole in "
            f"{cache_folder()}; what has come is kept: go online and start again."
        ) from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ValueError(f"{repository} could not be downloaded ({reason}); what has come is kept.") from error
