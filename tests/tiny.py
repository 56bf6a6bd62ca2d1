"""Small random models of the real classes, for tests: the folders have the layout of FLUX.1-dev and of a CLIP reward.

They draw noise-like pictures, but every part computes what the large one computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from srpo.miniature.flux import new_scheduler
from srpo.miniature.tokens import PRINTABLE, byte_letters

WORDS = (
    "a an the on in at by red green blue yellow ball cube tree house boat flower beach meadow desert snow sea sunset"
)


class TinyClip(NamedTuple):
    """A random dual encoder of 32 x 32 pictures and texts of at most 77 tokens."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    image_processor: CLIPImageProcessorPil


def tiny_flux_pipeline(seed: int = 0) -> FluxPipeline:
    """A FLUX pipeline of about 0.1 M random weights on the CPU, float32; the same seed gives the same weights.

    As FLUX.1-dev: a VAE of 8 x with 16 channels, guidance embedding, two text encoders and dynamic shifting.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=24,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
        tokenizer, tokenizer_2 = tiny_clip_tokenizer(), tiny_t5_tokenizer()
        text_encoder = CLIPTextModel(CLIPTextConfig(**_text_settings(tokenizer), hidden_size=24))
        text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer_2),
                d_model=32,
                d_kv=16,
                d_ff=64,
                num_layers=1,
                num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        )
    pipe = FluxPipeline(
        scheduler=new_scheduler(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_flux(folder: str | Path, seed: int = 0) -> Path:
    """The folder, now holding what `FluxPipeline.from_pretrained(folder)` loads."""
    tiny_flux_pipeline(seed).save_pretrained(folder)
    return Path(folder)


def tiny_klein_pipeline(seed: int = 0, *, is_distilled: bool = False) -> Flux2KleinPipeline:
    """A FLUX.2 klein pipeline of about 0.1 M random weights on the CPU, float32; the same seed gives the same weights.

    As FLUX.2 klein: a VAE of 8 x with 32 channels and measured statistics, Qwen3 with the 27 layers that are read,
    positions of four numbers and no guidance embedding.
    """
    tokenizer = tiny_qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=32,
        )
        vae.bn.running_mean.normal_()  # of a new one they are 0 and 1, and would prove nothing
        vae.bn.running_var.uniform_(0.5, 2)
        transformer = Flux2Transformer2DModel(
            in_channels=128,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=28,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
                max_position_embeddings=512,
                tie_word_embeddings=True,
            )
        )
    pipe = Flux2KleinPipeline(
        scheduler=new_scheduler(),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        is_distilled=is_distilled,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_tiny_klein(folder: str | Path, seed: int = 0, *, is_distilled: bool = False) -> Path:
    """The folder, now holding what `Flux2KleinPipeline.from_pretrained(folder)` loads."""
    tiny_klein_pipeline(seed, is_distilled=is_distilled).save_pretrained(folder)
    return Path(folder)


def tiny_clip(folder: str | Path | None = None, seed: int = 0) -> TinyClip:
    """A random CLIP model with its tokenizer and image processor; saved to `folder` as well, where one is given."""
    tokenizer = tiny_clip_tokenizer()
    text = CLIPTextConfig(**_text_settings(tokenizer), hidden_size=32, projection_dim=16)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=16)).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    clip = TinyClip(model, tokenizer, processor)
    if folder is not None:
        for part in clip:
            part.save_pretrained(folder)
    return clip


def tiny_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer without merges: one token per byte of any text, at most 77."""
    letters = byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer of the printable ASCII characters and a few words; anything else is `<unk>`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(character, -5.0) for character in PRINTABLE]
    pieces += [("▁" + word, -3.0) for word in WORDS.split()]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def tiny_qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer without merges, one token per byte, with a chat template in the manner of Qwen3's."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {piece: index for index, piece in enumerate([*byte_letters(), *marks])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], extra_special_tokens=marks[1:], pad_token=marks[0], unk_token=marks[0]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n"
        "{% endif %}{% endif %}"
    )
    return tokenizer


def _text_settings(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """What both CLIP text towers share: the size, and the ids that their pooling looks for."""
    return {
        "vocab_size": len(tokenizer),
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
