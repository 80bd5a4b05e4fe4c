"""Plain `nn.Module` backbones: what a saved model tells of one, and how it is built again."""

import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging


logger = logging.get_logger(__name__)


class ModuleConfig(PreTrainedConfig):
    """Stands in for the configuration of a plain `nn.Module`, which has none.

    Args:
        backbone_class (`str`, *optional*): module and name of the class, such as `"networks.Network"`.
        backbone_kwargs (`dict`, *optional*): JSON arguments that build an instance of it; `None` where only the caller
            can build one.
        num_channels (`int`): of the images.
    """

    model_type = "it3_module"

    backbone_class: str | None = None
    backbone_kwargs: dict | None = None
    num_channels: int = 3

    if TYPE_CHECKING:
        # A property, which checkers do not expect among the arguments.
        num_labels: int = 2

    @property
    def class_name(self) -> str:
        """The class without its module."""
        return (self.backbone_class or "nn.Module").rpartition(".")[2]


def describe_module(module: nn.Module, backbone_kwargs: dict[str, Any] | None, **labels: Any) -> ModuleConfig:
    """The configuration that stands in for a module's own.

    Args:
        module: any; a subclass of huggingface_hub's `PyTorchModelHubMixin` knows its arguments itself.
        backbone_kwargs (`dict`, *optional*): JSON arguments that its class builds an equal module from.
        labels: `num_labels` or `id2label`.

    Raises:
        ValueError: for arguments that JSON does not carry, that the class does not take, or of a class that cannot be
            imported.
    """
    kind = type(module)
    if backbone_kwargs is None:
        known = getattr(module, "_hub_mixin_config", None)
        backbone_kwargs = known if isinstance(known, dict) and _why_not_built_from(kind, known) is None else None
    elif reason := _why_not_built_from(kind, backbone_kwargs):
        raise ValueError(f"backbone_kwargs={backbone_kwargs!r} cannot build a {kind.__name__} again: {reason}")
    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    first = next(convolutions, None)
    return ModuleConfig(
        backbone_class=f"{kind.__module__}.{kind.__qualname__}",
        backbone_kwargs=backbone_kwargs,
        num_channels=3 if first is None else first.in_channels,
        **labels,
    )


def _why_not_built_from(kind: type, arguments: Any) -> str | None:
    if "." in kind.__qualname__:
        return "the class is defined inside a function or another class; define it at the top of a module"
    try:
        if not isinstance(arguments, Mapping) or json.loads(json.dumps(arguments)) != arguments:
            return "it must be a dict of values that JSON carries"
        inspect.signature(kind).bind(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def build_module(config: ModuleConfig, may_import: bool = False) -> nn.Module:
    """A new instance of the class that a configuration names, with random weights.

    Args:
        config: as it was saved, perhaps by a stranger: the class has to be a module of PyTorch.
        may_import (`bool`): whether to import the class; by default it is used only if its module is imported already.

    Raises:
        ValueError: if there is nothing to build from; the message says what to pass.
    """
    name = config.class_name
    what = f"this model wraps a plain {name} ({config.backbone_class or 'of unknown class'})"
    own = f"pass backbone=..., an instance of {name}, to from_pretrained"
    if config.backbone_class is None or config.backbone_kwargs is None:
        raise ValueError(f"{what}, which only its own code can build; {own}")
    module_name, _, _ = config.backbone_class.rpartition(".")
    if module_name not in sys.modules and not may_import:
        raise ValueError(
            f"{what}; import {module_name} first, pass trust_remote_code=True to have it imported, or {own}"
        )
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what}, which cannot be imported here ({error}); put its folder on PYTHONPATH, or {own}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{what}, which is no torch.nn.Module; {own}")
    try:
        return kind(**config.backbone_kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what}, which could not be built from {config.backbone_kwargs!r} ({error}); {own}"
        ) from error


def why_not_saveable(module: nn.Module) -> str | None:
    """Why the weights of a plain module cannot be kept in a safetensors file, or `None` if they can."""
    state = module.state_dict(keep_vars=True)
    seen: dict[int, str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            return f"{name} is extra state of type {type(value).__name__}, which safetensors does not hold"
        if isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            return f"{name} has no shape yet; run the module once before it is wrapped"
        if value.numel() and (other := seen.setdefault(id(value), name)) != name:
            return f"{other} and {name} are the same tensor, which safetensors does not hold twice"
    return None


def warn_of_probabilities(logits: Tensor, backbone: nn.Module) -> None:
    """Says so where what a module returns, `(B, num_labels, ...)`, looks like probabilities."""
    values = logits.detach().float()
    if logits.shape[1] > 1 and values.min() >= 0 and (values.sum(1) - 1).abs().max() < 1e-3:
        logger.warning(
            f"{type(backbone).__name__} seems to return probabilities: its outputs are not negative and sum to 1. "
            "The losses and the label signal take logits; leave out the softmax at its end"
        )
