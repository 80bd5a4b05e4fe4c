"""What kind of answer a model gives, and all that depends on it.

Axis 1 is the class axis; whatever follows it is space, so `(B, num_labels)` and `(B, num_labels, h, w)` take the same
code.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .agreement_it3 import may_mirror
from .augmentation_it3 import Augmentation
from .configuration_it3 import SEGMENTATION, IT3Config
from .distances_it3 import distances_for, entropy, log
from .embedders_it3 import LabelEmbedder, LabelMapEmbedder


# How far a stream's predictions may move away from the unadapted ones: the share of the largest class by so much, the
# rate of labels by this part of itself.
MAX_DRIFT = 0.25
# The same for numbers, as a mean square of standardised values: at twice this, digits turned by a random angle were
# read with more than twice the error on clean batches.
MAX_MOVEMENT = 0.01


def in_single_precision(values: Tensor) -> Tensor:
    """Values in at least single precision."""
    return values if values.dtype == torch.float64 else values.float()


def over_space(values: Tensor) -> Tensor:
    """The mean over whatever follows the batch axis: `(B, ...)` to `(B,)`."""
    return values if values.ndim == 1 else values.flatten(1).mean(1)


class Task:
    """Answers every question that depends on the kind of prediction; see the subclasses.

    Args:
        config ([`IT3Config`]): of the model.
    """

    name: str
    # The distances D(y1, y0) that compare this task's predictions.
    distances: tuple[str, ...] = distances_for(None)
    aligns_features = False  # whether `norm_statistics="auto"` does, in backbones without BatchNorm
    takes_crops = False  # whether a part of an image gets the same answer as a rule
    # Whether a distance takes each label as a distribution of its own over yes and no.
    per_label = False
    # Dimensions of a batch of class indices; 0 where labels are none.
    index_dims = 0
    # Whether predictions are standardised by the mean and standard deviation of the training labels.
    standardises = False

    def __init__(self, config: IT3Config):
        self.config = config
        self.num_labels: int = config.num_labels

    @property
    def num_classes(self) -> int:
        """Classes of which an image has one; 1 where it has none, or several."""
        return 1

    def image_classes(self, y0: Tensor) -> Tensor:
        """The class that each image is predicted as, shape `(B,)`; 0 where it has none, or several."""
        return y0.new_zeros(len(y0), dtype=torch.long)

    @staticmethod
    def of(config: IT3Config, labels: Tensor | None = None) -> "Task":
        """The task that a model's configuration tells, or else the labels; without any, one label per image."""
        if config.task == SEGMENTATION:
            return Dense(config)
        problem_type = config.problem_type
        if problem_type is None and labels is not None:
            problem_type = _guess_problem_type(labels)
        return _BY_PROBLEM_TYPE[problem_type](config)

    def predict(self, logits: Tensor) -> Tensor:
        """Predictions, shaped as the logits, in the form in which they are fed back as label signal."""
        raise NotImplementedError

    def logits_of(self, predictions: Tensor) -> Tensor:
        """Logits whose prediction is the given one: the inverse of `predict` up to a constant."""
        raise NotImplementedError

    def fit_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels as `loss` and `signal` take them.

        Raises:
            ValueError: if they do not fit the logits.
        """
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The supervised loss, a scalar, of labels as `fit_labels` returns them.

        Raises:
            ValueError: for a class index out of range.
        """
        raise NotImplementedError

    def signal(self, labels: Tensor, like: Tensor) -> Tensor:
        """The label signal of true labels, shaped as the logits `like`."""
        raise NotImplementedError

    def make_embedder(self, channels: int) -> nn.Module:
        """A new embedder from label signals to the channels of the injection layer."""
        return LabelEmbedder(self.num_labels, channels)

    def make_augmentation(self, count: int, kinds: Sequence[str] | None) -> Augmentation:
        """What makes `count` copies of images, of the given kinds or else of those that suit task and clean images.

        Raises:
            ValueError: for crops in a task that needs the whole image.
        """
        if self.takes_crops:
            return Augmentation(count, kinds, mirrors=may_mirror(self.config.reference_distance))
        if kinds is not None and "crop" in kinds:
            raise ValueError(
                f"augmentation_kinds={list(kinds)} cannot act in {self.name}: a crop tells less than the whole image; "
                "leave 'crop' out"
            )
        return Augmentation(count, kinds or ("warp",))

    def uniform_signal(self, batch_size: int, value: float, device: torch.device) -> Tensor:
        """A label signal that has the same value everywhere."""
        return torch.full((batch_size, self.num_labels), value, device=device)

    def check_signal(self, signal: Tensor, batch_size: int) -> None:
        """Raises a ValueError if a label signal for this many images has the wrong shape."""
        expected = (batch_size, self.num_labels)
        if tuple(signal.shape) != expected:
            raise ValueError(f"label_signal must have shape {expected}, got {tuple(signal.shape)}")

    def spread(self, y0: Tensor) -> Tensor:
        """Entropy of the mean prediction over batch and space, a scalar: large where many classes are used.

        Source: the information maximisation loss of SHOT (Liang et al., ICML 2020).
        """
        return entropy(_mean_prediction(y0), -1)

    def largest_share(self, predictions: Tensor) -> float:
        """Share of the most frequent class among predictions, between 1 / num_labels and 1; 0 where there are none."""
        counts = torch.bincount(predictions.argmax(1).flatten(), minlength=predictions.shape[1])
        return (counts.max() / counts.sum()).item() if counts.sum() else 0.0

    def watched(self, predictions: Tensor) -> Tensor:
        """What the guard of a stream watches of each prediction, shape `(B, F)`: the shares of the classes."""
        one_hot = F.one_hot(predictions.argmax(1), self.num_labels).float()
        return one_hot if one_hot.ndim == 2 else one_hot.flatten(1, -2).mean(1)

    def drift(self, adapted: Tensor, unadapted: Tensor) -> str | None:
        """The reason why a stream went wrong, if it did, from what is watched of N images `(N, F)`."""
        if self.num_labels < 2:
            return None
        share, share_before = (watched.mean(0).max().item() for watched in (adapted, unadapted))
        if share > share_before + MAX_DRIFT:
            return f"{share:.0%} of the adapted predictions are one class, against {share_before:.0%} unadapted"
        return None

    def for_metrics(self, outputs: Any, labels: Tensor) -> Any:
        """What metrics take of logits `(B, num_labels, ...)`, or of a tuple that begins with them; all by default."""
        return outputs

    def average(self, logits: Tensor) -> Tensor:
        """Logits of the mean prediction of several views: `(B, K, num_labels, ...)` to `(B, num_labels, ...)`."""
        if logits.shape[1] == 1:
            return logits.squeeze(1)
        views = self.predict(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])
        return self.logits_of(views.mean(1))

    def _mismatch(self, labels: Tensor, kind: str, shape: tuple) -> ValueError:
        return ValueError(
            f"labels for problem_type={self.name!r} must be {kind} of shape {tuple(shape)}, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}; set config.problem_type if they mean something else"
        )


def _mean_prediction(y0: Tensor) -> Tensor:
    """Mean over batch and space: `(B, num_labels, ...)` to `(num_labels,)`."""
    return y0.mean(0) if y0.ndim == 2 else y0.movedim(1, -1).flatten(0, -2).mean(0)


class SingleLabel(Task):
    """One class per image: logits `(B, num_labels)`, labels `(B,)` of class indices."""

    name = "single_label_classification"
    index_dims = 1
    aligns_features = True  # streams of numbers and of label sets drift from it
    takes_crops = True

    @property
    def num_classes(self) -> int:
        return self.num_labels

    def image_classes(self, y0: Tensor) -> Tensor:
        return y0.argmax(1)

    def predict(self, logits: Tensor) -> Tensor:
        return in_single_precision(logits).softmax(1)

    def logits_of(self, predictions: Tensor) -> Tensor:
        return log(predictions)

    def fit_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        if labels.shape != logits.shape[:1] or labels.is_floating_point():
            raise self._mismatch(labels, "integers", logits.shape[:1])
        return labels.long()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
            check_label_range(labels, logits.shape[1])
        return F.cross_entropy(logits, labels)

    def signal(self, labels: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(labels, self.num_labels).to(like.dtype)


class MultiLabel(Task):
    """Any number of classes per image: logits and labels `(B, num_labels)`."""

    name = "multi_label_classification"
    takes_crops = True
    per_label = True

    def predict(self, logits: Tensor) -> Tensor:
        return in_single_precision(logits).sigmoid()

    def logits_of(self, predictions: Tensor) -> Tensor:
        return torch.logit(predictions, eps=1e-6)

    def fit_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        if labels.shape != logits.shape:
            raise self._mismatch(labels, "numbers", logits.shape)
        return labels.to(logits.dtype)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels)

    def signal(self, labels: Tensor, like: Tensor) -> Tensor:
        return labels.to(like.dtype)

    def spread(self, y0: Tensor) -> Tensor:
        # Of how labels share what is predicted, whatever their rate: most images have few of them, and an entropy of
        # yes and no would draw every label towards half of the images.
        mean = _mean_prediction(y0)
        return entropy(mean / mean.sum().clamp_min(torch.finfo(mean.dtype).tiny), -1)

    def watched(self, predictions: Tensor) -> Tensor:
        return (predictions > 0.5).float()

    def drift(self, adapted: Tensor, unadapted: Tensor) -> str | None:
        rate, rate_before = (watched.mean().item() for watched in (adapted, unadapted))
        if abs(rate - rate_before) > MAX_DRIFT * max(rate_before, 1 / self.num_labels):
            return f"{rate:.1%} of the labels are predicted, against {rate_before:.1%} unadapted"
        return None


class Regression(Task):
    """Numbers: logits and labels `(B, num_labels)`, in the units of the labels.

    Predictions and label signals are standardised by `config.target_mean` and `config.target_std`, which the trainer
    measures on the training labels, so that the distance does not depend on the unit.
    """

    name = "regression"
    distances = distances_for(name)
    standardises = True

    def _standardisation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = 0.0 if self.config.target_mean is None else self.config.target_mean
        std = 1.0 if self.config.target_std is None else self.config.target_std
        return like.new_tensor(mean), like.new_tensor(std)

    def predict(self, logits: Tensor) -> Tensor:
        values = in_single_precision(logits)
        mean, std = self._standardisation(values)
        return (values - mean) / std

    def logits_of(self, predictions: Tensor) -> Tensor:
        mean, std = self._standardisation(predictions)
        return predictions * std + mean

    def fit_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        if labels.numel() != logits.numel():
            raise self._mismatch(labels, "numbers", logits.shape)
        return labels.reshape(logits.shape).to(logits.dtype)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(logits, labels)

    def signal(self, labels: Tensor, like: Tensor) -> Tensor:
        return self.predict(labels).to(like.dtype)

    def spread(self, y0: Tensor) -> Tensor:
        return y0.new_zeros(())

    def largest_share(self, predictions: Tensor) -> float:
        return 0.0

    def watched(self, predictions: Tensor) -> Tensor:
        return predictions

    def drift(self, adapted: Tensor, unadapted: Tensor) -> str | None:
        movement = (adapted - unadapted).square().mean().item()
        if movement > MAX_MOVEMENT:
            return f"predictions moved by {movement**0.5:.2g} standard deviations of the training targets"
        return None


class Dense(SingleLabel):
    """One class per pixel: logits `(B, num_labels, h, w)`, labels `(B, H, W)` of class indices.

    Logits are resized to the labels for the loss, as the segmentation models of transformers do; pixels labelled
    `config.semantic_loss_ignore_index` count neither in the loss nor in the label signal, which is 0 there.
    """

    name = SEGMENTATION
    index_dims = 3
    aligns_features = False
    takes_crops = False

    def __init__(self, config: IT3Config):
        super().__init__(config)
        if self.num_labels < 2:
            raise ValueError(
                f"num_labels={self.num_labels}, but segmentation chooses among classes; count the background as one"
            )

    @property
    def num_classes(self) -> int:
        return 1

    def image_classes(self, y0: Tensor) -> Tensor:
        return y0.new_zeros(len(y0), dtype=torch.long)

    def fit_labels(self, labels: Tensor, logits: Tensor) -> Tensor:
        if labels.ndim != 3 or len(labels) != len(logits) or labels.is_floating_point():
            raise ValueError(
                f"labels for semantic segmentation must be integers of shape ({len(logits)}, H, W), got "
                f"{labels.dtype} of shape {tuple(labels.shape)}"
            )
        return labels.long()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        ignored = self.config.semantic_loss_ignore_index
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
            check_label_range(labels[labels != ignored], logits.shape[1], "pixel")
        return F.cross_entropy(resize(logits, labels.shape[-2:]), labels, ignore_index=ignored)

    def signal(self, labels: Tensor, like: Tensor) -> Tensor:
        # Each cell of the logits' grid takes the label of its middle pixel.
        cells = F.interpolate(labels[:, None].float(), like.shape[-2:], mode="nearest-exact")[:, 0].long()
        ignored = cells == self.config.semantic_loss_ignore_index
        one_hot = F.one_hot(cells.masked_fill(ignored, 0), self.num_labels).movedim(-1, 1).to(like.dtype)
        return one_hot.masked_fill(ignored[:, None], 0)

    def for_metrics(self, outputs: Any, labels: Tensor) -> Any:
        # The classes alone, at the labels' size: logits of a whole data set would fill the memory.
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return resize(logits, labels.shape[-2:]).argmax(1)

    def make_embedder(self, channels: int) -> nn.Module:
        return LabelMapEmbedder(self.num_labels, channels)

    def uniform_signal(self, batch_size: int, value: float, device: torch.device) -> Tensor:
        return torch.full((batch_size, self.num_labels, 1, 1), value, device=device)

    def check_signal(self, signal: Tensor, batch_size: int) -> None:
        if signal.ndim != 4 or signal.shape[:2] != (batch_size, self.num_labels):
            raise ValueError(
                f"label_signal must have shape ({batch_size}, {self.num_labels}, h, w), got {tuple(signal.shape)}"
            )


_BY_PROBLEM_TYPE: dict[str | None, type[Task]] = {
    None: SingleLabel,
    **{task.name: task for task in (SingleLabel, MultiLabel, Regression)},
}


def resize(maps: Tensor, size: Any) -> Tensor:
    """Maps `(B, C, h, w)` at another size, bilinearly, as the segmentation models of transformers do."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


def _guess_problem_type(labels: Tensor) -> Literal["single_label_classification", "multi_label_classification"]:
    """What labels mean to a model whose configuration does not say it: integers `(B,)` are class indices."""
    is_index = labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    return "single_label_classification" if is_index else "multi_label_classification"


def check_label_range(labels: Tensor, num_labels: int, noun: str = "image") -> None:
    """Raises a ValueError that names the first label outside `0 .. num_labels - 1`."""
    outside = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(outside):
        position = int(outside[0, 0])
        where = f"of image {position} in the batch" if noun == "image" else f"of a {noun}"
        raise ValueError(
            f"label {labels[position].item()} {where} is out of range: the model has {num_labels} labels, 0 to "
            f"{num_labels - 1}"
        )
