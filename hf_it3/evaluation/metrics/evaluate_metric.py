"""The metrics of this package as one metric of the `evaluate` library; nothing is fetched from a network."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ._checks import as_labels, as_probabilities, as_scores, check_same_length
from .classification import (
    accuracy,
    brier_score,
    error_rate,
    expected_calibration_error,
    negative_log_likelihood,
)
from .uncertainty import area_under_risk_coverage, auroc


OPTIONAL_COLUMNS = {
    "probabilities": datasets.Sequence(datasets.Value("float64")),
    "distances": datasets.Value("float64"),
}

_CHECKS: dict[str, Callable[[Any, str], np.ndarray]] = {
    "references": as_labels,
    "predictions": as_labels,
    "probabilities": as_probabilities,
    "distances": as_scores,
}

_DESCRIPTION = "Accuracy, calibration and error detection of an image classifier that adapts at test time."

_INPUTS = """
Args:
    predictions (`list[int]`): Predicted class indices.
    references (`list[int]`): True class indices.
    probabilities (`list[list[float]]`, *optional*): Class probabilities; each row sums to 1.
    distances (`list[float]`, *optional*): Idempotence distances; higher means less like the training data.
Returns:
    accuracy, error_rate (fractions); with probabilities expected_calibration_error, negative_log_likelihood (nats)
    and brier_score; with distances error_detection_auroc and area_under_risk_coverage.
"""

_CITATION = """
@inproceedings{durasov2025it3,
  title = {{IT}$^3$: Idempotent Test-Time Training},
  author = {Durasov, Nikita and Shocher, Assaf and Oner, Doruk and Chechik, Gal and Efros, Alexei A. and Fua, Pascal},
  booktitle = {International Conference on Machine Learning},
  year = {2025}
}
"""


class IT3Metric(evaluate.Metric):
    """Accuracy of class predictions and, where given, quality of probabilities and idempotence distances.

    `compute(predictions=..., references=...)` takes `probabilities` and `distances` too whenever they are given. To
    collect them batch by batch with `add_batch` (also through `evaluate.combine`), name them in `optional_columns`
    first: the columns of an `evaluate` metric are fixed when it is made, and are all required from then on.

    Args:
        optional_columns (sequence of `str`, defaults to `()`): Any of `"probabilities"` and `"distances"`.
        config_name (`str`, *optional*): Name of the configuration, a folder of the cache.
        keep_in_memory (`bool`, *optional*):
            Keep collected predictions in memory and write no file at all, so that any number of processes can use the
            metric at once. Defaults to `True` for one process and to `False` when `num_process` is larger, where
            `evaluate` exchanges predictions through files.
        cache_dir (`str`, *optional*): Folder for these files; `HF_METRICS_CACHE` by default.
        num_process (`int`, defaults to 1): Number of processes that compute one metric together.
        process_id (`int`, defaults to 0): Rank of this process; the others than 0 get `None` from `compute`.
        seed (`int`, *optional*): Accepted for `evaluate`; the results do not depend on chance.
        experiment_id (`str`, *optional*): Separates groups of processes that share a cache folder.
        timeout (`float`, defaults to 100): Seconds to wait for the other processes.

    `compute` returns a dictionary of floats: `accuracy` and `error_rate` (fractions); with probabilities also
    `expected_calibration_error` (fraction), `negative_log_likelihood` (nats per image) and `brier_score`; with
    distances `error_detection_auroc` (area under the ROC curve of the distance for telling wrong predictions, `nan`
    if all are right or all wrong) and `area_under_risk_coverage`. It raises a `ValueError` on empty or bad input.

    As with every metric of `evaluate`, `len(metric)` counts the images collected, so an empty one is falsy: test
    `metric is None` rather than `not metric`.

    Example:
        >>> metric = IT3Metric()
        >>> metric.compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1])
        {'accuracy': 0.75, 'error_rate': 0.25}
        >>> metric = IT3Metric(optional_columns=["distances"])
        >>> metric.add_batch(predictions=[0, 1], references=[0, 1], distances=[0.1, 0.3])
        >>> metric.add_batch(predictions=[1, 1], references=[0, 1], distances=[0.8, 0.2])
        >>> metric.compute()["error_detection_auroc"]
        1.0
    """

    def __init__(
        self,
        optional_columns: Sequence[str] = (),
        *,
        config_name: str | None = None,
        keep_in_memory: bool | None = None,
        cache_dir: str | None = None,
        num_process: int = 1,
        process_id: int = 0,
        seed: int | None = None,
        experiment_id: str | None = None,
        timeout: float = 100,
    ):
        if isinstance(optional_columns, str):
            optional_columns = (optional_columns,)
        for column in optional_columns:
            if column not in OPTIONAL_COLUMNS:
                raise ValueError(f"optional_columns has {column!r}; expected any of {', '.join(OPTIONAL_COLUMNS)}.")
        self.optional_columns = tuple(column for column in OPTIONAL_COLUMNS if column in optional_columns)
        super().__init__(
            config_name=config_name,
            keep_in_memory=num_process == 1 if keep_in_memory is None else keep_in_memory,
            cache_dir=cache_dir,
            num_process=num_process,
            process_id=process_id,
            seed=seed,
            experiment_id=experiment_id,
            timeout=timeout,
        )

    def _info(self) -> evaluate.MetricInfo:
        columns = {"references": datasets.Value("int64"), "predictions": datasets.Value("int64")}
        columns.update((column, OPTIONAL_COLUMNS[column]) for column in self.optional_columns)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(columns),
            reference_urls=["https://arxiv.org/abs/2410.04201"],
        )

    def _build_data_dir(self) -> str:
        # The base class makes the folder even if nothing is ever written to it, which fails on a read-only home.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def add_batch(self, *, predictions: Any = None, references: Any = None, **columns: Any) -> None:
        """Add a batch: class indices, and every column named in `optional_columns`, one entry per image."""
        # `evaluate` would silently truncate fractions to integers, so every column is checked before it is stored.
        columns = {"references": references, "predictions": predictions, **columns}
        self._check_columns(columns)
        for name in self._feature_names():
            columns[name] = _CHECKS[name](columns[name], name)
            check_same_length(columns[name], name, columns["references"], "references")
        super().add_batch(**columns)

    def add(self, *, prediction: Any = None, reference: Any = None, **columns: Any) -> None:
        """Add one image: class indices, and its entry of every column named in `optional_columns`."""
        self._check_columns({"references": reference, "predictions": prediction, **columns})
        (reference,), (prediction,) = as_labels([reference], "reference"), as_labels([prediction], "prediction")
        super().add(prediction=prediction, reference=reference, **columns)

    def _check_columns(self, columns: dict[str, Any]) -> None:
        expected = self._feature_names()
        if columns.keys() != set(expected):
            raise ValueError(
                f"IT3Metric was given the columns {', '.join(columns)} but collects {', '.join(expected)}; "
                "name optional columns when the metric is made: IT3Metric(optional_columns=[...])."
            )

    def _finalize(self) -> None:
        if self.num_process == 1 and len(self) == 0:
            raise ValueError("IT3Metric has no predictions; pass some to `compute`, `add` or `add_batch`.")
        super()._finalize()

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], probabilities: Any = None, distances: Any = None
    ) -> dict[str, float]:
        results = {
            "accuracy": accuracy(predictions, references),
            "error_rate": error_rate(predictions, references),
        }
        if probabilities is not None:
            results["expected_calibration_error"] = expected_calibration_error(probabilities, references)
            results["negative_log_likelihood"] = negative_log_likelihood(probabilities, references)
            results["brier_score"] = brier_score(probabilities, references)
        if distances is not None:
            distances = as_scores(distances, "distances")
            correct = as_labels(predictions, "predictions") == as_labels(references, "references")
            check_same_length(distances, "distances", correct, "predictions")
            results["error_detection_auroc"] = auroc(distances, ~correct)
            results["area_under_risk_coverage"] = area_under_risk_coverage(distances, correct)
        return results
