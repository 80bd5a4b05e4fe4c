"""The losses that an idempotent classifier is trained with, for either pass."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def guess_problem_type(labels: Tensor) -> Literal["single_label_classification", "multi_label_classification"]:
    """What labels mean to a model whose configuration does not say it: integers `(B,)` are class indices."""
    is_index = labels.ndim == 1 and not labels.is_floating_point() and labels.dtype != torch.bool
    return "single_label_classification" if is_index else "multi_label_classification"


def fit_labels(labels: Tensor, logits: Tensor, problem_type: str) -> Tensor:
    """Labels as the losses take them: class indices `(B,)` in int64, or values `(B, num_labels)` in the logits' dtype.

    Raises:
        ValueError: if they do not fit logits `(B, num_labels)`.
    """
    is_index = problem_type == "single_label_classification"
    shape = logits.shape[:1] if is_index else logits.shape
    if problem_type == "regression" and labels.numel() == logits.numel():
        labels = labels.reshape(shape)
    if labels.shape != shape or (is_index and labels.is_floating_point()):
        raise ValueError(
            f"labels for problem_type={problem_type!r} must be {'integers' if is_index else 'numbers'} of shape "
            f"{tuple(shape)}, got {labels.dtype} of shape {tuple(labels.shape)}; set config.problem_type if they mean "
            "something else"
        )
    return labels.to(torch.long if is_index else logits.dtype)


def supervised_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The loss of logits `(B, num_labels)` against labels, a scalar: cross-entropy, or binary cross-entropy or mean
    squared error where the problem type asks for it. Labels as [`fit_labels`] returns them.

    Raises:
        ValueError: for a class index out of range.
    """
    if problem_type == "regression":
        return F.mse_loss(logits, labels)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
        check_label_range(labels, logits.shape[-1])
    return F.cross_entropy(logits, labels)


def check_label_range(labels: Tensor, num_labels: int) -> None:
    """Raises a ValueError that names the first label outside `0 .. num_labels - 1`."""
    outside = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(outside):
        position = int(outside[0, 0])
        raise ValueError(
            f"label {labels[position].item()} of image {position} in the batch is out of range: the model has "
            f"{num_labels} labels, 0 to {num_labels - 1}"
        )
