"""Classifies or segments image files with a model that adapts itself to them, and prints or writes the answers.

Images that adapt together should be a mix of classes, and folders are sorted by class. Therefore files are read in a
random order, the same every time; answers come in the order of the files.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .options import add_shared, check_task, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the images, and how to adapt."""
    parser.add_argument("model", metavar="MODEL", help="Hub name or directory of an idempotent model")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, and folders of them")
    add_shared(parser, "revision", "trust_remote_code", "task", "scope", "batch_size", "no_gate", "order", "seed")
    add_shared(parser, "average_answers", "no_progress")
    parser.add_argument("--no_adapt", action="store_true", help="the plain model's answers")
    parser.add_argument("--top_k", type=positive, metavar="N", help="classes of each image (default: 1)")
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="write there instead of printing a table: a file of JSON lines, or in segmentation a folder of maps, PNG "
        "files whose pixels are class indices",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints a line per image, or writes one JSON object, or one map, per image."""
    from tqdm.auto import tqdm
    from transformers import pipeline

    from ..data import in_reading_order
    from ..hub.adapted_model import find_images

    if arguments.no_adapt and (arguments.scope or arguments.no_gate or arguments.average_answers):
        raise ValueError(
            "--no_adapt gives the plain model's answers, so leave --scope, --no_gate and --average_answers out"
        )
    task = check_task(arguments.task, arguments.model, arguments.revision)
    report: _Classes | _Maps = (_Maps if task.endswith("segmentation") else _Classes)(arguments)
    files = find_images(arguments.images)
    hub = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
    answer: Any = pipeline(task, model=arguments.model, **hub)  # type: ignore[call-overload] # a task of ours
    settings: dict[str, Any] = {"adapt": not arguments.no_adapt, **report.settings}
    settings |= {"scope": arguments.scope} if arguments.scope else {}
    settings |= {"average_answers": arguments.average_answers} if arguments.average_answers else {}
    settings |= {"gate": None} if arguments.no_gate else {}
    batch_size = arguments.batch_size or answer.model.config.adaptation.batch_size

    def answers_to(batch: Sequence[int]) -> Any:
        return answer([str(files[one]) for one in batch], adaptation_batch_size=batch_size, **settings)

    answers: dict[int, Any] = {}
    unreadable: dict[int, str] = {}
    reading = in_reading_order(list(range(len(files))), arguments.order, arguments.seed)
    starts = range(0, len(files), batch_size)
    for start in tqdm(starts, report.title, unit="batch", file=sys.stderr, disable=arguments.no_progress):
        batch = reading[start : start + batch_size]
        try:
            given = answers_to(batch)
        except ValueError:
            reasons = {one: reason for one in batch if (reason := _why_unreadable(files[one])) is not None}
            if not reasons:
                raise
            unreadable |= reasons
            batch = [one for one in batch if one not in reasons]
            given = answers_to(batch) if batch else []
        for position, entries in zip(batch, given, strict=True):
            answers[position] = report.keep(entries, answer.model.config)
    if report.output is not None and answers:
        report.write(files, answers)
    elif report.output is None:
        for position in sorted(answers):
            entries = "\t".join(f"{entry['label']} {entry['score']:.3f}" for entry in answers[position])
            print(f"{files[position]}\t{entries}")
    if unreadable:
        sys.stdout.flush()
        first = min(unreadable)
        raise ValueError(
            f"{len(unreadable)} of {len(files)} files cannot be read and have no answer, {files[first]} first: "
            f"{unreadable[first]}"
        )


def _why_unreadable(file: Path) -> str | None:
    """What is wrong with an image file; `None` if nothing is."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
    except Exception as error:  # PIL reports some broken files as SyntaxError
        return " ".join(str(error).split())[:200]
    return None


class _Classes:
    """What is told of images that are classified: their best classes, with scores."""

    title = "Classifying"

    def __init__(self, arguments: argparse.Namespace):
        self.output = output = None if arguments.output is None else Path(arguments.output)
        if output is not None and output.is_dir():
            raise ValueError(
                f"--output {output} is no file in an existing folder but that folder; name a file, "
                f"{output / 'answers.jsonl'} for example"
            )
        if output is not None and not output.parent.is_dir():
            raise ValueError(
                f"--output {output} is no file in an existing folder; make the folder {output.parent} first"
            )
        self.settings: dict[str, Any] = {"top_k": arguments.top_k or 1}
        if not arguments.no_adapt:
            self.settings |= {"return_idempotence": True, "return_unadapted": True}

    def keep(self, classes: Any, config: Any) -> Any:
        return classes

    def write(self, files: Sequence[Path], answers: dict[int, Any]) -> None:
        from ..utils import write_atomically

        assert self.output is not None
        answered = sorted(answers.items())
        lines = [json.dumps({"file": str(files[position]), "classes": classes}) for position, classes in answered]
        write_atomically(self.output, ("\n".join(lines) + "\n").encode())
        print(f"{len(answers)} answers are in {self.output}")


class _Maps:
    """What is told of images that are segmented: the share of each class, or where it is."""

    title = "Segmenting"

    def __init__(self, arguments: argparse.Namespace):
        if arguments.top_k is not None:
            raise ValueError("--top_k is for classification; in segmentation every class that is found is told")
        self.output = output = None if arguments.output is None else Path(arguments.output)
        if output is not None and (output.is_file() or not output.parent.is_dir()):
            raise ValueError(f"--output {output} is no folder in an existing one; maps are written into a folder")
        self.settings: dict[str, Any] = {}

    def keep(self, segments: Any, config: Any) -> Any:
        import numpy as np

        from ..it3.pipeline_segmentation_it3 import class_map

        if self.output is not None:
            return class_map(segments, config.label2id).astype(np.uint8 if config.num_labels <= 256 else np.uint16)
        found = [{"label": one["label"], "score": np.asarray(one["mask"]).mean() / 255} for one in segments]
        return sorted(found, key=lambda entry: -entry["score"])

    def write(self, files: Sequence[Path], maps: dict[int, Any]) -> None:
        from PIL import Image

        assert self.output is not None
        self.output.mkdir(exist_ok=True)
        taken: dict[str, int] = {}
        for position, file in enumerate(files):
            # Images of the same name in several folders get numbers, whether they can be read or not.
            taken[file.stem] = number = taken.get(file.stem, 0) + 1
            name = file.stem if number == 1 else f"{file.stem}_{number}"
            if position in maps:
                Image.fromarray(maps[position]).save(self.output / f"{name}.png")
        print(f"{len(maps)} maps of class indices are in {self.output}")
