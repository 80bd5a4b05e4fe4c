"""What adaptation minimises: predictions, idempotence distances and the diversity term."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def predict(logits: Tensor, problem_type: str | None) -> Tensor:
    """Predictions of a classifier or regressor, in the form in which they are fed back as label signal.

    Args:
        logits (`Tensor` of shape `(B, num_labels)`).
        problem_type (`str`, *optional*): `"regression"` returns the logits, `"multi_label_classification"` their
            sigmoid, anything else their softmax. At least single precision.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if problem_type == "regression":
        return logits
    if problem_type == "multi_label_classification":
        return logits.sigmoid()
    return logits.softmax(-1)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * _log(probabilities)).sum(-1)


def _neg_dot(y1: Tensor, y0: Tensor) -> Tensor:
    return -(y1 * y0).sum(-1)


def _mse(y1: Tensor, y0: Tensor) -> Tensor:
    return (y1 - y0).square().mean(-1)


def _kl(y1: Tensor, y0: Tensor) -> Tensor:
    return (y1 * (_log(y1) - _log(y0))).sum(-1)


def _cross_entropy(y1: Tensor, y0: Tensor) -> Tensor:
    return -(y1 * _log(y0)).sum(-1)


def _js(y1: Tensor, y0: Tensor) -> Tensor:
    mean = (y1 + y0) / 2
    return _entropy(mean) - (_entropy(y1) + _entropy(y0)) / 2


def _entropy_of_first(y1: Tensor, y0: Tensor) -> Tensor:
    return _entropy(y0)


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "neg_dot": _neg_dot,
    "mse": _mse,
    "js": _js,
    "kl": _kl,
    "cross_entropy": _cross_entropy,
    "entropy": _entropy_of_first,
}


class IdempotenceDistance:
    """D(y1, y0) per image.

    Args:
        distance (`str` or callable): `"neg_dot"`: minus the dot product (torch-ttt's MNIST tutorial); `"mse"`: mean
            squared difference; `"js"`: Jensen-Shannon divergence; `"kl"`: KL(y1 || y0); `"cross_entropy"`: of y0 under
            y1; `"entropy"`: of y0 alone (Tent, Wang et al., ICLR 2021); or a callable of `(y1, y0)` that returns shape
            `(B,)`, or a scalar, in which case it is called image by image.
        problem_type (`str`, *optional*): as in the model's config; multi-label predictions are compared label by
            label, each as a distribution over yes and no.

    Raises:
        ValueError: if a distance between distributions is asked for in regression.
    """

    def __init__(self, distance: str | Callable[[Tensor, Tensor], Tensor], problem_type: str | None = None):
        if problem_type == "regression" and distance not in ("mse", "neg_dot") and not callable(distance):
            raise ValueError(
                f"distance={distance!r} compares probability distributions, which a regression model does not "
                "predict; use 'mse' or a callable"
            )
        self.function = distance if callable(distance) else _DISTANCES[distance]
        self.name = distance if isinstance(distance, str) else None
        self.per_label = problem_type == "multi_label_classification" and self.name not in (None, "mse")

    def __call__(self, y1: Tensor, y0: Tensor) -> Tensor:
        """Distances of shape `(B,)` between predictions of shape `(B, num_labels)`."""
        if self.per_label:
            y1, y0 = (torch.stack([y, 1 - y], -1) for y in (y1, y0))
            return self.function(y1, y0).mean(-1)
        distances = self.function(y1, y0)
        if self.name is None:
            if distances.ndim == 0:
                return torch.stack([self.function(y1[i : i + 1], y0[i : i + 1]) for i in range(len(y0))])
            if distances.shape != y0.shape[:1]:
                raise ValueError(
                    f"the distance callable must return a scalar or one value per image, shape {tuple(y0.shape[:1])}, "
                    f"got shape {tuple(distances.shape)}"
                )
        return distances


def negative_diversity(y0: Tensor, problem_type: str | None) -> Tensor:
    """Negative entropy of the mean prediction of `(B, num_labels)`, a scalar: low where the batch uses many classes.

    Source: the information maximisation loss of SHOT (Liang et al., ICML 2020). 0 in regression.
    """
    if problem_type == "regression":
        return y0.new_zeros(())
    mean = y0.mean(0)
    if problem_type == "multi_label_classification":
        return -_entropy(torch.stack([mean, 1 - mean], -1)).mean()
    return -_entropy(mean)


def largest_class_share(predictions: Tensor) -> float:
    """Share of the most frequent class among the predictions `(B, num_labels)`, between 1 / num_labels and 1."""
    counts = torch.bincount(predictions.argmax(-1), minlength=predictions.shape[-1])
    return counts.max().item() / max(len(predictions), 1)


def mean_prediction_logits(predictions: Tensor, problem_type: str | None) -> Tensor:
    """Logits whose prediction is the given one: the inverse of [`predict`] up to a constant."""
    if problem_type == "regression":
        return predictions
    if problem_type == "multi_label_classification":
        return torch.logit(predictions, eps=1e-6)
    return _log(predictions)


def one_hot_signal(labels: Tensor, num_labels: int, problem_type: str | None, dtype: torch.dtype) -> Tensor:
    """The label signal `(B, num_labels)` of true labels: one-hot for class indices, else the labels themselves."""
    if problem_type == "single_label_classification":
        return F.one_hot(labels, num_labels).to(dtype)
    return labels.reshape(len(labels), num_labels).to(dtype)
