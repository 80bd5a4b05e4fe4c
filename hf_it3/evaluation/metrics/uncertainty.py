"""How well a score, such as the idempotence distance, tells errors or shifted images apart."""

from typing import Any, NamedTuple

import numpy as np

from ._checks import as_flags, as_scores, check_same_length


def auroc(scores: Any, is_positive: Any) -> float:
    """Area under the ROC curve: the chance that a positive image scores above a negative one, ties counting half.

    scikit-learn's `roc_auc_score`, which infinities are ranked for. For error detection the scores are idempotence
    distances and an image is positive if misclassified; for shift detection, if it is corrupted.

    Args:
        scores (array-like, shape (N,)): Higher means more likely positive; any real unit, infinities included.
        is_positive (array-like of bool, shape (N,)): Whether each image is positive.

    Returns:
        `float`: in [0, 1], 0.5 for scores that say nothing; `nan` if all images are positive or all are negative (no
        errors, for instance), where the curve is not defined.

    Raises:
        ValueError: if an input is empty, lengths differ, a score is NaN, or a flag is neither 0 nor 1.

    Example:
        >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
        0.875
        >>> auroc([0.1, 0.4], [False, False])
        nan
    """
    from sklearn.metrics import roc_auc_score

    scores, is_positive = as_scores(scores, "scores"), as_flags(is_positive, "is_positive")
    check_same_length(scores, "scores", is_positive, "is_positive")
    if is_positive.all() or not is_positive.any():
        return float("nan")
    # Only the order counts; ranks have no infinities, which `roc_auc_score` refuses.
    _, ranks = np.unique(scores, return_inverse=True)
    return float(roc_auc_score(is_positive, ranks))


class RiskCoverage(NamedTuple):
    """A risk-coverage curve with one point per distinct uncertainty, K <= N points in all.

    Attributes:
        coverage (`np.ndarray`, shape (K,)): Share of images accepted, rising, in (0, 1]; the last is 1.
        risk (`np.ndarray`, shape (K,)): Error rate among the accepted images, in [0, 1]; the last is the error rate.
        thresholds (`np.ndarray`, shape (K,)): Images with at most this uncertainty are accepted; rising.
    """

    coverage: np.ndarray
    risk: np.ndarray
    thresholds: np.ndarray


def risk_coverage(uncertainty: Any, correct: Any) -> RiskCoverage:
    """Risk-coverage curve: error rate among the images kept when the most uncertain ones are rejected.

    Paper: Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017. A threshold cannot
    separate images of equal uncertainty, so these enter together and the order of images never matters.

    Args:
        uncertainty (array-like, shape (N,)): For instance idempotence distances; higher is rejected earlier.
        correct (array-like of bool, shape (N,)): Whether each image is classified correctly.

    Returns:
        [`RiskCoverage`]: `coverage`, `risk` and `thresholds`, as fractions in order of rising uncertainty.

    Raises:
        ValueError: if an input is empty, lengths differ, an uncertainty is NaN, or a flag is neither 0 nor 1.

    Example:
        >>> coverage, risk, thresholds = risk_coverage([0.1, 0.2, 0.2, 0.9], [True, True, False, False])
        >>> coverage.tolist(), risk.round(3).tolist(), thresholds.tolist()
        ([0.25, 0.75, 1.0], [0.0, 0.333, 0.5], [0.1, 0.2, 0.9])
    """
    uncertainty, correct = as_scores(uncertainty, "uncertainty"), as_flags(correct, "correct")
    check_same_length(uncertainty, "uncertainty", correct, "correct")
    thresholds, inverse, counts = np.unique(uncertainty, return_inverse=True, return_counts=True)
    accepted = np.cumsum(counts)
    errors = np.cumsum(np.bincount(inverse, weights=~correct, minlength=len(thresholds)))
    return RiskCoverage(coverage=accepted / len(correct), risk=errors / accepted, thresholds=thresholds)


def area_under_risk_coverage(uncertainty: Any, correct: Any) -> float:
    """Area under the risk-coverage curve (AURC), with the arguments of [`risk_coverage`].

    The mean over images of the error rate among the images at most as uncertain. Paper: Geifman, Uziel and El-Yaniv,
    "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", ICLR 2019 (section 3).

    Returns:
        `float`: in [0, 1], lower is better: 0 without errors, the error rate if all uncertainties are equal.

    Raises:
        ValueError: as [`risk_coverage`].

    Example:
        >>> area_under_risk_coverage([0.1, 0.2, 0.3, 0.4], [True, True, True, False])
        0.0625
    """
    coverage, risk, _ = risk_coverage(uncertainty, correct)
    return float(np.sum(risk * np.diff(coverage, prepend=0.0)))
