"""python -m srpo.recover: recoveries of one picture on a sheet, or with --figures those of the miniature in docs/."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from srpo.arguments import in_utf8, numbers
from srpo.evaluation.recoveries import D_SIGMAS, SIGMAS, grid_methods, recover, schedule_shift, shifted
from srpo.evaluation.recovery_errors import Tally, Yardstick
from srpo.evaluation.sampling import sample_latents
from srpo.evaluation.shares import Mean
from srpo.evaluation.sheets import png_texts, sheet
from srpo.miniature import recoveries as miniature
from srpo.painting import add_options, read_options, require_seeds
from srpo.policies.flux import FluxPolicy
from srpo.policies.hub import require_weights
from srpo.policies.load import with_weights
from srpo.rewards.base import image_tensor, to_pil
from srpo.rewards.clip import ClipReward

MAX_NOISES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 with one sentence for what cannot be done."""
    options = _options(arguments)
    try:
        if options.figures:
            figures = miniature.measure(lambda text: print(text, file=sys.stderr, flush=True))
            for path in miniature.write(figures, options.out or miniature.DOCS):
                print(path)
        else:
            print(draw(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(options: argparse.Namespace) -> Path:
    """The sheet's file. Prints a line for every method and level: its errors, with intervals over several noises."""
    if options.weights is not None:
        require_weights(options.weights)
    painter = read_options(options)
    if not 1 <= options.noises <= MAX_NOISES:
        raise ValueError(f"--noises must be 1 to {MAX_NOISES}, not {options.noises:,}")
    require_seeds(options.seed, options.noise_seed, options.noise_seed + options.noises - 1)
    for name, levels in (("sigmas", options.sigmas), ("d-sigmas", options.d_sigmas)):
        if wrong := [level for level in levels if not 0 <= level <= 1]:
            raise ValueError(f"--{name} must lie within 0 and 1, not {wrong[0]:g}")
    out = options.out or Path("recoveries.png")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {out.absolute().parent}: make it, or name another --out")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out} has no ending of a picture: call it {out.with_suffix('.png').name}")
    options.text_tokens = painter.base.max_sequence_length
    options.size = painter.settings.height, painter.settings.width
    painter.require_paintable([options.prompt])
    policy = painter.policy
    if options.weights is not None:
        policy = with_weights(policy, options.weights)
    height, width = options.size
    cond = policy.encode_prompts([options.prompt])
    x0 = _encoded(policy, options) if options.picture else _sampled(policy, options)
    seeds = range(options.noise_seed, options.noise_seed + options.noises)
    noise = torch.cat([policy.initial_noise(seed, height, width) for seed in seeds])
    sigmas = options.sigmas
    if options.shifted:
        sigmas = shifted(sigmas, schedule_shift(policy, height, width, options.steps))
    methods = grid_methods(options.d_sigmas)
    with torch.no_grad():
        original = policy.decode(x0)
    reward = ClipReward.from_pretrained(options.reward) if options.reward else None
    yardstick, tally = Yardstick(original, reward, options.prompt), Tally()
    pictures: dict[tuple[int, int], Image.Image] = {(0, 0): to_pil(original)}
    notes: dict[tuple[int, int], str] = {}
    for cell in recover(policy, x0, noise, cond, sigmas, methods, options.guidance):
        place = methods.index(cell.method), 1 + list(sigmas).index(cell.sigma)
        tally.add(cell, yardstick(cell.image))
        pictures[place] = to_pil(cell.image[:1])
        if cell.shortened:
            notes[place] = f"step cut short at σ {cell.sigma_target:.4g}"
        psnr, ssim = (tally.mean(cell.method, cell.sigma, name) for name in ("psnr", "ssim"))
        print(f"sigma {cell.sigma:.4g}  {cell.method.name:<34} PSNR {_said(psnr, '.2f')}  SSIM {_said(ssim, '.3f')}")
    cells = [[pictures.get((row, column)) for column in range(1 + len(sigmas))] for row in range(len(methods))]
    heads = ["original", *(f"σ {sigma:.4g}" for sigma in sigmas)]
    page = sheet([method.name for method in methods], heads, cells, options.prompt, notes)
    record = {"kind": "recoveries", "request": vars(options) | {"sigmas": list(sigmas)}}
    page.save(out, pnginfo=png_texts(json.loads(json.dumps(record, default=str))))
    return out


def _encoded(policy: FluxPolicy, options: argparse.Namespace) -> Tensor:
    """(1, C, H/8, W/8) latents of the file's picture, its middle cut out."""
    height, width = options.size
    with Image.open(options.picture) as image:
        fitted = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    with torch.no_grad():
        return policy.encode_image(image_tensor(fitted, policy.device))


def _sampled(policy: FluxPolicy, options: argparse.Namespace) -> Tensor:
    """(1, C, H/8, W/8) latents that the model makes of the prompt."""
    height, width = options.size
    settings = {"num_steps": options.steps, "guidance": options.guidance, "height": height, "width": width}
    return sample_latents(policy, [options.prompt], [options.seed], **settings)[1]


def _said(value: Mean, form: str) -> str:
    """The mean, with its interval where there is one."""
    return f"{value.mean:{form}}" + (f" ({value.low:{form}} to {value.high:{form}})" if value.count > 1 else "")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m srpo.recover",
        description="Adds known noise to a picture and recovers it by every method: Figure 3 of the SRPO paper.",
    )
    parser.add_argument("picture", nargs="?", type=Path, help="a picture's file; without one the prompt is painted")
    parser.add_argument(
        "--prompt", default="a red ball on a beach at sunset", type=in_utf8, help="what the model is told"
    )
    parser.add_argument("--out", type=Path, help="the sheet's file, recoveries.png by default; a folder for --figures")
    parser.add_argument("--figures", action="store_true", help="measure the miniature and write docs/recoveries.md")
    parser.add_argument("--weights", type=Path, help="weights over it: a file, a folder or an id, a LoRA as FILE@0.8")
    parser.add_argument("--reward", type=Path, help="a CLIPModel folder, for distances in its eyes")
    add_options(parser)
    parser.add_argument("--sigmas", type=numbers(float), default=SIGMAS, metavar="S,S,...")
    parser.add_argument("--shifted", action="store_true", help="move the levels as the model's schedule does")
    parser.add_argument("--d-sigmas", type=numbers(float), default=D_SIGMAS, metavar="D,D,...")
    parser.add_argument("--noise-seed", type=int, default=1)
    parser.add_argument("--noises", type=int, default=1, help="of consecutive seeds, for intervals")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
