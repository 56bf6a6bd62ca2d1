"""The Space: what goes into its folder, what is refused, and the app started there as Hugging Face starts it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from app import space
from tests.app.serving import ROOT, served
from tests.app.test_launch import GUARD, ask, generate

FRONT = "---\ntitle: A\nsdk: gradio\napp_file: app.py\n---\n\n# A\n\n![shown](docs/a.png)\n"
FILES = {"app.py": "", "app/ui.py": "", "srpo/a.py": "", "requirements.txt": "", "LICENSE": "", "README.md": FRONT}
FILES |= {"docs/a.png": "p", "docs/b.png": "p", "tests/test_a.py": "", "assets/miniature/figures.json": "{}"}


def commit(root: Path) -> Path:
    """The folder as a git checkout that tracks all that lies there."""
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    return root


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "checkout" / name).write_text(text)
    return commit(tmp_path / "checkout")


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_folder_has_the_app_and_what_the_readme_shows_and_no_more(checkout, tmp_path):
    count = space.gather(tmp_path / "space", root=checkout)
    left = {"docs/b.png", "tests/test_a.py", "assets/miniature/figures.json"}
    assert names_in(tmp_path / "space") == set(FILES) - left
    assert count == len(FILES) - len(left)
    assert (tmp_path / "space" / "README.md").read_text() == FRONT


@pytest.mark.parametrize(
    ("name", "text", "tracked", "said"),
    [
        ("app/new.py", "", False, "app/new.py is not tracked"),
        ("app/.env", "A=1", True, "looks like a secret by its name"),
        ("assets/server.key", "", True, "looks like a secret by its name"),
        ("srpo/b.py", "TOKEN = 'hf_" + "a1B2" * 9 + "'", True, "looks like a token"),
        ("srpo/c.txt", "-----BEGIN RSA " + "PRIVATE KEY-----", True, "looks like a token or a private key"),
        ("README.md", "# no front matter", True, "must begin with the front matter"),
        ("README.md", FRONT.replace("gradio", "docker"), True, "must begin with the front matter"),
        ("README.md", FRONT.replace("title: A", "title: ["), True, "cannot be read"),
    ],
)
def test_what_must_not_be_pushed_is_refused_by_name_before_a_file_is_written(
    checkout, tmp_path, name, text, tracked, said
):
    (checkout / name).write_text(text)
    if tracked:
        commit(checkout)
    with pytest.raises(ValueError, match=re.escape(said)):
        space.gather(tmp_path / "space", root=checkout)
    assert not (tmp_path / "space").exists()


def test_links_missing_files_and_folders_without_git_are_refused(checkout, tmp_path):
    (checkout / "srpo" / "a.py").unlink()
    with pytest.raises(ValueError, match=r"srpo/a\.py is no file here"):
        space.gather(tmp_path / "space", root=checkout)
    (checkout / "srpo" / "a.py").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"srpo/a\.py is no file here"):
        space.gather(tmp_path / "space", root=checkout)
    shutil.rmtree(checkout / ".git")
    with pytest.raises(ValueError, match="git checkout"):
        space.gather(tmp_path / "space", root=checkout)
    with pytest.raises(ValueError, match="is not empty"):
        space.gather(checkout, root=checkout)


def test_login_asks_hugging_face_for_it(checkout, tmp_path):
    space.gather(tmp_path / "space", root=checkout, login=True)
    front = (tmp_path / "space" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(front) == {"title": "A", "sdk": "gradio", "app_file": "app.py", "hf_oauth": True}


def test_a_push_makes_the_space_and_leaves_nothing_else_in_it(checkout, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, folder_path, **options):
            calls.append((names_in(folder_path), options))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    assert space.push("someone/studio", root=checkout) == "https://huggingface.co/spaces/someone/studio"
    (name, made), (pushed, options) = calls
    assert name == "someone/studio" and made == {"repo_type": "space", "space_sdk": "gradio", "exist_ok": True}
    assert "app.py" in pushed and "tests/test_a.py" not in pushed
    assert options["repo_type"] == "space" and options["delete_patterns"] == "*"


def test_without_a_token_or_a_name_a_push_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for name, said in (("someone/studio", "hf auth login"), ("studio", "is not OWNER/NAME")):
        assert space.main(["push", name]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and said in printed.err and printed.err.count("\n") == 1


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """(address, its configuration, log) of the app in the folder of a Space, with no option and a closed home.

    The folder is gathered from a copy of this working tree, so that files not yet added are tried as well.
    """
    root = tmp_path_factory.mktemp("space")
    copied = ("app.py", "app", "srpo", "assets", "docs", "requirements.txt", "README.md", "LICENSE")
    for name in copied:
        source = ROOT / name
        leave = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, root / "checkout" / name, ignore=leave)
        else:
            (root / "checkout").mkdir(exist_ok=True)
            shutil.copy(source, root / "checkout" / name)
    space.gather(root / "space", root=commit(root / "checkout"))
    home = root / "home"
    home.mkdir(mode=0o555)
    environment = {
        "SPACE_ID": "someone/studio",
        "SPACE_AUTHOR_NAME": "someone",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(free_port()),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
    }
    bound = GUARD.replace('"127.0.0.1",', '"127.0.0.1", "0.0.0.0",')
    log = root / "log.txt"
    with served(None, log, ("-c", bound), folder=root / "space", **environment) as (address, _):
        assert f":{environment['GRADIO_SERVER_PORT']}" in address
        yield SimpleNamespace(address=address, config=json.loads(ask(address + "config")[1]), log=log, home=home)
    assert os.listdir(home) == []  # also where the one who runs the tests may write anywhere
    assert "FORBIDDEN" not in log.read_text() and "Traceback" not in log.read_text()


def test_the_page_of_a_space_answers_and_paints(running):
    assert ask(running.address)[0] == 200
    values = [None, "fixed", 3, "a red ball", "base", "srpo", 1, 2, 3.5, 128, 128, "none"]
    *steps, last = generate(running.address, values=values)
    assert last["msg"] == "process_completed" and last["success"], last
    assert len(set(re.findall(r"gradio_api/file=[^\"]*\.png", json.dumps(steps)))) == 3


def names_of(config, within=(), *, but=False):
    """(elem_ids, handlers) of a page's configuration; with `within`, of these tabs alone, or of all but them."""

    def walk(node, inside):
        inside = inside or parts[node["id"]]["props"].get("id") in within if node["id"] in parts else inside
        found = {node["id"]} if inside else set()
        return found.union(*(walk(child, inside) for child in node.get("children") or ()))

    parts = {part["id"]: part for part in config["components"]}
    chosen = walk(config["layout"], not within)
    if but:
        chosen = walk(config["layout"], True) - chosen
    ids = {parts[place]["props"].get("elem_id") for place in chosen if place in parts} - {None}
    return ids, {
        re.sub(r"_\d+$", "", str(entry["api_name"]))  # Gradio numbers those that share a name
        for entry in config["dependencies"]
        if not within or any(target[0] in chosen for target in entry["targets"])
    }


def test_a_space_registers_nothing_that_trains_or_sets_up_studies(running, studio):
    """The parts and handlers that only the closed tabs of a page at home have are nowhere in a Space's."""
    from app import ui

    home = ui.build(studio).config
    closed = {"finetune", "studies"}
    closed_ids, closed_names = names_of(home, within=closed)
    _, open_names = names_of(home, within=closed, but=True)
    assert "preset" in closed_ids
    assert len(closed_names - open_names) > 10
    ids, names = names_of(running.config)
    assert "generate" in ids & names
    assert not ids & closed_ids
    assert names & (closed_names - open_names) == set()


def test_a_space_gives_each_request_less_than_a_machine_of_ones_own(running):
    values = [None, "fixed", 3, "a red ball", "base", "srpo", 1, 2, 3.5, 272, 128, "none"]
    *steps, last = generate(running.address, page="page-2", values=values)
    assert "at most 256 pixels per side" in json.dumps([*steps, last])
