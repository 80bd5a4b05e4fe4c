"""Trains an idempotent model: the tutorial's network, or any image classifier or segmentation model, wrapped.

Takes every field of IT3TrainingArguments beside the options for model and data, and runs alone, under torchrun and
under accelerate launch. Trains, and evaluates if there is a split for it; --do_train or --do_eval asks for one alone.

  hf-it3 train                                                    the small network, on the bundled digits
  hf-it3 train --backbone microsoft/resnet-18 --dataset food101   into runs/resnet-18-food101
  hf-it3 train --task segmentation                                a small SegFormer, on scenes of the bundled digits
  torchrun --nproc_per_node 2 -m hf_it3.cli train --dataset ylecun/mnist --learning_rate 3e-3
"""

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from ..training.own_arguments import OwnArguments


CNN = "cnn"
SEGFORMER = "segformer"
SEGMENTATION = "segmentation"


@dataclass
class ModelArguments:
    """The model to train. A field left out stays as in a trained idempotent model, or takes IT3Config's default."""

    task: str = field(
        default="classification",
        metadata={"help": "What the model answers.", "choices": ["classification", SEGMENTATION]},
    )
    backbone: str = field(
        default="",
        metadata={
            "help": "Hub name or path of a model of that task, or of an idempotent one; 'cnn' or, for segmentation, "
            "'segformer': a small new one (the default)."
        },
    )
    labels: str | None = field(
        default=None,
        metadata={"help": "Names of the classes, comma-separated, by index; by default the data set's or backbone's."},
    )
    injection_layer: str | None = field(
        default=None, metadata={"help": "Layer whose output receives the label signal; see hf-it3 inspect --layers."}
    )
    neutral_signal: str | None = field(
        default=None, metadata={"help": "What the first pass injects.", "choices": ["none", "zeros", "uniform"]}
    )
    idempotence_weight: float | None = field(default=None, metadata={"help": "Weight of the second pass's loss."})
    distance: str | None = field(default=None, metadata={"help": "Idempotence distance, see AdaptationConfig."})
    adaptation: str | None = field(
        default=None,
        metadata={"help": "Adaptation settings for the model to carry, as JSON: '{\"num_steps\": 3}'."},
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the backbone on the Hub."})
    attn_implementation: str | None = field(default=None, metadata={"help": "'eager' or 'sdpa', for transformers."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow the backbone's own code to run."})


@dataclass
class DataArguments:
    """The images to train on."""

    dataset: str = field(
        default="",
        metadata={
            "help": "A Hub name, a local data set or a folder of images; by default the bundled 'digits', or for "
            "segmentation 'scenes' made of them."
        },
    )
    config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    train_split: str = field(
        default="train", metadata={"help": "Split to train on, or a range of one: 'train[:50000]'."}
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on; by default the first of 'validation' and 'test'."}
    )
    reference_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of clean images to measure after training, for the gate; by default 'validation', or else "
            "the split trained on."
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data set while training; needs max_steps."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training images, from the first on."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Number of evaluation images, from the first on."}
    )


# Training arguments whose default depends on backbone and data set.
_FILLED_IN = {
    "output_dir": "Where the model goes (default: runs/BACKBONE-DATASET).",
    "num_train_epochs": "Passes over the training images (default: 3; bundled digits: 15, scenes: 4).",
    "learning_rate": "Initial learning rate (default: 1e-3 for the small networks, 1e-4 for a trained backbone).",
    "embedder_learning_rate": "That of the label embedder (default: 1e-3).",
    "per_device_train_batch_size": "Images in a training batch of each device (default: 32; small SegFormer: 16).",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of all three groups, as `HfArgumentParser` reads them."""
    from transformers import HfArgumentParser

    _describe(parser)
    for group in _groups():
        options = parser.add_argument_group(group.__name__)
        for action in HfArgumentParser(group, add_help=False)._actions:
            if action.dest in _FILLED_IN:
                action.default = None
                action.help = _FILLED_IN[action.dest]
            options._add_action(action)


def add_overview(parser: argparse.ArgumentParser) -> None:
    """The options but most of transformers' `TrainingArguments`, for a `--help` that waits for no other package."""
    _describe(parser)
    for group in (ModelArguments, DataArguments):
        _show_fields(parser.add_argument_group(group.__name__), group)
    rest = "Every field of transformers' TrainingArguments is an option, too: --help_all lists them."
    options = parser.add_argument_group("IT3TrainingArguments", rest)
    for name, text in _FILLED_IN.items():
        options.add_argument(f"--{name}", help=text)
    _show_fields(options, OwnArguments)


def _describe(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "%(prog)s [-h] [--backbone NAME] [--dataset NAME] [--OPTION VALUE ...]"
    text = "list the fields of TrainingArguments as well, and exit (takes seconds)"
    parser.add_argument("--help_all", action="help", help=text)


def _show_fields(options: argparse._ArgumentGroup, group: type) -> None:
    """Shows the fields of a group as `HfArgumentParser` does, which parses them."""
    for item in dataclasses.fields(group):
        if item.name not in _FILLED_IN:
            optional_value: dict[str, Any] = {"nargs": "?"} if item.type is bool else {}
            options.add_argument(f"--{item.name}", **item.metadata, **optional_value)


def _groups() -> tuple[Any, ...]:
    from ..training.training_arguments import IT3TrainingArguments

    return ModelArguments, DataArguments, IT3TrainingArguments


def run(arguments: argparse.Namespace) -> None:
    """Trains, evaluates and saves what the arguments ask for, and prints the metrics."""
    from .training import backbone_and_dataset, suitable_arguments, train

    given = (arguments.task, arguments.backbone, arguments.dataset)
    arguments.backbone, arguments.dataset = backbone_and_dataset(*given)
    for name, value in suitable_arguments(arguments.backbone, arguments.dataset).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    train(*(_collect(group, arguments) for group in _groups()))


def _collect(group: type, arguments: argparse.Namespace) -> Any:
    names = [item.name for item in dataclasses.fields(group) if item.init]
    return group(**{name: getattr(arguments, name) for name in names})
