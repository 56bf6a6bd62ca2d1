"""Exports load where they are meant to, and their card tells what they are."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from srpo.export import export, forms_of, main, model_card, weights_of
from srpo.policies.lora_layouts import METADATA_KEY
from tests.app.folders import make_run
from tests.tiny import save_tiny_klein, tiny_flux_pipeline, tiny_klein_pipeline

PIXELS = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "pt", "max_sequence_length": 16}


def draw(pipe):
    return pipe("a red ball", generator=torch.Generator().manual_seed(0), **PIXELS).images


@pytest.fixture
def full(tmp_path, flux_folder):
    """A finished run over the tiny pipeline that trained all weights."""
    run = make_run(tmp_path / "runs", "full-run", status="finished", config={"model": str(flux_folder)})
    weights = tiny_flux_pipeline(seed=5).transformer.state_dict()
    save_file(weights, run.path / "diffusion_pytorch_model.safetensors")
    return run


@pytest.fixture
def lora(tmp_path, flux_folder):
    """A finished run over the tiny pipeline that trained a LoRA, alpha twice its rank."""
    run = make_run(
        tmp_path / "runs", "lora-run", status="finished", config={"model": str(flux_folder), "weights": "lora"}
    )
    generator, weights = torch.Generator().manual_seed(1), {}
    for part in ("to_q", "to_k", "to_v"):
        weights[f"transformer.transformer_blocks.0.attn.{part}.lora_A.weight"] = torch.randn(4, 32, generator=generator)
        weights[f"transformer.transformer_blocks.0.attn.{part}.lora_B.weight"] = torch.randn(32, 4, generator=generator)
    targets = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    settings = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.target_modules": targets}
    metadata = {"format": "pt", METADATA_KEY: json.dumps(settings)}
    save_file(weights, run.path / "pytorch_lora_weights.safetensors", metadata=metadata)
    return run


def test_full_weights_load_back_in_the_pipeline(full, pipe, flux_folder):
    folder = export(full, "full")
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer")
    loaded = FluxPipeline.from_pretrained(flux_folder, transformer=transformer)
    loaded.set_progress_bar_config(disable=True)
    pipe.transformer.load_state_dict(load_file(full.weights))
    assert torch.allclose(draw(loaded), draw(pipe), atol=1e-5)


def test_half_precision_halves_the_file(full):
    folder = export(full, "full", dtype="bfloat16")
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert weights.keys() == load_file(full.weights).keys()


def test_a_lora_draws_the_same_in_both_layouts_and_not_as_the_base(lora, pipe):
    plain = draw(pipe)
    pictures = []
    for form, name in (("lora", "pytorch_lora_weights.safetensors"), ("kohya", "lora-run.safetensors")):
        pipe.load_lora_weights(export(lora, form), weight_name=name, adapter_name=form)
        pipe.set_adapters(form)
        pictures.append(draw(pipe))
        pipe.delete_adapters(form)
    assert torch.allclose(*pictures, atol=1e-5)
    assert not torch.allclose(plain, pictures[0], atol=1e-4)


def test_a_lora_merged_into_its_base_draws_as_the_two_together(lora, pipe, flux_folder):
    transformer = FluxTransformer2DModel.from_pretrained(export(lora, "full") / "transformer")
    merged = FluxPipeline.from_pretrained(flux_folder, transformer=transformer)
    merged.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(lora.path, weight_name="pytorch_lora_weights.safetensors")
    assert torch.allclose(draw(merged), draw(pipe), atol=1e-5)


def test_a_checkpoint_is_exported_by_its_update(full):
    folder = full.checkpoint(2)
    folder.mkdir()
    weights = tiny_flux_pipeline(seed=6).transformer.state_dict()
    save_file(weights, folder / "transformer.safetensors")
    (folder / "manifest.json").write_text("{}")
    exported = export(full, "full", update=2)
    assert exported.name == "full-update-000002"
    found = load_file(exported / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_an_earlier_export_is_replaced_whole(full):
    first = export(full, "full")
    (first / "stray").write_text("left over")
    again = export(full, "full")
    assert again == first and not (again / "stray").exists()
    assert sorted(path.name for path in again.iterdir()) == ["README.md", "transformer"]


def test_the_card_names_base_recipe_figures_and_licences(full, lora):
    card = model_card(full, "full", None, "float32")
    front = card.split("---")[1]
    assert "library_name: diffusers" in front and "license:" in front
    assert "| learning rate | 4e-05 |" in card and "| positive words | Real |" in card
    assert "| photo | 0.2 (0.15 to 0.25) | 0.3 (0.25 to 0.35) |" in card
    assert "before training | update 3" in card
    assert "## Licences" in card and '"rollout_steps": 12' in card
    assert "- lora" in model_card(lora, "lora", None, "float32").split("---")[1]
    assert 'weight_name="lora-run.safetensors"' in model_card(lora, "kohya", None, "float32")


def test_the_card_tells_no_folder_of_this_machine_and_names_a_base_only_where_the_hub_knows_it(full, tmp_path):
    settings = full.config() | {"prompts": "/home/me/my project/list.txt", "reward": "hpsv2.1:/home/me/a.pt"}
    full.write_config(settings)
    card = model_card(full, "full", None, "float32")
    assert "/home" not in card and str(tmp_path) not in card
    assert '"prompts": "list.txt"' in card and '"reward": "hpsv2.1:a.pt"' in card
    assert "base_model" not in card and 'from_pretrained("folder of ' in card
    full.write_config(settings | {"model": "someone/their-flux"})
    assert "base_model: someone/their-flux\n" in model_card(full, "full", None, "float32")


def test_the_card_of_flux_dev_carries_its_licence(full):
    full.write_config(full.config() | {"model": "black-forest-labs/FLUX.1-dev"})
    card = model_card(full, "full", None, "float32")
    assert "license_name: flux-1-dev-non-commercial-license" in card
    assert "Non-Commercial License of Black Forest Labs" in card


def test_the_card_of_a_run_that_was_not_validated_says_so(full):
    (full.path / "validation.jsonl").unlink()
    assert "was not validated" in model_card(full, "full", None, "float32")


def test_what_cannot_be_exported_is_one_sentence(full, lora, capsys):
    assert forms_of(full) == ("full",) and forms_of(lora) == ("lora", "kohya", "full")
    with pytest.raises(ValueError, match="exports as full, not as 'kohya'"):
        export(full, "kohya")
    with pytest.raises(ValueError, match="no checkpoint of update 9"):
        weights_of(full, 9)
    full.weights.unlink()
    with pytest.raises(ValueError, match="has not finished"):
        export(full, "full")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        export(lora, "lora", dtype="int8")
    assert main([str(full.path)]) == 2
    assert "error: run full-run has not finished" in capsys.readouterr().err
    assert not (full.path / "exports" / "full-final").exists()


def test_the_command_line_prints_where_it_is(lora, capsys):
    assert main([str(lora.path), "--form", "kohya", "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.endswith("exports/kohya-final")
    values = load_file(f"{printed}/lora-run.safetensors").values()
    assert {value.dtype for value in values} == {torch.bfloat16}


def test_a_lora_of_flux_2_exports_whole_and_for_diffusers_and_its_card_loads_its_own_pipeline(tmp_path):
    base = save_tiny_klein(tmp_path / "FLUX.2-klein-4B")
    run = make_run(tmp_path / "runs", "klein", status="finished", config={"model": str(base), "weights": "lora"})
    generator, block = torch.Generator().manual_seed(1), "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    inner = tiny_klein_pipeline().transformer.get_submodule(block.removeprefix("transformer.")).weight.shape
    weights = {f"{block}.lora_A.weight": torch.randn(4, inner[1], generator=generator)}
    weights[f"{block}.lora_B.weight"] = 0.2 * torch.randn(inner[0], 4, generator=generator)
    save_file(weights, run.path / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})
    assert forms_of(run) == ("lora", "full")
    with pytest.raises(ValueError, match="exports as lora, full, not as 'kohya'"):
        export(run, "kohya")
    whole = Flux2Transformer2DModel.from_pretrained(export(run, "full") / "transformer")
    pipe = tiny_klein_pipeline()
    pipe.load_lora_weights(export(run, "lora"), weight_name="pytorch_lora_weights.safetensors")
    merged = Flux2KleinPipeline.from_pretrained(base, transformer=whole)
    merged.set_progress_bar_config(disable=True)
    ours, theirs, plain = (draw_klein(it) for it in (merged, pipe, tiny_klein_pipeline()))
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(ours, plain, atol=1e-4)
    card = model_card(run, "full", None, "float32")
    assert "license: apache-2.0" in card and "base_model: black-forest-labs/FLUX.2-klein-4B" in card
    assert "import Flux2KleinPipeline, Flux2Transformer2DModel" in card and "FluxPipeline" not in card


def test_the_family_of_a_base_that_is_not_here_is_told_by_its_name(lora):
    for base, forms in (
        ("black-forest-labs/FLUX.2-klein-base-9B", ("lora", "full")),
        ("black-forest-labs/FLUX.1-dev", ("lora", "kohya", "full")),
    ):
        lora.write_config(lora.config() | {"model": base})
        assert forms_of(lora) == forms
    lora.write_config(lora.config() | {"model": "black-forest-labs/FLUX.2-klein-base-9B"})
    card = model_card(lora, "lora", None, "float32")
    assert "license: other" in card and "FLUX Non-Commercial License" in card and "Flux2KleinPipeline" in card


def draw_klein(pipe):
    return pipe(
        prompt="a red ball",
        height=32,
        width=32,
        num_inference_steps=2,
        max_sequence_length=64,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
    ).images
