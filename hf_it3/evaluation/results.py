"""Results of an evaluation: figures, and where they come from."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..utils import installed_versions
from .answers import Answers, ClassAnswers
from .conditions import Condition
from .model_index import model_index_entries
from .plots import save_plots
from .scores import RunOutcomes, condition_scores, overall_scores
from .table import format_results


if TYPE_CHECKING:
    from .reference import Reference


FORMAT_VERSION = 1
_PACKAGES = ("hf-it3", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "imagecorruptions")


@dataclass(repr=False)
class RobustnessResults:
    """What [`evaluate_robustness`] returns; printing it prints its table.

    Attributes:
        settings (`dict`): everything that the figures depend on.
        runs (`list[dict]`): `model` and `seed` of each run.
        conditions (`list[Condition]`): all conditions.
        methods (`list[str]`): all methods that could be used, `"none"` first.
        left_out (`dict[str, str]`): corruptions of the suites asked for that could not be computed, and why.
        not_applicable (`dict[str, str]`): methods that could not, and why.
        outcomes (`list[dict[int, Outcomes]]`): for each run, by the number of the condition, the answers to every
            image.
        gates (`list[dict]`): for each run the model's `reference_distance` and gate, `None` without.
        reference ([`~hf_it3.evaluation.reference.Reference`], *optional*): error rates of a reference model.
        complete (`bool`): whether all conditions of all runs are done.
        kind (`type`): what is kept of answers, which names the headline figure, `kind.metric`: `"accuracy"`, or
            `"mean_iou"` of models for segmentation.
    """

    settings: dict[str, Any]
    runs: list[dict[str, Any]]
    conditions: list[Condition]
    methods: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    not_applicable: dict[str, str] = field(default_factory=dict)
    outcomes: list[RunOutcomes] = field(default_factory=list)
    gates: list[dict[str, Any] | None] = field(default_factory=list)
    reference: "Reference | None" = None
    complete: bool = False
    kind: type[Answers] = ClassAnswers
    # Figures by what they are made from: the number of the condition and of the runs that have it.
    _scores: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict, repr=False)
    _overall: tuple[tuple[int, bool], dict[str, Any]] | None = field(default=None, repr=False)

    def scores_of(self, runs: Sequence[RunOutcomes]) -> list[dict[str, Any]]:
        """Figures of each condition that is done in any of these runs."""
        done = [number for number in range(len(self.conditions)) if any(number in run for run in runs)]
        return [condition_scores(runs, self.conditions, number) for number in done]

    @property
    def condition_scores(self) -> list[dict[str, Any]]:
        """Figures of each condition that is done, means over runs; as in `results.json`."""
        scores = []
        for number in range(len(self.conditions)):
            key = (number, sum(number in run for run in self.outcomes))
            if key[1] and key not in self._scores:
                self._scores[key] = condition_scores(self.outcomes, self.conditions, number)
            if key[1]:
                scores.append(self._scores[key])
        return scores

    @property
    def overall(self) -> dict[str, dict[str, Any]]:
        """Figures over all shifted conditions, by method: means, gains with intervals, where it does not help."""
        done = (sum(map(len, self.outcomes)), self.complete)
        if self._overall is None or self._overall[0] != done:
            reference = self.reference if self.complete else None
            figures = overall_scores(
                self.outcomes,
                self.conditions,
                self.condition_scores,
                self.methods,
                reference,
                bool(self.left_out),
                self.kind.metric,
            )
            self._overall = (done, figures)
        return self._overall[1]

    def accuracy(self, condition: str, method: str) -> float:
        """Accuracy of a method under a condition, a fraction; of pixels, in segmentation.

        Raises:
            KeyError: if there is no such condition or method.
        """
        return self.score(condition, method, "accuracy" if self.kind is ClassAnswers else "pixel_accuracy")

    def score(self, condition: str, method: str, figure: str | None = None) -> float:
        """A figure of a method under a condition.

        Args:
            condition (`str`), method (`str`): their names.
            figure (`str`, *optional*): by default the headline figure, `"accuracy"` or `"mean_iou"`, a fraction.

        Raises:
            KeyError: if there is no such condition, method or figure.
        """
        scores = {score["name"]: score for score in self.condition_scores}
        return scores[condition]["methods"][method][figure or self.kind.metric]

    def to_dict(self, with_overall: bool = True) -> dict[str, Any]:
        """Everything but the answers to single images, as plain values; the overall figures take a while."""
        return {
            "format_version": FORMAT_VERSION,
            "complete": self.complete,
            "metric": self.kind.metric,
            "settings": self.settings,
            "versions": package_versions(),
            "runs": self.runs,
            "methods": self.methods,
            "left_out": self.left_out,
            "not_applicable": self.not_applicable,
            "reference": None if self.reference is None else self.reference.name,
            "overall": self.overall if with_overall else None,
            "conditions": self.condition_scores,
        }

    def __repr__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The headline figure in percent, a row per corruption and a column per method, as printed in the terminal."""
        return format_results(self)

    def save_plots(self, folder: str | os.PathLike) -> list[str]:
        """Draws all plots into a folder and returns their paths; see [`~hf_it3.evaluation.plots.save_plots`]."""
        return save_plots(self, folder)

    def model_index_entries(self, method: str | None = None) -> list[dict[str, Any]]:
        """See [`~hf_it3.evaluation.model_index_entries`]."""
        return model_index_entries(self, method)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that figures may depend on."""
    return {"python": platform.python_version(), **installed_versions(_PACKAGES)}
