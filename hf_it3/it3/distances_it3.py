"""The distances D(y1, y0) by name. To add one, add a function to the table near the end."""

from collections.abc import Callable

import torch
from torch import Tensor


def log(probabilities: Tensor) -> Tensor:
    """The logarithm, finite where a probability is 0."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def entropy(probabilities: Tensor, axis: int = 1) -> Tensor:
    """Entropy over the class axis, in nats."""
    return -(probabilities * log(probabilities)).sum(axis)


def _neg_dot(y1: Tensor, y0: Tensor) -> Tensor:
    return -(y1 * y0).sum(1)


def _mse(y1: Tensor, y0: Tensor) -> Tensor:
    return (y1 - y0).square().mean(1)


def _kl(y1: Tensor, y0: Tensor) -> Tensor:
    return (y1 * (log(y1) - log(y0))).sum(1)


def _cross_entropy(y1: Tensor, y0: Tensor) -> Tensor:
    return -(y1 * log(y0)).sum(1)


def _js(y1: Tensor, y0: Tensor) -> Tensor:
    return entropy((y1 + y0) / 2) - (entropy(y1) + entropy(y0)) / 2


def _entropy_of_first(y1: Tensor, y0: Tensor) -> Tensor:
    return entropy(y0)


# Of predictions `(B, num_labels, ...)`, without the class axis: `(B, ...)`.
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "neg_dot": _neg_dot,
    "mse": _mse,
    "js": _js,
    "kl": _kl,
    "cross_entropy": _cross_entropy,
    "entropy": _entropy_of_first,
}
# Of numbers: bounded below, whatever the size of the predictions; the others compare distributions.
_OF_NUMBERS = ("mse",)


def distances_for(problem_type: str | None) -> tuple[str, ...]:
    """The distances that compare predictions of a problem type, the default first."""
    return _OF_NUMBERS if problem_type == "regression" else tuple(DISTANCES)
