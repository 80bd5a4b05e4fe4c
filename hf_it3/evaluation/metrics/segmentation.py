"""Mean intersection over union and pixel accuracy of segmentation maps."""

from typing import Any

import numpy as np

from ._checks import check_same_shape


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
    intersection = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    occurs = union > 0
    return float((intersection[occurs] / union[occurs]).mean()) if occurs.any() else float("nan")


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
