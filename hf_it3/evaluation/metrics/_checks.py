"""Input checks shared by the metrics: each returns a clean array or raises a `ValueError` that names the bad value."""

from typing import Any

import numpy as np


PROBABILITY_SUM_TOLERANCE = 1e-2
"""How far a row of probabilities may be from summing to 1: wide enough for a softmax rounded to bfloat16."""


def as_array(values: Any, name: str, ndim: int) -> np.ndarray:
    """Return `values` as a non-empty numeric array with `ndim` dimensions."""
    if hasattr(values, "detach"):  # a torch tensor, on any device; numpy has no bfloat16
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    array = np.asarray(values)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; expected {ndim} dimension{'s' if ndim > 1 else ''}.")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}); the metric needs at least one image.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; expected numbers.")
    return array


def reject(bad: np.ndarray, values: np.ndarray, name: str, expected: str) -> None:
    """Raise a `ValueError` with the first value of `values` where `bad` is true, and its position."""
    if bad.any():
        position = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        where = ", ".join(str(i) for i in position)
        raise ValueError(f"{name}[{where}] is {values[position].item()}; expected {expected}.")


def as_labels(values: Any, name: str, num_labels: int | None = None) -> np.ndarray:
    """Return class indices of shape (N,) as int64, each in [0, num_labels)."""
    array = as_array(values, name, ndim=1)
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            reject(~(np.isfinite(array) & (array == np.floor(array))), array, name, "an integer class index")
    if num_labels is None:
        reject(array < 0, array, name, "a class index of 0 or more")
    else:
        reject((array < 0) | (array >= num_labels), array, name, f"a class index from 0 to {num_labels - 1}")
    return array.astype(np.int64)


def as_logits(values: Any, name: str) -> np.ndarray:
    """Return logits of shape (N, num_labels) as float64; minus infinity (a class ruled out) is allowed."""
    array = as_array(values, name, ndim=2).astype(np.float64)
    reject(np.isnan(array) | (array == np.inf), array, name, "a number below infinity")
    impossible = np.isneginf(array).all(axis=1)
    if impossible.any():
        raise ValueError(f"{name}[{int(np.argmax(impossible))}] rules out every class: all its logits are -inf.")
    return array


def as_probabilities(values: Any, name: str) -> np.ndarray:
    """Return probabilities of shape (N, num_labels) as float64, whose rows sum to 1."""
    array = as_array(values, name, ndim=2).astype(np.float64)
    # A float16 or bfloat16 softmax rounds to 1 at most; the slack is for sums and averages of several of them.
    reject(~((array >= 0) & (array <= 1 + 1e-6)), array, name, "a probability from 0 to 1")
    sums = array.sum(axis=1)
    wrong = np.abs(sums - 1) > PROBABILITY_SUM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"{name}[{row}] sums to {sums[row]:.6g}; expected 1. Apply a softmax if these are logits.")
    return array


def as_scores(values: Any, name: str) -> np.ndarray:
    """Return real scores of shape (N,) as float64; infinities are allowed since they can be ranked, NaN is not."""
    array = as_array(values, name, ndim=1).astype(np.float64)
    reject(np.isnan(array), array, name, "a score that can be ranked")
    return array


def as_flags(values: Any, name: str, ndim: int = 1) -> np.ndarray:
    """Return booleans; numbers are taken if each is 0 or 1."""
    array = as_array(values, name, ndim)
    reject((array != 0) & (array != 1), array, name, "True or False (1 or 0)")
    return array.astype(bool)


def check_same_shape(first: np.ndarray, first_name: str, second: np.ndarray, second_name: str) -> None:
    """Raise a `ValueError` naming both shapes unless they are equal."""
    if first.shape != second.shape:
        raise ValueError(f"{first_name} has shape {first.shape} but {second_name} has shape {second.shape}.")


def check_same_length(first: np.ndarray, first_name: str, second: np.ndarray, second_name: str) -> None:
    """Raise a `ValueError` naming both shapes unless both describe the same number of images."""
    if len(first) != len(second):
        raise ValueError(
            f"{first_name} has shape {first.shape} but {second_name} has shape {second.shape}: "
            f"{len(first)} images against {len(second)}."
        )
