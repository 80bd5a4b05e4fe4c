"""Classifies image files with a model that adapts itself to them, and prints or writes the answers.

Images that adapt together should be a mix of classes, and folders are sorted by class. Therefore files are read in a
random order, the same every time; answers come in the order of the files.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .options import add_shared, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the images, and how to adapt."""
    parser.add_argument("model", metavar="MODEL", help="Hub name or directory of an idempotent model")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, and folders of them")
    add_shared(parser, "revision", "batch_size", "no_gate", "order", "seed")
    parser.add_argument("--scope", metavar="SCOPE", help="batch, image or stream (default: the model's own)")
    parser.add_argument("--no_adapt", action="store_true", help="the plain model's answers")
    parser.add_argument("--top_k", type=positive, default=1, metavar="N", help="classes of each image (default: 1)")
    parser.add_argument("--output", metavar="FILE", help="write JSON lines there instead of printing a table")


def run(arguments: argparse.Namespace) -> None:
    """Prints a line per image, or writes one JSON object per image."""
    from tqdm.auto import tqdm
    from transformers import pipeline

    from ..data import in_reading_order
    from ..evaluation.storage import write_atomically
    from ..hub.adapted_model import find_images
    from ..it3.pipeline_it3 import IT3Pipeline
    from ..it3.registration import TASK

    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"--output {output} is no file in an existing folder; make the folder {output.parent} first")
    files = find_images(arguments.images)
    classifier: IT3Pipeline = pipeline(  # type: ignore[call-overload] # transformers lists its own tasks
        TASK, model=arguments.model, revision=arguments.revision
    )
    settings: dict[str, Any] = {"adapt": not arguments.no_adapt, "top_k": arguments.top_k}
    settings |= {"return_idempotence": True, "return_unadapted": True} if settings["adapt"] else {}
    settings |= {"scope": arguments.scope} if arguments.scope else {}
    settings |= {"gate": None} if arguments.no_gate else {}
    batch_size = arguments.batch_size or classifier.model.config.adaptation.batch_size
    answers: list[Any] = [None] * len(files)
    reading = in_reading_order(list(range(len(files))), arguments.order, arguments.seed)
    for start in tqdm(range(0, len(files), batch_size), "Classifying", unit="batch", file=sys.stderr):
        batch = reading[start : start + batch_size]
        classified = classifier(
            [str(files[position]) for position in batch], adaptation_batch_size=batch_size, **settings
        )
        for position, classes in zip(batch, classified, strict=True):
            answers[position] = classes
    if output is None:
        for file, classes in zip(files, answers, strict=True):
            print(f"{file}\t" + "\t".join(f"{entry['label']} {entry['score']:.3f}" for entry in classes))
        return
    lines = [json.dumps({"file": str(file), "classes": classes}) for file, classes in zip(files, answers, strict=True)]
    write_atomically(output, ("\n".join(lines) + "\n").encode())
    print(f"{len(files)} answers are in {output}")
