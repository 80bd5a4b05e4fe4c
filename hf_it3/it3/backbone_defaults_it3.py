"""What adapts best depends on the backbone: the one table of measured defaults."""

from typing import Any

from torch import nn

from .adaptation_config_it3 import AdaptationConfig
from .batchnorm_it3 import SplitBatchNorm
from .interface_it3 import IdempotentModel
from .task_it3 import Task


# What a setting that is `None`, or `"auto"`, means for each kind of backbone.
BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "batch_norm": {
        "parameters": "norm",
        "num_steps": 1,
        "learning_rate": 1e-3,
        "norm_statistics": "shrunk",
        "prior_count": 64,
        "norm_depth": 1.0,
        "average_answers": "adapted",
    },
    "layer_norm": {
        "parameters": "norm",
        "num_steps": 1,
        "learning_rate": 1e-3,
        "norm_statistics": "mixed",
        "prior_count": 16,
        "norm_depth": 1.0,
        "average_answers": "adapted",
    },
    "plain": {
        "parameters": "all",
        "num_steps": 5,
        "learning_rate": 3e-4,
        "norm_statistics": "mixed",
        "prior_count": 16,
        "norm_depth": 1.0,
        "average_answers": "never",
    },
}
# What differs for images that adapt alone. Statistics of one image mislead deep networks, whose last maps are small.
DEFAULTS_ALONE: dict[str, dict[str, Any]] = {
    "batch_norm": {"norm_statistics": "source", "prior_count": 16},
    "layer_norm": {"norm_statistics": "source", "prior_count": 16},
    "plain": {"prior_count": 2},
}
# What differs for copies of an image alone that are averaged, with BatchNorm. Correcting the first sixth of the layers
# harms clean images of no kind; small networks for digits would gain from more, deep ones for photos lose.
DEFAULTS_OF_COPIES: dict[str, Any] = {"norm_statistics": "mixed", "prior_count": 2, "norm_depth": 0.17}


def backbone_kind(model: nn.Module) -> str:
    """`"batch_norm"` where a model has BatchNorm layers, `"layer_norm"` where it has others, else `"plain"`."""
    modules = list(model.modules())
    if any(isinstance(module, SplitBatchNorm) for module in modules):
        return "batch_norm"
    has_norm = any("norm" in type(module).__name__.lower() for module in modules)
    return "layer_norm" if has_norm else "plain"


def resolve_defaults(config: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """A copy of the settings in which nothing is left open for this model: neither `None` nor `"auto"`."""
    kind, task = backbone_kind(model), Task.of(model.config)
    task_aligns = task.aligns_features
    # Nothing corrects features before the steps where they are not aligned, so more is left for these to do.
    row = kind if kind == "batch_norm" or task_aligns else "plain"
    defaults = BACKBONE_DEFAULTS[row] | (DEFAULTS_ALONE[row] if config.scope in ("image", "average") else {})
    only_averages = config.scope == "average" and not config.augmentation_steps and config.augmentations > 1
    if only_averages and row == "batch_norm" and task.takes_crops and config.norm_statistics == "auto":
        defaults |= DEFAULTS_OF_COPIES
    resolved = {name: value for name, value in defaults.items() if getattr(config, name) in (None, "auto")}
    if config.average_answers is None and not task.takes_crops:
        resolved["average_answers"] = "never"
    if kind != "batch_norm":
        is_chosen = config.norm_statistics in ("mixed", "shrunk")
        aligns = model.feature_statistics.is_measured and (is_chosen or task_aligns)
        if not aligns or config.norm_statistics == "batch":  # that is of BatchNorm alone
            resolved["norm_statistics"] = "source"
    if config.anchor is None:
        resolved["anchor"] = config.effective_anchor
    return config.replace(**resolved)
