"""What mean corruption errors are relative to: another evaluation, or AlexNet as published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conditions import Condition, is_benchmark
from .inputs import LoadedModel
from .metrics import mean_corruption_error, relative_mean_corruption_error
from .results import RobustnessResults
from .scores import reference_errors_of
from .storage import read_results


ALEXNET = "alexnet"


@dataclass(frozen=True)
class Reference:
    """Error rates of a reference model.

    Attributes:
        name: for the reader of a table.
        errors: by corruption (`Condition.group`) and severity, fractions.
        clean_error: on uncorrupted images, `None` if unknown.
    """

    name: str
    errors: dict[str, dict[int, float]]
    clean_error: float | None


# Top-1 error rates on ImageNet-C, means over the five severities, that Hendrycks and Dietterich (ICLR 2019) normalise
# by, from github.com/hendrycks/robustness; on clean images the paper's table has 43.5 %.
_ALEXNET_CLEAN_ERROR = 0.435
_ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def read_reference(
    reference: Any, conditions: Sequence[Condition], loaded: Sequence[LoadedModel], metric: str = "accuracy"
) -> Reference | None:
    """Name and error rates of a reference model, checked before anything is run.

    Args:
        reference: [`RobustnessResults`], a `results.json` (path or content), `"alexnet"`, or `None`.
        conditions: those of the evaluation.
        loaded: its models.
        metric: its headline figure.

    Raises:
        ValueError: if the reference lacks a condition or is measured by another figure, or is AlexNet where its
            published errors say nothing.
    """
    if reference is None:
        return None
    if reference == ALEXNET:
        return _alexnet(conditions, loaded)
    content = reference.to_dict() if isinstance(reference, RobustnessResults) else reference
    if not isinstance(content, Mapping):
        content = read_results(content)
    if content["metric"] != metric:
        raise ValueError(
            f"the reference was measured by {content['metric']}, and these models are by {metric}; pass the results "
            "of a model of the same task"
        )
    errors, clean_error = reference_errors_of(content)
    wanted: dict[str, dict[int, float]] = {}
    for condition in conditions:
        if not condition.is_clean:
            wanted.setdefault(condition.group, {})[condition.severity or 1] = 0.0
    mean_corruption_error(wanted, errors)
    if clean_error is not None:
        try:
            relative_mean_corruption_error(wanted, 0.0, errors, clean_error)
        except ValueError:
            # It loses nothing under some corruption: there is a mean corruption error, but no relative one.
            clean_error = None
    return Reference(", ".join(dict.fromkeys(run["model"] for run in content["runs"])), errors, clean_error)


def _alexnet(conditions: Sequence[Condition], loaded: Sequence[LoadedModel]) -> Reference:
    corrupted = [one for one in conditions if not one.is_clean]
    if not is_benchmark(conditions) or any(not str(one.corruption).startswith("imagenet-c/") for one in corrupted):
        raise ValueError(
            f"reference={ALEXNET!r} has error rates on imagenet-c as a whole: all fifteen corruptions (frost needs "
            "the extra frost, or published files) with severities='published'; these conditions are others"
        )
    for one in loaded:
        if one.model.config.num_labels != 1000:
            raise ValueError(
                f"reference={ALEXNET!r} has error rates on the 1,000 classes of ImageNet, and {one.name} has "
                f"{one.model.config.num_labels} classes; evaluate a reference model of the same classes and pass its "
                "results.json"
            )
    errors: dict[str, dict[int, float]] = {}
    for condition in corrupted:
        # The mean over severities in place of each: only sums over severities enter.
        mean = _ALEXNET_ERRORS[str(condition.corruption).rpartition("/")[2]]
        errors.setdefault(condition.group, {})[condition.severity or 1] = mean
    return Reference("AlexNet, as published", errors, _ALEXNET_CLEAN_ERROR)
