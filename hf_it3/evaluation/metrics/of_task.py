"""The default metrics of every task."""

from collections.abc import Callable
from typing import Any

from ...it3.task_it3 import Dense, MultiLabel, Regression, SingleLabel, Task
from .classification import classification_metrics
from .multi_label import multi_label_metrics
from .regression import regression_metrics
from .segmentation import segmentation_metrics


_METRICS: dict[type[Task], Callable[[Any], dict[str, float]]] = {
    SingleLabel: classification_metrics,
    MultiLabel: multi_label_metrics,
    Regression: regression_metrics,
}


def metrics_of_task(task: Task, eval_prediction: Any) -> dict[str, float]:
    """The default metrics of a task, from what [`~transformers.Trainer`] hands to its `compute_metrics`.

    Args:
        task ([`~hf_it3.it3.task_it3.Task`]): of the model.
        eval_prediction ([`~transformers.EvalPrediction`]): logits and labels; in segmentation classes and labels.

    Returns:
        `dict[str, float]`: see [`classification_metrics`], [`multi_label_metrics`], [`regression_metrics`] and
        [`segmentation_metrics`].
    """
    if isinstance(task, Dense):
        return segmentation_metrics(eval_prediction, task.num_labels, task.config.semantic_loss_ignore_index)
    return _METRICS[type(task)](eval_prediction)
