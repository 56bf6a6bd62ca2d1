"""What the method's paper shows in its Figure 3, measured on the shipped miniature and written to docs/recoveries.md.

Pictures are the base model's own, of test prompts. Every mean is over pictures, of each picture's mean over its noises;
its interval is Student's over pictures.

N pictures
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from srpo.evaluation.recoveries import D_SIGMAS, SIGMAS, Method, grid_methods, recover
from srpo.evaluation.recovery_errors import Errors, Yardstick
from srpo.evaluation.recovery_push import agreement, push
from srpo.evaluation.sampling import sample_latents
from srpo.evaluation.shares import Mean, few
from srpo.evaluation.sheets import sheet
from srpo.miniature import paths
from srpo.miniature.figures import GUIDANCE, NUM_STEPS, TEXT_TOKENS
from srpo.miniature.world import neutral_prompts
from srpo.policies.flux import FluxPolicy
from srpo.rewards.base import to_pil
from srpo.rewards.clip import ClipReward
from srpo.rewards.control_words import PAPER_WORDS

SIDE = 128  # pixels
SAMPLING = {"num_steps": NUM_STEPS, "guidance": GUIDANCE, "height": SIDE, "width": SIDE}
NUM_PICTURES, NUM_NOISES = 10, 1  # noises of seeds of their own, beside the run's own
FIRST_SEED, FIRST_NOISE_SEED = 120_000, 130_000
PUSH_SIGMAS = (0.95, 0.8, 0.5)
PUSH_WORDS = ("Real", "")  # one of the paper's positive words, and the prompt alone
PUSH_STEP = 4 / 255
FRESH, OWN = "fresh noise", "the run's own noise"
SHOWN = ("psnr", "ssim", "embedding")
MAX_PICTURE_BYTES = 300_000
DOCS = paths.REPOSITORY / "docs"
PAGE = """\
# Recoveries: what each method makes of a noisy picture

Written by `python -m srpo.recover --figures` from the shipped weights. `python -m srpo.recover PICTURE --prompt TEXT`
draws the same grid of any picture, and the Recoveries tab of the app shows it with its curves, a reward's push and a
whole sampling run.

![The grid of one picture: rows are methods, columns noise levels](recoveries.jpg)

A picture's clean latents are mixed with a known noise at level sigma. The **one-step prediction** of ReFL and DRaFT
lets the model remove all of it. **Direct-Align** lets the model take one short step of `d_sigma`, then removes the
rest, which it knows, exactly; **inversion** takes that step towards more noise. The model's error reaches the result
times `|sigma - sigma_target| / (1 - sigma_target)`: {weights} at sigma 0.95 for one step, `d_sigma` 0.075 and 0.025.
For inversion it is 1.00 there and falls fast from there on.

## The claim

At 95 % noise Direct-Align with `d_sigma` 0.025 is **{gain} dB** nearer to the original than
the one-step prediction, and **{further} dB** nearer than with `d_sigma` 0.075: the shorter
the model's share, the clearer the picture. With the run's own noise, as in training, it is
{own} dB nearer than one step. All differences are within one picture and noise; intervals are
95 %, over {pictures} pictures.

{gains}

## Errors by level

{pictures} pictures of the base model from test prompts, {noises} fresh noise each, against the same latents without
noise as the VAE draws them; means with 95 % intervals over pictures.

### PSNR, decibels (higher is nearer)

{psnr}

### SSIM (1 is equal)

{ssim}

### 1 - cosine of the reward's image embeddings (lower is nearer)

{embedding}

## Where the reward would push

The cosine between the reward's gradient at the recovery and that at the original: how much of what the reward asks of
the finished picture an update at this level would hear. With one fresh noise for each picture.

{pushes}
"""


@dataclass(frozen=True)
class Figures:
    """Everything that docs/recoveries.md says in numbers."""

    errors: Mapping[tuple[str, Method, float, str], Mean]  # by noise, method, level and measure
    gains: Mapping[tuple[str, Method, Method, float], Mean]  # of the first over the second, in decibels, paired
    agreements: Mapping[tuple[Method, float, str], Mean]  # of pushes with the original's, by control word


def measure(say: Callable[[str], None]) -> Figures:
    """The figures of the shipped weights; `say` is told how far it is."""
    policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    reward = ClipReward.from_pretrained(paths.REWARD)
    methods = grid_methods(D_SIGMAS)
    _, one_step, long, short, _ = methods
    errors: dict[tuple[str, Method, float], list[list[Errors]]] = defaultdict(list)
    pushes: dict[tuple[Method, float, str], list[float]] = defaultdict(list)
    for number, (prompt, _) in enumerate(neutral_prompts("test")[:NUM_PICTURES]):
        seed = FIRST_SEED + number
        own, x0 = sample_latents(policy, [prompt], [seed], **SAMPLING)
        seeds = [FIRST_NOISE_SEED + number * NUM_NOISES + index for index in range(NUM_NOISES)]
        fresh = torch.cat([policy.initial_noise(seed, SIDE, SIDE) for seed in seeds])
        with torch.no_grad():
            original = policy.decode(x0)
        yardstick, cond = Yardstick(original, reward, prompt), policy.encode_prompts([prompt])
        texts = {word: PAPER_WORDS.apply(word, prompt) if word else prompt for word in PUSH_WORDS}
        wanted = {word: push(reward, original, text, PUSH_STEP) for word, text in texts.items()}
        # With the run's own noise what the claim is about is enough.
        for kind, noise, sigmas, shown in ((FRESH, fresh, SIGMAS, methods), (OWN, own, [0.95], (one_step, short))):
            for cell in recover(policy, x0, noise, cond, sigmas, shown, GUIDANCE):
                errors[kind, cell.method, cell.sigma].append(yardstick(cell.image))
                if kind == FRESH and cell.sigma in PUSH_SIGMAS and cell.method.kind in ("one-step", "denoise"):
                    for word, text in texts.items():
                        pushed = push(reward, cell.image[:1], text, PUSH_STEP)
                        pushes[cell.method, cell.sigma, word].append(agreement(pushed, wanted[word]))
        say(f"picture {number + 1} of {NUM_PICTURES}")

    def by_picture(kind: str, method: Method, sigma: float, name: str) -> Tensor:
        """(N,) each picture's mean over its noises."""
        return torch.tensor(
            [[getattr(found, name) for found in noises] for noises in errors[kind, method, sigma]]
        ).mean(dim=1)

    def psnrs(kind: str, method: Method, sigma: float) -> Tensor:
        return by_picture(kind, method, sigma, "psnr")

    pairs = [(FRESH, *pair, sigma) for pair in ((long, one_step), (short, one_step), (short, long)) for sigma in SIGMAS]
    pairs.append((OWN, short, one_step, 0.95))
    return Figures(
        {(*key, name): few(by_picture(*key, name)) for key in errors for name in SHOWN},
        {
            (kind, one, other, sigma): few(psnrs(kind, one, sigma) - psnrs(kind, other, sigma))
            for kind, one, other, sigma in pairs
        },
        {key: few(values) for key, values in pushes.items()},
    )


def write(figures: Figures, folder: Path = DOCS) -> list[Path]:
    """The files written: recoveries.md and the grid of one picture beside it."""
    text, picture = folder / "recoveries.md", folder / "recoveries.jpg"
    text.write_text(page(figures), encoding="utf-8")
    draw().save(picture, quality=92, subsampling=0)
    if picture.stat().st_size > MAX_PICTURE_BYTES:
        raise ValueError(f"{picture} has {picture.stat().st_size:,} bytes; expected at most {MAX_PICTURE_BYTES:,}")
    return [text, picture]


def draw(prompt: str = "a red ball on a beach at sunset", seed: int = 0, noise_seed: int = 1) -> Image.Image:
    """The grid of one picture, at half its size."""
    policy = FluxPolicy.from_pretrained(paths.FLUX, max_sequence_length=TEXT_TOKENS)
    _, x0 = sample_latents(policy, [prompt], [seed], **SAMPLING)
    noise, cond = policy.initial_noise(noise_seed, SIDE, SIDE), policy.encode_prompts([prompt])
    methods = grid_methods()
    found = recover(policy, x0, noise, cond, SIGMAS, methods, GUIDANCE)
    cells = {(cell.method, cell.sigma): to_pil(cell.image) for cell in found}
    with torch.no_grad():
        original = to_pil(policy.decode(x0))
    rows = [
        [original if place == 0 else None, *(cells[method, sigma] for sigma in SIGMAS)]
        for place, method in enumerate(methods)
    ]
    heads = ["original", *(f"σ {sigma:g}" for sigma in SIGMAS)]
    whole = sheet([method.name for method in methods], heads, rows, f"{prompt}, noise of seed {noise_seed}")
    return whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)


def page(figures: Figures) -> str:
    """The text of docs/recoveries.md."""
    _, one_step, long, short, _ = grid_methods(D_SIGMAS)
    gain = figures.gains[FRESH, short, one_step, 0.95]
    return PAGE.format(
        weights=", ".join(
            f"{method.weight(0.95, method.target(0.95).sigma):.2f}" for method in (one_step, long, short)
        ),
        gain=_interval(gain, ".1f"),
        further=_interval(figures.gains[FRESH, short, long, 0.95], ".1f"),
        own=_interval(figures.gains[OWN, short, one_step, 0.95], ".1f"),
        pictures=gain.count,
        noises=NUM_NOISES,
        gains=_gain_table(figures, ((short, one_step), (long, one_step), (short, long))),
        psnr=_error_table(figures, FRESH, "psnr", ".1f"),
        ssim=_error_table(figures, FRESH, "ssim", ".3f"),
        embedding=_error_table(figures, FRESH, "embedding", ".4f"),
        pushes=_push_table(figures, (one_step, long, short)),
    )


def _interval(value: Mean, form: str) -> str:
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _named(method: Method) -> str:
    return method.name.replace("Δσ", "d_sigma")


def _error_table(figures: Figures, kind: str, name: str, form: str) -> str:
    rows = [
        [_named(method), *(_interval(figures.errors[kind, method, sigma, name], form) for sigma in SIGMAS)]
        for method in grid_methods(D_SIGMAS)
    ]
    return _table(["sigma", *(f"{sigma:g}" for sigma in SIGMAS)], rows)


def _gain_table(figures: Figures, pairs: Sequence[tuple[Method, Method]]) -> str:
    rows = [
        [
            f"{_named(one)} over {_named(other).removeprefix('Direct-Align, ').lower()}",
            *(_interval(figures.gains[FRESH, one, other, sigma], ".1f") for sigma in SIGMAS),
        ]
        for one, other in pairs
    ]
    return _table(["gain in PSNR, dB, at sigma", *(f"{sigma:g}" for sigma in SIGMAS)], rows)


def _push_table(figures: Figures, methods: Sequence[Method]) -> str:
    rows = [
        [
            _named(method),
            f"“{word}.” and the prompt" if word else "the prompt alone",
            *(_interval(figures.agreements[method, sigma, word], ".2f") for sigma in PUSH_SIGMAS),
        ]
        for word in PUSH_WORDS
        for method in methods
    ]
    return _table(["", "under", *(f"sigma {sigma:g}" for sigma in PUSH_SIGMAS)], rows)
