"""Options that several subcommands share."""

import argparse
import os
import sys
from collections.abc import Iterator
from typing import Any


# As in `hf_it3.it3.adaptation_config_it3`, which takes torch to import.
SCOPES = ("batch", "image", "stream", "average")
AVERAGE_ANSWERS = ("never", "adapted", "always")
# Options and arguments that name a model or a data set, in every subcommand.
_SOURCES = ("model", "models", "backbone", "dataset")


def check_sources(arguments: argparse.Namespace) -> None:
    """Refuses a path that does not exist before the Hub is asked for it, and a file where a folder is written to.

    Raises:
        ValueError: for a name that is neither an existing path nor a possible repository on the Hub, and for an
            `output_dir` that is a file.
    """
    for option, name in _named_sources(arguments):
        check_source(option, name)
    output_dir = getattr(arguments, "output_dir", None)
    if output_dir is not None and os.path.isfile(output_dir):
        raise ValueError(f"--output_dir {output_dir} is a file; name a folder")


def check_source(what: str, name: str) -> None:
    """Refuses a name that is neither an existing path nor a possible repository on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if os.path.exists(name):
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"{what} {name!r} does not exist; give a path that does, or a name on the Hub") from None


def warn_of_model(output_dir: str) -> None:
    """Says that a folder holds a model that will be replaced, while it can still be saved."""
    if os.path.isfile(os.path.join(output_dir, "model.safetensors")):
        print(
            f"hf-it3: {output_dir} holds a model, which will be replaced at the end; another --output_dir keeps it",
            file=sys.stderr,
        )


def _named_sources(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for option in _SOURCES:
        given: Any = getattr(arguments, option, None)
        for name in given if isinstance(given, list) else [given]:
            if isinstance(name, str) and name:
                yield option.removesuffix("s"), name


def check_task(task: str | None, name: str, revision: str | None = None) -> str:
    """The task of the pipeline for a model.

    Raises:
        ValueError: if the model is for another task than the one asked for.
    """
    from ..it3.registration import pipeline_task

    found = pipeline_task(name, revision=revision)
    if task is not None and not found.endswith(task):
        raise ValueError(f"--task {task} does not fit {name}, which is for {found.removeprefix('it3-image-')}")
    return found


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def count_or_all(text: str) -> int | None:
    """An integer of at least 1, or `None` for `all`."""
    return None if text == "all" else positive(text)


# One name and one meaning for what several subcommands take.
_SHARED: dict[str, dict[str, Any]] = {
    "task": {
        "choices": ("classification", "segmentation"),
        "help": "what the model answers (default: what its configuration says)",
    },
    "revision": {"help": "branch, tag or commit of the model on the Hub"},
    "dataset": {"help": "Hub name or path of a data set, 'digits' or 'scenes' (bundled)"},
    "config_name": {"help": "configuration of the data set"},
    "split": {"help": "split of the data set, or a range of one: test[:2000]"},
    "streaming": {"action": "store_true", "help": "read the data set as it is needed, if it is larger than memory"},
    "scope": {"choices": SCOPES, "help": "who shares adapted weights (default: the model's own)"},
    "average_answers": {
        "choices": AVERAGE_ANSWERS,
        "help": "whose answers, in scopes batch and stream, are means over changed copies of the image (default: the "
        "model's own)",
    },
    "image_column": {"help": "default: image, img or pixel_values"},
    "label_column": {"help": "default: label, labels or fine_label; in segmentation annotation, label or mask"},
    "num_samples": {"type": count_or_all, "metavar": "N", "help": "number of images, or all"},
    "batch_size": {"type": positive, "metavar": "N", "help": "images that adapt together (default: the model's own)"},
    "corruptions": {"metavar": "NAMES", "help": "suites and names, comma-separated"},
    "output_dir": {"metavar": "DIR"},
    "seed": {"type": int, "default": 0, "help": "of everything random (default: 0)"},
    "order": {
        "choices": ("shuffled", "given"),
        "default": "shuffled",
        "help": "in which images are adapted to: shuffled, so that batches mix the classes (default), or given, as "
        "the images are listed, for frames of a video",
    },
    "no_gate": {"action": "store_true", "help": "adapt to images like the training images, too"},
    "no_progress": {"action": "store_true", "help": "show no progress bar"},
    "private": {"action": "store_true", "default": None, "help": "make a new repository private"},
    "include_code": {"action": "store_true", "help": "for users who do not have hf_it3 installed"},
    "trust_remote_code": {"action": "store_true", "help": "allow code that the model brings along to run"},
}


def add_shared(parser: argparse.ArgumentParser, *names: str, **differing: dict[str, Any]) -> None:
    """Adds options that several subcommands share, some of them with a help or default of their own.

    Args:
        parser: of the subcommand.
        names: of the options, without dashes.
        differing: for each option that differs from the shared one, the arguments of `add_argument` that do.
    """
    for name in (*names, *differing):
        parser.add_argument(f"--{name}", **{**_SHARED[name], **differing.get(name, {})})
