"""What adapts best depends on the backbone: the one table of measured defaults."""

from typing import Any

from torch import nn

from .adaptation_config_it3 import AdaptationConfig
from .agreement_it3 import depth_of_copies
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
# What differs for copies of an image alone that are averaged, where there is something to correct features with. How
# deep they are depends on the model, see `depth_of_copies`.
DEFAULTS_OF_COPIES: dict[str, Any] = {"norm_statistics": "mixed", "prior_count": 2}


def backbone_kind(model: nn.Module) -> str:
    """`"batch_norm"` where a model has BatchNorm layers, `"layer_norm"` where it has others, else `"plain"`."""
    modules = list(model.modules())
    if any(isinstance(module, SplitBatchNorm) for module in modules):
        return "batch_norm"
    has_norm = any("norm" in type(module).__name__.lower() for module in modules)
    return "layer_norm" if has_norm else "plain"


def corrects_copies(model: IdempotentModel) -> bool:
    """Whether features of copies of images that nothing adapts to can be corrected: networks with normalisation layers
    can, where there are statistics of clean images."""
    kind = backbone_kind(model)
    has_statistics = kind == "batch_norm" or (kind == "layer_norm" and model.feature_statistics.is_measured)
    return has_statistics and Task.of(model.config).takes_crops


def has_corrected_copies(config: AdaptationConfig, model: IdempotentModel) -> bool:
    """Whether settings leave it to the model to do so."""
    return config.augmentations > 1 and config.norm_statistics == "auto" and corrects_copies(model)


def measured_of(model: IdempotentModel) -> tuple[Any, ...]:
    """What the defaults depend on that training or calibration may measure later."""
    return model.config.reference_distance, model.feature_statistics.is_measured, model.config.problem_type


def resolve_defaults(config: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """A copy of the settings in which nothing is left open for this model: neither `None` nor `"auto"`."""
    kind, task = backbone_kind(model), Task.of(model.config)
    task_aligns = task.aligns_features
    # Nothing corrects features before the steps where they are not aligned, so more is left for these to do.
    row = kind if kind == "batch_norm" or task_aligns else "plain"
    defaults = BACKBONE_DEFAULTS[row] | (DEFAULTS_ALONE[row] if config.scope in ("image", "average") else {})
    if config.scope == "average" and not config.augmentation_steps and has_corrected_copies(config, model):
        defaults |= DEFAULTS_OF_COPIES | {"norm_depth": depth_of_copies(model.config.reference_distance)}
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


def settings_of_copies(config: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig | None:
    """The settings by which features of copies are corrected, of images that nothing adapts to; `None` if they are
    not."""
    if not has_corrected_copies(config, model):
        return None
    return resolve_defaults(config.replace(scope="average", augmentation_steps=0), model)
