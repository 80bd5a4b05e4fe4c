"""Error under corruption, and what adaptation gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._checks import as_flags, check_same_shape


SeverityErrors = Mapping[int, float] | Sequence[float]
"""Error rates by severity: `{1: 0.1, 3: 0.4}`, or a sequence for severities 1, 2, ..."""


def _by_severity(errors: SeverityErrors, name: str) -> dict[int, float]:
    by_severity = dict(errors) if isinstance(errors, Mapping) else dict(enumerate(errors, start=1))
    if not by_severity:
        raise ValueError(f"{name} is empty; expected an error rate for at least one severity.")
    for severity, error in by_severity.items():
        if not 0.0 <= error <= 1.0:
            raise ValueError(f"{name} has error {error} at severity {severity}; expected a fraction from 0 to 1.")
    return by_severity


def mean_corruption_error(
    errors: Mapping[str, SeverityErrors], reference_errors: Mapping[str, SeverityErrors] | None = None
) -> float:
    """Mean corruption error (mCE).

    With a reference, the error of each corruption is summed over severities and divided by the reference model's sum;
    mCE is the mean of these ratios over corruptions. Paper: Hendrycks and Dietterich, "Benchmarking Neural Network
    Robustness to Common Corruptions and Perturbations", ICLR 2019 (section 4.1), where the reference is AlexNet and
    the ratio is given in percent.

    Args:
        errors (`dict[str, dict[int, float]]` or `dict[str, list[float]]`):
            Error rates (fractions in [0, 1]) by corruption, then severity; a list is severities 1, 2, ...
        reference_errors (same form as `errors`, *optional*):
            Error rates of the reference model: at least the corruptions of `errors`, each at the same severities.
            `None` gives the unnormalised mean: over severities, then over corruptions.

    Returns:
        `float`: with a reference a ratio, 0 or more, where 1.0 is as bad as the reference (multiply by 100 for the
        paper's unit); without one a fraction in [0, 1].

    Raises:
        ValueError: if `errors` is empty, an error is not a fraction, or the reference lacks a corruption or a
            severity, or makes no error at all on a corruption (the ratio is then undefined).

    Example:
        >>> errors = {"fog": [0.1, 0.3], "snow": [0.2, 0.2]}
        >>> round(mean_corruption_error(errors, {"fog": [0.4, 0.4], "snow": [0.1, 0.3]}), 6)
        0.75
        >>> round(mean_corruption_error(errors), 6)
        0.2
    """
    if not errors:
        raise ValueError(f"errors is empty ({errors!r}); expected error rates for at least one corruption.")
    scores = []
    for corruption, severities in errors.items():
        own = _by_severity(severities, f"errors[{corruption!r}]")
        if reference_errors is None:
            scores.append(sum(own.values()) / len(own))
            continue
        reference = _same_severities(corruption, own, reference_errors)
        if sum(reference.values()) == 0:
            raise ValueError(
                f"reference_errors[{corruption!r}] are all 0, so the ratio to the reference is undefined. "
                "Leave that corruption out, or pass reference_errors=None."
            )
        scores.append(sum(own.values()) / sum(reference.values()))
    return float(sum(scores) / len(scores))


def _same_severities(
    corruption: str, own: dict[int, float], reference_errors: Mapping[str, SeverityErrors]
) -> dict[int, float]:
    """The reference's errors on a corruption, at the same severities."""
    if corruption not in reference_errors:
        raise ValueError(
            f"reference_errors has no corruption {corruption!r}; it has {', '.join(sorted(reference_errors))}."
        )
    reference = _by_severity(reference_errors[corruption], f"reference_errors[{corruption!r}]")
    if own.keys() != reference.keys():
        raise ValueError(
            f"errors[{corruption!r}] has severities {sorted(own)} but reference_errors[{corruption!r}] has "
            f"{sorted(reference)}."
        )
    return reference


def relative_mean_corruption_error(
    errors: Mapping[str, SeverityErrors],
    clean_error: float,
    reference_errors: Mapping[str, SeverityErrors],
    reference_clean_error: float,
) -> float:
    """Relative mean corruption error (relative mCE): how much corruptions add to the clean error.

    As [`mean_corruption_error`], but with the error on clean images subtracted from each error, of the model and of
    the reference (Hendrycks and Dietterich, ICLR 2019, section 4.1).

    Args:
        errors, reference_errors: as [`mean_corruption_error`] takes them.
        clean_error, reference_clean_error (`float`): error rates on uncorrupted images, fractions in [0, 1].

    Returns:
        `float`: a ratio, where 1.0 is to lose as much as the reference; negative if corruption helps one of them.

    Raises:
        ValueError: as [`mean_corruption_error`], and if the reference loses nothing under a corruption.

    Example:
        >>> round(relative_mean_corruption_error({"fog": [0.2, 0.4]}, 0.1, {"fog": [0.6, 0.8]}, 0.4), 6)
        0.666667
    """
    if not errors:
        raise ValueError(f"errors is empty ({errors!r}); expected error rates for at least one corruption.")
    for name, error in (("clean_error", clean_error), ("reference_clean_error", reference_clean_error)):
        if not 0.0 <= error <= 1.0:
            raise ValueError(f"{name}={error} must be a fraction from 0 to 1.")
    scores = []
    for corruption, severities in errors.items():
        own = _by_severity(severities, f"errors[{corruption!r}]")
        reference = _same_severities(corruption, own, reference_errors)
        added = sum(error - reference_clean_error for error in reference.values())
        if abs(added) < 1e-12:
            raise ValueError(
                f"reference_errors[{corruption!r}] are on average reference_clean_error, so the ratio to what the "
                "reference loses is undefined. Leave that corruption out."
            )
        scores.append(sum(error - clean_error for error in own.values()) / added)
    return float(sum(scores) / len(scores))


@dataclass(frozen=True)
class PairedGain:
    """A metric after minus the metric before, on the same images, with a bootstrap interval.

    Attributes:
        gain (`float`): Fraction in [-1, 1]: of accuracy, 0.05 is 5 percentage points more images right.
        lower (`float`): Lower end of the interval, same unit.
        upper (`float`): Upper end of the interval, same unit.
        confidence (`float`): Confidence of the interval, for instance 0.95.
        num_images (`int`): Number of different images.
        num_resamples (`int`): Number of bootstrap resamples.
    """

    gain: float
    lower: float
    upper: float
    confidence: float
    num_images: int
    num_resamples: int


def accuracy_gain(
    correct_before: Any,
    correct_after: Any,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedGain:
    """Accuracy gain on the same images, with a paired bootstrap percentile interval over images.

    Resampling images with replacement keeps each image's pair of outcomes together (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13). Only how many images improve by how much enters the gain, so
    resamples are drawn exactly from the multinomial distribution of those counts: cost and memory grow with
    `num_resamples`, hardly with the number of images.

    Args:
        correct_before (array-like of bool, shape (N,) or (num_conditions, N)):
            Whether each image was classified correctly before. With two dimensions, row c holds the same N images
            under condition c (a corruption at a severity, say); the gain is the mean over conditions, and an image
            is drawn with all its conditions, since these are not independent.
        correct_after (array-like of bool, same shape): The same after adaptation.
        num_resamples (`int`, defaults to 10000): Number of bootstrap resamples, at least 1.
        confidence (`float`, defaults to 0.95): Confidence of the interval, strictly between 0 and 1.
        seed (`int`, defaults to 0): Seed of the resampling; equal seeds give equal intervals.

    Returns:
        [`PairedGain`]: gain and interval as fractions. If no image changed, the interval is [0, 0].

    Raises:
        ValueError: if an input is empty or neither 0 nor 1 somewhere, shapes differ, or an option is out of range.

    Example:
        >>> result = accuracy_gain([True] * 50 + [False] * 50, [True] * 70 + [False] * 30)
        >>> round(result.gain, 6), result.lower > 0, result.upper < 0.35
        (0.2, True, True)
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1.")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} must be strictly between 0 and 1.")
    ndim = 2 if np.ndim(correct_before) == 2 else 1
    before = as_flags(correct_before, "correct_before", ndim)
    after = as_flags(correct_after, "correct_after", np.ndim(correct_after) or 1)
    check_same_shape(before, "correct_before", after, "correct_after")
    before, after = np.atleast_2d(before), np.atleast_2d(after)
    num_conditions, num_images = before.shape
    per_image = after.sum(axis=0, dtype=np.int64) - before.sum(axis=0, dtype=np.int64)
    outcomes, counts = np.unique(per_image, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(num_images, counts / num_images, size=num_resamples)
    gains = draws @ outcomes / (num_images * num_conditions)
    lower, upper = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedGain(
        gain=float(per_image.sum() / (num_images * num_conditions)),
        lower=float(lower),
        upper=float(upper),
        confidence=float(confidence),
        num_images=num_images,
        num_resamples=int(num_resamples),
    )
