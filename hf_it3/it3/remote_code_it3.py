"""The code of a model beside its weights, for those who load it without this package."""

import json
import shutil
from pathlib import Path
from typing import Any


# What every entry point of transformers is to import from the repository.
AUTO_MAP = {
    "AutoConfig": "configuration_it3.IT3Config",
    "AutoModelForImageClassification": "modeling_it3.IT3ForImageClassification",
    "AutoImageProcessor": "image_processing_it3.IT3ImageProcessor",
}
CUSTOM_PIPELINES = {
    "it3-image-classification": {
        "impl": "pipeline_it3.IT3Pipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}


def is_remote_code(thing: Any) -> bool:
    """Whether an object's class was loaded out of a model repository, not from the installed package."""
    return type(thing).__module__.startswith("transformers_modules.")


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
    from .pipeline_it3 import IT3Pipeline

    return IT3ForImageClassification, IT3ImageProcessor, IT3Pipeline


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
    _update(directory / "config.json", auto_map=AUTO_MAP, custom_pipelines=CUSTOM_PIPELINES)
    written.append(directory / "config.json")
    processor = directory / "preprocessor_config.json"
    if processor.exists():
        name = json.loads(processor.read_text(encoding="utf-8")).get("image_processor_type")
        is_ours = name == AUTO_MAP["AutoImageProcessor"].split(".")[1]
        _update(processor, auto_map={"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]} if is_ours else None)
        written.append(processor)
    return written


def _update(file: Path, **values: Any) -> None:
    content = {**json.loads(file.read_text(encoding="utf-8")), **values}
    content = {key: value for key, value in content.items() if value is not None or key not in values}
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
