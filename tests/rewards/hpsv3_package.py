"""What the package hpsv3 itself says; run as a program, with the package's own folder in front of our path.

It wants transformers 4.45 and much that only its training needs, so it cannot be imported beside us: what it imports
for training is stood in for. Its chat, its pictures, its tokens and its model are as published.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType

REQUIREMENTS = ("hpsv3==1.0.0", "transformers==4.45.2", "tokenizers==0.20.3", "huggingface_hub==0.26.5")
FOR_TRAINING = (
    *("matplotlib", "matplotlib.pyplot", "matplotlib.patches", "pandas", "datasets", "trl", "peft", "deepspeed"),
    *("torch.utils.tensorboard", "omegaconf", "fire", "torchvision", "torchvision.io", "torchvision.transforms"),
    *("torchvision.transforms.functional", "transformers.trainer", "transformers.trainer_pt_utils"),
    *("transformers.trainer_callback", "transformers.training_args"),
    *("hpsv3.utils.training_utils", "hpsv3.utils.parser", "hpsv3.train"),
)


class _StandIn(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main() -> None:
    """Reads a folder, image files, texts and sizes from the standard input; prints scores and fitted sizes."""
    asked = json.loads(sys.stdin.read())
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor

    for name in FOR_TRAINING:
        module = _StandIn(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module
        owner, _, own = name.rpartition(".")
        if owner in FOR_TRAINING:
            setattr(sys.modules[owner], own, module)
    from hpsv3.dataset.utils import smart_resize
    from hpsv3.inference import HPSv3RewardInferencer
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT

    folder = Path(asked["folder"])
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(),
        tokenizer,
        chat_template=json.loads((folder / "tokenizer_config.json").read_text())["chat_template"],
    )
    tokenizer.padding_side = "right"
    marks = ["<|Reward|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    model = Qwen2VLRewardModelBT(
        Qwen2VLConfig.from_pretrained(folder),
        output_dim=2,
        reward_token="special",
        special_token_ids=tokenizer.convert_tokens_to_ids(marks),
        rm_head_type="ranknet",
    )
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.load_state_dict(load_file(folder / "HPSv3.safetensors"), strict=True)
    package = HPSv3RewardInferencer.__new__(HPSv3RewardInferencer)
    package.model, package.processor, package.device = model.eval(), processor, "cpu"
    package.use_special_tokens = True
    with torch.no_grad():
        together = package.reward(asked["images"], asked["texts"])[:, 0].tolist()
    pixels = 256 * 28 * 28
    sizes = [smart_resize(*size, min_pixels=pixels, max_pixels=pixels) for size in asked["sizes"]]
    print(json.dumps({"scores": together, "sizes": sizes}))


if __name__ == "__main__":
    main()
