"""From a pipeline's place to its policy: the one place that knows every family."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from srpo.policies import hub
from srpo.policies.checkpoints import load_transformer
from srpo.policies.families import Family, family_of
from srpo.policies.flux import FluxPolicy


def load_policy(place: str | Path, *, local_files_only: bool = True, **options: Any) -> FluxPolicy:
    """The policy of a saved pipeline, of the family that its model_index.json names.

    place: a folder, or a Hugging Face id in the local cache; with local_files_only=False an id may be downloaded.
    options: the keywords of `FluxPolicy.from_pretrained`: `device`, `dtype`, `max_sequence_length` and on.
    ValueError, one sentence, where there is no pipeline, or one of no family that runs here.
    """
    module, _, name = _family(place, local_files_only).policy.partition(":")
    policy = getattr(import_module(module), name)
    return policy.from_pretrained(place, local_files_only=local_files_only, **options)


def with_weights(policy: FluxPolicy, named: str | Path) -> FluxPolicy:
    """The policy with other weights of its transformer, as a user names them.

    named: a file, a folder or a downloaded id, in any form that `places.find` knows; a LoRA's weight as FILE@0.8.
    ValueError, one sentence, where there are none, or where they do not fit.
    """
    place, weight = hub.located(named)
    return policy.with_transformer(load_transformer(place, policy.transformer, weight=weight))


def _family(place: str | Path, local_files_only: bool) -> Family:
    if not hub.is_id(place):
        return family_of(place)
    if (folder := hub.downloaded(place)) is not None:
        return family_of(folder)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        index = hf_hub_download(str(place), "model_index.json", local_files_only=local_files_only)
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(hub.absent(place)) from error
    return family_of(Path(index).parent)
