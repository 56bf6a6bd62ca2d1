"""Where the miniature's parts lie in the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "assets" / "miniature"
FLUX = ROOT / "flux"  # a FluxPipeline folder
SRPO = ROOT / "srpo" / "diffusion_pytorch_model.safetensors"  # one file, as tencent/SRPO publishes it
REWARD = ROOT / "reward"  # a transformers CLIPModel with tokenizer and image processor
JUDGE = ROOT / "judge"  # a transformers ResNetForImageClassification
