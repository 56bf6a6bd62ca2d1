"""Small random weights in the layouts that rewards are published in, and their published forward passes by hand.

The passes are written from the papers and the packages' behaviour on plain tensors and the published names: they share
nothing with ours but PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from srpo.rewards.aesthetic import WEIGHTS_NAME
from tests.tiny import tiny_clip

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
Weights = Mapping[str, Tensor]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
PIECES += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"]


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Weights of those names and shapes; norms' scales are near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if ("ln_" in name or "norm" in name.lower()) and name.endswith("weight"):
            weights[name] += 1
    return {name: weight.to(dtype) for name, weight in weights.items()}


def write_vocabulary(folder: Path) -> Path:
    """The folder, now with a vocab.txt of single letters."""
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return folder


def vit_shapes(prefix: str, width: int, layers: int, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the blocks of a vision or text transformer; `names` tells how its parts are called."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        block = f"{prefix}.{layer}."
        shapes |= {
            block + names["qkv"] + end: s
            for end, s in zip(names["ends"], ((3 * width, width), (3 * width,)), strict=True)
        }
        for part, shape in (("out", (width, width)), ("up", (4 * width, width)), ("down", (width, 4 * width))):
            shapes |= {f"{block}{names[part]}.weight": shape, f"{block}{names[part]}.bias": shape[:1]}
        for norm in (names["norm1"], names["norm2"]):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    return shapes


OPEN_CLIP = {"qkv": "attn.in_proj_", "ends": ("weight", "bias"), "out": "attn.out_proj", "up": "mlp.c_fc"}
OPEN_CLIP |= {"down": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2"}
TIMM = {"qkv": "attn.qkv", "ends": (".weight", ".bias"), "out": "attn.proj", "up": "mlp.fc1"}
TIMM |= {"down": "mlp.fc2", "norm1": "norm1", "norm2": "norm2"}


def open_clip_shapes(
    *,
    text: int,
    text_layers: int,
    vision: int,
    vision_layers: int,
    embedding: int,
    image: int,
    patch: int,
    vocabulary: int,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an open_clip dual encoder."""
    return {
        "positional_embedding": (77, text),
        "text_projection": (text, embedding),
        "logit_scale": (),
        "visual.class_embedding": (vision,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, vision),
        "visual.proj": (vision, embedding),
        "visual.conv1.weight": (vision, 3, patch, patch),
        **{f"visual.{norm}.{end}": (vision,) for norm in ("ln_pre", "ln_post") for end in ("weight", "bias")},
        **vit_shapes("visual.transformer.resblocks", vision, vision_layers, OPEN_CLIP),
        **vit_shapes("transformer.resblocks", text, text_layers, OPEN_CLIP),
        "token_embedding.weight": (vocabulary, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
    }


def open_clip_cosines(weights: Weights, heads: int, pixels: Tensor, tokens: Tensor) -> Tensor:
    """(B,) cosines of normalised pixels (B, 3, S, S) and tokens (B, 77), padded with 0 behind the largest number."""
    w = {name: weight.float() for name, weight in weights.items()}
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    causal = torch.full((77, 77), -math.inf).triu(1)
    x = _blocks(x, w, "transformer.resblocks", OPEN_CLIP, heads, 1e-5, causal)
    x = _norm(x, w, "ln_final", 1e-5)[torch.arange(len(tokens)), tokens.argmax(-1)] @ w["text_projection"]
    y = F.conv2d(pixels, w["visual.conv1.weight"], stride=w["visual.conv1.weight"].shape[-1]).flatten(2).mT
    y = torch.cat([w["visual.class_embedding"].expand(len(y), 1, -1), y], dim=1) + w["visual.positional_embedding"]
    y = _norm(y, w, "visual.ln_pre", 1e-5)
    y = _blocks(y, w, "visual.transformer.resblocks", OPEN_CLIP, heads, 1e-5)
    y = _norm(y[:, 0], w, "visual.ln_post", 1e-5) @ w["visual.proj"]
    return F.cosine_similarity(x, y)


def image_reward_shapes(
    *,
    vision: int,
    vision_layers: int,
    image: int,
    patch: int,
    text: int,
    text_layers: int,
    feed_forward: int,
    vocabulary: int,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of ImageReward.pt, with what its score does not use."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, (image // patch) ** 2 + 1, vision),
        "blip.visual_encoder.patch_embed.proj.weight": (vision, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (vision,),
        **vit_shapes("blip.visual_encoder.blocks", vision, vision_layers, TIMM),
        "blip.visual_encoder.norm.weight": (vision,),
        "blip.visual_encoder.norm.bias": (vision,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (vocabulary, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, text),
        "blip.text_encoder.embeddings.LayerNorm.weight": (text,),
        "blip.text_encoder.embeddings.LayerNorm.bias": (text,),
        **{f"blip.{part}_proj.weight": (256, width) for part, width in (("vision", vision), ("text", text))},
        **{f"blip.{part}_proj.bias": (256,) for part in ("vision", "text")},
    }
    for layer in range(text_layers):
        block = f"blip.text_encoder.encoder.layer.{layer}."
        for kind, seen in (("attention", text), ("crossattention", vision)):
            for part, wide in (("self.query", text), ("self.key", seen), ("self.value", seen), ("output.dense", text)):
                shapes |= {f"{block}{kind}.{part}.weight": (text, wide), f"{block}{kind}.{part}.bias": (text,)}
            shapes |= {f"{block}{kind}.output.LayerNorm.{end}": (text,) for end in ("weight", "bias")}
        shapes |= {f"{block}intermediate.dense.weight": (feed_forward, text)}
        shapes |= {f"{block}intermediate.dense.bias": (feed_forward,), f"{block}output.dense.bias": (text,)}
        shapes |= {f"{block}output.dense.weight": (text, feed_forward)}
        shapes |= {f"{block}output.LayerNorm.{end}": (text,) for end in ("weight", "bias")}
    return shapes | head_shapes("mlp.layers.", text)


def head_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    """The head's layers lie at 0, 2, 4, 6 and 7: dropout is numbered too."""
    widths = (width, 1024, 128, 64, 16, 1)
    shapes: dict[str, tuple[int, ...]] = {}
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        shapes |= {f"{prefix}{number}.weight": (after, before), f"{prefix}{number}.bias": (after,)}
    return shapes


def save_aesthetic(folder: Path) -> Path:
    """The folder, now with what `load_reward("aesthetic:...")` reads: a small CLIP of 768 numbers, and a head."""
    clip = tiny_clip()
    config = CLIPConfig(**{**clip.model.config.to_dict(), "projection_dim": 768})
    config.text_config.projection_dim = config.vision_config.projection_dim = 768
    for part in (CLIPModel(config), clip.tokenizer, clip.image_processor):
        part.save_pretrained(folder)
    torch.save(random_weights(head_shapes("layers.", 768), torch.float32), folder / WEIGHTS_NAME)
    return folder


def head_output(weights: Weights, prefix: str, vector: Tensor) -> Tensor:
    """(B,) what the head says of vectors (B, D)."""
    for number in (0, 2, 4, 6, 7):
        vector = F.linear(vector, weights[f"{prefix}{number}.weight"], weights[f"{prefix}{number}.bias"])
    return vector[:, 0]


def image_reward_scores(w: Weights, vision_heads: int, text_heads: int, pixels: Tensor, tokens: Tensor) -> Tensor:
    """(B,) scores of normalised pixels and tokens (B, 35), padded with 0, as the package computes them."""
    eye = "blip.visual_encoder."
    kernel = w[eye + "patch_embed.proj.weight"]
    y = F.conv2d(pixels, kernel, w[eye + "patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).mT
    y = torch.cat([w[eye + "cls_token"].expand(len(y), -1, -1), y], dim=1) + w[eye + "pos_embed"]
    y = _norm(_blocks(y, w, eye + "blocks", TIMM, vision_heads, 1e-6), w, eye + "norm", 1e-6)
    mouth = "blip.text_encoder.embeddings."
    positions = w[mouth + "position_embeddings.weight"][: tokens.shape[1]]
    x = _norm(w[mouth + "word_embeddings.weight"][tokens] + positions, w, mouth + "LayerNorm", 1e-12)
    hidden = -10000.0 * (tokens == 0)[:, None, None, :].float()
    layers = sum(name.endswith("intermediate.dense.bias") for name in w)
    for layer in range(layers):
        block = f"blip.text_encoder.encoder.layer.{layer}."
        for kind, seen, mask in (("attention", None, hidden), ("crossattention", y, None)):
            part = block + kind
            asked, shown = x, x if seen is None else seen
            q, k, v = (
                F.linear(source, w[f"{part}.self.{name}.weight"], w[f"{part}.self.{name}.bias"])
                for source, name in ((asked, "query"), (shown, "key"), (shown, "value"))
            )
            out = F.linear(
                _attend(q, k, v, text_heads, mask), w[f"{part}.output.dense.weight"], w[f"{part}.output.dense.bias"]
            )
            x = _norm(out + x, w, f"{part}.output.LayerNorm", 1e-12)
        up = F.gelu(F.linear(x, w[block + "intermediate.dense.weight"], w[block + "intermediate.dense.bias"]))
        down = F.linear(up, w[block + "output.dense.weight"], w[block + "output.dense.bias"])
        x = _norm(down + x, w, block + "output.LayerNorm", 1e-12)
    return (head_output(w, "mlp.layers.", x[:, 0]) - 0.16717362830052426) / 1.0333394966054072


def _blocks(
    x: Tensor, w: Weights, prefix: str, names: Mapping[str, str], heads: int, eps: float, mask: Tensor | None = None
) -> Tensor:
    """Pre-norm transformer blocks with one matrix for queries, keys and values."""
    layers = sum(name.startswith(prefix) and name.endswith(names["norm1"] + ".bias") for name in w)
    for layer in range(layers):
        block = f"{prefix}.{layer}."
        weight, bias = (w[block + names["qkv"] + end] for end in names["ends"])
        q, k, v = F.linear(_norm(x, w, block + names["norm1"], eps), weight, bias).chunk(3, dim=-1)
        attended = _attend(q, k, v, heads, mask)
        x = x + F.linear(attended, w[f"{block}{names['out']}.weight"], w[f"{block}{names['out']}.bias"])
        up = F.linear(
            _norm(x, w, block + names["norm2"], eps), w[f"{block}{names['up']}.weight"], w[f"{block}{names['up']}.bias"]
        )
        x = x + F.linear(F.gelu(up), w[f"{block}{names['down']}.weight"], w[f"{block}{names['down']}.bias"])
    return x


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """(B, T, D) attention over heads; the mask is added to the logits."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    return ((logits if mask is None else logits + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _norm(x: Tensor, w: Weights, name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)
