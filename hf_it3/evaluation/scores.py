"""From outcomes of single images to the figures of the report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .conditions import Condition, is_benchmark
from .methods import UNADAPTED
from .metrics import area_under_risk_coverage, auroc, mean_corruption_error, relative_mean_corruption_error
from .outcomes import Outcomes


if TYPE_CHECKING:
    from .reference import Reference


RunOutcomes = dict[int, Outcomes]
"""Outcomes of one run (a model with a seed), by the number of the condition."""


def distance_scores(outcomes: Outcomes, clean: Outcomes | None) -> dict[str, float]:
    """How well the unadapted model's idempotence distance tells errors, and shifted images from clean ones."""
    right = outcomes.correct(UNADAPTED)
    scores = {
        "mean_distance": float(outcomes.distance.mean(dtype=np.float64)),
        "error_detection_auroc": float("nan") if right is None else auroc(outcomes.distance, ~right),
        "area_under_risk_coverage": (
            float("nan") if right is None else area_under_risk_coverage(outcomes.distance, right)
        ),
        "shift_detection_auroc": float("nan"),
    }
    if clean is not None:
        distances = np.concatenate([clean.distance, outcomes.distance])
        scores["shift_detection_auroc"] = auroc(distances, np.arange(len(distances)) >= len(clean))
    return scores


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Means over runs; `None` where no run has a defined value."""
    means: dict[str, float | None] = {}
    for name in scores[0]:
        defined = [run[name] for run in scores if math.isfinite(run[name])]
        means[name] = float(np.mean(defined)) if defined else None
    return means


def paired_gain(outcomes: Sequence[Outcomes], method: str, baseline: str) -> dict[str, float]:
    """Gain of a method over another on the same images, with its 95% bootstrap interval over images.

    Several outcomes (conditions, runs) of the same images are rows: an image is drawn with all of them.
    """
    before, after = ([one.methods[name] for one in outcomes] for name in (baseline, method))
    same_images = all(np.array_equal(one.index, outcomes[0].index) for one in outcomes)
    gain = type(before[0]).gain(before, after, [one.label for one in outcomes], same_images)
    return {"gain": gain.gain, "lower": gain.lower, "upper": gain.upper}


def condition_scores(runs: Sequence[RunOutcomes], conditions: Sequence[Condition], number: int) -> dict[str, Any]:
    """All figures of one condition: the mean over runs, and the headline figure of each run."""
    condition = conditions[number]
    done = [run for run in runs if number in run]
    outcomes = [run[number] for run in done]
    clean = _clean_number(conditions, condition)
    clean_outcomes = [None if clean is None or clean == number else run.get(clean) for run in done]
    methods: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(name for one in outcomes for name in one.methods):
        with_method = [one for one in outcomes if method in one.methods]
        by_run = [one.methods[method].scores(one.label) if method in one.methods else None for one in outcomes]
        scores = [score for score in by_run if score is not None]
        metric = with_method[0].methods[method].metric
        if not any(math.isfinite(score[metric]) for score in scores):
            raise ValueError(
                f"{metric} of {condition.name!r} is undefined: no pixel of its images counts, all have the label "
                "config.semantic_loss_ignore_index"
            )
        each = [None if score is None else score[metric] for score in by_run]
        methods[method] = {**mean_scores(scores), f"{metric}_by_run": each}
        if method != UNADAPTED:
            methods[method]["gain"] = paired_gain(with_method, method, UNADAPTED)
    distances = [distance_scores(*pair) for pair in zip(outcomes, clean_outcomes, strict=True)]
    return {
        "name": condition.name,
        "corruption": condition.corruption,
        "severity": condition.severity,
        "subset": condition.subset,
        "is_clean": condition.is_clean,
        "num_images": len(outcomes[0]),
        "methods": methods,
        "idempotence_distance": mean_scores(distances),
    }


def _clean_number(conditions: Sequence[Condition], condition: Condition) -> int | None:
    """The clean condition to compare with: of the same subset if there is one."""
    clean = [n for n, other in enumerate(conditions) if other.is_clean]
    return next((n for n in clean if conditions[n].subset == condition.subset), clean[0] if clean else None)


def overall_scores(
    runs: Sequence[RunOutcomes],
    conditions: Sequence[Condition],
    scores: Sequence[dict[str, Any]],
    methods: Sequence[str],
    reference: "Reference | None" = None,
    is_partial: bool = False,
    metric: str = "accuracy",
) -> dict[str, Any]:
    """Figures over all shifted conditions, by method: means, gains over the methods before it, where it does not help.

    Args:
        runs: outcomes by run.
        conditions: all conditions.
        scores: `condition_scores` of those that are done.
        methods: names, the unadapted model first.
        reference: error rates of a reference model.
        is_partial: whether corruptions of a suite had to be left out, so that there is no mean corruption error.
        metric: the headline figure.
    """
    shifted = [n for n, condition in enumerate(conditions) if not condition.is_clean]
    overall = {}
    for position, method in enumerate(methods):
        mine = [score for score in scores if not score["is_clean"] and method in score["methods"]]
        if not mine:
            continue
        summary: dict[str, Any] = {
            f"mean_{metric}": float(np.mean([score["methods"][method][metric] for score in mine])),
        }
        errors = _errors(mine, method, metric)
        summary["mean_error"] = mean_corruption_error(errors)
        if reference is not None:
            clean_error = _clean_error(scores, method, metric)
            ratio = mean_corruption_error(errors, reference.errors)
            if is_partial or not is_benchmark(conditions):
                summary["mean_error_ratio"] = ratio
            else:
                summary["mean_corruption_error"] = ratio
                if clean_error is not None and reference.clean_error is not None:
                    summary["relative_mean_corruption_error"] = relative_mean_corruption_error(
                        errors, clean_error, reference.errors, reference.clean_error
                    )
        done = [run[n] for run in runs for n in shifted if n in run and method in run[n].methods]
        before = [other for other in methods[:position] if all(other in one.methods for one in done)]
        summary["gain_over"] = {other: paired_gain(done, method, other) for other in before}
        if method != UNADAPTED:
            gains = {score["name"]: score["methods"][method]["gain"] for score in scores if method in score["methods"]}
            summary["does_not_help"] = [name for name, gain in gains.items() if gain["gain"] <= 0]
            summary["harms"] = [name for name, gain in gains.items() if gain["upper"] < 0]
        overall[method] = summary
    return overall


def _errors(scores: Sequence[dict[str, Any]], method: str, metric: str) -> dict[str, dict[int, float]]:
    """One minus the headline figure, by corruption and severity: of accuracy, the error rate."""
    errors: dict[str, dict[int, float]] = {}
    for score in scores:
        group = Condition(score["corruption"], None, score["subset"]).name
        errors.setdefault(group, {})[score["severity"] or 1] = 1 - score["methods"][method][metric]
    return errors


def _clean_error(scores: Sequence[Mapping[str, Any]], method: str, metric: str) -> float | None:
    """The error on uncorrupted images, the mean over data sets; `None` where there are none."""
    errors = [
        1 - score["methods"][method][metric] for score in scores if score["is_clean"] and method in score["methods"]
    ]
    return float(np.mean(errors)) if errors else None


def reference_errors_of(results: Mapping[str, Any]) -> tuple[dict[str, dict[int, float]], float | None]:
    """Errors of the unadapted model in a `results.json`, by corruption and severity, and on clean images."""
    scores, metric = results["conditions"], results["metric"]
    errors = _errors([score for score in scores if not score["is_clean"]], UNADAPTED, metric)
    return errors, _clean_error(scores, UNADAPTED, metric)
