"""FLUX's weights under the names of Black Forest Labs, which ComfyUI, kohya and GGUF files keep, and under diffusers'.

Where diffusers has several layers, Black Forest Labs have one whose rows lie one after the other: q, k and v of an
attention, and in single blocks the MLP's input as well. The last adaLN's two halves, shift and scale, are the other
way round. So each of diffusers' weights is a run of rows of one of theirs, or two, and can be read alone.

FLUX.2 has names of its own for some: all its blocks share their modulation, and diffusers keeps a single block's q, k,
v and MLP in one layer too.

Standard library only. Source of the names: black-forest-labs/flux `src/flux/modules/layers.py`, and of FLUX.2's
black-forest-labs/flux2 `src/flux2/model.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

DOUBLE = {  # in transformer_blocks.N, by the name in double_blocks.N
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
}
SINGLE = {  # in single_transformer_blocks.N, by the name in single_blocks.N
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
OUTSIDE = {  # of the blocks
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
SWAPPED = "final_layer.adaLN_modulation.1"  # shift before scale there, scale before shift in diffusers
MARK = "double_blocks.0.img_attn.qkv.weight"  # which every such file has, after its prefix


class Names(NamedTuple):
    """Tables of one family: diffusers' layers by Black Forest Labs' name, in the order of its rows."""

    double: Mapping[str, tuple[str, ...]]
    single: Mapping[str, tuple[str, ...]]
    outside: Mapping[str, tuple[str, ...]]

    @property
    def blocks(self) -> dict[str, tuple[str, Mapping[str, tuple[str, ...]]]]:
        """(diffusers' name of such blocks, the table of one), by theirs."""
        return {
            "double_blocks": ("transformer_blocks", self.double),
            "single_blocks": ("single_transformer_blocks", self.single),
        }


FLUX1 = Names(DOUBLE, SINGLE, OUTSIDE)
FLUX2 = Names(
    double={
        **{name: layers for name, layers in DOUBLE.items() if "_attn." in name},
        "img_mlp.0": ("ff.linear_in",),
        "img_mlp.2": ("ff.linear_out",),
        "txt_mlp.0": ("ff_context.linear_in",),
        "txt_mlp.2": ("ff_context.linear_out",),
    },
    single={
        "linear1": ("attn.to_qkv_mlp_proj",),
        "linear2": ("attn.to_out",),
        "norm.query_norm": ("attn.norm_q",),
        "norm.key_norm": ("attn.norm_k",),
    },
    outside={
        **{name: OUTSIDE[name] for name in ("img_in", "txt_in", "final_layer.linear", SWAPPED)},
        "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
        "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
        "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
        "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
        "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
        "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
        "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    },
)
FLUX2_MARKS = ("double_stream_modulation_img.lin", "double_stream_modulation_img.linear")  # theirs, and diffusers'


class Rows(NamedTuple):
    """Rows first ... last - 1 of the tensor of that name."""

    name: str
    first: int
    last: int


def names_of(layers: Iterable[str]) -> Names:
    """The tables for a file or a transformer with these layers, by either's names."""
    return FLUX2 if any(layer in FLUX2_MARKS for layer in layers) else FLUX1


def layers_of(name: str, names: Names = FLUX1) -> tuple[str, ...]:
    """diffusers' layers that this layer of Black Forest Labs holds, in the order of its rows; none for a foreign name.

    double_blocks.3.img_attn.qkv -> transformer_blocks.3.attn.to_q, ...to_k, ...to_v
    """
    match = re.fullmatch(r"(double_blocks|single_blocks)\.(\d+)\.(.+)", name)
    if match is None:
        return names.outside.get(name, ())
    owner, table = names.blocks[match[1]]
    return tuple(f"{owner}.{match[2]}.{layer}" for layer in table.get(match[3], ()))


def names_in_blocks(numbers: Mapping[str, int], names: Names = FLUX1) -> Iterator[str]:
    """Every layer's name, for so many "double_blocks" and "single_blocks"."""
    yield from names.outside
    for blocks, (_, table) in names.blocks.items():
        for number in range(numbers[blocks]):
            yield from (f"{blocks}.{number}.{name}" for name in table)


def rows_by_weight(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """diffusers' name of every weight -> the rows of the file's tensors that it is made of, in order.

    shapes: of the file's tensors by their names, without a prefix. ValueError, a phrase, for a name that is no FLUX
    weight's, or a matrix that cannot be taken apart.
    """
    found: dict[str, tuple[Rows, ...]] = {}
    names = names_of(name.rpartition(".")[0] for name in shapes)
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        layers = layers_of(layer, names) if kind in ("weight", "bias") else ()
        if not layers or not shape:
            raise ValueError(f"it holds {name[:100]}, which is no weight of FLUX")
        if layer == SWAPPED:
            half = shape[0] // 2
            found[f"{layers[0]}.{kind}"] = Rows(name, half, 2 * half), Rows(name, 0, half)
            continue
        at = 0
        for part, size in zip(layers, _sizes(layer, len(layers), shapes, shape[0]), strict=True):
            found[f"{part}.{kind}"] = (Rows(name, at, at + size),)
            at += size
    return found


def _sizes(layer: str, count: int, shapes: Mapping[str, tuple[int, ...]], rows: int) -> list[int]:
    """How many rows each of the layers takes: equal ones, but for an MLP's beside q, k and v."""
    if count < 4:
        if rows % count:
            raise ValueError(f"the {rows} rows of {layer} are no {count} equal parts")
        return [rows // count] * count
    width = shapes.get(f"{layer}.weight", (0, 0))[-1]  # of a token: what q, k and v take in, and give
    if not 0 < 3 * width < rows:
        raise ValueError(f"the {rows} rows of {layer} are no q, k and v of {width} and an MLP's")
    return [width, width, width, rows - 3 * width]
