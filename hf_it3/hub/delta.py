"""Saves adapted models as a delta: the tensors that differ from the base model, and a reference to it."""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging

from ..it3.loading_it3 import DELTA_NAME, is_delta
from ..it3.plain_module_it3 import ModuleConfig
from ..it3.shell_it3 import plain_state
from ..utils import noting
from .card_facts import public_id


logger = logging.get_logger(__name__)


def save_delta(model: Any, directory: Any) -> Path:
    """Saves configuration and changed tensors of an adapted model.

    The base model is loaded, at the revision that was adapted, and compared bit by bit.

    Args:
        model ([`IT3ForImageClassification`]): from [`TestTimeAdapter.adapted_model`], its base loaded from the Hub.
        directory (`str` or `PathLike`): where to save.

    Returns:
        The path of the file of changed tensors.

    Raises:
        ValueError: if the base is not known to the Hub at an exact revision: nobody could load the result.
    """
    provenance = model.config.base_model
    if not provenance:
        raise ValueError(
            "delta=True saves what adaptation changed, but this model was not adapted (config.base_model is empty); "
            "take TestTimeAdapter.adapted_model(), or save the whole model"
        )
    name, revision = provenance.get("name_or_path"), provenance.get("revision")
    if public_id(name) is None or not revision:
        raise ValueError(
            f"delta=True refers to the base model by repository and revision, but it was loaded from {name!r} at "
            f"revision {revision!r}; push the base model first, load it from the Hub and adapt that, or save the "
            "whole model"
        )
    own = _own_parts(model)
    with noting(f"loading the base model {name}, which a delta is compared with"):
        base = type(model).from_pretrained(name, revision=revision, dtype=model.dtype, **own)
        reference = {"name_or_path": name, "revision": revision}
        if is_delta(base.config.base_model):
            reference = base.config.base_model["delta_of"]
            base = type(model).from_pretrained(**_loading(reference), dtype=model.dtype, **own)
    changed = changed_tensors(model, base)
    if not changed:
        logger.warning(f"No weight differs from {name}: the model was never adapted, the delta is empty.")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.base_model = {**provenance, "weights": "delta", "delta_of": reference}
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(directory)
    save_file(changed, directory / DELTA_NAME, metadata={"format": "pt"})
    for stale in directory.glob("model*.safetensors*"):
        stale.unlink()
    return directory / DELTA_NAME


def changed_tensors(model: Any, base: Any) -> dict[str, torch.Tensor]:
    """The entries of the model's state dict that differ from the base model's, each in memory of its own."""
    before = plain_state(base)
    return {
        name: value.detach().cpu().clone().contiguous()
        for name, value in plain_state(model).items()
        if name not in before or not torch.equal(value.cpu(), before[name].cpu())
    }


def _own_parts(model: Any) -> dict[str, Any]:
    """What a configuration does not build: the caller's own module and label embedder."""
    parts = {}
    if model.config.backbone_config.model_type == ModuleConfig.model_type:
        parts["backbone"] = model.backbone
    if model.config.embedder_class is not None:
        parts["embedder"] = copy.deepcopy(model.embedder)
    return parts


def _loading(reference: dict[str, Any]) -> dict[str, Any]:
    return {"pretrained_model_name_or_path": reference["name_or_path"], "revision": reference["revision"]}
