"""python -m srpo.extract_lora BASE TUNED --rank R --out FILE: what a tuning changed, as a LoRA of that rank.

BASE and TUNED are whole weights in any form: folders, files, or ids of the hub that were downloaded. For each layer a
line says how much the tuning changed it and which share of that change the rank keeps. With a whole pipeline (BASE, or
--model) the LoRA is compared with the tuned model at fixed seeds, beside the base: velocities and pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from srpo.evaluation.fidelity import Fidelity, fidelity
from srpo.policies.checkpoints import load_transformer
from srpo.policies.hub import local
from srpo.policies.load import load_policy
from srpo.policies.lora_extraction import Layer, extract
from srpo.policies.sizes import MINIATURE_SIDE, MINIATURE_TOKENS
from srpo.runs.atomic import write_file

PROMPTS = ("a red ball on a beach", "a white house in the snow")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be done."""
    options = _options(arguments)
    try:
        base, tuned = local(options.base), local(options.tuned)
        adapters = _extracted(base, tuned, options)
        dtype = DTYPES[options.dtype]
        stored = {name: it.to(dtype).contiguous() for name, it in adapters.items()}
        metadata = {"format": "pt", "srpo_rank": str(options.rank), "srpo_base": base.name, "srpo_tuned": tuned.name}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_file(options.out, lambda temporary: save_file(stored, temporary, metadata=metadata))
        print(options.out)
        pipeline = local(options.model) if options.model else base
        if (pipeline / "model_index.json").is_file():
            found = fidelity_of(pipeline, tuned, options.out, options)
            print(
                f"At {len(options.seeds)} seeds of {len(options.prompt)} prompts, against the tuned model: velocities "
                f"{found.velocity_error:.1%} as far as the base's, pictures {found.psnr_db:.1f} dB (the base's "
                f"{found.base_psnr_db:.1f} dB)."
            )
        elif options.model:
            raise ValueError(f"{pipeline} is no pipeline's folder: the LoRA was written, but not compared.")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _extracted(base: Path, tuned: Path, options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """The LoRA. Prints a line for each layer, and what all of them keep."""
    steps = extract(base, tuned, options.rank, device=options.device)
    changed = kept = 0.0
    try:
        while True:
            layer: Layer = next(steps)
            changed, kept = changed + layer.squares, kept + layer.squares * layer.energy
            print(
                f"{layer.done}/{layer.total} {layer.name} {'x'.join(map(str, layer.shape))}: changed by "
                f"{layer.relative:.3%}, kept {layer.energy:.2%}",
                file=sys.stderr,
            )
    except StopIteration as end:
        if changed:
            print(f"Kept of the energy of the whole change: {kept / changed:.2%}", file=sys.stderr)
        return end.value


def fidelity_of(pipeline: Path, tuned: Path, lora: Path, options: argparse.Namespace) -> Fidelity:
    """The LoRA over the pipeline's transformer beside the tuned model, from the same noises."""
    base = load_policy(
        pipeline,
        device=options.device,
        dtype=torch.float32 if options.device == "cpu" else torch.bfloat16,
        max_sequence_length=options.text_tokens,
    )
    others = (base.with_transformer(load_transformer(it, base.transformer)) for it in (tuned, lora))
    settings = {"num_steps": options.steps, "guidance": options.guidance, "side": options.size}
    return fidelity(base, *others, options.prompt, options.seeds, **settings)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m srpo.extract_lora", description=__doc__.splitlines()[0])
    parser.add_argument(
        "base", help="whole weights before the tuning; a pipeline's folder serves the comparison as well"
    )
    parser.add_argument("tuned", help="whole weights after it")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the file")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...: a GPU is much faster at large layers")
    parser.add_argument("--model", help="pipeline that the LoRA is tried in (default: BASE, where it is one)")
    parser.add_argument("--prompt", action="append", help="of the comparison; may be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=MINIATURE_SIDE, help="pixels per side of the compared pictures")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--text-tokens", type=int, default=MINIATURE_TOKENS)
    options = parser.parse_args(arguments)
    options.prompt = options.prompt or list(PROMPTS)
    return options


if __name__ == "__main__":
    sys.exit(main())
