"""Metrics of predicted numbers."""

from typing import Any

import numpy as np


def regression_metrics(eval_prediction: Any) -> dict[str, float]:
    """Mean squared and mean absolute error from what [`~transformers.Trainer`] hands to its `compute_metrics`.

    Args:
        eval_prediction ([`~transformers.EvalPrediction`]): `predictions` are numbers of shape (N, num_labels), or a
            tuple whose first entry they are; `label_ids` are the true ones, of shape (N,) or (N, num_labels).

    Returns:
        `dict[str, float]`: `mse` and `mae`, means over images and outputs, in the (squared) units of the labels.

    Raises:
        ValueError: if there is no image, or the shapes do not match.

    Example:
        >>> from types import SimpleNamespace
        >>> regression_metrics(SimpleNamespace(predictions=[[1.0], [4.0]], label_ids=[1.0, 2.0]))
        {'mse': 2.0, 'mae': 1.0}
    """
    given = eval_prediction.predictions
    predictions = np.asarray(given[0] if isinstance(given, tuple) else given, dtype=np.float64)
    labels = np.asarray(eval_prediction.label_ids, dtype=np.float64)
    if not predictions.size or predictions.size != labels.size or len(predictions) != len(labels):
        raise ValueError(
            f"predictions has shape {predictions.shape} but label_ids has shape {labels.shape}; each image needs one "
            "number for every output."
        )
    errors = predictions - labels.reshape(predictions.shape)
    return {"mse": float(np.square(errors).mean()), "mae": float(np.abs(errors).mean())}
