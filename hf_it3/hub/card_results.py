"""Measured scores, as a model card shows them and as its metadata lists them."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from .card_facts import public_id
from .card_text import one_line


# The metrics that cards show, as readers call them.
METRICS = {"accuracy": "accuracy", "mean_iou": "mean IoU"}


def title(metric: str) -> str:
    """The name of a metric, capitalised to begin a sentence."""
    return METRICS[metric][0].upper() + METRICS[metric][1:]


@dataclass
class ConditionResult:
    """The accuracy, or mean IoU, that was measured under one condition, clean or corrupted.

    Args:
        name (`str`): the condition, for example `"noise 2"`.
        score_unadapted (`float`), score_adapted (`float`): fractions of the `metric`; means over the training seeds,
            if several. `score_adapted` is `None` where it was not measured.
        unadapted_per_seed (`list[float]`), adapted_per_seed (`list[float]`): the scores behind those means.
        num_images (`int`, *optional*), split (`str`, *optional*): images per seed, and where they are from.
        score_base (`float`, *optional*): of the model that this one was adapted from, without adaptation.
        metric (`str`): what was measured, `"accuracy"` or `"mean_iou"`.
        milliseconds_unadapted (`float`, *optional*), milliseconds_adapted (`float`, *optional*): time per image.
        dataset (`str`, *optional*): the data set that was measured on, where the card should not say that it is that
            of training.

    Raises:
        ValueError: if a score is not a fraction between 0 and 1, or the metric is another.
    """

    name: str
    score_unadapted: float
    score_adapted: float | None
    unadapted_per_seed: Sequence[float] = ()
    adapted_per_seed: Sequence[float] = ()
    num_images: int | None = None
    split: str | None = None
    milliseconds_unadapted: float | None = None
    milliseconds_adapted: float | None = None
    score_base: float | None = None
    metric: str = "accuracy"
    dataset: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(
                f"metric={self.metric!r} of condition {self.name!r} must be one of {', '.join(map(repr, METRICS))}"
            )
        for field in ("score_unadapted", "score_adapted", "score_base"):
            value = getattr(self, field)
            if value is None and field != "score_unadapted":
                continue
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{field} of condition {self.name!r} must be a fraction from 0 to 1, got {value!r}")

    @classmethod
    def from_any(cls, result: Any) -> "ConditionResult":
        """A result from a dictionary or dataclass that has at least the fields without default; others are ignored."""
        if isinstance(result, cls):
            return result
        values = asdict(result) if is_dataclass(result) and not isinstance(result, type) else dict(result)
        if missing := [name for name in ("name", "score_unadapted", "score_adapted") if name not in values]:
            raise ValueError(f"the result of a condition lacks {', '.join(missing)}; it has {', '.join(values)}")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def eval_results(
    results: Sequence[ConditionResult], dataset: str | None, name: str | None, task: str = "image-classification"
) -> list[EvalResult]:
    """The entries of the card's metadata: both scores of every condition.

    Args:
        results (list of [`ConditionResult`]): what was measured.
        dataset (`str`, *optional*), name (`str`, *optional*): identifier and name of the data of results that do not
            say what they were measured on.
        task (`str`): as the Hub calls it.
    """
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type=one_line(measured_on),
            dataset_name=f"{one_line(shown)}, {one_line(result.name)}",
            dataset_config=one_line(result.name),
            dataset_split=None if result.split is None else one_line(result.split),
            metric_type=result.metric,
            metric_name=f"{title(result.metric)}, {how}",
            metric_value=round(value, 4),
        )
        for result in results
        for measured_on, shown in [_data_of(result, dataset, name)]
        for how, value in (("unadapted", result.score_unadapted), ("adapted", result.score_adapted))
        if value is not None
    ]


def _data_of(result: ConditionResult, dataset: str | None, name: str | None) -> tuple[str, str]:
    """Identifier and name of the data that a result was measured on; of a local path, its last part."""
    if result.dataset is None or result.dataset == dataset:
        return dataset or "unknown", name or dataset or "unknown"
    own = public_id(result.dataset) or Path(result.dataset).name
    return own, own


def result_facts(results: Sequence[ConditionResult]) -> dict[str, Any]:
    """The fields of the card's template that measurements fill."""
    return {
        "rows": [_row(result) for result in results],
        "metric": title(results[0].metric) if results else None,
        "has_base": any(result.score_base is not None for result in results),
        "num_images": next((f"{result.num_images:,}" for result in results if result.num_images), None),
        "seeds": max((len(result.adapted_per_seed) for result in results), default=1),
        "cost": _cost(results),
    }


def _row(result: ConditionResult) -> dict[str, str]:
    gain, adapted = "", "not measured"
    if result.score_adapted is not None:
        gain = f"{100 * (result.score_adapted - result.score_unadapted):+.1f}"
        adapted = _percent(result.score_adapted, result.adapted_per_seed)
    return {
        "name": result.name,
        "base": "not measured" if result.score_base is None else _percent(result.score_base, ()),
        "unadapted": _percent(result.score_unadapted, result.unadapted_per_seed),
        "adapted": adapted,
        "gain": gain,
    }


def _percent(mean: float, values: Sequence[float]) -> str:
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def _cost(results: Sequence[ConditionResult]) -> str | None:
    """The time of an image with adaptation, divided by that without: a ratio holds on other machines, too."""
    times = [(result.milliseconds_unadapted, result.milliseconds_adapted) for result in results]
    times = [pair for pair in times if None not in pair]
    if not times:
        return None
    unadapted, adapted = (statistics.fmean(column) for column in zip(*times, strict=True))
    return f"{adapted / unadapted:.1f}" if unadapted else None
