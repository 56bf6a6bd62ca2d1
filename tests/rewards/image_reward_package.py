"""What the package image-reward itself says; run as a program, with the package's own folder in front of our path.

It wants transformers 4 and torchvision, so it cannot be imported beside us. Its network is made as small as asked, and
the rest of it is as published: towers, tokenizer, preprocessing, head.
"""

import importlib
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from srpo.rewards.hpsv2_package import declare_operators

REQUIREMENTS = ("image-reward==1.5", "transformers==4.33.3", "tokenizers==0.13.3", "huggingface_hub==0.36.0")
REQUIREMENTS += ("timm==0.6.13", "torchvision==0.28.0")


def main() -> None:
    """Reads sizes, files and texts from the standard input; prints the scores, each text with all images."""
    asked = json.loads(sys.stdin.read())
    sizes = asked["sizes"]
    declare_operators()
    _stand_in("fairscale.nn.checkpoint.checkpoint_activations", checkpoint_wrapper=lambda module: module)
    root = Path(importlib.util.find_spec("ImageReward").origin).parent
    for name in ("ImageReward", "ImageReward.models"):  # their __init__ imports CLIP's package, datasets and trainers
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(root / "models" if name.endswith("models") else root)]
    pretrain = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    vit = importlib.import_module("ImageReward.models.BLIP.vit")
    package = importlib.import_module("ImageReward.ImageReward")

    width, heads = sizes["vision"], asked["vision_heads"]
    shape = {"img_size": sizes["image"], "patch_size": sizes["patch"], "embed_dim": width, "num_heads": heads}
    pretrain.create_vit = lambda *_, **__: (vit.VisionTransformer(**shape, depth=sizes["vision_layers"]), width)
    pretrain.init_tokenizer = partial(_tokenizer, asked["vocabulary"])
    package._transform = partial(lambda transform, _: transform(sizes["image"]), package._transform)
    package.MLP = partial(lambda head, _: head(sizes["text"]), package.MLP)
    model = package.ImageReward(asked["med_config"])
    left_out = model.load_state_dict(torch.load(asked["file"]), strict=False)
    assert left_out.missing_keys in ([], ["blip.text_encoder.embeddings.position_ids"]) and not left_out.unexpected_keys
    model.eval()
    print(json.dumps([model.score(text, image) for text in asked["texts"] for image in asked["images"]]))


def _tokenizer(vocabulary: str) -> object:
    """BERT's, with the two marks of BLIP, as the package makes it of the published vocabulary."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocabulary)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


def _stand_in(name: str, **content: object) -> None:
    """Modules of that name and its parents, with the content in the last."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    sys.modules[name].__dict__.update(content)


if __name__ == "__main__":
    main()
