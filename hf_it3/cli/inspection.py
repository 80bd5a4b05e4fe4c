"""Inspects a model: where the label signal enters, and what adaptation changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig

from ..it3.adaptation_config_it3 import AdaptationConfig
from ..it3.agreement_it3 import depth_of_copies
from ..it3.augmentation_it3 import AUGMENTATIONS
from ..it3.backbone_defaults_it3 import BACKBONE_DEFAULTS, backbone_kind, resolve_defaults, settings_of_copies
from ..it3.batchnorm_it3 import SplitBatchNorm
from ..it3.configuration_it3 import SEGMENTATION, IT3Config
from ..it3.injection_it3 import batch_norm_behind, feature_layout, last_channels, puts_channels_last
from ..it3.modeling_it3 import IT3ForImageClassification, IT3PreTrainedModel
from ..it3.plain_module_it3 import ModuleConfig, build_module
from ..it3.registration import MODELS, saved_configuration
from ..it3.shell_it3 import select_parameters
from ..it3.task_it3 import Task


_DEPTHS = {"quarter": "in a quarter of the layers", "half": "in half", "all": "in all"}


@dataclass
class LayerDescription:
    """A layer that can take the label signal.

    Args:
        name (`str`): as `injection_layer` takes it.
        layout (`str`): `"B C H W"`, `"B N C"`, `"B H W C"` or `"B C"`, with `"tuple of "` in front where the layer
            returns a tuple that starts with the features.
        shape (`tuple[int, ...]`): of its output for two images.
        channels (`int`): channels of the label embedding.
        batch_norm_behind (`str`, *optional*): BatchNorm right behind the layer, see `batch_norm_behind`.
    """

    name: str
    layout: str
    shape: tuple[int, ...]
    channels: int
    batch_norm_behind: str | None = None


@dataclass
class ModelDescription:
    """What `hf-it3 inspect` prints.

    Args:
        backbone (`str`): class of the wrapped classifier.
        num_labels (`int`), num_parameters (`int`): of the whole model.
        injection (`LayerDescription`): the injection layer.
        adapted (`dict[str, int]`): number of values that adaptation changes, for `"all"`, `"norm"` and `"bias"`.
        batch_norms (`int`): BatchNorm layers with signal statistics of their own.
        kind (`str`): kind of backbone, which decides what settings that are left open mean.
        settings (`dict[str, str]`): these settings of adaptation, as they take effect.
        layers (`list[LayerDescription]`): all layers that can take the signal, if asked for.
    """

    backbone: str
    num_labels: int
    num_parameters: int
    injection: LayerDescription
    adapted: dict[str, int]
    batch_norms: int
    kind: str
    settings: dict[str, str]
    layers: list[LayerDescription] = field(default_factory=list)


def model_to_inspect(name_or_path: str, injection_layer: str | None = None, **hub: Any) -> IT3PreTrainedModel:
    """Builds the model of that name with random weights: inspecting takes its structure alone, so only the
    configuration is downloaded.

    Args:
        name_or_path (`str`): an idempotent model, or any image classifier, which is wrapped.
        injection_layer (`str`, *optional*): instead of the model's own.
        hub: arguments of `AutoConfig.from_pretrained`.
    """
    saved_configuration(name_or_path, **hub)  # which checks the values that AutoConfig takes for granted
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    if not isinstance(config, IT3Config):
        values: dict[str, Any] = {} if injection_layer is None else {"injection_layer": injection_layer}
        return IT3ForImageClassification.from_backbone(config, **values).eval()
    if injection_layer is not None:
        config.injection_layer, config.injection_channels = injection_layer, None
    plain = None
    if isinstance(config.backbone_config, ModuleConfig):
        plain = build_module(config.backbone_config, may_import=bool(hub.get("trust_remote_code")))
    return MODELS[config.task](config, plain).eval()


def inspect_model(
    model: IT3PreTrainedModel, all_layers: bool = False, image_size: int | None = None
) -> ModelDescription:
    """Describes a model, after one signal pass of two random images.

    Args:
        model ([`IT3ForImageClassification`]): in eval mode.
        all_layers (`bool`): describe every layer that can take the label signal.
        image_size (`int`, *optional*): height and width of the images; by default the backbone's.

    Raises:
        ValueError: for an image size below 1, and if the injection layer cannot take the signal or never runs.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    outputs = _layer_outputs(model, image_size)
    config = model.config
    layers = [
        layer for name, output in outputs.items() if all_layers and (layer := _describe(model.backbone, name, output))
    ]
    name = config.injection_layer
    injection = None if name is None else _describe(model.backbone, name, outputs[name], config.injection_channels)
    if injection is None:
        raise ValueError(f"injection_layer={name!r} returns nothing that can take the label signal")
    return ModelDescription(
        backbone=type(model.backbone).__name__,
        num_labels=config.num_labels,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        injection=injection,
        adapted={choice: _count_adapted(model, choice) for choice in ("all", "norm", "bias")},
        batch_norms=sum(isinstance(module, SplitBatchNorm) for module in model.backbone.modules()),
        kind=backbone_kind(model),
        settings=_settings(model),
        layers=layers,
    )


def _settings(model: IT3PreTrainedModel) -> dict[str, str]:
    """The settings that depend on the kind of backbone."""
    own, defaults = model.config.adaptation, BACKBONE_DEFAULTS[backbone_kind(model)]
    resolved = resolve_defaults(own, model)
    settings = {name: str(getattr(resolved, name)) for name in defaults}
    may_align = Task.of(model.config).aligns_features and own.scope in ("batch", "stream")
    if own.norm_statistics == "auto" and resolved.norm_statistics == "source" and may_align:
        # The weights, which would tell, are not loaded.
        settings["norm_statistics"] = f"{defaults['norm_statistics']} where clean images were measured, else source"
    return {**settings, "augmentation_kinds": _copies(model, resolved), **_depth_of_copies(model, own)}


def _copies(model: IT3PreTrainedModel, settings: AdaptationConfig) -> str:
    """How copies that answers are averaged over differ, and what was measured of mirrored ones."""
    config = model.config
    augmentation = Task.of(config).make_augmentation(settings.augmentations, settings.augmentation_kinds)
    kinds = [kind for kind in AUGMENTATIONS if kind in augmentation.kinds_for(config.image_channels)]
    measured = (config.reference_distance or {}).get("mirrored")
    why = ""
    if settings.augmentation_kinds is None and measured is None and kinds == ["crop"]:
        why = " (whether mirrored clean images keep their class was not measured)"
    elif settings.augmentation_kinds is None and measured is not None:
        shares = f"{measured['all']:.2f} times as often as cropped ones, {measured['least']:.2f} times in one class"
        why = f" (mirrored clean images keep their class {shares})"
    return ", ".join(kinds) + why


def _depth_of_copies(model: IT3PreTrainedModel, own: AdaptationConfig) -> dict[str, str]:
    """In what share of the layers copies of images alone are corrected, where they are, and why."""
    reference = model.config.reference_distance or {}
    kept = reference.get("corrected")
    leaves_it_open = own.norm_statistics == "auto" and own.augmentations > 1
    if not leaves_it_open or (kept is None and settings_of_copies(own, model) is None):
        return {}
    if own.norm_depth is not None:
        return {"norm_depth of copies": str(own.norm_depth)}
    why = "how many clean images keep their class then was not measured"
    if kept is not None:
        shares = ", ".join(f"{kept[name]:.2f} {where}" for name, where in _DEPTHS.items())
        why = f"clean images that keep their class: {kept['cropped']:.2f} when cropped; corrected, {shares}"
    return {"norm_depth of copies": f"{depth_of_copies(reference)} ({why})"}


def _layer_outputs(model: IT3PreTrainedModel, image_size: int | None) -> dict[str, Any]:
    """The first output of each layer of the backbone that runs."""
    outputs: dict[str, Any] = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            outputs.setdefault(name, output)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in model.backbone.named_modules() if name]
    parameter = next(model.parameters())
    images = torch.rand(2, *_image_shape(model.config.backbone_config, image_size))
    signal = torch.full((2, model.config.num_labels), 1 / model.config.num_labels)
    if model.config.task == SEGMENTATION:
        signal = signal[:, :, None, None]
    try:
        with torch.no_grad():
            model(images.to(parameter), label_signal=signal.to(parameter))
    except RuntimeError as error:
        raise ValueError(f"a pass with images of shape {tuple(images.shape)} failed: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _image_shape(config: Any, image_size: int | None) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", config)
    channels, *sides = (getattr(config, "pretrained_cfg", None) or {}).get("input_size", (None,))
    channels = getattr(vision, "num_channels", None) or channels or 3
    size = image_size or getattr(vision, "image_size", None) or sides or 224
    height, width = (size, size) if isinstance(size, int) else size
    return channels, height, width


def _describe(backbone: nn.Module, name: str, output: Any, channels: int | None = None) -> LayerDescription | None:
    layer = backbone.get_submodule(name)
    is_tuple = isinstance(output, tuple) and len(output) > 0
    features = output[0] if is_tuple else output
    channels = channels or last_channels(layer)
    if not isinstance(features, Tensor) or channels is None or not features.is_floating_point():
        return None
    layout = feature_layout(features.shape, 2, channels, puts_channels_last(layer))
    if layout is None:
        return None
    return LayerDescription(
        name=name,
        layout=f"tuple of {layout}" if is_tuple else layout,
        shape=tuple(features.shape),
        channels=channels,
        batch_norm_behind=batch_norm_behind(backbone, name),
    )


def _count_adapted(model: nn.Module, choice: str) -> int:
    try:
        return sum(parameter.numel() for parameter in select_parameters(model, choice).values())
    except ValueError:
        return 0  # the choice selects nothing here
