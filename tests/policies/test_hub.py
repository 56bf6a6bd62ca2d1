"""Ids of the hub: found without the network once they are here; a download says what, resumes, and names each refusal.

The hub is a small server of our own; the downloads run as the command, in a process of their own.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from srpo.policies import hub
from srpo.policies.checkpoints import load_transformer
from srpo.policies.load import load_policy
from srpo.policies.places import find
from tests.policies.forms import wide_flux
from tests.policies.hub_server import COMMIT, Hub, Repository, running
from tests.tiny import save_tiny_flux, save_tiny_klein, tiny_flux_pipeline, tiny_klein_pipeline

ROOT = Path(__file__).resolve().parents[2]
FLUX, SRPO, QUANTISED = "black-forest-labs/FLUX.1-dev", "tencent/SRPO", "wikeeyang/SRPO-Refine-Quantized-v1.0"
KLEIN = "black-forest-labs/FLUX.2-klein-4B"
GATED = "accept its licence on huggingface.co/black-forest-labs/FLUX.1-dev"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(it.relative_to(folder)): it.read_bytes() for it in sorted(folder.rglob("*")) if it.is_file()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The files of each repository."""
    folder = tmp_path_factory.mktemp("published")
    flux = contents(save_tiny_flux(folder / "flux"))
    beside = {"text_encoder/flax_model.msgpack": b"another framework's"}
    beside |= {
        "flux1-dev.safetensors": bytes(10**6),
        "ae.safetensors": b"vae",
        "README.md": b"# FLUX",
        "dev_grid.jpg": b"",
    }
    wide_flux(seed=1).save_pretrained(folder / "srpo")
    weights = (folder / "srpo" / "diffusion_pytorch_model.safetensors").read_bytes()
    return {
        FLUX: flux | beside,
        KLEIN: contents(save_tiny_klein(folder / "klein")) | {"flux-2-klein-4b.safetensors": bytes(10**6)},
        SRPO: {
            "diffusion_pytorch_model.safetensors": weights,
            "README.md": b"# SRPO",
            "comfyui/SRPO-workflow.json": b"{}",
        },
        QUANTISED: {
            "Flux1-Dev-SRPO-v1-fp8.safetensors": weights,
            "Flux1-Dev-SRPO-v1-Q8_0.gguf": b"GGUF",
            "README.md": b"",
        },
    }


@pytest.fixture
def served(published):
    repositories = {name: Repository(dict(files)) for name, files in published.items()}
    repositories[FLUX].gated, repositories[FLUX].token = "auto", "hf_good"
    with running(Hub(repositories)) as it:
        yield it


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def run(served, cache, *arguments, token=None, endpoint=None):
    """The command's (status, output, sentences)."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": endpoint or served.address,
        "HF_HUB_CACHE": str(cache),
        "HF_HOME": str(cache / "home"),
    }
    environment |= {"HF_HUB_OFFLINE": "1"}  # as the app sets it: who calls the command asks for the network
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, "-m", "srpo.download", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.strip(), done.stderr


def test_srpo_is_downloaded_found_offline_and_loaded(served, cache):
    assert hub.downloaded(SRPO) is None
    with pytest.raises(ValueError, match=rf"tencent/SRPO is not in {cache}; download it first, with `python -m srpo"):
        hub.local(SRPO)
    status, folder, said = run(served, cache, SRPO)
    assert status == 0 and said.startswith("tencent/SRPO: 1 files, 0.0 GB, to ")
    assert hub.local(SRPO) == Path(folder) == cache / "models--tencent--SRPO" / "snapshots" / COMMIT
    assert [it.name for it in Path(folder).iterdir()] == ["diffusion_pytorch_model.safetensors"]
    ours = load_transformer(hub.local(SRPO), wide_flux(seed=0)).state_dict()
    assert all(torch.equal(it, ours[name]) for name, it in wide_flux(seed=1).state_dict().items())
    assert hub.repository_of(folder) == hub.repository_of(SRPO) == SRPO


def test_a_pipeline_is_fetched_without_the_second_copy_of_its_weights(served, cache):
    status, folder, said = run(served, cache, FLUX, token="hf_good")
    assert status == 0, said
    names = set(contents(Path(folder)))
    assert {"model_index.json", "transformer/config.json", "tokenizer_2/tokenizer.json"} <= names
    assert not names & {"text_encoder/flax_model.msgpack"}
    assert not names & {"flux1-dev.safetensors", "ae.safetensors", "README.md", "dev_grid.jpg"}
    from srpo.policies.flux import FluxPolicy

    ours = FluxPolicy.from_pretrained(hub.local(FLUX)).transformer.state_dict()
    assert all(torch.equal(it, ours[name]) for name, it in tiny_flux_pipeline().transformer.state_dict().items())


def test_a_second_family_is_fetched_with_its_chat_template_and_loaded_by_its_id(served, cache):
    with pytest.raises(ValueError, match=rf"FLUX\.2-klein-4B is not in {cache}; download it first"):
        load_policy(KLEIN)
    status, folder, said = run(served, cache, KLEIN)
    assert status == 0, said
    names = set(contents(Path(folder)))
    assert "tokenizer/chat_template.jinja" in names and "flux-2-klein-4b.safetensors" not in names
    ours, theirs = load_policy(KLEIN).encode_prompts(["a red ball"]), tiny_klein_pipeline()
    assert torch.allclose(ours.prompt_embeds, theirs.encode_prompt("a red ball")[0], atol=1e-5)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "set HF_TOKEN to a token of your account (huggingface.co/settings/tokens), or run `hf auth login`"),
        ("hf_other", "your token may not read it"),
    ],
)
def test_a_gated_repository_says_how_to_get_access_and_where_the_token_goes(served, cache, token, said):
    status, _, errors = run(served, cache, FLUX, token=token)
    last = errors.strip().splitlines()[-1]
    assert status == 2 and last.startswith("error: ") and GATED in last and said in last
    assert hub.downloaded(FLUX) is None  # though some of its small files may have come


def test_a_download_that_broke_off_goes_on_where_it_was(served, cache):
    """The server cuts the file at 2 MB and stays away; the second try asks for the rest alone."""
    name = "diffusion_pytorch_model.safetensors"
    size = len(served.repositories[SRPO].files[name])
    served.repositories[SRPO].cut_after[name] = 2_000_000
    served.is_broken = True
    status, _, errors = run(served, cache, SRPO)
    assert status == 2 and "what has come is kept" in errors.splitlines()[-1]
    assert hub.downloaded(SRPO) is None and hub.downloaded(f"{SRPO}/{name}") is None
    served.is_broken = False
    served.repositories[SRPO].cut_after.clear()
    served.asked.clear()
    status, folder, _ = run(served, cache, SRPO)
    assert status == 0
    fetched = [asked[2] for asked in served.asked if asked[0] == "GET" and asked[1].endswith(name)]
    assert fetched == ["bytes=2000000-"]
    assert (Path(folder) / name).stat().st_size == size and find(folder).kind == "transformer"


def test_a_short_break_is_bridged_within_one_download(served, cache):
    name = "diffusion_pytorch_model.safetensors"
    served.repositories[SRPO].cut_after[name] = 3_000_000
    status, folder, _ = run(served, cache, SRPO)
    fetched = [asked[2] for asked in served.asked if asked[0] == "GET" and asked[1].endswith(name)]
    assert status == 0 and fetched == ["bytes=0-", "bytes=3000000-"]
    assert (Path(folder) / name).read_bytes() == served.repositories[SRPO].files[name]


def test_a_killed_download_goes_on_where_it_was(served, cache):
    name = "diffusion_pytorch_model.safetensors"
    content = served.repositories[SRPO].files[name]
    part = cache / "models--tencent--SRPO" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content[:5_000_000])  # what a kill leaves
    status, folder, _ = run(served, cache, SRPO)
    fetched = [asked[2] for asked in served.asked if asked[0] == "GET" and asked[1].endswith(name)]
    assert status == 0 and fetched == ["bytes=5000000-"]
    assert (Path(folder) / name).read_bytes() == content and not part.exists()


def test_a_part_of_another_content_is_found_out_by_its_hash_and_removed(served, cache):
    name = "diffusion_pytorch_model.safetensors"
    part = (
        cache
        / "models--tencent--SRPO"
        / "blobs"
        / f"{hashlib.sha256(served.repositories[SRPO].files[name]).hexdigest()}.part"
    )
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(5_000_000))
    status, _, errors = run(served, cache, SRPO)
    assert status == 2 and "What came is not the file that the hub names" in errors and not part.exists()
    assert run(served, cache, SRPO)[0] == 0


def test_a_second_download_fetches_nothing(served, cache):
    run(served, cache, SRPO)
    served.asked.clear()
    status, _, said = run(served, cache, SRPO)
    assert status == 0 and "0.0 GB of them here already" in said
    assert not [asked for asked in served.asked if "/resolve/" in asked[1] and asked[0] == "GET"]


def test_a_dry_run_says_what_and_how_large_and_fetches_nothing(served, cache):
    status, output, said = run(served, cache, "--dry-run", SRPO, FLUX, token="hf_good")
    assert status == 0 and output == "" and "black-forest-labs/FLUX.1-dev (gated: it needs your token): " in said
    assert not [asked for asked in served.asked if "/resolve/" in asked[1]]
    assert not list(cache.rglob("*.safetensors"))


def test_a_repository_of_several_files_asks_which(served, cache):
    status, _, errors = run(served, cache, QUANTISED)
    assert (
        status == 2 and f"holds 2 files of weights; name one: {QUANTISED}/Flux1-Dev-SRPO-v1-fp8.safetensors" in errors
    )
    status, folder, _ = run(served, cache, f"{QUANTISED}/Flux1-Dev-SRPO-v1-fp8.safetensors")
    assert status == 0
    file = hub.local(f"{QUANTISED}/Flux1-Dev-SRPO-v1-fp8.safetensors")
    assert file == Path(folder) / "Flux1-Dev-SRPO-v1-fp8.safetensors" and hub.repository_of(file) == QUANTISED
    assert run(served, cache, f"{QUANTISED}/other.gguf")[2].startswith(f"error: {QUANTISED} has no file other.gguf")


def test_a_name_that_the_hub_does_not_know_and_a_hub_that_is_away_are_one_sentence_each(served, cache):
    status, _, errors = run(served, cache, "nobody/nothing")
    assert status == 2 and errors.startswith("error: The hub knows no nobody/nothing, or it is private; check the name")
    status, _, errors = run(served, cache, SRPO, endpoint="http://127.0.0.1:9")
    assert status == 2 and errors.startswith("error: The hub cannot be reached") and str(cache) in errors


def test_too_small_a_disk_is_said_before_anything_is_fetched(served, cache, monkeypatch):
    planned = hub.Plan(SRPO, COMMIT, (("a.safetensors", 10**18),), 10**18, False)
    with pytest.raises(ValueError, match=r"needs 1000000000.0 GB more below .* make room, or set HF_HOME"):
        next(hub.download(planned))
    assert served.asked == []


def test_progress_counts_the_bytes_that_came(served, cache):
    environment = ["--json", SRPO]
    status, _, said = run(served, cache, *environment)
    steps = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert status == 0 and all(0 <= step["done"] <= step["total"] for step in steps)


@pytest.mark.parametrize("place", ["a/b/../../etc/passwd", "a", "/a/b", "../a", "a/b c", "http://a/b", "a//b"])
def test_what_is_no_id_is_no_id(place):
    assert hub.downloaded(place) is None


def test_a_folder_that_is_there_comes_before_an_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tencent" / "SRPO").mkdir(parents=True)
    assert not hub.is_id("tencent/other") and not hub.is_id("tencent/SRPO/file.gguf")  # mistyped paths
    assert not hub.is_id(SRPO) and hub.local(SRPO) == Path(SRPO) and hub.repository_of(SRPO) is None


def test_importing_the_library_and_asking_for_a_place_never_imports_the_hub():
    code = "import sys; from srpo.policies import hub, places; hub.local('/tmp'); print(*map(sys.modules.get, NAMES))"
    code = code.replace("NAMES", "('huggingface_hub', 'torch')")
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["None", "None"]
