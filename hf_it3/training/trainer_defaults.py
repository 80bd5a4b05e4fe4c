"""Fills in what a caller of `IT3Trainer` left out, from the model and from the data set."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from transformers import TrainingArguments

from ..data import LABEL_COLUMNS, as_row, class_names, collator_for, find_column, first_rows, image_processor_for
from ..it3.interface_it3 import idempotent_model
from ..it3.shell_it3 import freeze_in_training, norm_parameter_names
from ..it3.task_it3 import Task
from .training_arguments import IT3TrainingArguments


def with_our_arguments(args: TrainingArguments | None) -> IT3TrainingArguments:
    """Returns the arguments as they are, or those of a plain `TrainingArguments` with our defaults added."""
    if args is None:
        return IT3TrainingArguments("tmp_trainer")
    if isinstance(args, IT3TrainingArguments):
        return args
    ours = {field.name for field in dataclasses.fields(IT3TrainingArguments) if field.init}
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(args) if field.name in ours}
    return IT3TrainingArguments(**values)


def prepare_model(model: nn.Module, args: IT3TrainingArguments) -> None:
    """Freezes what the arguments name, after checking that the model can be trained and saved.

    Raises:
        TypeError: if the model takes no label signal.
        ValueError: if it cannot be saved, and the arguments ask for checkpoints.
    """
    inner = idempotent_model(model)
    if args.save_strategy != "no":
        try:
            inner.check_saveable()
        except ValueError as error:
            raise ValueError(f"{error}; or train without checkpoints, with save_strategy='no'") from None
    if args.train == "embedder":
        inner.freeze_classifier()
    elif args.train == "norm":
        _freeze_backbone(model)


def with_defaults(
    model: Any,
    args: IT3TrainingArguments,
    data_collator: Callable | None,
    processing_class: Any,
) -> tuple[Callable, Any]:
    """Makes the collator and the image processor that suit a model, where they were not given."""
    config = model.config
    processing_class = processing_class or image_processor_for(config)
    if data_collator is None:
        data_collator = collator_for(config, processing_class, args.image_column, args.label_column)
    # A later model.push_to_hub takes it along.
    model._image_processor = processing_class
    return data_collator, processing_class


def check_optimizer(args: IT3TrainingArguments, optimizer: Any) -> None:
    """Refuses a learning rate that would be ignored.

    Raises:
        ValueError: for `embedder_learning_rate` beside an optimizer of the caller's.
    """
    if optimizer is not None and args.embedder_learning_rate is not None:
        raise ValueError(
            f"embedder_learning_rate={args.embedder_learning_rate} has no effect on the {type(optimizer).__name__} "
            "given in optimizers=...; give the embedder's parameters a group of their own there, or leave one of the "
            "two out"
        )


def check_metrics(args: IT3TrainingArguments, compute_metrics: Callable | None) -> None:
    """Refuses metrics batch by batch where there are none that can do it.

    Raises:
        ValueError: for `batch_eval_metrics` without `compute_metrics`.
    """
    if args.batch_eval_metrics and compute_metrics is None:
        raise ValueError(
            "batch_eval_metrics=True needs compute_metrics of yours that takes compute_result, because the default "
            "metrics need all predictions at once; give one of your own, or leave batch_eval_metrics out"
        )


def name_classes(config: Any, dataset: Any, label_column: str | None) -> None:
    """Gives classes that still have transformers' placeholder names, LABEL_0 and so on, the names of the data set."""
    names = class_names(dataset, label_column)
    nameless = [f"LABEL_{index}" for index in range(config.num_labels)]
    if names is not None and len(names) == len(nameless) and list(config.id2label.values()) == nameless:
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}


# Rows whose targets are read where a data set has no column to read them from.
_MAX_TARGETS = 5000


def measure_targets(config: Any, dataset: Any, label_column: str | None) -> None:
    """Stores mean and standard deviation of the training targets in a regression model's configuration, unless it has
    them: predictions are standardised by them before they are compared or fed back.

    Args:
        config ([`IT3Config`]): of the model.
        dataset: the training data; where its rows have to be read one by one, the first 5,000 are.
        label_column (`str`, *optional*): by default the usual names.
    """
    if not Task.of(config).standardises or config.target_mean is not None or dataset is None:
        return
    if hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):
        column = find_column(dataset.column_names, LABEL_COLUMNS, label_column, "label")
        targets = dataset.with_format("numpy")[column][:]
    else:
        rows = [as_row(row, label_column=label_column) for row in first_rows(dataset, _MAX_TARGETS)]
        column = find_column(rows[0] if rows else (), LABEL_COLUMNS, label_column, "label")
        targets = [np.asarray(row[column], dtype=np.float64) for row in rows]
    values = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    deviation = values.std(0)
    config.target_mean = values.mean(0).tolist()
    config.target_std = np.where(deviation > 0, deviation, 1.0).tolist()  # targets that are all the same


def _freeze_backbone(model: nn.Module) -> None:
    """Leaves only the embedder and the normalisation layers trainable."""
    norms = norm_parameter_names(model)
    frozen = []
    for name, parameter in model.named_parameters():
        if name.startswith("embedder.") or name in norms:
            parameter.requires_grad_(True)
        else:
            frozen.append(name)
    freeze_in_training(model, frozen)
