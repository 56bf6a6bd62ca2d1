"""The stages that make the miniature, in order, with the numbers that made the shipped one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor
from transformers import CLIPModel

from srpo.miniature import card, figures, paths
from srpo.miniature.data import EMPTY_SHARE, Pictures, load_pictures
from srpo.miniature.flux import GUIDANCE_RANGE, TEXT_LENGTHS, FluxText, distil_guidance, save_flux, train_flux
from srpo.miniature.judge import JUDGE_PICTURES, Judge, save_judge, train_judge
from srpo.miniature.loop import work_folder
from srpo.miniature.reward import save_reward, train_reward
from srpo.miniature.storage import content_hash, store_in_half
from srpo.miniature.vae import CROP_SHARE, KL_WEIGHT, encode_all, polish_decoder, set_scale, train_vae
from srpo.miniature.world import NUM_TRAIN_PROMPTS, neutral_prompts
from srpo.policies.checkpoints import load_transformer, save_transformer
from srpo.runs import RunFolder

# The numbers of every stage, once: the calls below and the card's text take them from here.
PICTURES = {"count": 32_000, "seed": 1}  # that VAE, transformer and reward learn from
VAE = {"updates": 2000, "batch": 16, "lr": 1.5e-3, "seed": 0}
REWARD = {"updates_contrastive": 700, "updates_preference": 500, "batch": 64, "lr": 1e-3, "seed": 800}
JUDGE = {"updates": 900, "batch": 64, "lr": 2e-3, "seed": 700}
FLUX = {"updates": 4600, "lr": 1e-3, "matrix_lr": 2e-3, "seed": 0}
GUIDANCE = {"updates": 500, "lr": 5e-4, "matrix_lr": 1e-3, "seed": 0}
DECODER = {"updates": 2000, "batch": 16, "lr": 3e-4, "seed": 1}
SRPO_PRESET, PLAIN_PRESET = "studio", "plain"


@dataclass(frozen=True)
class Stage:
    """One step of the making, and what the card says of it."""

    text: str
    run: Callable[[bool], None]  # told whether to start from the shipped weights
    loops: tuple[str, ...] = ()  # trainings whose curves the card shows
    can_start_shipped: bool = False


def _pictures() -> Pictures:
    return load_pictures(**PICTURES)


def _shipped() -> FluxPipeline:
    if not (paths.FLUX / "model_index.json").exists():
        raise ValueError(f"{paths.FLUX} holds no pipeline yet: run the stages vae, flux and guidance first")
    return FluxPipeline.from_pretrained(paths.FLUX, local_files_only=True)


def _current_vae() -> AutoencoderKL:
    """The VAE of this machine's work folder, or the shipped one."""
    folder = work_folder("vae") / "finished"
    return AutoencoderKL.from_pretrained(folder) if folder.exists() else _shipped().vae


def _same_encoder(first: AutoencoderKL, second: AutoencoderKL) -> bool:
    """True where both make the same latents, but for the rounding of stored weights: their decoders can be swapped."""

    def encoder(vae: AutoencoderKL) -> tuple[str, float, float]:
        halves = {name: weight.half() for name, weight in vae.encoder.state_dict().items()}
        return content_hash(halves), vae.config.scaling_factor, vae.config.shift_factor

    return encoder(first) == encoder(second)


def _latents() -> Tensor:
    """(N, 16, 16, 16) latents of all pictures, shifted and scaled, float16."""
    path = work_folder("vae") / "latents.pt"
    if not path.exists():
        vae = _current_vae()
        _store_latents(vae, encode_all(vae, _pictures()))
    return torch.load(path, weights_only=True)


def _store_latents(vae: AutoencoderKL, raw: Tensor) -> None:
    scaled = (raw.float() - vae.config.shift_factor) * vae.config.scaling_factor
    torch.save(scaled.half(), work_folder("vae") / "latents.pt")


def _vae(from_shipped: bool) -> None:
    pictures = _pictures()
    model = train_vae(pictures, **VAE, start=_shipped().vae if from_shipped else None)
    raw = encode_all(model, pictures)
    set_scale(model, raw)
    _store_latents(model, raw)
    model.save_pretrained(work_folder("vae") / "finished")


def _reward(from_shipped: bool) -> None:
    start = CLIPModel.from_pretrained(paths.REWARD, dtype=torch.float32) if from_shipped else None
    save_reward(train_reward(_pictures(), **REWARD, start=start), paths.REWARD)


def _judge(from_shipped: bool) -> None:
    start = Judge.from_pretrained(paths.JUDGE).model if from_shipped else None
    save_judge(train_judge(load_pictures(*JUDGE_PICTURES), **JUDGE, start=start), paths.JUDGE)


def _flux(from_shipped: bool) -> None:
    pipe = _shipped() if from_shipped else None
    start = (FluxText.from_pipeline(pipe), pipe.transformer) if pipe else None
    text, transformer = train_flux(_latents(), _pictures().scenes, **FLUX, start=start)
    save_flux(work_folder("flux") / "finished", text, transformer, _current_vae())


def _guidance(from_shipped: bool) -> None:
    teacher_folder = work_folder("flux") / "finished"
    teacher = FluxPipeline.from_pretrained(teacher_folder) if teacher_folder.exists() else _shipped()
    text = FluxText.from_pipeline(teacher)
    student = distil_guidance(text, teacher.transformer, _latents(), _pictures().scenes, **GUIDANCE)
    vae = teacher.vae
    if (paths.FLUX / "vae").exists():  # its decoder may have been polished, for the same latents
        shipped = AutoencoderKL.from_pretrained(paths.FLUX / "vae")
        vae = shipped if _same_encoder(shipped, vae) else vae
    save_flux(paths.FLUX, text, student, vae)


def _decoder(from_shipped: bool) -> None:
    start, unpolished = _shipped().vae, _current_vae()
    if _same_encoder(start, unpolished):  # so that a finished polishing is taken up, not polished once more
        start = unpolished
    model = polish_decoder(start, _pictures(), **DECODER)
    model.save_pretrained(paths.FLUX / "vae")
    store_in_half(paths.FLUX / "vae")


def _prompts(from_shipped: bool) -> None:
    (paths.ROOT / "prompts").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = [text for text, _ in neutral_prompts(split)]
        (paths.ROOT / "prompts" / f"{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _srpo(from_shipped: bool) -> None:
    _store_rounded(_train_preset(SRPO_PRESET), paths.SRPO)


def _measure(from_shipped: bool) -> None:
    card.merge_figures({**figures.measure_parts(), **figures.measure_samples()})
    run = _train_preset(PLAIN_PRESET)
    plain = _store_rounded(run, run.path / "rounded.safetensors")
    card.merge_figures({"alignment": figures.measure_alignment({card.SRPO: paths.SRPO, card.PLAIN: plain})})


def _write_card(from_shipped: bool) -> None:
    card.write_card({name: (stage.text, stage.loops) for name, stage in STAGES.items()})


def _train_preset(preset: str) -> RunFolder:
    """A new, finished run of the preset, made by the very command that the card names.

    Its curve is put where the other stages have theirs, under the preset's name. ValueError where the run did not
    finish.
    """
    folder = work_folder("runs") / preset
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "srpo.training", "--preset", preset, "--out", str(folder)]
    status = subprocess.run(command, cwd=paths.REPOSITORY, check=False).returncode
    run = RunFolder(folder)
    state = run.state()
    if status or state is None or state.status != "finished":
        how = state.status if state else "not begun"
        raise ValueError(f"the training run of {preset!r} is {how} (exit status {status}): see the lines above")
    points = [{**asdict(record), **record.scores} for record in run.progress()]
    curve = [{name: value for name, value in point.items() if name not in ("scores", "seconds")} for point in points]
    (work_folder(preset) / "curve.json").write_text(json.dumps(curve), encoding="utf-8")
    return run


def _store_rounded(run: RunFolder, path: Path) -> Path:
    """The file, now with the run's finished weights in float16, in the layout of tencent/SRPO."""
    return save_transformer(load_transformer(run.weights, _shipped().transformer), path, torch.float16)


def _of(settings: dict[str, float]) -> str:
    """How a training's numbers read in the card."""
    batch = f" of {settings['batch']}" if "batch" in settings else ""
    muon = f", Muon {settings['matrix_lr']:g} for the layers' matrices" if "matrix_lr" in settings else ""
    return f"{settings['updates']:,} updates{batch}, AdamW {settings['lr']:g}{muon}, cosine, seed {settings['seed']}."


STAGES: dict[str, Stage] = {
    "vae": Stage(
        "AutoencoderKL, 8x, 16 latent channels. Absolute, squared and neighbouring differences' error, "
        f"KL {KL_WEIGHT:g}; {CROP_SHARE:.0%} of the updates on 64 x 64 quarters, started from weights that carry each "
        f"block's mean colour. {_of(VAE)} bf16 autocast, {PICTURES['count']:,} pictures of seed {PICTURES['seed']}. "
        "The first 400 updates of the shipped VAE followed the schedule of a run of 3,500.",
        _vae,
        ("vae",),
        True,
    ),
    "reward": Stage(
        f"CLIPModel. {REWARD['updates_contrastive']:,} contrastive updates of {REWARD['batch']} pictures in groups of "
        f"like content, AdamW {REWARD['lr']:g}, then {REWARD['updates_preference']:,} on preference pairs with the "
        f"documented bias, the contrastive loss kept on, AdamW {REWARD['lr'] / 2:g}. Cosine, seed {REWARD['seed']}. In "
        "every other update light and saturation are anything, so that styles are not known by colour alone. The "
        "shipped reward was taken up (`--from-shipped`) where 2,200 and 500 updates in true tones only had ended.",
        _reward,
        ("reward-contrastive", "reward-preference"),
        True,
    ),
    "judge": Stage(
        f"ResNet. {_of(JUDGE)} {JUDGE_PICTURES[0]:,} pictures of seed {JUDGE_PICTURES[1]} that nothing else sees, with "
        "shifts, softening, grain and small changes of tone; half of them in other colours, to learn subjects alone.",
        _judge,
        ("judge",),
        True,
    ),
    "flux": Stage(
        "FluxTransformer2DModel with its CLIP and T5 encoders, from random weights, rectified flow at guidance 1. "
        f"{_of(FLUX)} Up to 32 pictures an update, {TEXT_LENGTHS[0][0]} to {TEXT_LENGTHS[-1][0]} text tokens, "
        f"{EMPTY_SHARE:.0%} of the captions empty.",
        _flux,
        ("flux",),
        True,
    ),
    "guidance": Stage(
        "The transformer learns to do in one pass what classifier-free guidance does in two, for guidance "
        f"{GUIDANCE_RANGE[0]:g} to {GUIDANCE_RANGE[1]:g}. {_of(GUIDANCE)}",
        _guidance,
        ("guidance",),
    ),
    "decoder": Stage(
        f"The VAE's decoder alone, further; latents stay what they are. {_of(DECODER)}",
        _decoder,
        ("vae-decoder",),
    ),
    "prompts": Stage(
        f"{NUM_TRAIN_PROMPTS} neutral prompts for SRPO's training and tuning, the others for measuring.", _prompts
    ),
    "srpo": Stage(
        f"`python -m srpo.training --preset {SRPO_PRESET}`, stored in float16 in the layout of tencent/SRPO.",
        _srpo,
        (SRPO_PRESET,),
    ),
    "figures": Stage(
        "Everything in the tables above, measured on the shipped files; for the comparison first "
        f"`python -m srpo.training --preset {PLAIN_PRESET}`, its weights rounded to float16 as well.",
        _measure,
        (PLAIN_PRESET,),
    ),
    "card": Stage("This card.", _write_card),
}
