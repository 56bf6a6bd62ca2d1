"""Writes a small FLUX in each form that is published, and reads it by diffusers' own loaders, for comparison."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import torch
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, GGUFQuantizationConfig
from diffusers.loaders import single_file_model, single_file_utils
from safetensors.torch import save_file

from srpo.policies import bfl

COMFY = "model.diffusion_model."
# Bytes of a block, and where in it the float16 scales lie: random ones would be NaN now and then.
BLOCKS = {"Q4_0": (18, (0,)), "Q5_0": (22, (0,)), "Q8_0": (34, (0,)), "Q4_1": (20, (0, 2)), "Q5_1": (24, (0, 2))}
BLOCKS |= {"Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)), "Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2))}
BLOCKS |= {"Q6_K": (210, (208,))}


def wide_flux(seed: int = 0, width: int = 256) -> FluxTransformer2DModel:
    """A FLUX of that width with random weights: rows are long enough for every kind of GGUF's blocks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=width // 2,
            num_attention_heads=2,
            joint_attention_dim=width,
            pooled_projection_dim=width,
            guidance_embeds=True,
            axes_dims_rope=(width // 16, width // 8 + width // 16, width // 4),
        ).eval()


def to_bfl(transformer: FluxTransformer2DModel | Flux2Transformer2DModel, prefix: str = "") -> dict[str, torch.Tensor]:
    """Its weights under the names of Black Forest Labs."""
    ours = transformer.state_dict()
    numbers = {"double_blocks": len(transformer.transformer_blocks)}
    numbers["single_blocks"] = len(transformer.single_transformer_blocks)
    theirs = {}
    names = bfl.names_of(name.rpartition(".")[0] for name in ours)
    for name in bfl.names_in_blocks(numbers, names):
        for kind in ("weight", "bias"):
            parts = [ours[f"{layer}.{kind}"] for layer in bfl.layers_of(name, names) if f"{layer}.{kind}" in ours]
            if parts:
                whole = torch.cat(parts)
                if name == bfl.SWAPPED:
                    scale, shift = whole.chunk(2)
                    whole = torch.cat([shift, scale])
                theirs[f"{prefix}{name}.{'scale' if '_norm' in name else kind}"] = whole.contiguous()
    return theirs


def by_diffusers(file: Path, base: FluxTransformer2DModel, folder: Path, monkeypatch, **keywords):
    """What `from_single_file` makes of the file.

    Its converter is written for a width of 3072 alone; here that one number is the base's own.
    """
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    assert source.count("3072") == 1
    names = dict(vars(single_file_utils))
    width = base.config.num_attention_heads * base.config.attention_head_dim
    exec(source.replace("3072", str(width)), names)
    entry = {
        **single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"],
        "checkpoint_mapping_fn": names["convert_flux_transformer_checkpoint_to_diffusers"],
    }
    monkeypatch.setitem(single_file_model.SINGLE_FILE_LOADABLE_CLASSES, "FluxTransformer2DModel", entry)
    base.save_config(folder)
    return FluxTransformer2DModel.from_single_file(file, config=str(folder), local_files_only=True, **keywords)


def by_diffusers_gguf(file: Path, base: FluxTransformer2DModel, folder: Path, monkeypatch, dtype: torch.dtype):
    config = GGUFQuantizationConfig(compute_dtype=dtype)
    return by_diffusers(file, base, folder, monkeypatch, quantization_config=config, dtype=dtype)


def to_fp8(weights: dict[str, torch.Tensor], scale: str | None = None) -> dict[str, torch.Tensor]:
    """Matrices in fp8, the rest in bfloat16; with `scale` (a key's last part) each matrix fills fp8's range."""
    converted: dict[str, torch.Tensor] = (
        {} if scale is None else {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    )
    for name, weight in weights.items():
        if weight.ndim < 2:
            converted[name] = weight.bfloat16()
        elif scale is None:
            converted[name] = weight.to(torch.float8_e4m3fn)
        else:
            factor = weight.abs().max() / 448
            converted[name] = (weight / factor).to(torch.float8_e4m3fn)
            converted[name.removesuffix("weight") + scale] = factor
    return converted


def save(weights: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path, metadata={"format": "pt"})
    return path


def write_gguf(
    weights: dict[str, torch.Tensor], path: Path, kind: str = "Q8_0", plain: str = "F16", architecture: str = "flux"
) -> Path:
    """A GGUF file as city96's tools write it: matrices in blocks of `kind` or in plain numbers, the rest float32.

    Kinds that the package gguf cannot write get blocks of random bytes with small scales: any bytes are numbers.
    """
    import gguf

    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, weight in weights.items():
        values = weight.float().numpy()
        wanted = "F32" if values.ndim < 2 else kind
        if wanted in BLOCKS and values.shape[-1] % (256 if wanted.endswith("_K") else 32):
            wanted = plain
        if wanted == "F32":
            writer.add_tensor(name, values)
            continue
        number = gguf.GGMLQuantizationType[wanted]
        if wanted.endswith("_K"):
            size, scales = BLOCKS[wanted]
            blocks = generator.integers(0, 256, (values.size // 256, size), dtype=np.uint8)
            for at in scales:
                chosen = generator.uniform(1e-4, 1e-3, len(blocks)).astype(np.float16)
                blocks[:, at : at + 2] = chosen.view(np.uint8).reshape(-1, 2)
            data = blocks.reshape(*values.shape[:-1], -1)
        else:
            data = gguf.quants.quantize(values, number)
        writer.add_tensor(name, data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
