"""Mean intersection over union and pixel accuracy of segmentation maps."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._checks import check_same_shape
from .robustness import PairedGain


# What `Trainer` fills up with where it joins maps of different sizes.
_FILLING = -100


def confusion_matrix(predictions: Any, labels: Any, num_labels: int, ignore_index: int = 255) -> np.ndarray:
    """Number of pixels of each class (row) that are predicted as each class (column).

    Args:
        predictions (array-like of int, shape (N, H, W)): Predicted classes.
        labels (array-like of int, shape (N, H, W)): True classes.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, defaults to 255): Label of pixels that do not count.

    Returns:
        `np.ndarray` of int64, shape (num_labels, num_labels).

    Raises:
        ValueError: if shapes do not match, there is no pixel, or a class is out of range.

    Example:
        >>> confusion_matrix([[[0, 1], [1, 1]]], [[[0, 0], [1, 255]]], num_labels=2).tolist()
        [[1, 1], [0, 1]]
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    check_same_shape(predictions, "predictions", labels, "labels")
    if not labels.size:
        raise ValueError(f"labels is empty (shape {labels.shape}); the metric needs at least one image.")
    counted = (labels != ignore_index) & (labels != _FILLING)
    true, predicted = labels[counted].astype(np.int64), predictions[counted].astype(np.int64)
    for name, classes in (("labels", true), ("predictions", predicted)):
        if classes.size and not (classes.min() >= 0 and classes.max() < num_labels):
            raise ValueError(
                f"{name} has classes from {classes.min()} to {classes.max()}; expected 0 to {num_labels - 1}."
            )
    counts = np.bincount(num_labels * true + predicted, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def mean_iou(confusion: np.ndarray) -> float:
    """Intersection over union of each class over all images, averaged over the classes that occur.

    As the metric `mean_iou` of the library `evaluate` and of mmsegmentation: intersections and unions are summed over
    the images first, and a class that is neither a label nor predicted anywhere is left out.

    Args:
        confusion (`np.ndarray`, shape (num_labels, num_labels)): see [`confusion_matrix`].

    Returns:
        `float`: a fraction in [0, 1]; NaN where no pixel counts.

    Example:
        >>> mean_iou(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]]))
        0.5
    """
    return float(iou_of_counts(np.diagonal(confusion), confusion.sum(0), confusion.sum(1)))


def iou_of_counts(intersection: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """[`mean_iou`] from numbers of pixels of each class, on the last axis.

    Args:
        intersection (`np.ndarray`, shape (..., num_labels)): pixels of the class that are predicted as it.
        predicted (`np.ndarray`, same shape): pixels predicted as the class.
        labelled (`np.ndarray`, same shape): pixels of the class.

    Returns:
        `np.ndarray` of shape (...): fractions in [0, 1]; NaN where no pixel counts.
    """
    union = predicted + labelled - intersection
    occurs = union > 0
    shares = np.where(occurs, intersection / np.where(occurs, union, 1), 0.0)
    num_classes = occurs.sum(-1)
    return np.where(num_classes > 0, shares.sum(-1) / np.maximum(num_classes, 1), np.nan)


def mean_iou_gain(
    before: Sequence[tuple[np.ndarray, np.ndarray]],
    after: Sequence[tuple[np.ndarray, np.ndarray]],
    labelled: Sequence[np.ndarray],
    same_images: bool = True,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedGain:
    """Gain in mean IoU on the same images, with a paired bootstrap percentile interval over images.

    As [`accuracy_gain`], with the mean IoU of each resample's summed pixels in place of accuracy; the gain is the mean
    over conditions.

    Args:
        before, after (list of pairs): of each condition the arrays `intersection` and `predicted` of
            [`iou_of_counts`], one row per image, shape (N, num_labels).
        labelled (list of `np.ndarray`, shape (N, num_labels)): the third array of each condition.
        same_images (`bool`): whether the conditions are of the same N images, which are then drawn together.
        num_resamples (`int`, defaults to 1000): Number of bootstrap resamples.
        confidence (`float`, defaults to 0.95): Confidence of the interval.
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        [`PairedGain`]: gain and interval as fractions.
    """
    gain, gains = 0.0, np.zeros(num_resamples)
    draws: np.ndarray | None = None
    random = np.random.default_rng(seed)
    for old, new, truth in zip(before, after, labelled, strict=True):
        num_images = len(truth)
        if draws is None or not same_images:
            draws = random.multinomial(num_images, np.full(num_images, 1 / num_images), num_resamples).astype(float)
        for sign, (intersection, predicted) in ((-1, old), (1, new)):
            counts = (intersection, predicted, truth)
            gain += sign * float(iou_of_counts(*(one.sum(0) for one in counts))) / len(labelled)
            gains += sign * iou_of_counts(*(draws @ one for one in counts)) / len(labelled)
    lower, upper = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedGain(gain, float(lower), float(upper), confidence, max(map(len, labelled)), num_resamples)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of pixels whose predicted class is the label; `overall_accuracy` of `evaluate`'s `mean_iou`.

    Args:
        confusion (`np.ndarray`, shape (num_labels, num_labels)): see [`confusion_matrix`].

    Returns:
        `float`: a fraction in [0, 1]; NaN where no pixel counts.

    Example:
        >>> pixel_accuracy(np.array([[2, 1], [0, 1]]))
        0.75
    """
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def segmentation_metrics(eval_prediction: Any, num_labels: int, ignore_index: int = 255) -> dict[str, float]:
    """Mean IoU and pixel accuracy from what [`~transformers.Trainer`] hands to its `compute_metrics`.

    Args:
        eval_prediction ([`~transformers.EvalPrediction`]): `predictions` are classes of shape (N, H, W), `label_ids`
            too.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, defaults to 255): Label of pixels that do not count.

    Returns:
        `dict[str, float]`: `mean_iou` and `pixel_accuracy`, fractions.

    Example:
        >>> from types import SimpleNamespace
        >>> outputs = SimpleNamespace(predictions=[[[0, 1], [1, 1]]], label_ids=[[[0, 0], [1, 1]]])
        >>> {name: round(value, 4) for name, value in segmentation_metrics(outputs, num_labels=2).items()}
        {'mean_iou': 0.5833, 'pixel_accuracy': 0.75}
    """
    confusion = confusion_matrix(eval_prediction.predictions, eval_prediction.label_ids, num_labels, ignore_index)
    return {"mean_iou": mean_iou(confusion), "pixel_accuracy": pixel_accuracy(confusion)}
