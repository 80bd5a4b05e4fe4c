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
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import HfArgumentParser

from ..data import DIGITS, SCENES
from ..training.training_arguments import IT3TrainingArguments


if TYPE_CHECKING:
    from ..it3.modeling_it3 import IT3PreTrainedModel
    from ..training.trainer import IT3Trainer


CNN = "cnn"
SEGFORMER = "segformer"
SEGMENTATION = "segmentation"
# What trains where nothing is asked for: the small network starts from random weights, others from trained ones.
_DEFAULTS: dict[str, dict[str, Any]] = {
    CNN: {"learning_rate": 1e-3, "per_device_train_batch_size": 32},
    SEGFORMER: {"learning_rate": 3e-3, "per_device_train_batch_size": 16},
    "trained": {"learning_rate": 1e-4, "embedder_learning_rate": 1e-3, "per_device_train_batch_size": 32},
}
# Of the small networks, which start from random weights, on the bundled images.
_EPOCHS = {(CNN, DIGITS): 15, (SEGFORMER, SCENES): 4}
# What is trained on what, of each task, where nothing is asked for.
_BUNDLED = {"classification": (CNN, DIGITS), SEGMENTATION: (SEGFORMER, SCENES)}
_FILLED_IN = ("output_dir", "num_train_epochs", *_DEFAULTS["trained"])
_CHECKED = ("neutral_signal", "idempotence_weight", "distance")


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


_HELP = {
    "output_dir": "Where the model goes (default: runs/BACKBONE-DATASET).",
    "num_train_epochs": "Passes over the training images (default: 3; bundled digits: 15, scenes: 4).",
    "learning_rate": "Initial learning rate (default: 1e-3 for the small networks, 1e-4 for a trained backbone).",
    "embedder_learning_rate": "That of the label embedder (default: 1e-3).",
    "per_device_train_batch_size": "Images in a training batch of each device (default: 32; small SegFormer: 16).",
}
_GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, IT3TrainingArguments)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of all three groups, as `HfArgumentParser` reads them."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for group in _GROUPS:
        options = parser.add_argument_group(group.__name__)
        for action in HfArgumentParser(group, add_help=False)._actions:
            if action.dest in _FILLED_IN:
                action.default = None
                action.help = _HELP[action.dest]
            options._add_action(action)


def run(arguments: argparse.Namespace) -> None:
    """Trains, evaluates and saves what the arguments ask for, and prints the metrics."""
    backbone, dataset = _BUNDLED[arguments.task]
    arguments.backbone, arguments.dataset = arguments.backbone or backbone, arguments.dataset or dataset
    for name, value in _defaults(arguments.backbone, arguments.dataset).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    model_arguments, data_arguments, training_arguments = (_collect(group, arguments) for group in _GROUPS)
    train(model_arguments, data_arguments, training_arguments)


def _defaults(backbone: str, dataset: str) -> dict[str, Any]:
    """Training arguments that suit a backbone and a data set."""
    values = _DEFAULTS.get(backbone, _DEFAULTS["trained"])
    names = [os.path.basename(os.path.normpath(name)) for name in (backbone, dataset)]
    epochs = _EPOCHS.get((backbone, dataset), 3)
    return {**values, "output_dir": f"runs/{'-'.join(names)}", "num_train_epochs": epochs}


def _collect(group: type, arguments: argparse.Namespace) -> Any:
    names = [item.name for item in dataclasses.fields(group) if item.init]
    return group(**{name: getattr(arguments, name) for name in names})


def train(
    model_arguments: ModelArguments, data_arguments: DataArguments, arguments: IT3TrainingArguments
) -> "IT3Trainer":
    """Runs the command as a function.

    Returns:
        The [`~hf_it3.IT3Trainer`], after training and evaluation.

    Raises:
        ValueError: if a split is missing, or an option does not fit the model.
    """
    from transformers import set_seed

    from ..data import first_rows, image_processor_for, load_images, select_split
    from ..training.trainer import IT3Trainer

    backbone, dataset = _BUNDLED[model_arguments.task]
    model_arguments = dataclasses.replace(model_arguments, backbone=model_arguments.backbone or backbone)
    data_arguments = dataclasses.replace(data_arguments, dataset=data_arguments.dataset or dataset)
    set_seed(arguments.seed)
    with arguments.main_process_first(desc="loading the data set"):
        splits = load_images(data_arguments.dataset, data_arguments.config_name, data_arguments.streaming)
    eval_name = data_arguments.eval_split or next((name for name in ("validation", "test") if name in splits), None)
    _choose_what_to_do(arguments, can_evaluate=eval_name is not None)
    train_split = eval_split = None
    if arguments.do_train:
        train_split = first_rows(select_split(splits, data_arguments.train_split), data_arguments.max_train_samples)
    if arguments.do_eval:
        eval_split = first_rows(select_split(splits, eval_name or "test"), data_arguments.max_eval_samples)
    for rows in filter(None, (train_split, eval_split)):
        _check_columns(rows, arguments, model_arguments.task)
    rows = eval_split if train_split is None else train_split
    names = _names_of_classes(model_arguments, data_arguments, rows, arguments.label_column)
    model = _build_model(model_arguments, names)
    reference_name = data_arguments.reference_split or ("validation" if "validation" in splits else None)
    reference_split = None if reference_name is None else select_split(splits, reference_name)
    trainer = IT3Trainer(
        model,
        arguments,
        train_dataset=train_split,
        eval_dataset=eval_split,
        reference_dataset=reference_split,
        processing_class=image_processor_for(model.config, model_arguments.trust_remote_code),
    )
    if arguments.do_train:
        result = trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
        trainer.save_model()
        trainer.save_state()
        _report(trainer, "train", result.metrics)
    if arguments.do_eval:
        _report(trainer, "eval", trainer.evaluate())
    if arguments.push_to_hub:
        trainer.push_to_hub()
    return trainer


def _names_of_classes(
    arguments: ModelArguments, data: DataArguments, rows: Any, label_column: str | None
) -> list[str] | None:
    """The names that were given, or those of the data set; `None` where only the backbone can know them."""
    from ..data import SCENE_CLASSES, class_names

    if arguments.labels is not None:
        return [name.strip() for name in arguments.labels.split(",")]
    if arguments.task != SEGMENTATION:
        return class_names(rows, label_column)
    return list(SCENE_CLASSES) if data.dataset == SCENES else None


def _check_columns(rows: Any, arguments: IT3TrainingArguments, task: str) -> None:
    """Checks the columns before the model is built, and before a progress bar."""
    from ..data import IMAGE_COLUMNS, LABEL_COLUMNS, MAP_COLUMNS, find_column

    label_columns = MAP_COLUMNS if task == SEGMENTATION else LABEL_COLUMNS
    if rows.column_names is not None:  # those of some streams are known when they are read
        find_column(rows.column_names, IMAGE_COLUMNS, arguments.image_column, "image")
        find_column(rows.column_names, label_columns, arguments.label_column, "label")


def _choose_what_to_do(arguments: IT3TrainingArguments, can_evaluate: bool) -> None:
    """Chooses to train and evaluate where neither was asked for; to evaluate during training is not to ask."""
    if arguments.do_train or (arguments.do_eval and arguments.eval_strategy == "no"):
        return
    arguments.do_train = True
    arguments.do_eval = arguments.do_eval or can_evaluate


def _report(trainer: "IT3Trainer", name: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(name, metrics)
    trainer.save_metrics(name, metrics)


def _build_model(arguments: ModelArguments, names: list[str] | None) -> "IT3PreTrainedModel":
    from transformers import AutoConfig

    from ..it3.configuration_cnn_it3 import IT3CNNConfig
    from ..it3.configuration_it3 import IT3Config
    from ..it3.registration import MODELS
    from ..training.small_segformer import small_segformer

    segments = arguments.task == SEGMENTATION
    model_class: Any = MODELS["semantic-segmentation" if segments else "image-classification"]
    values: dict[str, Any] = {
        "injection_layer": arguments.injection_layer,
        "neutral_signal": arguments.neutral_signal,
        "idempotence_weight": arguments.idempotence_weight,
        "distance": arguments.distance,
        "adaptation": _parse_adaptation(arguments.adaptation),
    }
    values = {name: value for name, value in values.items() if value is not None}
    if names is not None:
        values["id2label"] = dict(enumerate(names))
        values["label2id"] = {name: index for index, name in enumerate(names)}
    if arguments.backbone in (CNN, SEGFORMER):
        if segments != (arguments.backbone == SEGFORMER):
            raise ValueError(f"--backbone {arguments.backbone} is not for --task {arguments.task}")
        return model_class.from_backbone(small_segformer() if segments else IT3CNNConfig(), **values)
    hub: dict[str, Any] = {"revision": arguments.revision, "attn_implementation": arguments.attn_implementation}
    hub = {name: value for name, value in hub.items() if value is not None}
    hub["trust_remote_code"] = arguments.trust_remote_code
    config = AutoConfig.from_pretrained(arguments.backbone, **hub)
    if isinstance(config, IT3Config):
        # Loading takes these as they are; a new configuration says which of them is wrong.
        IT3Config(**{name: values[name] for name in _CHECKED if name in values})
        _check_trained(arguments.backbone, config, values)
        return model_class.from_pretrained(arguments.backbone, **values, **hub)
    return model_class.from_backbone(arguments.backbone, **values, **hub)


def _check_trained(name: str, config: Any, values: dict[str, Any]) -> None:
    """Refuses options that the trained label embedder of an idempotent model rules out."""
    layer = values.get("injection_layer", config.injection_layer)
    if layer != config.injection_layer:
        raise ValueError(
            f"--injection_layer {layer} does not fit {name}, whose label embedder is trained for "
            f"{config.injection_layer!r}; leave it out, or start from the classifier that was wrapped"
        )
    names = values.get("id2label")
    if names is not None and len(names) != config.num_labels:
        raise ValueError(
            f"the data set has {len(names)} classes and {name} has {config.num_labels}, which its label embedder is "
            "trained for; start from the classifier that was wrapped"
        )


def _parse_adaptation(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--adaptation must be JSON such as '{{\"num_steps\": 3}}', got {text!r}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--adaptation must be a JSON object such as '{{\"num_steps\": 3}}', got {text!r}")
    return values
