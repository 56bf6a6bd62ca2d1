"""Who may import whom: the arrows of the design, read off the import statements of every file.

Imports inside functions and for type checking count as well. A `__main__.py` or `assemble.py` wires parts together and
may import any of ours; it still obeys what concerns third parties.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

WIRES = (".__main__", ".assemble")

# What a package may import of ours, itself aside. No entry: anything but what FORBIDDEN names.
PROTOCOLS = ("srpo.policies.base", "srpo.rewards.base", "srpo.rewards.control_words")
OURS = {
    "srpo.flow": (),
    "srpo.runs": (),
    "srpo.studies": ("srpo.runs.atomic",),
    "srpo.policies": ("srpo.flow", "srpo.loading", "srpo.runs.atomic"),
    "srpo.rewards": ("srpo.flow", "srpo.loading", "srpo.runs.atomic"),
    "srpo.objectives": ("srpo.flow", *PROTOCOLS),
    "srpo.training": (
        *("srpo.flow", "srpo.loading", "srpo.objectives", "srpo.evaluation", "srpo.runs", "srpo.miniature.paths"),
        "srpo.rewards.catalogue",  # names and cards, no model
        *PROTOCOLS,
    ),
    "srpo.evaluation": ("srpo.flow", "srpo.objectives", "srpo.runs", "srpo.studies", *PROTOCOLS),
    # Training knows where the miniature lies, so the miniature runs it as a command and reads its run folder; what a
    # run's settings mean and cost, training alone can say.
    "srpo.miniature": (
        *("srpo.flow", "srpo.loading", "srpo.policies", "srpo.rewards", "srpo.evaluation", "srpo.runs"),
        *("srpo.training.config", "srpo.training.flops"),
    ),
    "app.tabs": ("app",),
    "app.voting": ("app.services",),
}

# What a package may not import, of ours or of others.
MODELS = ("torch", "diffusers", "transformers")
WEB = ("gradio", "fastapi", "starlette")
FORBIDDEN = {
    "srpo": ("app", "gradio"),
    "srpo.studies": MODELS,
    "app.services": (*WEB, "app.tabs", "app.ui", "app.voting"),
    "app.state": ("gradio", "app.tabs", "app.ui"),
    "app.tabs": MODELS,
    "app.voting": (*MODELS, "gradio"),  # raters get nothing of the page whose config names the models
}

# What a package may import of others, beside the standard library. No entry: anything.
OTHERS = {"srpo.flow": ("torch", "einops"), "srpo.runs": ()}


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports_of(source: str, package: str) -> set[str]:
    """Full dotted names of everything that code in `package` imports: `from a import b` gives a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return names


def broken_rules(module: str, imports: set[str]) -> list[str]:
    """One line per import that `module` may not have."""
    lines = []
    for name in sorted(imports):
        ours = is_within(name, "srpo", "app")
        for package, allowed in OURS.items():
            wires = module.endswith(WIRES)
            if is_within(module, package) and ours and not wires and not is_within(name, package, *allowed):
                lines.append(f"{module} imports {name}: of ours, {package} may import only {allowed or 'nothing'}")
        for package, forbidden in FORBIDDEN.items():
            if is_within(module, package) and is_within(name, *forbidden):
                lines.append(f"{module} imports {name}: {package} may not import {forbidden}")
        for package, allowed in OTHERS.items():
            standard = name.split(".")[0] in sys.stdlib_module_names
            if is_within(module, package) and not ours and not standard and not is_within(name, *allowed):
                lines.append(f"{module} imports {name}: of others, {package} may import only {allowed or 'nothing'}")
    return lines


def files() -> list[Path]:
    return sorted(path for folder in ("srpo", "app") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_imports_only_what_its_layer_may(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    module = package if parts[-1] == "__init__" else ".".join(parts)
    assert broken_rules(module, imports_of(path.read_text(encoding="utf-8"), package)) == []


def test_all_packages_of_the_library_are_walked():
    walked = {path.relative_to(ROOT).parts[1] for path in files() if path.relative_to(ROOT).parts[0] == "srpo"}
    assert walked >= {"flow", "policies", "rewards", "objectives", "training", "runs", "miniature"}


def test_imports_are_found_in_every_form():
    source = """
import a.b as c, d
from e.f import g, h as i
from . import sibling
from .near import thing
from ..far import other
def late():
    import inside
    importlib.import_module("dynamic.part")
"""
    assert imports_of(source, "srpo.policies") == {
        *("a.b", "d", "e.f.g", "e.f.h", "srpo.policies.sibling", "srpo.policies.near.thing", "srpo.far.other"),
        *("inside", "dynamic.part"),
    }


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("srpo.flow.path", "srpo.policies.base.Policy"),
        ("srpo.flow.path", "numpy"),
        ("srpo.runs.folder", "torch"),
        ("srpo.runs", "pydantic.BaseModel"),
        ("srpo.studies.store", "torch.Tensor"),
        ("srpo.policies.flux", "srpo.rewards.base.Reward"),
        ("srpo.policies.flux", "srpo.runs.folder.RunFolder"),
        ("srpo.rewards.clip", "srpo.policies.base.Policy"),
        ("srpo.objectives.srpo", "srpo.policies.flux.FluxPolicy"),
        ("srpo.objectives.srpo", "srpo.policies"),
        ("srpo.training.trainer", "srpo.rewards.clip.ClipReward"),
        ("srpo.training.probe", "srpo.policies.flux.FluxPolicy"),
        ("srpo.evaluation.benchmark", "srpo.rewards.hpsv2.HPSv2"),
        ("srpo.training.__main__", "gradio"),
        ("srpo.miniature.recipe", "srpo.training.session"),
        ("srpo.miniature.figures", "srpo.objectives.direct_align.DirectAlign"),
        ("srpo.training.config", "srpo.miniature.world"),
        ("srpo.score", "gradio.Blocks"),
        ("app.services.engine", "gradio"),
        ("app.services.engine", "app.tabs.compare"),
        ("app.state", "gradio.State"),
        ("app.tabs.compare", "torch"),
        ("app.tabs.compare", "srpo.policies.flux.FluxPolicy"),
        ("app.services.voting", "starlette.requests.Request"),
        ("app.services.voting", "app.voting.routes"),
        ("app.voting.routes", "gradio"),
        ("app.voting.routes", "srpo.studies.store.Store"),
    ],
)
def test_an_import_against_an_arrow_is_reported(module, name):
    assert len(broken_rules(module, {name})) == 1


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("srpo.flow.recovery", "srpo.flow.path.interpolate"),
        ("srpo.flow.packing", "einops.rearrange"),
        ("srpo.flow.schedule", "math"),
        ("srpo.runs.folder", "json"),
        ("srpo.policies.flux", "diffusers.FluxPipeline"),
        ("srpo.objectives.srpo", "srpo.policies.base.Policy"),
        ("srpo.objectives.srpo", "srpo.objectives.direct_align.DirectAlign"),
        ("srpo.training.__main__", "srpo.policies.flux.FluxPolicy"),
        ("srpo.training.assemble", "srpo.miniature.judge.Judge"),
        ("srpo.miniature.recipe", "srpo.runs.RunFolder"),
        ("srpo.miniature.figures", "srpo.policies.flux.FluxPolicy"),
        ("srpo.training.config", "srpo.miniature.paths"),
        ("app.services.engine", "torch"),
        ("app.tabs.compare", "gradio"),
        ("app.tabs.compare", "app.services.compare"),
        ("app.ui", "gradio"),
        ("app.ui", "app.voting.routes"),
        ("app.voting.routes", "starlette.routing.Route"),
        ("app.voting.routes", "app.services.voting"),
    ],
)
def test_an_import_along_an_arrow_is_not_reported(module, name):
    assert broken_rules(module, {name}) == []
