"""What adapts best depends on the backbone: the one table of measured defaults."""

from typing import Any

from torch import nn

from .adaptation_config_it3 import AdaptationConfig
from .batchnorm_it3 import SplitBatchNorm
from .interface_it3 import IdempotentModel
from .task_it3 import Task


# What a setting that is `None` means for each kind of backbone.
BACKBONE_DEFAULTS: dict[str, dict[str, Any]] = {
    "batch_norm": {"parameters": "norm", "num_steps": 1, "learning_rate": 1e-3, "prior_count": 64},
    "layer_norm": {"parameters": "all", "num_steps": 5, "learning_rate": 3e-4, "prior_count": 16},
    "plain": {"parameters": "all", "num_steps": 5, "learning_rate": 3e-4, "prior_count": 16},
}


def backbone_kind(model: nn.Module) -> str:
    """`"batch_norm"` where a model has BatchNorm layers, `"layer_norm"` where it has others, else `"plain"`."""
    modules = list(model.modules())
    if any(isinstance(module, SplitBatchNorm) for module in modules):
        return "batch_norm"
    has_norm = any("norm" in type(module).__name__.lower() for module in modules)
    return "layer_norm" if has_norm else "plain"


def resolve_defaults(config: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """A copy of the settings in which nothing is left open for this model: neither `None` nor `"auto"`."""
    kind = backbone_kind(model)
    resolved = {name: value for name, value in BACKBONE_DEFAULTS[kind].items() if getattr(config, name) is None}
    if kind != "batch_norm" and not model.feature_statistics.is_measured:
        resolved["norm_statistics"] = "source"  # there are no others
    elif kind != "batch_norm" and config.norm_statistics == "batch":
        resolved["norm_statistics"] = "source"  # that is of BatchNorm alone
    elif config.norm_statistics == "auto":
        helps = kind == "batch_norm" or Task.of(model.config).aligns_features
        resolved["norm_statistics"] = "mixed" if helps else "source"
    if config.anchor is None:
        resolved["anchor"] = config.effective_anchor
    return config.replace(**resolved)
