"""The code of a model beside its weights, for those who load it without this package."""

import json
import shutil
from pathlib import Path
from typing import Any

from .configuration_it3 import CLASSIFICATION, SEGMENTATION


# What the entry points of transformers are to import from the repository of a model, by its task.
_AUTO_CLASSES = {
    CLASSIFICATION: ("AutoModelForImageClassification", "modeling_it3.IT3ForImageClassification"),
    SEGMENTATION: (
        "AutoModelForSemanticSegmentation",
        "modeling_segmentation_it3.IT3ForSemanticSegmentation",
    ),
}
_PIPELINES = {
    CLASSIFICATION: ("it3-image-classification", "pipeline_it3.IT3Pipeline"),
    SEGMENTATION: ("it3-image-segmentation", "pipeline_segmentation_it3.IT3SegmentationPipeline"),
}
_IMAGE_PROCESSOR = "image_processing_it3.IT3ImageProcessor"


def auto_map(task: str) -> dict[str, str]:
    """`auto_map` of the configuration of a model for a task."""
    auto_class, model_class = _AUTO_CLASSES[task]
    return {
        "AutoConfig": "configuration_it3.IT3Config",
        auto_class: model_class,
        "AutoImageProcessor": _IMAGE_PROCESSOR,
    }


def custom_pipelines(task: str) -> dict[str, dict[str, Any]]:
    """`custom_pipelines` of the configuration of a model for a task."""
    name, pipeline_class = _PIPELINES[task]
    return {name: {"impl": pipeline_class, "pt": [_AUTO_CLASSES[task][0]], "type": "image"}}


def travelling_files() -> list[Path]:
    """The modules that a model needs, this one included.

    They lie beside this file, because transformers downloads whatever is imported from here, even inside a function.
    """
    return sorted(Path(__file__).parent.glob("*_it3.py"))


def all_travelling_modules() -> tuple:
    """Names every module that travels, also those that a model alone does not import: transformers downloads modules
    by the imports that it reads, and a model that is saved again needs all of them."""
    from .image_processing_it3 import IT3ImageProcessor
    from .modeling_it3 import IT3ForImageClassification
    from .modeling_segmentation_it3 import IT3ForSemanticSegmentation
    from .pipeline_it3 import IT3Pipeline
    from .pipeline_segmentation_it3 import IT3SegmentationPipeline

    models = (IT3ForImageClassification, IT3ForSemanticSegmentation)
    return *models, IT3ImageProcessor, IT3Pipeline, IT3SegmentationPipeline


def write_code(directory: Any) -> list[Path]:
    """Puts the code into the directory of a saved model and refers to it from its `config.json`.

    Args:
        directory (`str` or `PathLike`): holds `config.json`, and perhaps `preprocessor_config.json`.

    Returns:
        The files written or changed.
    """
    directory = Path(directory)
    written = [directory / source.name for source in travelling_files()]
    for source, target in zip(travelling_files(), written, strict=True):
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    config = directory / "config.json"
    task = json.loads(config.read_text(encoding="utf-8")).get("task", CLASSIFICATION)
    _update(config, auto_map=auto_map(task), custom_pipelines=custom_pipelines(task))
    written.append(config)
    processor = directory / "preprocessor_config.json"
    if processor.exists():
        name = json.loads(processor.read_text(encoding="utf-8")).get("image_processor_type")
        is_ours = name == _IMAGE_PROCESSOR.split(".")[1]
        _update(processor, auto_map={"AutoImageProcessor": _IMAGE_PROCESSOR} if is_ours else None)
        written.append(processor)
    return written


def _update(file: Path, **values: Any) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), **values}
    content = {key: value for key, value in content.items() if value is not None or key not in values}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
