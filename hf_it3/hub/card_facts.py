"""Collects what a model card says about a model, its training, and the packages around it."""

from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..it3.adaptation_config_it3 import AdaptationConfig
from ..it3.backbone_defaults_it3 import BACKBONE_DEFAULTS, resolve_defaults
from ..it3.configuration_it3 import CLASSIFICATION, SEGMENTATION
from ..it3.interface_it3 import idempotent_model
from ..it3.plain_module_it3 import ModuleConfig
from ..it3.registration import MODELS
from ..utils import installed_versions
from .card_text import Markdown, code


VERSIONED = ("hf-it3", "torch", "transformers", "datasets", "huggingface-hub")
SETTINGS = (
    "scope",
    "batch_size",
    "num_steps",
    "learning_rate",
    "optimizer",
    "anchor",
    "parameters",
    "distance",
    "diversity_weight",
    "max_class_share",
    "norm_statistics",
    "gate",
    "average_answers",
    "augmentations",
)
ADAPTED_FIELDS = ("data", "num_images", "num_steps", "learning_rate", "scope", "parameters", "date")


# Of each task of `IT3Config`: what the Hub calls it, its metric, and what a card says of it.
_TASKS: dict[str, dict[str, str]] = {
    CLASSIFICATION: {
        "hub_task": "image-classification",
        "metric": "accuracy",
        "kind": "An image classifier",
        "doing": "Classifying images into",
        "variable": "classifier",
        "top_k": "yes",
    },
    SEGMENTATION: {
        "hub_task": "image-segmentation",
        "metric": "mean_iou",
        "kind": "A semantic segmentation model",
        "doing": "Segmenting images into",
        "variable": "segmenter",
        "top_k": "",
    },
}


def hub_task_of(config: Any) -> str:
    """A model's task as the Hub calls it."""
    return _TASKS[config.task]["hub_task"]


def default_metric(config: Any) -> str:
    """The metric of a model's task, as the Hub calls it."""
    return _TASKS[config.task]["metric"]


def model_facts(model: Any, delta: bool = False) -> dict[str, Any]:
    """The fields of the card's template that a model, or its configuration alone, fills; `delta` says whether only
    changed weights lie beside the card."""
    config = getattr(model, "config", model)
    adaptation = config.adaptation if model is config else resolve_defaults(config.adaptation, model)
    adapted = getattr(config, "base_model", None)
    return {
        "adapted": _adapted_facts(adapted, delta) if adapted else None,
        "task": {**_TASKS[config.task], "model_class": MODELS[config.task].__name__},
        "architecture": getattr(config.backbone_config, "class_name", config.backbone_config.model_type),
        "module": _module_facts(config.backbone_config),
        "num_labels": config.num_labels,
        "labels": _label_list(config),
        "settings": [(name, _setting(config, adaptation, name)) for name in SETTINGS],
        "adaptation": config.adaptation,
        "reference": _reference(config),
        "calibration_corruptions": ", ".join(getattr(config, "calibration_corruptions", None) or []),
        **_input_facts(config),
    }


def _module_facts(backbone: Any) -> dict[str, Any] | None:
    """How a plain module is imported and built, in Python; `None` for other backbones and invalid names."""
    if not isinstance(backbone, ModuleConfig) or backbone.backbone_class is None:
        return None
    module, _, name = backbone.backbone_class.rpartition(".")
    if not all(part.isidentifier() for part in backbone.backbone_class.split(".")):
        return None
    arguments = f"**{backbone.backbone_kwargs!r}" if backbone.backbone_kwargs else ""
    return {"from": Markdown(module), "name": Markdown(name), "call": Markdown(f"{name}({arguments})")}


def training_facts(trainer: Any) -> dict[str, Any] | None:
    """The hyperparameters of a finished training; `None` where the trainer has not trained."""
    arguments, state = trainer.args, trainer.state
    if not state.global_step:
        return None
    images = len(trainer.train_dataset) if hasattr(trainer.train_dataset, "__len__") else None
    per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    facts = {
        "training images": images and f"{images:,}",
        "epochs": state.epoch and f"{state.epoch:.4g}",
        "optimizer steps": f"{state.global_step:,}",
        "images per step": per_step,
        "optimizer": getattr(arguments.optim, "value", arguments.optim),
        "learning rate": _number(arguments.learning_rate),
        "learning rate of the embedder": _number(getattr(arguments, "embedder_learning_rate", None)),
        "learning rate schedule": getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type),
        "warmup steps": arguments.get_warmup_steps(state.max_steps),
        "weight decay": _number(arguments.weight_decay),
        "weight of the pass with a signal": _number(idempotent_model(trainer.model).config.idempotence_weight),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32",
        "seed": arguments.seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def public_id(name: Any) -> str | None:
    """A repository id "user/name" as it is, `None` for anything else, local paths above all."""
    if not isinstance(name, str) or "/" not in name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def versions_for_card() -> dict[str, str]:
    """Versions of the packages that a card lists."""
    return {name: version for name, version in installed_versions(VERSIONED).items() if version is not None}


def base_of(config: Any) -> str | None:
    """The model that this one was adapted from, or the wrapped backbone."""
    adapted = getattr(config, "base_model", None)
    return adapted.get("name_or_path") if adapted else config.backbone_config.name_or_path or None


def _setting(config: Any, adaptation: AdaptationConfig, name: str) -> Any:
    """A setting as it takes effect, with the defaults of the scope and of the model filled in."""
    if name == "anchor":
        return adaptation.effective_anchor
    if name == "distance" and adaptation.distance is None:
        return config.distance
    value = getattr(adaptation, name)
    return "by the kind of backbone" if value is None and name in BACKBONE_DEFAULTS["plain"] else value


def _adapted_facts(base: dict[str, Any], delta: bool) -> dict[str, Any]:
    name, revision = public_id(base.get("name_or_path")), base.get("revision")
    facts = {key: "not recorded" if base.get(key) is None else base[key] for key in ADAPTED_FIELDS}
    local = Path(base["name_or_path"]).name if base.get("name_or_path") else "a model"
    facts["base"] = Markdown(f"[{name}](https://huggingface.co/{name})") if name else f"{local} (not on the Hub)"
    facts["revision"] = code(revision) if revision else "not recorded"
    facts["weights"] = "only those that changed (a delta)" if delta else "all"
    return facts


def _label_list(config: Any) -> str | None:
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if len(labels) > 20 or all(label.startswith("LABEL_") for label in labels):
        return None
    return ", ".join(labels)


def _reference(config: Any) -> dict[str, str] | None:
    reference = getattr(config, "reference_distance", None)
    if not reference:
        return None
    count = reference.get("num_images")
    return {
        "mean": f"{reference['mean']:.4g}",
        "std": f"{reference['std']:.4g}",
        "num_images": f"{count:,}" if count else "the",
    }


def _input_facts(config: Any) -> dict[str, Any]:
    size = getattr(config.backbone_config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    is_grey = config.image_channels == 1
    return {"mode": "L" if is_grey else "RGB", "width": width, "height": height}
