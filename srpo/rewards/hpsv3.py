"""HPSv3: Qwen2-VL reads an instruction, the prompt and the picture, and a small head says how a person would like it.

The text ends in a mark of its own, <|Reward|>; the head reads what the model has made of it. It gives two numbers, the
mean of a Gaussian and its spread: the score is the mean. The picture is resized to about 200,000 pixels, its
proportions kept in steps of 28.

The weights were trained with plain positions: the tokens of the picture are counted on like those of the text, not by
row and column as Qwen2-VL itself places them. So it is here.

The instruction is the authors'; it is read from their package, which a user puts beside the weights. None of the
package is run.

Source: Ma et al. 2025, arXiv 2508.03789, and the package hpsv3 1.0.0.

B images, H W height and width in pixels, L tokens, D width of the text model
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from einops import repeat
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLModel

from srpo.loading import one_at_a_time
from srpo.rewards.catalogue import CARDS
from srpo.rewards.preprocess import normalize, resize
from srpo.rewards.weights import require_known, require_safetensors

WEIGHTS_NAME = "HPSv3.safetensors"
INSTRUCTION_FILE = Path("hpsv3") / "dataset" / "data_collator_qwen.py"
PIXELS = 256 * 28 * 28
STEP = 28  # pixels per side of an image token: 2 x 2 patches of 14
PATCH, MERGED, FRAMES = 14, 2, 2  # a picture is a film of two equal frames
MAX_PROPORTION = 200
REWARD_MARK, IMAGE_MARK = "<|Reward|>", "<|image_pad|>"
UNUSED = r"lm_head\.weight"


@dataclass(frozen=True)
class Instruction:
    """What the model is told around a prompt."""

    before: str  # with {text_prompt} in it
    after: str  # with the mark that the head reads

    @classmethod
    def read(cls, folder: Path) -> Instruction:
        """The authors', of the package in that folder, or else of the installed one. ValueError where there is none."""
        spec = importlib.util.find_spec("hpsv3")  # looks, and imports nothing
        installed = (spec.submodule_search_locations or ()) if spec else ()
        roots = [folder, *(Path(place).parent for place in installed)]
        file = next((root / INSTRUCTION_FILE for root in roots if (root / INSTRUCTION_FILE).is_file()), None)
        if file is None:
            raise ValueError(f"HPSv3 lacks {folder / INSTRUCTION_FILE}: {CARDS['hpsv3'].get}")
        try:
            found = {
                target.id: ast.literal_eval(node.value)
                for node in ast.parse(file.read_text(encoding="utf-8")).body
                if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
                if target.id in ("INSTRUCTION", "prompt_with_special_token")
            }
            before, after = str(found["INSTRUCTION"]), str(found["prompt_with_special_token"])
        except (SyntaxError, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{file} holds no instruction: expected the package hpsv3 1.0.0") from error
        if before.count("{text_prompt}") != 1 or after.count(REWARD_MARK) != 1:
            raise ValueError(f"{file} holds another instruction: expected the package hpsv3 1.0.0")
        return cls(before, after)

    def around(self, prompt: str) -> str:
        return self.before.replace("{text_prompt}", prompt) + self.after


class Network(nn.Module):
    """Picture and tokens to the mean and the spread."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        self.head = nn.Sequential(  # identities in the place of dropout keep the published numbers
            nn.Linear(config.text_config.hidden_size, 1024),
            nn.ReLU(),
            nn.Identity(),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def forward(self, patches: Tensor, grid: Tensor, tokens: Tensor, mask: Tensor, reward_id: int) -> Tensor:
        """(B, 2) of patches of B pictures, their grid (B, 3), tokens (B, L) and their mask."""
        backbone = self.backbone
        words = backbone.language_model.embed_tokens(tokens)  # (B, L, D)
        seen = backbone.visual(patches.to(words.dtype), grid_thw=grid).pooler_output.to(words.dtype)
        is_image = (tokens == backbone.config.image_token_id)[..., None].expand_as(words)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(3, *tokens.shape)
        read = backbone.language_model(
            inputs_embeds=words.masked_scatter(is_image, seen),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return self.head(read[tokens == reward_id].float())


class HPSv3Reward:
    """A frozen reward behind the Reward protocol (`rewards/base.py`); the head in float32, the rest as stored."""

    name = "hpsv3"

    def __init__(
        self,
        model: Network,
        tokenizer: PreTrainedTokenizerBase,
        instruction: Instruction,
        *,
        pixels: int = PIXELS,
        sha256: str | None = None,
    ) -> None:
        """pixels: about how many of a picture are looked at; the published weights know PIXELS alone."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.instruction, self.pixels, self.sha256 = tokenizer, instruction, pixels, sha256
        self.reward_id = tokenizer.convert_tokens_to_ids(REWARD_MARK)

    @classmethod
    @one_at_a_time
    def from_published(
        cls, folder: str | Path, *, pixels: int = PIXELS, device: str | torch.device = "cpu"
    ) -> HPSv3Reward:
        """The reward in a folder of HPSv3.safetensors, Qwen2-VL-7B-Instruct's settings and tokenizer, and the package.

        ValueError, one sentence, where one is missing, damaged, changed, or not HPSv3's.
        """
        folder = Path(folder)
        file = folder / WEIGHTS_NAME
        if not file.is_file():
            raise ValueError(f"HPSv3 lacks {file}: {CARDS['hpsv3'].get}")
        instruction = Instruction.read(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} lacks the config.json or the tokenizer of Qwen2-VL-7B-Instruct: {CARDS['hpsv3'].get}"
            ) from error
        if tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer_config.json in {folder} has no chat template: {CARDS['hpsv3'].get}")
        tokenizer.add_tokens([REWARD_MARK], special_tokens=True)
        tokenizer.padding_side = "right"
        config.text_config.vocab_size = len(tokenizer)
        with init_empty_weights():  # but for what is in no file, such as the rotary embedding's frequencies
            model = Network(config)
        names = {name: published_name(name) for name in model.state_dict()}
        shapes = {names[name]: tuple(weight.shape) for name, weight in model.state_dict().items()}
        require_safetensors(file, shapes, what="HPSv3", ignored=UNUSED)
        sha256 = require_known(file).sha256
        with safe_open(file, framework="pt", device=str(device)) as opened:
            weights = {ours: opened.get_tensor(theirs) for ours, theirs in names.items()}
        model.load_state_dict(weights, assign=True)
        model.head.float()
        return cls(model.to(device), tokenizer, instruction, pixels=pixels, sha256=sha256)

    @property
    def device(self) -> torch.device:
        return self.model.head[0].weight.device

    def score(self, image: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) means for images (B, 3, H, W) in [0, 1] and one text each; gradients reach the image.

        ValueError for another shape, another number of texts, or a text with one of the model's own marks in it.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(image.shape)}")
        if len(texts) != len(image):
            raise ValueError(f"got {len(image)} images and {len(texts)} texts; expected one text per image")
        height, width = fitted_size(*image.shape[-2:], pixels=self.pixels)
        pixels = normalize(resize(image.to(self.device, torch.float32), height, width))
        rows, columns = height // PATCH, width // PATCH
        grid = torch.tensor([[1, rows, columns]] * len(image), device=self.device)
        tokens = self._tokens(texts, rows * columns // MERGED**2)
        patches = to_patches(pixels)
        return self.model(patches, grid, tokens["input_ids"], tokens["attention_mask"], self.reward_id)[:, 0]

    def count_tokens(self, text: str) -> tuple[int, int]:
        """How many tokens are read with that text, the instruction and the picture among them, and how many can be."""
        tokens = self._tokens([text], self.pixels // STEP**2)
        return tokens["input_ids"].shape[1], self.model.backbone.config.text_config.max_position_embeddings

    def _tokens(self, texts: Sequence[str], image_tokens: int) -> dict[str, Tensor]:
        """ "input_ids" and "attention_mask" (B, L), padded behind."""
        chats = [self._chat(text).replace(IMAGE_MARK, IMAGE_MARK * image_tokens) for text in texts]
        tokens = self.tokenizer(chats, padding=True, return_tensors="pt")
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _chat(self, text: str) -> str:
        for mark in (REWARD_MARK, *self.tokenizer.all_special_tokens):
            if mark in text:
                raise ValueError(f"the text holds {mark}, which HPSv3 keeps for itself: take it out")
        content = [{"type": "image"}, {"type": "text", "text": self.instruction.around(text)}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )


def fitted_size(height: int, width: int, *, pixels: int = PIXELS) -> tuple[int, int]:
    """(height, width) in multiples of 28 to which a picture of that size is resized: about `pixels`.

    Larger pictures are rounded down and smaller ones up. ValueError for one more than 200 times as long as wide.
    """
    if max(height, width) > MAX_PROPORTION * min(height, width):
        raise ValueError(f"HPSv3 reads pictures up to {MAX_PROPORTION} times as long as wide, not {height} x {width}")
    sides = [max(STEP, round(side / STEP) * STEP) for side in (height, width)]
    if math.prod(sides) > pixels:
        scale = math.sqrt(height * width / pixels)
        sides = [max(STEP, math.floor(side / scale / STEP) * STEP) for side in (height, width)]
    elif math.prod(sides) < pixels:
        scale = math.sqrt(pixels / (height * width))
        sides = [math.ceil(side * scale / STEP) * STEP for side in (height, width)]
    return sides[0], sides[1]


def to_patches(pixels: Tensor) -> Tensor:
    """(B N, 3 * 2 * 14 * 14) patches of pictures (B, 3, H, W), those of one image token next to each other."""
    return repeat(
        pixels,
        "b c (h m p) (w n q) -> (b h w m n) (c t p q)",
        m=MERGED,
        n=MERGED,
        p=PATCH,
        q=PATCH,
        t=FRAMES,
    )


def published_name(name: str) -> str:
    """What one of our weights is called in HPSv3.safetensors, whose names are of transformers 4.45."""
    renamed = {"head.": "rm_head.", "backbone.visual.": "visual.", "backbone.language_model.": "model."}
    for ours, theirs in renamed.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
