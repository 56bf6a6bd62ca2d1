"""What the package hpsv2 itself says, for comparison: it runs in a process of its own.

It cannot live beside us: it wants torchvision, which beside a CPU build of torch breaks transformers' classes, and it
wants modules that only its downloads use. So nothing here is imported by the rewards, and this module imports none of
them: `package_scores` starts it as a program, which mends what can be mended and asks the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = (
    "the package hpsv2 is not installed here: pip install --no-deps --target hpsv2-package -r requirements-hpsv2.txt, "
    "then add --package hpsv2-package"
)
_DECLARED: list[object] = []  # operators are gone with the library that declares them
OF_DOWNLOADS = {"turtle": "forward", "clint.textui": "progress", "requests": "get"}  # imported, and in no score


def package_scores(
    file: str | Path,
    images: Sequence[str | Path],
    prompt: str,
    *,
    package: str | Path | None = None,
    model_config: dict[str, Any] | None = None,
) -> list[float]:
    """The cosines that `hpsv2.img_score.score` gives image files under a text, with the published weights in `file`.

    package: the folder that it was installed to, unless this environment has it. model_config: sizes other than
    ViT-H-14's, in open_clip's words. The process takes 6 GB for ViT-H-14. ValueError, one sentence, where it fails.
    """
    asked = {
        "file": str(Path(file).resolve()),
        "images": [str(Path(image).resolve()) for image in images],
        "prompt": prompt,
        "model_config": model_config,
    }
    found = [str(Path(package).resolve())] if package else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *found])}
    command = [sys.executable, "-m", "srpo.rewards.hpsv2_package"]
    done = subprocess.run(command, input=json.dumps(asked), env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it was killed, perhaps for want of memory"]
        raise ValueError(NOT_INSTALLED if NOT_INSTALLED in said[-1] else f"the package hpsv2 failed: {said[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _main() -> None:
    """Reads what is asked from the standard input and prints the scores."""
    asked = json.loads(sys.stdin.read())
    if importlib.util.find_spec("hpsv2") is None:
        sys.exit(NOT_INSTALLED)
    _prepare_imports()
    from hpsv2 import img_score
    from hpsv2.src.open_clip import create_model_and_transforms, factory

    if asked["model_config"] is not None:
        factory._MODEL_CONFIGS["ViT-H-14"] = asked["model_config"]
    # As the package makes it, but without the 3.9 GB of weights that it downloads and then overwrites.
    model, _, preprocess = create_model_and_transforms(
        "ViT-H-14", None, precision="amp", device=img_score.device, light_augmentation=True, output_dict=True
    )
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    scores = img_score.score(asked["images"], asked["prompt"], cp=asked["file"])
    print(json.dumps([float(score) for score in scores]))


def _prepare_imports() -> None:
    """Makes the package importable: the vocabulary its wheel lacks, an operator, and modules of its downloads."""
    folder = Path(importlib.util.find_spec("hpsv2").origin).parent / "src" / "open_clip"
    vocabulary = folder / "bpe_simple_vocab_16e6.txt.gz"
    if not vocabulary.exists():
        source = importlib.util.find_spec("open_clip")
        if source is None:
            sys.exit("the wheel of hpsv2 lacks its vocabulary file: install open_clip_torch beside it, which has it")
        shutil.copyfile(Path(source.origin).with_name(vocabulary.name), vocabulary)
    for name, attribute in OF_DOWNLOADS.items():
        try:
            importlib.import_module(name)
        except ImportError:
            for part in (name.partition(".")[0], name):
                sys.modules.setdefault(part, ModuleType(part))
            setattr(sys.modules[name], attribute, None)
    declare_operators()


def declare_operators() -> None:
    """Declares torchvision's operators where its library cannot be loaded, as a CUDA build beside a CPU torch."""
    import torch

    library = Path(importlib.util.find_spec("torchvision").origin).with_name("_C.so")
    try:
        torch.ops.load_library(library)
    except OSError:
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(operators)


if __name__ == "__main__":
    _main()
