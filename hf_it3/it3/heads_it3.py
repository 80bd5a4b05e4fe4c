"""What models that end in class logits, of images or of pixels, are called in transformers, and where to find them."""

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_MAPPING,
)

from .configuration_cnn_it3 import IT3CNNConfig
from .configuration_it3 import CLASSIFICATION, SEGMENTATION
from .modeling_cnn_it3 import IT3CNNForImageClassification


@dataclass(frozen=True)
class Head:
    """How models that end in the answers of a task are told and found.

    Args:
        purpose (`str`): the task, in words.
        suffix (`str`): part of the names of their classes.
        auto_class: loads one.
        mappings: from configurations to classes, the first that knows a configuration decides.
        last_layers: kinds of layers that a plain module may end in.
        can_be_added (`bool`): whether a model without such a head gets one.
    """

    purpose: str
    suffix: str
    auto_class: Any
    mappings: tuple[Any, ...]
    last_layers: tuple[type[nn.Module], ...]
    can_be_added: bool


HEADS = {
    CLASSIFICATION: Head(
        "image classification",
        "ForImageClassification",
        AutoModelForImageClassification,
        (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING),
        (nn.Linear,),
        can_be_added=True,
    ),
    SEGMENTATION: Head(
        "semantic segmentation",
        "ForSemanticSegmentation",
        AutoModelForSemanticSegmentation,
        (MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,),
        (nn.Conv2d, nn.ConvTranspose2d),
        can_be_added=False,
    ),
}


def has_head(model_class: type, task: str) -> bool:
    """Whether models of a class end in the answers of the task; where no head can be added, a class that transformers
    does not know is taken to."""
    head = HEADS[task]
    is_known = model_class.__module__.startswith("transformers.")
    return head.suffix in model_class.__name__ or not (head.can_be_added or is_known)


def model_class_for(config: PreTrainedConfig, task: str) -> type[PreTrainedModel]:
    """The class that builds the backbone of a configuration for a task.

    Raises:
        ValueError: if there is none.
    """
    if config.model_type == IT3CNNConfig.model_type and task == CLASSIFICATION:
        return IT3CNNForImageClassification
    named = (getattr(transformers, name, None) for name in config.architectures or ())
    mapped = (mapping.get(type(config), None) for mapping in HEADS[task].mappings)
    for found in (*named, *mapped):
        model_class = found[0] if isinstance(found, tuple) else found
        if model_class is not None and (HEADS[task].can_be_added or has_head(model_class, task)):
            return model_class
    raise ValueError(f"no model for {HEADS[task].purpose} is known for backbone model_type={config.model_type!r}")
