"""Idempotent test-time training for image classifiers, in transformers.

Importing the package registers its models with the Auto classes and its pipeline under the task
`"it3-image-classification"`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .registration import register
from .version import __version__


# Where each public name lives; a module is imported when one of its names is first used.
_PUBLIC_NAMES = {
    "AdaptationConfig": "adaptation_config_it3",
    "AdaptationOutput": "adaptation_it3",
    "IT3CNNConfig": "configuration_cnn_it3",
    "IT3CNNForImageClassification": "modeling_cnn_it3",
    "IT3Config": "configuration_it3",
    "IT3ForImageClassification": "modeling_it3",
    "IT3ImageClassifierOutput": "modeling_it3",
    "IT3ImageProcessor": "image_processing_it3",
    "IT3Pipeline": "pipeline_it3",
    "IT3Trainer": "trainer",
    "IT3TrainingArguments": "training_arguments",
    "LabelEmbedder": "modeling_it3",
    "TestTimeAdapter": "adaptation_it3",
}

__all__ = [
    "AdaptationConfig",
    "AdaptationOutput",
    "IT3CNNConfig",
    "IT3CNNForImageClassification",
    "IT3Config",
    "IT3ForImageClassification",
    "IT3ImageClassifierOutput",
    "IT3ImageProcessor",
    "IT3Pipeline",
    "IT3Trainer",
    "IT3TrainingArguments",
    "LabelEmbedder",
    "TestTimeAdapter",
    "__version__",
]

if TYPE_CHECKING:
    from .adaptation_config_it3 import AdaptationConfig
    from .adaptation_it3 import AdaptationOutput, TestTimeAdapter
    from .configuration_cnn_it3 import IT3CNNConfig
    from .configuration_it3 import IT3Config
    from .image_processing_it3 import IT3ImageProcessor
    from .modeling_cnn_it3 import IT3CNNForImageClassification
    from .modeling_it3 import IT3ForImageClassification, IT3ImageClassifierOutput, LabelEmbedder
    from .pipeline_it3 import IT3Pipeline
    from .trainer import IT3Trainer
    from .training_arguments import IT3TrainingArguments


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC_NAMES])


register()
