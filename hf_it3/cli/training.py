"""Trains what `hf-it3 train` asks for."""

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from ..data import DIGITS, SCENES
from ..training.training_arguments import IT3TrainingArguments
from .options import warn_of_model
from .train import CNN, SEGFORMER, SEGMENTATION, DataArguments, ModelArguments


if TYPE_CHECKING:
    from ..it3.modeling_it3 import IT3PreTrainedModel
    from ..training.trainer import IT3Trainer


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
_CHECKED = ("neutral_signal", "idempotence_weight", "distance")


def backbone_and_dataset(task: str, backbone: str, dataset: str) -> tuple[str, str]:
    """What is trained on what, where one of them or both are left out (empty)."""
    bundled = _BUNDLED[task]
    return backbone or bundled[0], dataset or bundled[1]


def suitable_arguments(backbone: str, dataset: str) -> dict[str, Any]:
    """Training arguments that suit a backbone and a data set."""
    values = _DEFAULTS.get(backbone, _DEFAULTS["trained"])
    names = [os.path.basename(os.path.normpath(name)) for name in (backbone, dataset)]
    epochs = _EPOCHS.get((backbone, dataset), 3)
    return {**values, "output_dir": f"runs/{'-'.join(names)}", "num_train_epochs": epochs}


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

    given = (model_arguments.task, model_arguments.backbone, data_arguments.dataset)
    backbone, dataset = backbone_and_dataset(*given)
    model_arguments = dataclasses.replace(model_arguments, backbone=backbone)
    data_arguments = dataclasses.replace(data_arguments, dataset=dataset)
    if arguments.do_predict:
        raise ValueError("--do_predict is not for this command; hf-it3 predict MODEL IMAGES does it")
    for name in ("max_train_samples", "max_eval_samples"):
        count = getattr(data_arguments, name)
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
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
    for one in filter(None, (train_split, eval_split)):
        _check_columns(one, arguments, model_arguments.task)
    rows: Any = eval_split if train_split is None else train_split
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
    if hasattr(rows, "__getitem__"):
        trainer.data_collator([rows[0]])  # so that what no batch can be made of is told before the progress bar
    if arguments.do_train:
        if arguments.resume_from_checkpoint is None and trainer.is_world_process_zero():
            warn_of_model(str(arguments.output_dir))
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

    known = class_names(rows, label_column) if arguments.task != SEGMENTATION else None
    if arguments.labels is None and known is not None:
        return known
    if arguments.labels is not None:
        given = [name.strip() for name in arguments.labels.split(",")]
        if known is not None and len(given) != len(known):
            raise ValueError(f"--labels names {len(given)} classes, and the data set has {len(known)}")
        return given
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
    from ..it3.registration import MODELS, saved_configuration
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
    saved_configuration(arguments.backbone, **hub)  # which checks the values that AutoConfig takes for granted
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
