"""What is kept of the answers to images, and which figures they give, for each task that is evaluated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..it3.task_it3 import Dense, SingleLabel, Task, resize
from .metrics import (
    PairedGain,
    accuracy,
    accuracy_gain,
    confidence_calibration_error,
    iou_of_counts,
    mean_iou_gain,
)


logger = logging.get_logger(__name__)


@dataclass
class Answers:
    """Answers of one method to N images, each field an array whose first axis is of the images.

    Attributes:
        adapted: whether the answer comes from adapted weights, shape (N,).
    """

    adapted: np.ndarray

    # The headline figure, and how it is called in tables and plots.
    metric: ClassVar[str]
    noun: ClassVar[str]
    # All figures of `scores`.
    figures: ClassVar[tuple[str, ...]]

    @classmethod
    def truth(cls, labels: Tensor, num_labels: int, ignore_index: int) -> np.ndarray:
        """What is kept of true labels, with the images on the first axis."""
        raise NotImplementedError

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, ignore_index: int) -> dict[str, np.ndarray]:
        """The fields, `adapted` aside, from logits `(B, num_labels, ...)` in double precision and their labels."""
        raise NotImplementedError

    def scores(self, truth: np.ndarray) -> dict[str, float]:
        """The figures of these answers."""
        raise NotImplementedError

    def correct(self, truth: np.ndarray) -> np.ndarray | None:
        """Whether each image is answered correctly, shape (N,) of bool; `None` where an answer has parts."""
        return None

    def counts(self, truth: np.ndarray) -> tuple[int, int]:
        """Numbers of right answers, and of answers."""
        raise NotImplementedError

    @classmethod
    def gain(
        cls,
        before: Sequence["Answers"],
        after: Sequence["Answers"],
        truths: Sequence[np.ndarray],
        same_images: bool,
    ) -> PairedGain:
        """The gain in the headline figure, with its interval over images.

        Args:
            before, after, truths: one entry per condition or run.
            same_images: whether all entries are of the same images, which are then drawn together.
        """
        raise NotImplementedError


@dataclass
class ClassAnswers(Answers):
    """One class per image; each field has the shape (N,).

    Attributes:
        prediction: class index.
        confidence: largest probability.
        loss: negative log-likelihood of the label, in nats.
        brier: squared distance between probabilities and one-hot label, summed over classes.
    """

    prediction: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    brier: np.ndarray

    metric = "accuracy"
    noun = "accuracy"
    figures = (
        "accuracy",
        "error_rate",
        "expected_calibration_error",
        "negative_log_likelihood",
        "brier_score",
        "adapted_share",
    )

    @classmethod
    def truth(cls, labels: Tensor, num_labels: int, ignore_index: int) -> np.ndarray:
        return labels.numpy()

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, ignore_index: int) -> dict[str, np.ndarray]:
        log_probabilities = torch.log_softmax(logits, -1)
        # Of an image without an answer, whatever is wrong with it: a wrong class, and all of them equally likely.
        unknown = log_probabilities.isnan().any(-1)
        if unknown.any():
            logger.warning(f"{int(unknown.sum())} of {len(logits)} images have no finite logits; they count as wrong")
            log_probabilities = log_probabilities.masked_fill(unknown[:, None], -math.log(logits.shape[1]))
        probabilities = log_probabilities.exp()
        of_label = probabilities.gather(1, labels[:, None]).squeeze(1)
        return {
            "prediction": logits.argmax(-1).where(~unknown, (labels + 1) % logits.shape[1]).numpy(),
            "confidence": probabilities.amax(-1).float().numpy(),
            "loss": -log_probabilities.gather(1, labels[:, None]).squeeze(1).float().numpy(),
            "brier": (probabilities.square().sum(-1) - 2 * of_label + 1).float().numpy(),
        }

    def scores(self, truth: np.ndarray) -> dict[str, float]:
        value = accuracy(self.prediction, truth)
        return {
            "accuracy": value,
            "error_rate": 1 - value,
            "expected_calibration_error": confidence_calibration_error(self.confidence, self.correct(truth)),
            "negative_log_likelihood": float(self.loss.mean(dtype=np.float64)),
            "brier_score": float(self.brier.mean(dtype=np.float64)),
            "adapted_share": float(self.adapted.mean()),
        }

    def correct(self, truth: np.ndarray) -> np.ndarray:
        return self.prediction == truth

    def counts(self, truth: np.ndarray) -> tuple[int, int]:
        return int(self.correct(truth).sum()), len(truth)

    @classmethod
    def gain(
        cls,
        before: Sequence[Any],
        after: Sequence[Any],
        truths: Sequence[np.ndarray],
        same_images: bool,
    ) -> PairedGain:
        join = np.stack if same_images else np.concatenate
        right = [
            join([answers.correct(truth) for answers, truth in zip(side, truths, strict=True)])
            for side in (before, after)
        ]
        return accuracy_gain(right[0], right[1])


@dataclass
class MapAnswers(Answers):
    """One class per pixel, kept as numbers of pixels of each of the K classes; pixels that do not count are left out.

    Attributes:
        intersection: pixels of the class that are predicted as it, shape (N, K).
        predicted: pixels predicted as the class, shape (N, K).
    """

    intersection: np.ndarray
    predicted: np.ndarray

    metric = "mean_iou"
    noun = "mean IoU"
    figures = ("mean_iou", "pixel_accuracy", "adapted_share")

    @classmethod
    def truth(cls, labels: Tensor, num_labels: int, ignore_index: int) -> np.ndarray:
        return _count(labels, labels != ignore_index, num_labels)

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, ignore_index: int) -> dict[str, np.ndarray]:
        predictions = resize(logits, labels.shape[-2:]).argmax(1)
        counted = labels != ignore_index
        right = counted & (predictions == labels)
        num_labels = logits.shape[1]
        return {
            "intersection": _count(predictions, right, num_labels),
            "predicted": _count(predictions, counted, num_labels),
        }

    def scores(self, truth: np.ndarray) -> dict[str, float]:
        value = float(iou_of_counts(*(counts.sum(0) for counts in (self.intersection, self.predicted, truth))))
        right, seen = self.counts(truth)
        return {
            "mean_iou": value,
            "pixel_accuracy": right / seen if seen else float("nan"),
            "adapted_share": float(self.adapted.mean()),
        }

    def counts(self, truth: np.ndarray) -> tuple[int, int]:
        return int(self.intersection.sum()), int(truth.sum())

    @classmethod
    def gain(
        cls,
        before: Sequence[Any],
        after: Sequence[Any],
        truths: Sequence[np.ndarray],
        same_images: bool,
    ) -> PairedGain:
        sides = [[(one.intersection, one.predicted) for one in side] for side in (before, after)]
        return mean_iou_gain(sides[0], sides[1], truths, same_images)


def _count(classes: Tensor, chosen: Tensor, num_labels: int) -> np.ndarray:
    """Number of chosen pixels of each class: `(B, H, W)` to `(B, num_labels)`."""
    # Pixels that are not chosen go to a class of their own, which is cut off.
    indices = torch.where(chosen, classes, num_labels).flatten(1)
    counts = torch.zeros(len(indices), num_labels + 1, dtype=torch.int64)
    return counts.scatter_add_(1, indices, torch.ones_like(indices))[:, :num_labels].numpy()


ANSWERS: tuple[type[Answers], ...] = (ClassAnswers, MapAnswers)
_OF_TASK: dict[type[Task], type[Answers]] = {SingleLabel: ClassAnswers, Dense: MapAnswers}


def answers_of(task: Task, name: str) -> type[Answers]:
    """What is kept of the answers of a task's models.

    Raises:
        ValueError: for a task that robustness is not measured for; it begins with the model's name.
    """
    kind = _OF_TASK.get(type(task))
    if kind is None:
        raise ValueError(
            f"{name} has problem_type={task.name!r}; robustness is measured by accuracy, for models of one class per "
            "image, and by mean IoU, for models of one class per pixel"
        )
    return kind
