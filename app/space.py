"""python -m app.space push OWNER/NAME: this app as a Space on Hugging Face, or with --dry-run FOLDER as its folder.

What goes there is what git tracks, as it lies in the working tree: nothing untracked, nothing that looks like a secret.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
README = "README.md"
PARTS = ("app.py", "app", "srpo", "assets", "requirements.txt", "packages.txt", README, "LICENSE")
REQUIRED = ("app.py", "requirements.txt", README, "LICENSE")
LEFT_OUT = ("assets/miniature/figures.json",)  # of the docs; the app does not read it
FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
SHOWN = re.compile(r"\]\((docs/[^)#]+)\)")  # what the README shows or links to
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

SECRET_NAMES = re.compile(r"(\.env.*|.*\.(pem|key|p12|pfx|kdbx)|id_(rsa|dsa|ecdsa|ed25519)|\.netrc|\.git-credentials)")
SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
MAX_SEARCHED_BYTES = 2**20  # weights are larger, and no text


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.dry_run is not None:
            print(f"{gather(options.dry_run, login=options.login)} files in {options.dry_run}")
        else:
            print(push(options.space, login=options.login))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def gather(folder: Path, *, root: Path = ROOT, login: bool = False) -> int:
    """The number of files that a Space needs, now in the new or empty folder.

    login: visitors may sign in with their account on Hugging Face. ValueError, one sentence, before anything is
    written, for what is not tracked, looks like a secret, or is missing.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder")
    files = _tracked(root)
    for file in files:
        _require_public(root, file)
    readme = _readme(root, login)
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, target)
    (folder / README).write_text(readme, encoding="utf-8")
    return len(files)


def push(space: str, *, root: Path = ROOT, login: bool = False) -> str:
    """The address of the Space, which has exactly the gathered files by then; it is made where there is none."""
    from huggingface_hub import HfApi, get_token

    if not REPOSITORY.fullmatch(space):
        raise ValueError(f"{space!r} is not OWNER/NAME, the name of a Space")
    if get_token() is None:
        raise ValueError("pushing needs a token that may write: run `hf auth login`, or set HF_TOKEN")
    with tempfile.TemporaryDirectory(prefix="srpo-space-") as temporary:
        folder = Path(temporary) / "space"
        gather(folder, root=root, login=login)
        api = HfApi()
        api.create_repo(space, repo_type="space", space_sdk="gradio", exist_ok=True)
        commit = f"SRPO Studio at {_git(root, 'rev-parse', '--short', 'HEAD').strip()}"
        api.upload_folder(
            repo_id=space, repo_type="space", folder_path=folder, commit_message=commit, delete_patterns="*"
        )
    return f"https://huggingface.co/spaces/{space}"


def _tracked(root: Path) -> list[str]:
    """The files of a Space, relative to the root. ValueError where one is not tracked, or missing."""
    if Path(_git(root, "rev-parse", "--show-toplevel").strip()).resolve() != root.resolve():
        raise ValueError(f"{root} is not the root of a git checkout: a Space is made of what git tracks")
    if untracked := _listed(root, *PARTS, options=("--others", "--exclude-standard")):
        more = f" and {len(untracked) - 1} more" if len(untracked) > 1 else ""
        raise ValueError(f"{untracked[0]}{more} is not tracked by git: add it, or move it away")
    files = [file for file in _listed(root, *PARTS) if file not in LEFT_OUT]
    if missing := [file for file in REQUIRED if file not in files]:
        raise ValueError(f"{missing[0]} is not tracked by git: a Space needs it")
    shown = SHOWN.findall((root / README).read_text(encoding="utf-8"))
    return sorted({*files, *(_listed(root, *shown) if shown else [])})


def _listed(root: Path, *places: str, options: Sequence[str] = ()) -> list[str]:
    """What git lists of these files and folders."""
    return _git(root, "ls-files", "-z", *options, "--", *places).split("\0")[:-1]


def _require_public(root: Path, file: str) -> None:
    """ValueError for what must not be published, or would not be what it seems."""
    path = root / file
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{file} is no file here: a Space takes plain files alone")
    if SECRET_NAMES.fullmatch(path.name):
        raise ValueError(f"{file} looks like a secret by its name: it is not pushed")
    if path.stat().st_size <= MAX_SEARCHED_BYTES and SECRETS.search(path.read_bytes()):
        raise ValueError(f"{file} holds what looks like a token or a private key: it is not pushed")


def _readme(root: Path, login: bool) -> str:
    """The README with the front matter that tells Hugging Face how to run it. ValueError where that says otherwise."""
    text = (root / README).read_text(encoding="utf-8")
    found = FRONT_MATTER.match(text)
    try:
        settings = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter of {README} cannot be read: {error}") from error
    wanted = {"sdk": "gradio", "app_file": "app.py"}
    if not isinstance(settings, dict) or any(settings.get(name) != value for name, value in wanted.items()):
        raise ValueError(f"{README} must begin with the front matter of a Space, `sdk: gradio` and `app_file: app.py`")
    if login and not settings.get("hf_oauth"):
        text = f"---\n{found[1]}hf_oauth: true\n---\n{text[found.end() :]}"
    return text


def _git(root: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{root} is not a git checkout that can be read: a Space is made of what git tracks"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.space", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    pushing = commands.add_parser("push", help="write the Space's files, and push them")
    pushing.add_argument("space", metavar="OWNER/NAME")
    pushing.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write the files to this folder, and push none")
    pushing.add_argument("--login", action="store_true", help="visitors may sign in, for device time of their own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
