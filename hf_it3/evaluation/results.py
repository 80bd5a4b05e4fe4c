"""Results of an evaluation: figures, and where they come from."""

import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .conditions import Condition
from .scores import RunOutcomes, condition_scores, overall_scores


FORMAT_VERSION = 1
_PACKAGES = ("hf-it3", "torch", "transformers", "datasets", "accelerate", "numpy", "pillow", "kornia", "scipy")


@dataclass
class RobustnessResults:
    """What [`evaluate_robustness`] returns.

    Attributes:
        settings (`dict`): everything that the figures depend on.
        runs (`list[dict]`): `model` and `seed` of each run.
        conditions (`list[Condition]`): all conditions.
        methods (`list[str]`): all methods, `"none"` first.
        outcomes (`list[dict[int, Outcomes]]`): for each run, by the number of the condition, the answers to every
            image.
        not_applicable (`dict[str, str]`): methods that no model could use, and why.
        reference (`dict`, *optional*): `name` and `errors` of a reference model.
        complete (`bool`): whether all conditions of all runs are done.
    """

    settings: dict[str, Any]
    runs: list[dict[str, Any]]
    conditions: list[Condition]
    methods: list[str]
    outcomes: list[RunOutcomes] = field(default_factory=list)
    not_applicable: dict[str, str] = field(default_factory=dict)
    reference: dict[str, Any] | None = None
    complete: bool = False

    def scores_of(self, runs: Sequence[RunOutcomes]) -> list[dict[str, Any]]:
        """Figures of each condition that is done in any of these runs."""
        return [
            condition_scores(runs, self.conditions, number)
            for number in range(len(self.conditions))
            if any(number in run for run in runs)
        ]

    @cached_property
    def condition_scores(self) -> list[dict[str, Any]]:
        """Figures of each condition that is done, means over runs; see `results.json`."""
        return self.scores_of(self.outcomes)

    @cached_property
    def overall(self) -> dict[str, dict[str, Any]]:
        """Figures over all shifted conditions, by method."""
        errors = None if self.reference is None or not self.complete else self.reference["errors"]
        return overall_scores(self.outcomes, self.conditions, self.condition_scores, self.methods, errors)

    def accuracy(self, condition: str, method: str) -> float:
        """Accuracy of a method under a condition, a fraction.

        Raises:
            KeyError: if there is no such condition or method.
        """
        scores = {score["name"]: score for score in self.condition_scores}
        return scores[condition]["methods"][method]["accuracy"]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single images, as plain values (`None` where a figure is not defined)."""
        return {
            "format_version": FORMAT_VERSION,
            "complete": self.complete,
            "settings": self.settings,
            "versions": package_versions(),
            "runs": self.runs,
            "methods": self.methods,
            "not_applicable": self.not_applicable,
            "reference": None if self.reference is None else self.reference["name"],
            "overall": self.overall,
            "conditions": self.condition_scores,
        }

    def table(self) -> str:
        """Accuracies in percent, a row per corruption and a column per method, as printed in the terminal."""
        from .table import format_results

        return format_results(self)

    def model_index_entries(self, method: str | None = None) -> list[dict[str, Any]]:
        """`name`, `accuracy_unadapted` and `accuracy_adapted` of each condition; see [`model_index_entries`]."""
        from .model_index import model_index_entries

        return model_index_entries(self, method)


def package_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that figures may depend on."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
