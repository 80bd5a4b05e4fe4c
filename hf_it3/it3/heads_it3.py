"""Recognises models that end in class logits, of images or of pixels, and finds the classes that build them."""

import dataclasses
import inspect
import typing
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
from transformers.utils import ModelOutput

from .configuration_cnn_it3 import IT3CNNConfig
from .configuration_it3 import CLASSIFICATION, SEGMENTATION
from .modeling_cnn_it3 import IT3CNNForImageClassification


@dataclass(frozen=True)
class Head:
    """How to recognise and find models that end in the answers of a task.

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


def has_head(model_class: Any, task: str) -> bool:
    """Whether models of a class end in the answers of the task, judged without running one.

    Classes of transformers are recognised by their names. Others are recognised by their names too, by the Auto class
    that they are registered with, or by the output that `forward` is annotated with; one that none of these tells of
    is taken to end in answers, unless it is called a `...Model` or `...Backbone`.
    """
    head = HEADS[task]
    name = model_class.__name__
    if head.suffix in name or model_class.__module__.startswith("transformers."):
        return head.suffix in name
    if not head.can_be_added or model_class in _registered(head.mappings[0], model_class.config_class):
        return True
    if (fields := _output_fields(model_class)) is not None:
        return "logits" in fields
    return not name.endswith(("Model", "Backbone"))


def _output_fields(model_class: Any) -> set[str] | None:
    """Fields of the output that `forward` is annotated with, alone or as one of several; `None` without any."""
    try:
        annotation = inspect.signature(model_class.forward, eval_str=True).return_annotation
    except (NameError, AttributeError, SyntaxError, TypeError):  # names that exist only for type checkers
        return None
    for kind in typing.get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, ModelOutput) and dataclasses.is_dataclass(kind):
            return {field.name for field in dataclasses.fields(kind)}
    return None


def _registered(mapping: Any, config_class: Any) -> tuple[type, ...]:
    """The classes that an Auto class builds from a kind of configuration."""
    found = None if config_class is None else mapping.get(config_class, None)
    return found if isinstance(found, tuple) else () if found is None else (found,)


def model_class_for(config: PreTrainedConfig, task: str) -> type[PreTrainedModel]:
    """The class that builds the backbone of a configuration for a task.

    Raises:
        ValueError: if there is none.
    """
    if config.model_type == IT3CNNConfig.model_type and task == CLASSIFICATION:
        return IT3CNNForImageClassification
    names = config.architectures or ()
    mapped = [found for mapping in HEADS[task].mappings for found in _registered(mapping, type(config))]
    named = [getattr(transformers, name, None) for name in names]
    for model_class in (*named, *(found for found in mapped if found.__name__ in names), *mapped):
        if model_class is not None and (HEADS[task].can_be_added or has_head(model_class, task)):
            return model_class
    raise ValueError(f"no model for {HEADS[task].purpose} is known for backbone model_type={config.model_type!r}")
