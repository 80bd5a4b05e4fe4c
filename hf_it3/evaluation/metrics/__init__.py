"""Metrics for robustness evaluation: arrays in, plain floats out.

Accuracies, errors and gains are fractions (0.05 is 5 percentage points). What scikit-learn defines in the same way, it
computes. [`IT3Metric`] and scikit-learn are imported on first use, since these imports take seconds.
"""

from typing import TYPE_CHECKING, Any

from .classification import (
    accuracy,
    brier_score,
    classification_metrics,
    confidence_calibration_error,
    error_rate,
    expected_calibration_error,
    negative_log_likelihood,
)
from .multi_label import multi_label_metrics
from .of_task import metrics_of_task
from .regression import regression_metrics
from .robustness import PairedGain, accuracy_gain, mean_corruption_error, relative_mean_corruption_error
from .segmentation import (
    confusion_matrix,
    iou_of_counts,
    mean_iou,
    mean_iou_gain,
    pixel_accuracy,
    segmentation_metrics,
)
from .uncertainty import RiskCoverage, area_under_risk_coverage, auroc, risk_coverage


if TYPE_CHECKING:
    from .evaluate_metric import IT3Metric

__all__ = [
    "IT3Metric",
    "PairedGain",
    "RiskCoverage",
    "accuracy",
    "accuracy_gain",
    "area_under_risk_coverage",
    "auroc",
    "brier_score",
    "classification_metrics",
    "confidence_calibration_error",
    "confusion_matrix",
    "error_rate",
    "expected_calibration_error",
    "iou_of_counts",
    "mean_corruption_error",
    "mean_iou",
    "mean_iou_gain",
    "metrics_of_task",
    "multi_label_metrics",
    "negative_log_likelihood",
    "pixel_accuracy",
    "regression_metrics",
    "relative_mean_corruption_error",
    "risk_coverage",
    "segmentation_metrics",
]


def __getattr__(name: str) -> Any:
    if name == "IT3Metric":
        from .evaluate_metric import IT3Metric

        return IT3Metric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
