"""Makes the package's classes known to the Auto classes and the pipelines of transformers."""

import os
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cnn_it3 import IT3CNNConfig
from .configuration_it3 import CLASSIFICATION, SEGMENTATION, IT3Config
from .image_processing_it3 import IT3ImageProcessor
from .loading_it3 import check_kind, of_hub
from .modeling_cnn_it3 import IT3CNNForImageClassification
from .modeling_it3 import IT3ForImageClassification, IT3PreTrainedModel
from .modeling_segmentation_it3 import IT3ForSemanticSegmentation
from .pipeline_it3 import IT3Pipeline
from .pipeline_segmentation_it3 import IT3SegmentationPipeline


TASK = "it3-image-classification"
SEGMENTATION_TASK = "it3-image-segmentation"
# Each pipeline with the Auto class that loads its models.
PIPELINES = {
    TASK: (IT3Pipeline, AutoModelForImageClassification),
    SEGMENTATION_TASK: (IT3SegmentationPipeline, AutoModelForSemanticSegmentation),
}


# The model class of each task, as `IT3Config.task` names it.
MODELS: dict[str, type[IT3PreTrainedModel]] = {
    model_class.task: model_class for model_class in (IT3ForImageClassification, IT3ForSemanticSegmentation)
}


def saved_configuration(name: Any, **kwargs: Any) -> dict[str, Any]:
    """What the config.json of a model of any kind says, checked.

    Args:
        name (`str` or `PathLike`): Hub name or directory.
        kwargs: arguments of `from_pretrained`, such as `revision`.

    Raises:
        OSError: if there is no such model, on this machine and on the Hub.
        ValueError: for values that no configuration has.
    """
    try:
        return IT3Config.get_config_dict(name, **of_hub(kwargs))[0]
    except OSError as error:
        if os.path.exists(name):
            raise
        raise OSError(f"there is no folder {name}, and as a name on the Hub: {error}") from error


def load_model(name: Any, **kwargs: Any) -> Any:
    """Loads an idempotent model of whatever task its configuration names.

    Args:
        name (`str` or `PathLike`): Hub name or directory.
        kwargs: arguments of `from_pretrained`.

    Raises:
        OSError, ValueError: as `from_pretrained`.
    """
    saved = saved_configuration(name, **kwargs)
    return MODELS.get(saved.get("task", CLASSIFICATION), IT3ForImageClassification).from_pretrained(name, **kwargs)


def pipeline_task(name: Any, **kwargs: Any) -> str:
    """The task of the pipeline that answers with a model, from what its configuration names.

    Args:
        name (`str` or `PathLike`): Hub name or directory.
        kwargs: arguments of `from_pretrained`, such as `revision`.

    Raises:
        OSError: if there is no such model.
        ValueError: if it is of another kind.
    """
    saved = saved_configuration(name, **kwargs)
    check_kind(name, saved, IT3ForImageClassification.__name__)
    return SEGMENTATION_TASK if saved.get("task") == SEGMENTATION else TASK


def pipeline_of(model: Any) -> Any:
    """The class of the pipeline that answers with a model."""
    return PIPELINES[SEGMENTATION_TASK if model.config.task == SEGMENTATION else TASK][0]


def register() -> None:
    """Registers models, image processor and pipelines; calling it again changes nothing."""
    for config_class, model_class in (
        (IT3Config, IT3ForImageClassification),
        (IT3CNNConfig, IT3CNNForImageClassification),
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes={"pil": IT3ImageProcessor}, exist_ok=True)
    AutoModelForSemanticSegmentation.register(IT3Config, IT3ForSemanticSegmentation, exist_ok=True)
    for task, (pipeline_class, auto_class) in PIPELINES.items():
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class=pipeline_class, pt_model=(auto_class,), type="image"
            )
