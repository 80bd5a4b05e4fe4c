"""The losses that an idempotent classifier is trained with, for either pass."""

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The loss of logits `(B, num_labels)` against labels, a scalar: cross-entropy, or binary cross-entropy or mean
    squared error where the problem type asks for it.

    Raises:
        ValueError: for a class index out of range.
    """
    if problem_type == "regression":
        return F.mse_loss(logits, labels.reshape(logits.shape).to(logits.dtype))
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
        check_label_range(labels, logits.shape[-1])
    return F.cross_entropy(logits, labels.long())


def check_label_range(labels: Tensor, num_labels: int) -> None:
    """Raises a ValueError that names the first label outside `0 .. num_labels - 1`."""
    outside = ((labels < 0) | (labels >= num_labels)).nonzero()
    if len(outside):
        position = int(outside[0, 0])
        raise ValueError(
            f"label {labels[position].item()} of image {position} in the batch is out of range: the model has "
            f"{num_labels} labels, 0 to {num_labels - 1}"
        )
