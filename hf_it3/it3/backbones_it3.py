"""Builds, loads and takes over the models that an idempotent model wraps."""

import copy
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .configuration_cnn_it3 import IT3CNNConfig
from .configuration_it3 import SEGMENTATION, IT3Config
from .heads_it3 import HEADS, has_head, model_class_for
from .injection_it3 import last_channels
from .loading_it3 import of_hub, weights_follow
from .modeling_cnn_it3 import IT3CNNForImageClassification
from .plain_module_it3 import ModuleConfig, build_module, describe_module, why_not_saveable


LOADING_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "max_memory",
    "offload_folder",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)


class UncachedBiases:
    """Looks up the attention biases of LeViT and its relatives anew in every pass.

    Those models keep them between passes in eval mode, where adapted weights would go unnoticed.

    Args:
        attention (`nn.Module`): the attention layer, whose method `get_attention_biases` this stands in for.
    """

    def __init__(self, attention: nn.Module):
        self.attention: Any = attention

    def __call__(self, device: torch.device) -> Tensor:
        """Biases of shape `(heads, queries, keys)`."""
        return self.attention.attention_biases[:, self.attention.attention_bias_idxs]


def drop_weight_caches(backbone: nn.Module) -> None:
    """Keeps the backbone's layers from remembering values computed from weights, in place."""
    modules: Iterable[Any] = backbone.modules()
    for module in modules:
        if hasattr(module, "attention_bias_cache") and hasattr(module, "attention_bias_idxs"):
            module.attention_bias_cache = {}
            module.get_attention_biases = UncachedBiases(module)


def copy_module(module: nn.Module) -> nn.Module:
    """A copy whose weights, frozen parts and modes are those of the module."""
    # Caches hold tensors with a history, which cannot be copied, and need not be.
    caches = (getattr(part, "attention_bias_cache", None) for part in module.modules())
    return copy.deepcopy(module, {id(cache): {} for cache in caches if isinstance(cache, dict)})


class HeadlessClassifier(nn.Module):
    """A model without classification head, with average pooling and a linear head added.

    Args:
        model (`PreTrainedModel`): returns `pooler_output`, `last_hidden_state` or `feature_maps`.
        num_labels (`int`): number of classes.
    """

    def __init__(self, model: PreTrainedModel, num_labels: int):
        super().__init__()
        self.model = model
        self.classifier = nn.Linear(_feature_size(model), num_labels, device=model.device, dtype=model.dtype)
        self.classifier.training = self.training = model.training

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> ImageClassifierOutput:
        """Logits of shape `(B, num_labels)` for images of shape `(B, C, H, W)`."""
        output = self.model(pixel_values, **kwargs)
        features = (
            output.feature_maps[-1] if hasattr(output, "feature_maps") else getattr(output, "pooler_output", None)
        )
        if features is None:
            features = output.last_hidden_state
        if features.ndim == 4:
            features = features.mean((2, 3))
        elif features.ndim == 3:
            features = features.mean(1)
        return ImageClassifierOutput(
            logits=self.classifier(features),
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
        )


def _feature_size(model: PreTrainedModel) -> int:
    """Channels of a headless model's features: as an `AutoBackbone` says, or those of its last layer."""
    channels = getattr(model, "channels", None)
    size = channels[-1] if isinstance(channels, (list, tuple)) else last_channels(model)
    if size is None:
        raise ValueError(
            f"cannot tell the feature size of {type(model).__name__}; add a classification head yourself and pass the "
            "classifier"
        )
    return size


def build_backbone(config: IT3Config, **loading: Any) -> nn.Module:
    """A new backbone with random weights for `config.backbone_config`; `loading` may hold `dtype` and
    `attn_implementation`."""
    if isinstance(config.backbone_config, ModuleConfig):
        return build_module(config.backbone_config)
    model_class = model_class_for(config.backbone_config, config.task)
    config.backbone_config.architectures = [model_class.__name__]
    backbone = model_class._from_config(config.backbone_config, **loading)
    return backbone if has_head(model_class, config.task) else HeadlessClassifier(backbone, config.num_labels)


def share_config(config: IT3Config, backbone: nn.Module) -> None:
    """Makes `config.backbone_config` the configuration that the backbone itself reads, with our labels in it."""
    model = backbone.model if isinstance(backbone, HeadlessClassifier) else backbone
    if isinstance(model, PreTrainedModel):
        config.backbone_config = model.config
        config.sync_backbone_labels()


def check_rebuildable(config: PreTrainedConfig, backbone: nn.Module, task: str) -> None:
    """Raises a ValueError, with the way out, if what is saved would not lead back to `backbone`."""
    if isinstance(config, ModuleConfig):
        if reason := why_not_saveable(backbone):
            raise ValueError(f"a wrapped {type(backbone).__name__} cannot be saved: {reason}")
        return
    known = config.model_type == IT3CNNConfig.model_type or config.model_type in CONFIG_MAPPING
    if not known:
        raise ValueError(
            f"a wrapped {type(backbone).__name__} cannot be loaded again: model_type={config.model_type!r} is "
            f"unknown to the Auto classes; register it with AutoConfig and {HEADS[task].auto_class.__name__}, here "
            "and before loading"
        )


def take_over(
    backbone: Any,
    config_values: dict[str, Any],
    loading: dict[str, Any],
    backbone_kwargs: dict[str, Any] | None = None,
) -> tuple[nn.Module, dict]:
    """The model behind whatever `from_backbone` was given, never the caller's own object.

    Args:
        backbone (`str`, `PreTrainedConfig`, `PreTrainedModel` or `nn.Module`).
        config_values (`dict`): the arguments of [`IT3Config`] given by the caller, and the task.
        loading (`dict`): arguments for `from_pretrained`.
        backbone_kwargs (`dict`, *optional*): as in `from_backbone`.

    Returns:
        The model, and the arguments for [`IT3Config`] with `backbone_config` filled in.
    """
    if not isinstance(backbone, (str, os.PathLike, PreTrainedConfig, nn.Module)):
        raise TypeError(
            "backbone must be a model name or path, a configuration, a PreTrainedModel or an nn.Module, got "
            f"{type(backbone).__name__}"
        )
    if IT3Config.model_type in (getattr(backbone, "model_type", None), _model_type(backbone)):
        raise ValueError(f"{type(backbone).__name__} takes a label signal already; there is nothing to wrap")
    _check_loading(backbone, loading)
    if backbone_kwargs is not None and (not isinstance(backbone, nn.Module) or isinstance(backbone, PreTrainedModel)):
        raise ValueError(
            f"backbone_kwargs is for a plain nn.Module; a {type(backbone).__name__} is built from its configuration"
        )
    task = config_values["task"]
    if isinstance(backbone, PreTrainedConfig):
        config_values = _with_ignored_label(config_values, backbone)
        config = IT3Config(backbone_config=backbone, **config_values)
        config_values = {**config_values, "backbone_config": config.backbone_config}
        return build_backbone(config, **loading), config_values
    if isinstance(backbone, nn.Module):
        backbone = copy_module(backbone)
    else:
        backbone = _load(os.fspath(backbone), config_values, loading)
    _check_input(backbone)
    if not isinstance(backbone, PreTrainedModel):
        return backbone, {**config_values, "backbone_config": _module_config(backbone, config_values, backbone_kwargs)}
    backbone.config.architectures = [type(backbone).__name__]
    values = {**_with_ignored_label(config_values, backbone.config), "backbone_config": backbone.config}
    if has_head(type(backbone), task):
        num_labels = IT3Config(**values).num_labels
        if num_labels != backbone.config.num_labels:
            raise ValueError(
                f"num_labels={num_labels} differs from the {backbone.config.num_labels} classes of the given "
                f"{type(backbone).__name__}; load the backbone with that num_labels first, or pass its name"
            )
        return backbone, values
    if not HEADS[task].can_be_added:
        raise ValueError(
            f"{type(backbone).__name__} has no head for {HEADS[task].purpose}; pass a model whose class is named "
            f"...{HEADS[task].suffix}, or the name of the checkpoint"
        )
    return HeadlessClassifier(backbone, IT3Config(**values).num_labels), values


def _check_input(backbone: nn.Module) -> None:
    """Refuses models of transformers whose input is of another kind than images, text for example."""
    name = backbone.main_input_name if isinstance(backbone, PreTrainedModel) else "pixel_values"
    parameters = inspect.signature(backbone.forward).parameters
    if name in parameters and "pixel_values" not in parameters:
        raise ValueError(f"{type(backbone).__name__} takes {name}, not images; wrap a model that takes pixel_values")


def _with_ignored_label(config_values: dict[str, Any], backbone: PreTrainedConfig) -> dict[str, Any]:
    """The arguments of [`IT3Config`] with the label that the backbone ignores, unless the caller says another."""
    for name in ("semantic_loss_ignore_index", "loss_ignore_index"):
        if config_values["task"] == SEGMENTATION and hasattr(backbone, name):
            return {"semantic_loss_ignore_index": getattr(backbone, name), **config_values}
    return config_values


def _model_type(backbone: Any) -> str | None:
    return getattr(getattr(backbone, "config", None), "model_type", None)


def _check_loading(backbone: Any, loading: dict[str, Any]) -> None:
    allowed = {"dtype", "attn_implementation"} if isinstance(backbone, PreTrainedConfig) else set()
    unused = [] if isinstance(backbone, (str, os.PathLike)) else [name for name in loading if name not in allowed]
    if unused:
        raise ValueError(
            f"{unused[0]}={loading[unused[0]]!r} is for backbones given by name, not for a {type(backbone).__name__}; "
            "load the backbone with it first"
        )


def _load(name: str, config_values: dict[str, Any], loading: dict[str, Any]) -> PreTrainedModel:
    labels = {key: config_values[key] for key in ("num_labels", "id2label", "label2id") if key in config_values}
    config_arguments = {
        key: value for key, value in loading.items() if key not in ("device_map", "max_memory", "offload_folder")
    }
    IT3Config.get_config_dict(name, **of_hub(loading))  # which checks the values that AutoConfig takes for granted
    config = AutoConfig.from_pretrained(name, **{k: v for k, v in config_arguments.items() if k != "dtype"})
    if config.model_type == IT3Config.model_type:
        raise ValueError(f"{name} is an idempotent model already; load it with the from_pretrained of its class")
    head = HEADS[config_values["task"]]
    headless = bool(config.architectures) and head.suffix not in config.architectures[0]
    if config.model_type == IT3CNNConfig.model_type and head.can_be_added:
        auto_class: Any = IT3CNNForImageClassification
    elif headless and head.can_be_added and type(config) in MODEL_MAPPING:
        return AutoModel.from_pretrained(name, **loading)
    else:
        auto_class = head.auto_class
    return auto_class.from_pretrained(name, ignore_mismatched_sizes=bool(labels), **labels, **loading)


def keep_weights(module: nn.Module) -> None:
    """Keeps `post_init` of the wrapping model from drawing new weights for a module that has its own.

    Not where they are loaded: transformers takes what is marked for weights that a file may lack.
    """
    if weights_follow():
        return
    marked: Iterable[Any] = (*module.modules(), *module.parameters(), *module.buffers())
    for part in marked:
        part._is_hf_initialized = True


def _module_config(
    module: nn.Module, config_values: dict[str, Any], backbone_kwargs: dict[str, Any] | None
) -> ModuleConfig:
    if config_values.get("id2label") is not None:
        return describe_module(module, backbone_kwargs, id2label=config_values["id2label"])
    num_labels = config_values.get("num_labels")
    if num_labels is None:
        kinds = HEADS[config_values["task"]].last_layers
        layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, kinds)]
        if not layers:
            raise ValueError(f"cannot tell the number of classes of {type(module).__name__}; pass num_labels=...")
        num_labels = getattr(layers[-1], "out_features", None) or layers[-1].out_channels
    return describe_module(module, backbone_kwargs, num_labels=num_labels)


def backbone_logits(output: Any, backbone: nn.Module, config: IT3Config) -> Tensor:
    """The logits in whatever a backbone returns: a tensor, a tuple, an output with `logits`, or a dictionary with
    `out`, as torchvision's segmentation models return it.

    Raises:
        ValueError: if there are none, none for every pixel where the task asks for them, or another number of classes
            than the configuration's.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    if logits is None and isinstance(output, Mapping):
        logits = output.get("out")
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{type(backbone).__name__} returns {type(output).__name__} without logits; wrap a model for "
            f"{HEADS[config.task].purpose}"
        )
    if config.task == SEGMENTATION and logits.ndim != 4:
        raise ValueError(
            f"{type(backbone).__name__} returns logits of shape {tuple(logits.shape)}; segmentation needs a class for "
            "every pixel, (B, num_labels, h, w)"
        )
    if logits.ndim < 2 or logits.shape[1] != config.num_labels:
        raise ValueError(
            f"{type(backbone).__name__} returns logits of shape {tuple(logits.shape)}, but num_labels is "
            f"{config.num_labels}; wrap it with the number of its outputs"
        )
    return logits
