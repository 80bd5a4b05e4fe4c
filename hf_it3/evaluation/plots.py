"""Draws the plots of an evaluation; no display is needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import import_figure
from .answers import ClassAnswers
from .methods import UNADAPTED
from .metrics import risk_coverage
from .outcomes import Outcomes
from .scores import paired_gain
from .table import short_names


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .results import RobustnessResults

# Paul Tol's "bright" scheme, told apart with any colour vision.
_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
_CLEAN_COLOUR, _SHIFTED_COLOUR = _COLOURS[0], _COLOURS[1]
_MAX_CURVE_POINTS = 500


def plot_class() -> type[Figure]:
    """Matplotlib's `Figure`.

    Raises:
        ImportError: without matplotlib.
    """
    return import_figure("plots, which plots=False (--no_plots) leaves out, need", "eval")


def save_plots(results: RobustnessResults, folder: str | os.PathLike) -> list[str]:
    """Draws every plot that the results have figures for, as PNG files.

    Args:
        results ([`RobustnessResults`]): of an evaluation.
        folder: made if it is missing.

    Returns:
        The paths of the files: `gains.png`, `severities.png`, `scores.png`, `distances.png`, `risk_coverage.png`.

    Raises:
        ImportError: without matplotlib.
    """
    figure_class = plot_class()
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (width, height), draw in _PLOTS:
        figure = figure_class(figsize=(width, height), layout="constrained")
        if draw(results, figure.add_subplot()):
            path = Path(folder) / f"{name}.png"
            figure.savefig(path, dpi=120)
            paths.append(str(path))
    return paths


def _colours(results: RobustnessResults) -> dict[str, str]:
    return {method: _COLOURS[number % len(_COLOURS)] for number, method in enumerate(results.methods)}


def _groups(results: RobustnessResults) -> dict[str, list[int]]:
    """Numbers of the conditions that are done, by corruption, clean ones first."""
    groups: dict[str, list[int]] = {}
    for number, condition in enumerate(results.conditions):
        if any(number in run for run in results.outcomes):
            groups.setdefault(condition.group, []).append(number)
    return groups


def _gains(results: RobustnessResults, axes: Axes) -> bool:
    """Bars: accuracy gain of each method over the unadapted model, per corruption, with intervals."""
    groups, adapted = _groups(results), [method for method in results.methods if method != UNADAPTED]
    if not groups or not adapted:
        return False
    names, colours = short_names(list(groups)), _colours(results)
    height = 0.8 / len(adapted)
    for place, method in enumerate(adapted):
        gains = []
        for numbers in groups.values():
            outcomes = [run[n] for run in results.outcomes for n in numbers if n in run and method in run[n].methods]
            gains.append(paired_gain(outcomes, method, UNADAPTED))
        centres = np.arange(len(groups)) + (place - (len(adapted) - 1) / 2) * height
        values = np.array([gain["gain"] for gain in gains])
        errors = np.abs(np.array([[gain["lower"], gain["upper"]] for gain in gains]).T - values)
        axes.barh(centres, 100 * values, height, color=colours[method], label=method)
        axes.errorbar(100 * values, centres, xerr=100 * errors, fmt="none", ecolor="#333333", elinewidth=0.7)
    axes.set_yticks(range(len(groups)), [names[group] for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"gain in {results.kind.noun} over no adaptation, points (95% interval over images)")
    axes.legend(fontsize="small")
    axes.figure.figure.set_size_inches(8, 1.5 + 0.16 * len(groups) * (len(adapted) + 1))
    return True


def _severities(results: RobustnessResults, axes: Axes) -> bool:
    """Lines: mean accuracy over corruptions at each severity."""
    by_severity: dict[int, list[dict[str, Any]]] = {}
    for score in results.condition_scores:
        if score["severity"] is not None:
            by_severity.setdefault(score["severity"], []).append(score["methods"])
    if len(by_severity) < 2:
        return False
    for method, colour in _colours(results).items():
        points = [
            (severity, 100 * np.mean([score[method][results.kind.metric] for score in scores if method in score]))
            for severity, scores in sorted(by_severity.items())
        ]
        axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=method)
    axes.set_xticks(sorted(by_severity))
    axes.set_xlabel("severity")
    axes.set_ylabel(f"mean {results.kind.noun} over corruptions, %")
    axes.legend(fontsize="small")
    return True


def _scores(results: RobustnessResults, axes: Axes) -> bool:
    """Boxes: the headline figure of each method over all shifted conditions."""
    shifted = [score["methods"] for score in results.condition_scores if not score["is_clean"]]
    if not shifted:
        return False
    values = [
        [100 * score[method][results.kind.metric] for score in shifted if method in score]
        for method in results.methods
    ]
    boxes = axes.boxplot(values, tick_labels=results.methods, patch_artist=True, medianprops={"color": "black"})
    for box, colour in zip(boxes["boxes"], _colours(results).values(), strict=True):
        box.set_facecolor(colour)
    axes.set_ylabel(f"{results.kind.noun}, % ({len(shifted)} shifted conditions)")
    return True


def _clean_and_shifted(results: RobustnessResults) -> tuple[list[Outcomes], list[Outcomes]]:
    sides: tuple[list[Outcomes], list[Outcomes]] = ([], [])
    for run in results.outcomes:
        for number, outcomes in run.items():
            sides[not results.conditions[number].is_clean].append(outcomes)
    return sides


def _distances(results: RobustnessResults, axes: Axes) -> bool:
    """Histogram: idempotence distances of clean and of shifted images, with the gate of a batch."""
    sides = _clean_and_shifted(results)
    values = [np.concatenate([one.distance for one in side]) if side else np.empty(0) for side in sides]
    values = [side[np.isfinite(side)] for side in values]
    if not any(map(len, values)):
        return False
    bins = np.histogram_bin_edges(np.concatenate(values), bins=60)
    for side, name, colour in zip(values, ("clean", "shifted"), (_CLEAN_COLOUR, _SHIFTED_COLOUR), strict=True):
        if len(side):
            weights = np.full(len(side), 100 / len(side))
            axes.hist(side, bins.tolist(), weights=weights, color=colour, alpha=0.6, label=f"{name} images")
            axes.axvline(side.mean(), color=colour, linestyle="--", linewidth=1.2, label=f"mean of {name}")
    gates = [gate for gate in results.gates if gate is not None and gate["gate"] is not None]
    if gates:
        size = results.settings["batch_size"]
        thresholds = [gate["mean"] + gate["gate"] * gate["std"] / math.sqrt(size) for gate in gates]
        label = f"gate: a batch of {size} adapts\nif its mean lies right of this"
        axes.axvline(float(np.mean(thresholds)), color="black", label=label)
    axes.set_yscale("log")
    axes.set_xlabel("idempotence distance D(y1, y0) of the unadapted model")
    axes.set_ylabel("images, %")
    axes.legend(fontsize="small")
    return True


def _risk_coverage(results: RobustnessResults, axes: Axes) -> bool:
    """Curves: error rate among the images kept when the most uncertain are rejected, for two uncertainties."""
    drawn = False
    names = ("clean", "shifted")
    for side, name, colour in zip(_clean_and_shifted(results), names, (_CLEAN_COLOUR, _SHIFTED_COLOUR), strict=True):
        answers = [one.methods[UNADAPTED] for one in side]
        classes = [one for one in answers if isinstance(one, ClassAnswers)]
        if not classes:
            continue
        right = np.concatenate([one.correct(of.label) for one, of in zip(classes, side, strict=True)])
        uncertainties = {
            "idempotence distance": np.concatenate([one.distance for one in side]),
            "1 - confidence": 1 - np.concatenate([one.confidence for one in classes]),
        }
        for (what, uncertainty), style in zip(uncertainties.items(), ("-", ":"), strict=True):
            coverage, risk, _ = risk_coverage(uncertainty, right)
            keep = np.unique(np.linspace(0, len(coverage) - 1, _MAX_CURVE_POINTS).round().astype(int))
            axes.plot(100 * coverage[keep], 100 * risk[keep], style, color=colour, label=f"{name}, by {what}")
        drawn = True
    axes.set_xlabel("images kept, %")
    axes.set_ylabel("errors among them, % (no adaptation)")
    axes.legend(fontsize="small")
    return drawn


_PLOTS: tuple[tuple[str, tuple[float, float], Callable[[Any, Any], bool]], ...] = (
    ("gains", (8, 6), _gains),
    ("severities", (6, 4), _severities),
    ("scores", (7, 4), _scores),
    ("distances", (7, 4), _distances),
    ("risk_coverage", (6, 4), _risk_coverage),
)
