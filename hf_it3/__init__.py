"""Idempotent test-time training for image classification, segmentation and regression, in transformers.

Importing the package registers its models with the Auto classes and its pipelines under the tasks
`"it3-image-classification"` and `"it3-image-segmentation"`.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__


# Where each public name lives; a module is imported when one of its names is first used.
_PUBLIC_NAMES = {
    "AdaptationConfig": "it3.adaptation_config_it3",
    "AdaptationOutput": "it3.adaptation_output_it3",
    "IT3CNNConfig": "it3.configuration_cnn_it3",
    "IT3CNNForImageClassification": "it3.modeling_cnn_it3",
    "IT3Config": "it3.configuration_it3",
    "IT3ForImageClassification": "it3.modeling_it3",
    "IT3ForSemanticSegmentation": "it3.modeling_segmentation_it3",
    "IT3ImageClassifierOutput": "it3.modeling_it3",
    "IT3ImageProcessor": "it3.image_processing_it3",
    "IT3Pipeline": "it3.pipeline_it3",
    "IT3SegmentationPipeline": "it3.pipeline_segmentation_it3",
    "IT3SemanticSegmenterOutput": "it3.modeling_segmentation_it3",
    "IT3Trainer": "training.trainer",
    "IT3TrainingArguments": "training.training_arguments",
    "LabelEmbedder": "it3.embedders_it3",
    "LabelMapEmbedder": "it3.embedders_it3",
    "TestTimeAdapter": "it3.adaptation_it3",
}

__all__ = [
    "AdaptationConfig",
    "AdaptationOutput",
    "IT3CNNConfig",
    "IT3CNNForImageClassification",
    "IT3Config",
    "IT3ForImageClassification",
    "IT3ForSemanticSegmentation",
    "IT3ImageClassifierOutput",
    "IT3ImageProcessor",
    "IT3Pipeline",
    "IT3SegmentationPipeline",
    "IT3SemanticSegmenterOutput",
    "IT3Trainer",
    "IT3TrainingArguments",
    "LabelEmbedder",
    "LabelMapEmbedder",
    "TestTimeAdapter",
    "__version__",
]

if TYPE_CHECKING:
    from .it3.adaptation_config_it3 import AdaptationConfig
    from .it3.adaptation_it3 import TestTimeAdapter
    from .it3.adaptation_output_it3 import AdaptationOutput
    from .it3.configuration_cnn_it3 import IT3CNNConfig
    from .it3.configuration_it3 import IT3Config
    from .it3.embedders_it3 import LabelEmbedder, LabelMapEmbedder
    from .it3.image_processing_it3 import IT3ImageProcessor
    from .it3.modeling_cnn_it3 import IT3CNNForImageClassification
    from .it3.modeling_it3 import IT3ForImageClassification, IT3ImageClassifierOutput
    from .it3.modeling_segmentation_it3 import IT3ForSemanticSegmentation, IT3SemanticSegmenterOutput
    from .it3.pipeline_it3 import IT3Pipeline
    from .it3.pipeline_segmentation_it3 import IT3SegmentationPipeline
    from .training.trainer import IT3Trainer
    from .training.training_arguments import IT3TrainingArguments


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_NAMES:
        return getattr(importlib.import_module(f".{_PUBLIC_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC_NAMES])


def _only_explains() -> bool:
    """Whether this process is `hf-it3 --help`, which should not wait for torch and transformers."""
    is_command = Path(sys.argv[0]).stem == "hf-it3" or "hf_it3.cli" in sys.orig_argv
    return is_command and not {"-h", "--help", "--version"}.isdisjoint(sys.argv)


if not _only_explains():
    from .it3.registration import register

    register()
