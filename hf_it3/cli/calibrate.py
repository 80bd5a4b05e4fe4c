"""Chooses the adaptation settings of a model by measurement on held-out labelled images.

Prints a table and writes the settings into the model's config.json, if they are better than those there on images
that did not choose them; calibration.json and a plot go beside it. With --output_dir everything goes to a copy of the
model. Weights do not change. Figures to report should come from images and corruptions other than these.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_shared


if TYPE_CHECKING:
    from ..evaluation.calibration import CalibrationResult
    from ..evaluation.inputs import LoadedModel

_HELD_OUT_SPLITS = ("validation", "valid", "val", "test")
_CHOSEN_KEYS = ("adaptation", "reference_distance", "calibration_corruptions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options named as the arguments of [`~hf_it3.calibration.calibrate`]."""
    parser.add_argument("model", metavar="MODEL", help="Hub name or path")
    add_shared(parser, "revision", "trust_remote_code", dataset={"required": True})
    add_shared(parser, "config_name", split={"help": "held-out images: test[:2000] (default: validation, else test)"})
    parser.add_argument("--reference_split", help="clean images for the gate's reference (default: the held-out ones)")
    add_shared(parser, "image_column", "label_column", "batch_size", num_samples={"default": 2000})
    add_shared(parser, "scope")
    add_shared(
        parser, corruptions={"help": "suites and names, comma-separated (default: four for the model's channels)"}
    )
    parser.add_argument("--severity", type=int, default=3, help="1 to 5 (default: 3)")
    parser.add_argument(
        "--max_clean_loss", type=float, default=0.3, metavar="POINTS", help="allowed on clean images (default: 0.3)"
    )
    add_shared(
        parser, "seed", "no_progress", output_dir={"help": "save a calibrated copy here (default: change MODEL)"}
    )


def run(arguments: argparse.Namespace) -> None:
    """Calibrates in the main process, saves, and prints the table."""
    from transformers.utils import CONFIG_NAME

    from ..data import load_images, select_split
    from ..evaluation.calibration import calibrate
    from ..evaluation.inputs import load_model
    from ..evaluation.processes import process_state

    if not process_state().is_main_process:
        return
    output_dir = arguments.output_dir
    if output_dir is None and not os.path.isdir(arguments.model):
        raise ValueError(
            f"{arguments.model!r} is not a local folder, so it cannot be changed in place; pass --output_dir"
        )
    splits = load_images(arguments.dataset, arguments.config_name)
    split = arguments.split or _held_out_split(splits)
    dataset = select_split(splits, split)
    reference = None if arguments.reference_split is None else select_split(splits, arguments.reference_split)
    loaded = load_model(arguments.model, revision=arguments.revision, trust_remote_code=arguments.trust_remote_code)
    same = ("scope", "corruptions", "severity", "num_samples", "batch_size", "max_clean_loss", "seed")
    result = calibrate(
        loaded.model,
        loaded.image_processor,
        dataset,
        **{name: getattr(arguments, name) for name in (*same, "image_column", "label_column")},
        reference_dataset=reference,
        show_progress=not arguments.no_progress,
    )
    folder = Path(arguments.model if output_dir is None else output_dir)
    if result.comparison.is_better or output_dir is not None:
        save_calibrated(loaded, result, folder)
    files = result.save(folder)
    print(result.table())
    changed = f"{CONFIG_NAME} has the new settings" if result.comparison.is_better else f"{CONFIG_NAME} is as it was"
    print(f"Chosen on {split}; {changed}; {' and '.join(files)} are in {folder}")


def _held_out_split(splits: Any) -> str:
    for name in _HELD_OUT_SPLITS:
        if name in splits:
            return name
    raise ValueError(
        f"the data set has none of the splits {', '.join(_HELD_OUT_SPLITS)}, only {', '.join(map(str, splits))}; name "
        "images that the model was not trained on with --split, 'train[50000:]' for example"
    )


def save_calibrated(loaded: "LoadedModel", result: "CalibrationResult", folder: str | os.PathLike) -> Path:
    """Saves a calibrated model in a folder; where that is the model's own, only three keys of its config change, and
    what the weights hold of clean images.

    Returns:
        The folder.
    """
    from transformers.utils import CONFIG_NAME

    from ..it3.loading_it3 import is_delta
    from ..utils import write_atomically

    path = Path(folder)
    config_path = path / CONFIG_NAME
    if not os.path.isdir(loaded.name) or path.resolve() != Path(loaded.name).resolve():
        loaded.model.save_pretrained(path)
        loaded.image_processor.save_pretrained(path)
        return path
    # The rest stays as it is, also what this version does not know, and references to code of the model's own.
    content = json.loads(config_path.read_text(encoding="utf-8"))
    ours = loaded.model.config.to_dict()
    content.update({key: ours[key] for key in _CHOSEN_KEYS})
    with tempfile.TemporaryDirectory(dir=path) as beside:
        loaded.model.save_pretrained(beside, delta=is_delta(content.get("base_model")))
        for file in sorted(Path(beside).iterdir()):
            if ".safetensors" in file.name:
                os.replace(file, path / file.name)
    write_atomically(config_path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return path
