"""Accuracy and calibration of class predictions."""

from typing import Any

import numpy as np

from ._checks import as_flags, as_labels, as_logits, as_probabilities, as_scores, check_same_length, reject


def accuracy(logits_or_predictions: Any, labels: Any) -> float:
    """Share of images whose predicted class is the label (top-1 accuracy).

    Args:
        logits_or_predictions (array-like, shape (N, num_labels) or (N,)):
            Logits or probabilities, whose largest entry (the first one among equals) is the prediction; or
            predicted class indices.
        labels (array-like of int, shape (N,)): True class indices.

    Returns:
        `float`: a fraction in [0, 1].

    Raises:
        ValueError: if an input is empty, shapes do not match, a logit is NaN, or a label is not a class index.

    Example:
        >>> accuracy([[2.0, 1.0], [0.5, 3.0], [1.0, 0.0]], [0, 1, 1])
        0.6666666666666666
        >>> accuracy([0, 1, 0, 1], [0, 1, 1, 1])
        0.75
    """
    from sklearn.metrics import accuracy_score

    name = "logits_or_predictions"
    if np.ndim(logits_or_predictions) == 2:
        logits = as_logits(logits_or_predictions, name)
        labels = as_labels(labels, "labels", num_labels=logits.shape[1])
        predictions = logits.argmax(axis=1)
        check_same_length(logits, name, labels, "labels")
    else:
        predictions, labels = as_labels(logits_or_predictions, name), as_labels(labels, "labels")
        check_same_length(predictions, name, labels, "labels")
    return float(accuracy_score(labels, predictions))


def error_rate(logits_or_predictions: Any, labels: Any) -> float:
    """Share of images whose predicted class is not the label: 1 - [`accuracy`], with the same arguments.

    Returns:
        `float`: a fraction in [0, 1].

    Raises:
        ValueError: as [`accuracy`].

    Example:
        >>> error_rate([0, 1, 0, 1], [0, 1, 1, 1])
        0.25
    """
    return 1.0 - accuracy(logits_or_predictions, labels)


def _checked(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    probabilities = as_probabilities(probabilities, "probabilities")
    labels = as_labels(labels, "labels", num_labels=probabilities.shape[1])
    check_same_length(probabilities, "probabilities", labels, "labels")
    return probabilities, labels


def expected_calibration_error(probabilities: Any, labels: Any, num_bins: int = 15) -> float:
    """Expected calibration error (ECE) with equal-width confidence bins.

    The confidence of an image is its largest probability. Bin m of M holds confidences in ((m - 1) / M, m / M]; the
    error is the mean over bins of |accuracy - mean confidence|, each bin weighted by its share of the images.
    Paper: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (eq. 3).

    Args:
        probabilities (array-like, shape (N, num_labels)): Class probabilities; each row sums to 1.
        labels (array-like of int, shape (N,)): True class indices.
        num_bins (`int`, defaults to 15): Number of bins M, at least 1.

    Returns:
        `float`: a fraction in [0, 1]; 0 where confidence equals accuracy in every bin.

    Raises:
        ValueError: if an input is empty, shapes do not match, a row is not a probability distribution, a label is
            not a class index, or `num_bins` is below 1.

    Example:
        >>> round(expected_calibration_error([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], [0, 1, 1]), 6)
        0.4
    """
    probabilities, labels = _checked(probabilities, labels)
    return confidence_calibration_error(
        probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, num_bins=num_bins
    )


def confidence_calibration_error(confidence: Any, correct: Any, num_bins: int = 15) -> float:
    """[`expected_calibration_error`] where only the confidences are at hand, as for very many classes.

    Args:
        confidence (array-like, shape (N,)): Largest probability of each image, in [0, 1].
        correct (array-like of bool, shape (N,)): Whether each image is classified correctly.
        num_bins (`int`, defaults to 15): Number of bins M, at least 1.

    Returns:
        `float`: a fraction in [0, 1].

    Raises:
        ValueError: if an input is empty, lengths differ, or a value or `num_bins` is out of range.

    Example:
        >>> round(confidence_calibration_error([0.9, 0.9, 0.6], [True, False, True]), 6)
        0.4
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins} must be at least 1.")
    confidence, correct = as_scores(confidence, "confidence"), as_flags(correct, "correct")
    reject(~((confidence >= 0) & (confidence <= 1 + 1e-6)), confidence, "confidence", "a probability from 0 to 1")
    check_same_length(confidence, "confidence", correct, "correct")
    # Our own: scikit-learn has no calibration error.
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    # |sum of (correct - confidence)| / N is the bin's weight times its gap, so empty bins need no special case.
    gaps = np.bincount(bins, weights=correct - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(correct))


def negative_log_likelihood(probabilities: Any, labels: Any) -> float:
    """Mean negative log-likelihood of the labels, in nats: scikit-learn's `log_loss`.

    Probabilities below the float64 rounding unit (2.2e-16) count as that, so that one image with probability 0 for its
    label costs 36 nats and the mean stays finite. Rows that rounding left off 1 are divided by their sum.

    Args:
        probabilities (array-like, shape (N, num_labels)): Class probabilities; each row sums to 1.
        labels (array-like of int, shape (N,)): True class indices.

    Returns:
        `float`: nats per image, 0 or more.

    Raises:
        ValueError: if an input is empty, shapes do not match, a row is not a probability distribution, or a label
            is not a class index.

    Example:
        >>> round(negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 6)
        0.490415
    """
    from sklearn.metrics import log_loss

    probabilities, labels = _checked(probabilities, labels)
    # Divided, because `log_loss` refuses a rounded 1 + 1e-7.
    normalised = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(log_loss(labels, normalised, labels=range(normalised.shape[1])))


def brier_score(probabilities: Any, labels: Any) -> float:
    """Brier score over all classes: mean squared distance between probabilities and one-hot labels.

    Paper: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950. The sum
    runs over every class as in the paper, so for two classes it is twice the one-column score that scikit-learn's
    `brier_score_loss` gives by default.

    Args:
        probabilities (array-like, shape (N, num_labels)): Class probabilities; each row sums to 1.
        labels (array-like of int, shape (N,)): True class indices.

    Returns:
        `float`: in [0, 2]; 0 is a sure and right prediction everywhere, 2 sure and wrong everywhere.

    Raises:
        ValueError: if an input is empty, shapes do not match, a row is not a probability distribution, or a label
            is not a class index.

    Example:
        >>> brier_score([[1.0, 0.0], [0.5, 0.5]], [0, 1])
        0.25
    """
    probabilities, labels = _checked(probabilities, labels)
    # Our own: `brier_score_loss` takes more than two classes only from scikit-learn 1.7 on.
    difference = probabilities.copy()
    difference[np.arange(len(labels)), labels] -= 1.0
    return float(np.square(difference).sum(axis=1).mean())


def classification_metrics(eval_prediction: Any) -> dict[str, float]:
    """Accuracy and calibration from what [`~transformers.Trainer`] hands to its `compute_metrics`.

    Args:
        eval_prediction ([`~transformers.EvalPrediction`]):
            `predictions` are logits of shape (N, num_labels), or a tuple whose first entry they are; `label_ids` are
            class indices of shape (N,).

    Returns:
        `dict[str, float]`: `accuracy` (fraction), `negative_log_likelihood` (nats per image, computed from the
        logits and never clipped, hence equal to the cross-entropy loss) and `expected_calibration_error` (fraction,
        15 bins).

    Raises:
        ValueError: if an input is empty, shapes do not match, a logit is NaN or a label is not a class index.

    Example:
        >>> from types import SimpleNamespace
        >>> outputs = SimpleNamespace(predictions=[[2.0, 0.0], [0.0, 1.0]], label_ids=[0, 0])
        >>> {name: round(value, 4) for name, value in classification_metrics(outputs).items()}
        {'accuracy': 0.5, 'negative_log_likelihood': 0.7201, 'expected_calibration_error': 0.4251}

        `Trainer(..., compute_metrics=classification_metrics)`
    """
    logits = eval_prediction.predictions
    if isinstance(logits, tuple):
        logits = logits[0]
    logits = as_logits(logits, "predictions")
    labels = as_labels(eval_prediction.label_ids, "label_ids", num_labels=logits.shape[1])
    check_same_length(logits, "predictions", labels, "label_ids")
    # Our own: `log_loss` takes probabilities and clips them, which would hide what sure errors cost.
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return {
        "accuracy": accuracy(logits, labels),
        "negative_log_likelihood": float(abs(log_probabilities[np.arange(len(labels)), labels].mean())),
        "expected_calibration_error": expected_calibration_error(np.exp(log_probabilities), labels),
    }
