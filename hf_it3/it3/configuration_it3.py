"""Configuration of idempotent models."""

import copy
import dataclasses
import math
import numbers
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .adaptation_config_it3 import AdaptationConfig, check_known_fields, describe_callable, resolve_adaptation
from .agreement_it3 import AGREEMENTS
from .config_checks_it3 import check_values
from .configuration_cnn_it3 import IT3CNNConfig
from .distances_it3 import DISTANCES, distances_for
from .origin_it3 import is_remote_code
from .plain_module_it3 import ModuleConfig


NEUTRAL_SIGNALS = ("none", "zeros", "uniform")
COMBINES = ("add", "multiply")
# More channels than any stem has, whose embedder would take gigabytes.
MAX_CHANNELS = 16_384
CLASSIFICATION = "image-classification"
SEGMENTATION = "semantic-segmentation"
TASKS = (CLASSIFICATION, SEGMENTATION)

# Keys that `PreTrainedConfig`, `Trainer` and the Auto classes write or accept without declaring them as fields.
_INHERITED_KEYS = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
}

if TYPE_CHECKING:
    _Held = TypeVar("_Held")
    _Given = TypeVar("_Given")

    class _Resolved(Generic[_Held, _Given]):
        """A field that may be given as something else than what the finished configuration holds."""

        def __get__(self, instance: object, owner: type | None = None) -> _Held: ...

        def __set__(self, instance: object, value: _Given) -> None: ...


class IT3Config(PreTrainedConfig):
    """Configuration of [`IT3ForImageClassification`] and [`IT3ForSemanticSegmentation`]: a backbone and how the label
    signal reaches it.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*): configuration of the wrapped model, with its
            `model_type`; defaults to the small network of the MNIST tutorial ([`IT3CNNConfig`]).
        injection_layer (`str`, *optional*): name of the backbone's module whose output receives the label signal;
            by default the stem, found from the structure of the backbone.
        injection_channels (`int`, *optional*): channels of that output; by default read from the layer.
        neutral_signal (`"none"`, `"zeros"` or `"uniform"`): what the first pass injects: nothing; the embedding of an
            all-zero signal (paper); the embedding of equal probabilities (the authors' CIFAR notebook).
        combine (`"add"`, `"multiply"` or a callable): how features and embedded signal are joined: `f + e`;
            `f * (1 + e)`; or a callable of the two, the embedding already broadcastable to the features.
        distance (`str` or callable): the idempotence distance D(y1, y0), see [`AdaptationConfig`]; by default
            `"neg_dot"`, and `"mse"` in regression, where the others are not bounded below.
        idempotence_weight (`float`): weight of the second pass's loss in training.
        adaptation ([`AdaptationConfig`] or `dict`): settings of test-time adaptation.
        reference_distance (`dict`, *optional*): mean and standard deviation of the idempotence distance of clean
            images, with the number of images and the distance's name; measured by the trainer, used by the gate.
            `"mirrored"` tells how many images of three channels keep their class when mirrored, relative to those that
            do when cropped: of `"all"`, and of the class of which it is `"least"`. `"corrected"` tells which share of
            the images keep their class when cropped, and when their features are corrected by statistics of each image
            in a quarter, in half and in all of the layers. What else the model knows of clean images is saved with its
            weights.
        task (`"image-classification"` or `"semantic-segmentation"`): what the model answers; set by its class.
        semantic_loss_ignore_index (`int`): label of pixels that do not count, in segmentation.
        target_mean, target_std (`list[float]`, *optional*): of the training targets, per output, in regression;
            measured by the trainer.
        calibration_corruptions (`list[str]`, *optional*): corruptions that calibration has seen.
        embedder_class (`str`, *optional*): class of a label embedder of the caller's own; the model must be loaded
            with `embedder=` then.
        base_model (`dict`, *optional*): provenance of an adapted model: repository and revision that it started from.
        num_labels, id2label, label2id, problem_type: as in every transformers model; by default the backbone's.

    Raises:
        ValueError: for an unknown key, or a value of the wrong type or range; the message names field and value.

    Example:

    ```python
    >>> from hf_it3 import IT3Config
    >>> config = IT3Config(adaptation={"num_steps": 3})
    >>> config.adaptation.num_steps, config.backbone_config.model_type, config.num_labels
    (3, 'it3_cnn', 10)

    ```
    """

    model_type = "it3"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["signal_logits", "classification_loss", "idempotence_loss"]

    if TYPE_CHECKING:
        backbone_config: _Resolved[PreTrainedConfig, dict | PreTrainedConfig | None] = _Resolved()
        adaptation: _Resolved[AdaptationConfig, dict | AdaptationConfig | None] = _Resolved()
        # May be `None` in configurations that are not of classifiers.
        id2label: dict[int, str] = {}
        label2id: dict[str, int] = {}
        num_labels: int = 10
    else:
        backbone_config: dict | PreTrainedConfig | None = None
        adaptation: dict | AdaptationConfig | None = None
    injection_layer: str | None = None
    injection_channels: int | None = None
    neutral_signal: str = "none"
    combine: str | Callable = "add"
    if TYPE_CHECKING:
        distance: _Resolved[str | Callable, str | Callable | None] = _Resolved()
    else:
        distance: str | Callable | None = None
    idempotence_weight: float = 1.0
    reference_distance: dict | None = None
    task: str = CLASSIFICATION
    semantic_loss_ignore_index: int = 255
    target_mean: list | None = None
    target_std: list | None = None
    calibration_corruptions: list | None = None
    embedder_class: str | None = None
    base_model: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_known_fields("IT3Config", kwargs, _known_keys())
        check_values({**vars(self), **kwargs}, "IT3Config.")
        if kwargs.get("num_labels", ...) is None:
            del kwargs["num_labels"]
        self.backbone_config = _resolve_backbone_config(self.backbone_config)
        self.adaptation = resolve_adaptation(self.adaptation, "IT3Config.adaptation")
        self._inherit_labels(kwargs)
        super().__post_init__(**kwargs)
        # Where a repository carries code, these refer to it, and everybody who loads the model would have to trust it,
        # or take it along when saving. With this package imported nobody needs it.
        if not is_remote_code(self):
            for name in ("custom_pipelines", "auto_map"):
                vars(self).pop(name, None)
        self.sync_backbone_labels()
        if self.distance is None:
            self.distance = distances_for(self.problem_type)[0]
        self._validate()

    def _inherit_labels(self, kwargs: dict[str, Any]) -> None:
        backbone = self.backbone_config
        if self.id2label is None and kwargs.get("num_labels") is None:
            # PVT has the number of labels as a field of its own, and perhaps no names for them.
            if len(backbone.id2label or ()) == backbone.num_labels:
                self.id2label = copy.copy(backbone.id2label)
                self.label2id = copy.copy(backbone.label2id)
            else:
                kwargs["num_labels"] = backbone.num_labels
        if self.problem_type is None:
            self.problem_type = self.backbone_config.problem_type

    def sync_backbone_labels(self) -> None:
        """Gives the backbone the labels and problem type of this configuration, also where they were set later.

        A single label without a problem type means regression, in training and at test time.
        """
        if self.problem_type is None and self.num_labels == 1 and self.task == CLASSIFICATION:
            self.problem_type = "regression"
        if {index: label for label, index in (self.label2id or {}).items()} != self.id2label:
            self.label2id = {label: index for index, label in self.id2label.items()}
        backbone = self.backbone_config
        if backbone.id2label != self.id2label or backbone.num_labels != self.num_labels:
            backbone.num_labels = self.num_labels
            backbone.id2label = copy.copy(self.id2label)
            backbone.label2id = copy.copy(self.label2id)
        backbone.problem_type = self.problem_type

    def _validate(self) -> None:
        if self.neutral_signal not in NEUTRAL_SIGNALS:
            raise self._error("neutral_signal", f"must be one of {', '.join(map(repr, NEUTRAL_SIGNALS))}")
        if not callable(self.combine) and self.combine not in COMBINES:
            raise self._error("combine", f"must be one of {', '.join(map(repr, COMBINES))} or a callable")
        if not (callable(self.distance) or (isinstance(self.distance, str) and self.distance in DISTANCES)):
            raise self._error("distance", f"must be one of {', '.join(map(repr, DISTANCES))} or a callable")
        suitable = distances_for(self.problem_type)
        if not callable(self.distance) and self.distance not in suitable:
            names = " or ".join(map(repr, suitable))
            requirement = f"must be {names} or a callable in {self.problem_type}, whose predictions are unbounded"
            raise self._error("distance", requirement)
        if self.task not in TASKS:
            raise self._error("task", f"must be one of {', '.join(map(repr, TASKS))}")
        weight = self.idempotence_weight
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise self._error("idempotence_weight", "must be a number >= 0")
        if self.injection_layer is not None and not isinstance(self.injection_layer, str):
            raise self._error("injection_layer", "must be the name of a module of the backbone")
        channels = self.injection_channels
        is_count = isinstance(channels, int) and not isinstance(channels, bool) and 1 <= channels <= MAX_CHANNELS
        if channels is not None and not is_count:
            raise self._error("injection_channels", f"must be a positive integer of at most {MAX_CHANNELS}")
        reference = self.reference_distance
        if reference is not None and not {"mean", "std"} <= set(reference):
            raise self._error("reference_distance", "must have the keys 'mean' and 'std'")
        if reference is not None and not (_is_finite(reference["mean"]) and _is_finite(reference["std"], low=0)):
            raise self._error("reference_distance", "must be None or have a finite 'mean' and a finite 'std' >= 0")
        for key, shares in AGREEMENTS.items():
            if reference is not None and not _is_agreement(reference.get(key), shares):
                listed = f"{', '.join(map(repr, shares[:-1]))} and {shares[-1]!r}"
                raise self._error("reference_distance", f"must have no {key!r}, or numbers {listed} in it")
        if self.num_labels < 1:
            raise self._error("num_labels", "must be at least 1")

    def _error(self, name: str, requirement: str) -> ValueError:
        return ValueError(f"IT3Config.{name} {requirement}, got {getattr(self, name)!r}")

    @property
    def image_channels(self) -> int:
        """Channels of the images that the backbone takes: 3 where its configuration does not say it."""
        return getattr(self.backbone_config, "num_channels", 3)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As for every configuration, of any model; what was read is checked."""
        file = f"{pretrained_model_name_or_path}/config.json"
        try:
            values, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{file} must be a mapping (a JSON object): {error}") from error
        except RecursionError as error:
            raise ValueError(f"{file} is nested too deeply to be a configuration") from error
        check_values(values, f"{file}: ")
        return values, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "IT3Config":
        """As every configuration; a dict `adaptation=` among `kwargs` changes single settings of the saved ones."""
        if config_dict.get("problem_type") == "regression" and config_dict.get("distance") == "neg_dot":
            # As saved when it was every task's default; no regression model can adapt by it.
            config_dict = {**config_dict, "distance": None}
        adaptation = kwargs.pop("adaptation", None)
        if isinstance(adaptation, dict):
            saved = resolve_adaptation(config_dict.get("adaptation"), "IT3Config.adaptation")
            adaptation = saved.replace(**adaptation)
        if adaptation is not None:
            config_dict = {**config_dict, "adaptation": adaptation}
        return super().from_dict(config_dict, **kwargs)

    def unsaveable_fields(self) -> list[str]:
        """Names of the fields that hold a callable, which JSON cannot carry."""
        names = [name for name in ("combine", "distance") if callable(getattr(self, name))]
        return names + [f"adaptation.{name}" for name, value in vars(self.adaptation).items() if callable(value)]

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, the nested ones included."""
        output = super().to_dict()
        output["adaptation"] = self.adaptation.to_dict()
        _set_dtype(output["backbone_config"], output["dtype"])
        for name in ("combine", "distance"):
            output[name] = describe_callable(output[name])
        return output

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves `config.json`, after checking that it can be loaded again."""
        self.check_saveable()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def check_saveable(self) -> None:
        """Raises a ValueError for the first field that holds a callable."""
        if unsaveable := self.unsaveable_fields():
            raise ValueError(
                f"IT3Config.{unsaveable[0]} is a callable ({describe_callable(self._get(unsaveable[0]))}) and cannot "
                "be saved; set it to one of the named values, or pass it again after loading"
            )

    def _get(self, path: str) -> Any:
        value = self
        for part in path.split("."):
            value = getattr(value, part)
        return value


def _is_finite(value: Any, low: float = -math.inf) -> bool:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value >= low


def _is_agreement(value: Any, names: tuple[str, ...]) -> bool:
    """Whether that can be what was measured of changed images, or nothing was."""
    return value is None or (isinstance(value, Mapping) and all(_is_finite(value.get(name), low=0) for name in names))


def _set_dtype(values: dict[str, Any], dtype: str | None) -> None:
    """Gives a configuration and those inside it the type that loading gives them, so that saving again is the same."""
    values["dtype"] = dtype
    for value in values.values():
        if isinstance(value, dict) and "model_type" in value:
            _set_dtype(value, dtype)


def _known_keys() -> set[str]:
    return _INHERITED_KEYS | {field.name for field in dataclasses.fields(IT3Config)}


def _resolve_backbone_config(value: Any) -> PreTrainedConfig:
    if value is None:
        return IT3CNNConfig()
    if isinstance(value, PreTrainedConfig):
        return copy.deepcopy(value)
    check_values(value, "IT3Config.backbone_config.")
    values = {name: one for name, one in value.items() if (name, one) != ("num_labels", None)}
    model_type: Any = values.get("model_type")
    for own in (IT3CNNConfig, ModuleConfig):
        if model_type == own.model_type:
            return own.from_dict(values)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"IT3Config.backbone_config needs the model_type of a transformers model, got {model_type!r}; "
            "for example {'model_type': 'resnet'}"
        )
    return CONFIG_MAPPING[model_type].from_dict(values)
