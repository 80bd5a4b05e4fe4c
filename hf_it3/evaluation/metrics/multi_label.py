"""Metrics of images with any number of labels."""

from typing import Any

from ._checks import as_array, as_flags, check_same_shape


def multi_label_metrics(eval_prediction: Any) -> dict[str, float]:
    """Micro F1 and accuracy of labels from what [`~transformers.Trainer`] hands to its `compute_metrics`.

    A label is predicted where its probability is above one half.

    Args:
        eval_prediction ([`~transformers.EvalPrediction`]): `predictions` are logits of shape (N, num_labels), or a
            tuple whose first entry they are; `label_ids` are 0 or 1, of the same shape.

    Returns:
        `dict[str, float]`: `f1_micro`, the F1 score over all labels of all images (scikit-learn's `f1_score` with
        `average="micro"`; 0 where no label is true or predicted), and `label_accuracy`, the share of right labels (1
        minus the Hamming loss); fractions.

    Raises:
        ValueError: if an input is empty, shapes do not match, or a label is neither 0 nor 1.

    Example:
        >>> from types import SimpleNamespace
        >>> outputs = SimpleNamespace(predictions=[[2.0, -1.0], [0.5, -3.0]], label_ids=[[1, 1], [0, 0]])
        >>> multi_label_metrics(outputs)
        {'f1_micro': 0.5, 'label_accuracy': 0.5}
    """
    from sklearn.metrics import accuracy_score, f1_score

    logits = eval_prediction.predictions
    predicted = as_array(logits[0] if isinstance(logits, tuple) else logits, "predictions", ndim=2) > 0
    labels = as_flags(eval_prediction.label_ids, "label_ids", ndim=2)
    check_same_shape(predicted, "predictions", labels, "label_ids")
    # Flat: each label of each image is one decision, which is what "micro" means.
    return {
        "f1_micro": float(f1_score(labels.ravel(), predicted.ravel(), zero_division=0)),
        "label_accuracy": float(accuracy_score(labels.ravel(), predicted.ravel())),
    }
