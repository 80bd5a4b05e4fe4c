"""Makes the package's classes known to the Auto classes and the pipelines of transformers."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cnn_it3 import IT3CNNConfig
from .configuration_it3 import IT3Config
from .image_processing_it3 import IT3ImageProcessor
from .modeling_cnn_it3 import IT3CNNForImageClassification
from .modeling_it3 import IT3ForImageClassification
from .pipeline_it3 import IT3Pipeline


TASK = "it3-image-classification"


def register() -> None:
    """Registers models, image processor and pipeline; calling it again changes nothing."""
    for config_class, model_class in (
        (IT3Config, IT3ForImageClassification),
        (IT3CNNConfig, IT3CNNForImageClassification),
    ):
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForImageClassification.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes={"pil": IT3ImageProcessor}, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=IT3Pipeline, pt_model=(AutoModelForImageClassification,), type="image"
        )
