"""Settings of test-time adaptation: data only, validated on creation."""

import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .augmentation_it3 import AUGMENTATIONS
from .distances_it3 import DISTANCES
from .optimizers_it3 import OPTIMIZERS


SCOPES = ("batch", "image", "stream", "average")
SINGLE_IMAGES = ("average", "image", "batch")
ANCHORS = ("frozen", "ema", "self")
AVERAGE_ANSWERS = ("never", "adapted", "always")
PARAMETER_GROUPS = ("all", "norm", "bias")
NORM_STATISTICS = ("auto", "source", "batch", "mixed", "shrunk")


@dataclass
class AdaptationConfig:
    """How a model adapts itself to unlabelled images at test time. It is saved in the model's `config.json`.

    A field that is `None` takes what was measured best for the kind of backbone, see `backbone_defaults_it3`;
    `hf-it3 inspect MODEL` prints it.

    Args:
        scope (`"batch"`, `"image"`, `"stream"` or `"average"`): who shares adapted weights: the images of one batch;
            nobody, each image has its own; all images from one `reset()` to the next; `"average"` changes no weights,
            the answer is the mean prediction over `augmentations` changed copies of each image.
        batch_size (`int`): number of images that the pipeline adapts together.
        num_steps (`int` or `None`): optimizer steps per batch, or per image in scope `"image"`. 0 changes no weights.
        learning_rate (`float` or `None`): learning rate of the optimizer.
        optimizer (`"adam"`, `"sgd"` or a callable): a callable takes the list of parameters and returns a torch
            optimizer with its own learning rate.
        anchor (`"frozen"`, `"ema"`, `"self"` or `None`): who computes the second prediction y1: the model before
            adaptation (Durasov et al., IT3, ICML 2025); its exponential moving average (the paper's online variant);
            the model being adapted (as torch-ttt's engine does). `None` means `"ema"` for streams, else `"frozen"`.
        parameters (`str` or `None`): what may change: `"all"`, `"norm"` (normalisation layers), `"bias"`, or a regular
            expression searched in the parameter names. The label embedder and parameters that do not require
            gradients never change.
        distance (`str`, callable or `None`): D(y1, y0), the idempotence distance: one of `"neg_dot"`, `"mse"`,
            `"js"`, `"kl"`, `"cross_entropy"`, `"entropy"` (of y0 alone, as in Tent), or a callable that takes the
            two predictions of shape `(B, num_labels, ...)` (probabilities for classifiers) and returns shape `(B,)` or
            a scalar. `None` takes the model's own `config.distance`.
        diversity_weight (`float`): weight of the negative entropy of the batch's mean prediction (Liang et al.,
            SHOT, ICML 2020), which keeps a batch from collapsing into one class.
        max_class_share (`float`): above this share of one class among a batch's predictions before the first step, the
            diversity term is dropped for that batch.
        norm_statistics (`"auto"`, `"source"`, `"batch"`, `"mixed"` or `"shrunk"`): statistics of BatchNorm layers at
            test time: those of training; those of the batch; both, with the former counting as `prior_count` images
            (Schneider et al., NeurIPS 2020); both, with the former weighing as much as chance explains of their
            distance. In backbones without BatchNorm, the last two give features the statistics of clean images, where
            those were measured, see [`Alignment`]. `"auto"` takes what was measured best for the kind of backbone.
        prior_count (`int` or `None`): weight of the training statistics in `"mixed"`, in images. In scopes `"image"`
            and `"average"` they are mixed with those of each image by itself, in `"shrunk"` as well.
        norm_depth (`float` or `None`): share of the layers that `norm_statistics` are chosen in, in [0, 1]: the first
            ones; those behind them keep the statistics of training, because the last layers tell classes apart, and
            few images know their statistics badly. `None` is 1; for copies of images that nothing adapts to, in scope
            `"average"` and with `average_answers="always"`, it is what the model's `reference_distance` holds of clean
            images, see [`IT3Config`], or 0.17. With `norm_statistics="auto"` these are corrected whatever the gate
            says, in backbones with normalisation layers.
        class_balance (`bool`): scopes `"batch"` and `"stream"`: in `"mixed"` and `"shrunk"` statistics, count images
            of a class that is predicted more often than among clean images less, and of a rarer one more, so that
            statistics follow the shift and not the mix of classes, see [`ShiftReference`].
        gate (`float` or `None`): adapt only where those who share weights lie this many standard errors from clean
            images, by their mean idempotence distance or by their first features, see [`ShiftTest`]. `None` always
            adapts, infinity never.
        gate_window (`int`): scope `"stream"`: number of latest images that the gate looks at.
        ema_decay (`float`): decay of the moving average per step, for anchor `"ema"`.
        max_grad_norm (`float` or `None`): clips the norm of the gradient (of each image's own for scope `"image"`).
        average_answers (`"never"`, `"adapted"`, `"always"` or `None`): scopes `"batch"` and `"stream"`: whose answer
            is the mean prediction over `augmentations` changed copies of the image: nobody's; that of images which are
            adapted to, from the adapted weights; also that of all others, from the unadapted ones. Each copy costs a
            forward pass.
        augmentations (`int`): number of copies of each image to average over, itself included.
        augmentation_kinds (`list[str]` or `None`): how copies differ, see [`Augmentation`]:
            `"warp"` (small shifts, rotations and scalings), `"crop"`, `"flip"` (left to right), `"color"`. `None` is
            warp for images without colours and where each pixel has a class; else crop, and flip as well where
            mirrored clean images kept their classes as often as cropped ones, as the model's `reference_distance`
            tells: photos do, digits, letters and signs do not.
        augmentation_steps (`int`): scope `"average"`: optimizer steps on the objective over an image's copies before
            they are averaged; these change weights, for this image alone.
        single_image (`"average"`, `"image"` or `"batch"`): what scope `"batch"` does with a batch of one image, the
            last one of a pipeline's for instance: as scope `"average"` or `"image"` would, or a batch of one.
        chunk_size (`int` or `None`): scopes `"image"` and `"average"`: images adapted at once; `None` chooses by model
            size.
        vectorize (`bool` or `None`): scopes `"image"` and `"average"`: `True` adapts a chunk of images in one
            vectorised pass, `False` one after the other, `None` chooses the faster.
        collapse_guard (`bool`): scope `"stream"`: return to the source weights when the stream's predictions collapse
            into one class or its loss runs away.

    Raises:
        ValueError: for an unknown key or a value of the wrong type or range; the message names the field and the
            value given.

    Example:

    ```python
    >>> from hf_it3 import AdaptationConfig
    >>> AdaptationConfig(num_steps=3).replace(gate=None).num_steps
    3
    >>> AdaptationConfig.preset("tent").parameters
    'norm'

    ```
    """

    scope: str = "batch"
    batch_size: int = 256
    num_steps: int | None = None
    learning_rate: float | None = None
    optimizer: str | Callable = "adam"
    anchor: str | None = None
    parameters: str | None = None
    distance: str | Callable | None = None
    diversity_weight: float = 1.0
    max_class_share: float = 0.75
    norm_statistics: str = "auto"
    prior_count: int | None = None
    norm_depth: float | None = None
    class_balance: bool = True
    gate: float | None = 3.0
    gate_window: int = 256
    ema_decay: float = 0.99
    max_grad_norm: float | None = None
    average_answers: str | None = None
    augmentations: int = 8
    augmentation_kinds: Sequence[str] | None = None
    augmentation_steps: int = 0
    single_image: str = "average"
    chunk_size: int | None = None
    vectorize: bool | None = None
    collapse_guard: bool = True

    def __new__(cls, *args: Any, **values: Any) -> "AdaptationConfig":
        # Before dataclass's own check, which would name neither the value nor the closest field.
        check_known_fields("AdaptationConfig", values, field_names())
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self._check_choice("scope", SCOPES)
        self._check_choice("anchor", ANCHORS, optional=True)
        self._check_choice("norm_statistics", NORM_STATISTICS)
        self._check_choice("average_answers", AVERAGE_ANSWERS, optional=True)
        self._check_choice("optimizer", OPTIMIZERS, or_callable=True)
        self._check_choice("distance", DISTANCES, optional=True, or_callable=True)
        self._check_number("batch_size", int, 1)
        self._check_choice("single_image", SINGLE_IMAGES)
        self._check_number("num_steps", int, 0, optional=True)
        self._check_number("learning_rate", float, 0, optional=True)
        self._check_number("diversity_weight", float, 0)
        self._check_number("max_class_share", float, 0, 1)
        self._check_number("prior_count", int, 0, optional=True)
        self._check_number("norm_depth", float, 0, 1, optional=True)
        if self.gate == "inf":
            self.gate = math.inf  # as JSON knows it
        if self.gate != math.inf:
            self._check_number("gate", float, -math.inf, optional=True)
        self._check_number("gate_window", int, 1)
        self._check_number("ema_decay", float, 0, 1)
        self._check_number("max_grad_norm", float, 0, optional=True)
        self._check_number("augmentations", int, 0)
        self._check_kinds()
        self._check_number("augmentation_steps", int, 0)
        self._check_number("chunk_size", int, 1, optional=True)
        for name in ("class_balance", "vectorize", "collapse_guard"):
            value = getattr(self, name)
            if not (isinstance(value, bool) or (value is None and name == "vectorize")):
                raise self._error(name, "must be True or False")
        self._check_parameters()

    def _error(self, name: str, requirement: str) -> ValueError:
        return ValueError(f"AdaptationConfig.{name} {requirement}, got {getattr(self, name)!r}")

    def _check_choice(
        self, name: str, choices: Collection[str], optional: bool = False, or_callable: bool = False
    ) -> None:
        value = getattr(self, name)
        if (optional and value is None) or (or_callable and callable(value)):
            return
        if not isinstance(value, str) or value not in choices:
            also = (" or a callable" if or_callable else "") + (" or None" if optional else "")
            raise self._error(name, f"must be one of {', '.join(map(repr, choices))}{also}")

    def _check_number(self, name: str, kind: type, low: float, high: float = math.inf, optional: bool = False) -> None:
        value = getattr(self, name)
        if optional and value is None:
            return
        allowed: Any = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, allowed) or math.isnan(value) or not low <= value <= high:
            limits = f" in [{low}, {high}]" if high < math.inf else f" >= {low}" if low > -math.inf else ""
            noun = "an integer" if kind is int else "a number"
            raise self._error(name, f"must be {noun}{limits}{' or None' if optional else ''}")
        if kind is float and math.isinf(value):
            raise self._error(name, "must be finite")
        # Numbers of numpy are accepted, but JSON does not know them.
        setattr(self, name, int(value) if isinstance(value, numbers.Integral) else float(value))

    def _check_kinds(self) -> None:
        kinds = self.augmentation_kinds
        if kinds is None:
            return
        is_list = isinstance(kinds, Sequence) and not isinstance(kinds, str)
        if not is_list or not kinds or any(kind not in AUGMENTATIONS for kind in kinds):
            raise self._error("augmentation_kinds", f"must be a list of {', '.join(map(repr, AUGMENTATIONS))} or None")
        self.augmentation_kinds = tuple(dict.fromkeys(kinds))

    def _check_parameters(self) -> None:
        if self.parameters is None:
            return
        if not isinstance(self.parameters, str) or not self.parameters:
            raise self._error("parameters", "must be 'all', 'norm', 'bias', a regular expression or None")
        try:
            re.compile(self.parameters)
        except re.error as error:
            raise self._error("parameters", f"is not a valid regular expression ({error})") from None

    @property
    def effective_anchor(self) -> str:
        """The anchor with its default for the scope filled in."""
        return self.anchor or ("ema" if self.scope == "stream" else "frozen")

    def scope_of(self, num_images: int) -> str:
        """The scope that a batch of this many images gets: `single_image` decides for a single one in scope batch."""
        if self.scope != "batch" or num_images != 1:
            return self.scope
        has_nothing_to_average = self.single_image == "average" and self.augmentations < 2
        return "batch" if has_nothing_to_average else self.single_image

    def replace(self, **overrides: Any) -> "AdaptationConfig":
        """A copy with some fields changed; unknown names raise a ValueError with the closest known one."""
        return dataclasses.replace(self, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values; a callable becomes its qualified name, which cannot be loaded again."""
        values = {name: describe_callable(value) for name, value in vars(self).items()}
        kinds = None if self.augmentation_kinds is None else list(self.augmentation_kinds)
        return {**values, "gate": "inf" if self.gate == math.inf else self.gate, "augmentation_kinds": kinds}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AdaptationConfig":
        """Builds a config from plain values; unknown keys raise a ValueError.

        Settings that were saved when scope `"image"` averaged augmentations where it took no steps keep doing so.
        """
        is_older = "single_image" not in values and "augmentation_steps" in values
        if is_older and values["augmentation_steps"] is None:
            values = {**values, "augmentation_steps": values.get("num_steps") or 0}
        if is_older and values.get("scope") == "image" and values.get("augmentations", 8) > 0:
            values = {**values, "scope": "average"}
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "AdaptationConfig":
        """Settings of known methods, to compare with: `"it3"` (the defaults), `"none"`, `"statistics"` (Schneider et
        al., NeurIPS 2020), `"tent"` (Wang et al., ICLR 2021), `"torch-ttt"` (the recipe of its MNIST tutorial)."""
        check_known_fields("AdaptationConfig.preset", {name: None}, PRESETS)
        return cls(**{**PRESETS[name], **overrides})


# Other methods know neither gate nor averages.
_AS_PUBLISHED = {"gate": None, "single_image": "batch", "average_answers": "never"}
PRESETS: dict[str, dict[str, Any]] = {
    "it3": {},
    "none": {**_AS_PUBLISHED, "num_steps": 0, "norm_statistics": "source"},
    "statistics": {**_AS_PUBLISHED, "num_steps": 0, "norm_statistics": "batch"},
    "tent": {
        **_AS_PUBLISHED,
        "num_steps": 1,
        "learning_rate": 1e-3,
        "distance": "entropy",
        "parameters": "norm",
        "diversity_weight": 0.0,
        "norm_statistics": "batch",
    },
    "torch-ttt": {
        **_AS_PUBLISHED,
        "num_steps": 1,
        "learning_rate": 1e-3,
        "anchor": "self",
        "distance": "neg_dot",
        "parameters": "all",
        "norm_statistics": "source",
        "diversity_weight": 0.0,
    },
}


def resolve_adaptation(value: Any, name: str) -> AdaptationConfig:
    """A copy of settings, also of those given as a `dict`, or as `None` for the defaults; errors give their `name`."""
    if value is None:
        return AdaptationConfig()
    # By name, because the settings of a model loaded as remote code are of a class of their own.
    if type(value).__name__ == "AdaptationConfig":
        return value.replace()
    if isinstance(value, dict):
        return AdaptationConfig.from_dict(value)
    raise ValueError(f"{name} must be an AdaptationConfig or a dict, got {value!r}")


def field_names() -> list[str]:
    """Names of the fields of [`AdaptationConfig`]."""
    return [field.name for field in dataclasses.fields(AdaptationConfig)]


def check_known_fields(owner: str, values: dict[str, Any], known: Iterable[str]) -> None:
    """Raises a ValueError that names the first unknown key and the closest known one."""
    known = list(known)
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
            given = f" (given value {value!r})" if value is not None else ""
            raise ValueError(f"{owner} has no field {key!r}{given}{hint}")


def describe_callable(value: Any) -> Any:
    """The qualified name of a callable, any other value as it is."""
    if callable(value):
        return f"{getattr(value, '__module__', '?')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value
