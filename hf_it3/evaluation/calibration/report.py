"""What calibration found: as a table, a plot and `calibration.json`."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...it3.adaptation_config_it3 import AdaptationConfig
from ...it3.interface_it3 import IdempotentModel
from ...training.clean_images import CleanReference
from ...utils import new_figure, write_atomically
from ..conditions import CLEAN
from ..table import ruled


if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "calibration.json"
PLOT_FILE = "calibration.png"


@dataclass
class Trial:
    """Settings, and which images a model with them classified correctly.

    Args:
        stage (`str`): the stage of the search that they come from, `"none"` for the plain model.
        settings ([`AdaptationConfig`]): the settings.
        correct (`dict[str, Tensor]`): for each condition, `"clean"` first, shape `(N,)` of bool. Conditions after the
            clean one are missing where the settings lose too much there.
        admissible (`bool`): whether they lose no more on clean images than is allowed.
    """

    stage: str
    settings: AdaptationConfig
    correct: dict[str, Tensor]
    admissible: bool = True

    @property
    def num_images(self) -> int:
        """Images that each condition was measured on."""
        return len(self.correct[CLEAN])

    @property
    def accuracy(self) -> dict[str, float]:
        """Accuracy under each condition, a fraction."""
        return {name: correct.double().mean().item() for name, correct in self.correct.items()}

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over the corruptions, a fraction; NaN if they were not measured."""
        corrupted = [value for name, value in self.accuracy.items() if name != CLEAN]
        return sum(corrupted) / len(corrupted) if corrupted else math.nan

    def answers_as(self, other: "Trial") -> bool:
        """Whether both are right and wrong on the same images under every condition."""
        return self.correct.keys() == other.correct.keys() and all(
            torch.equal(correct, other.correct[name]) for name, correct in self.correct.items()
        )

    def gain_over(self, other: "Trial") -> tuple[float, float]:
        """Gain in mean accuracy over the corruptions, a fraction, and its standard error over the images."""
        names = [name for name in self.correct if name != CLEAN]
        gains = torch.stack([self.correct[name].double() - other.correct[name].double() for name in names]).mean(0)
        return gains.mean().item(), gains.std().item() / math.sqrt(len(gains))

    def clean_loss(self, other: "Trial") -> float:
        """Loss of accuracy on clean images against another trial, in points."""
        return 100 * (other.accuracy[CLEAN] - self.accuracy[CLEAN])

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `mean_accuracy` is `None` where the corruptions were not measured."""
        mean = self.mean_accuracy
        return {
            "stage": self.stage,
            "num_images": self.num_images,
            "admissible": self.admissible,
            "accuracy": self.accuracy,
            "mean_accuracy": None if math.isnan(mean) else mean,
            "adaptation": self.settings.to_dict(),
        }


@dataclass
class Comparison:
    """Compares the chosen settings with those that the model had, on images that were not used to choose.

    Args:
        without ([`Trial`]): the plain model.
        own ([`Trial`]): the settings and the clean reference that the model had.
        chosen ([`Trial`]): those that were chosen.
        max_clean_loss (`float`): allowed loss against the plain model on clean images, in points.
    """

    without: Trial
    own: Trial
    chosen: Trial
    max_clean_loss: float

    @property
    def is_better(self) -> bool:
        """Whether the chosen ones lose no more on clean images than is allowed, where those that were there do; or, if
        both or none of them keep to that, gain more than a standard error under the corruptions."""
        chosen, own = (
            trial.clean_loss(self.without) <= self.max_clean_loss + 1e-9 for trial in (self.chosen, self.own)
        )
        gain, error = self.chosen.gain_over(self.own)
        return chosen > own or (chosen == own and gain > error)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        trials = {"without": self.without, "own": self.own, "chosen": self.chosen}
        return {"is_better": self.is_better, **{name: trial.to_dict() for name, trial in trials.items()}}


@dataclass(repr=False)
class CalibrationResult:
    """What [`~hf_it3.calibration.calibrate`] chose, and from what; printing it prints its table.

    Args:
        own ([`AdaptationConfig`]): the settings that the model had, for the scope and batch size asked for.
        previous ([`AdaptationConfig`]): the settings that the model had.
        baseline ([`Trial`]): the model without adaptation, on all images that choose.
        chosen ([`Trial`]): the best settings on these; the baseline if none is better.
        chosen_settings ([`AdaptationConfig`]): its settings, what is as the model's defaults have it left open.
        trials (`list[Trial]`): everything that was tried, in order, on the screening images and on all that choose.
        corruptions (`list[str]`): qualified names of the corruptions.
        severity (`int`): of those that have severities.
        max_clean_loss (`float`): allowed loss on clean images, in points.
        seed (`int`): of corruptions and order.
        reference ([`CleanReference`]): what was measured on clean images.
        comparison ([`Comparison`]): on images that were not used to choose; it decides whether anything is written.
    """

    own: AdaptationConfig
    previous: AdaptationConfig
    baseline: Trial
    chosen: Trial
    chosen_settings: AdaptationConfig
    trials: list[Trial]
    corruptions: list[str]
    severity: int
    max_clean_loss: float
    seed: int
    reference: CleanReference
    comparison: Comparison

    @property
    def settings(self) -> AdaptationConfig:
        """The settings that the model goes on with: the chosen ones where they are better, else its own."""
        return self.chosen_settings if self.comparison.is_better else self.previous

    @property
    def improves(self) -> bool:
        """Whether any settings beat doing nothing."""
        return self.chosen is not self.baseline

    @property
    def reference_distance(self) -> dict[str, Any]:
        """Mean and standard deviation of the idempotence distance of clean images."""
        return dict(self.reference.distances or {})

    def apply(self, model: IdempotentModel) -> None:
        """Gives a model the settings, the clean reference and the names of the corruptions, if they are better."""
        if not self.comparison.is_better:
            return
        config = model.config
        config.adaptation = self.settings.replace()
        self.reference.store_in(model)
        config.calibration_corruptions = list(self.corruptions)

    def verdict(self) -> str:
        """Says what was chosen, and how it did on images that were not used to choose."""
        tried = len({repr(trial.settings) for trial in self.trials})
        count = self.comparison.chosen.num_images
        pairs = [("the settings that were there", self.comparison.own), ("doing nothing", self.comparison.without)]
        gains = ", ".join(f"{_gain(self.comparison.chosen, other)} over {name}" for name, other in pairs)
        measured = f"On {count} images not used to choose, mean gain in points with its standard error: {gains}."
        if self.improves:
            found = f"Chosen from {tried} settings: {describe_changes(self.chosen.settings, self.own)}."
        else:
            limit = f"a clean loss of at most {self.max_clean_loss:g} points"
            found = f"None of {tried} settings beats doing nothing at {limit}."
        if not self.comparison.is_better:
            return f"{found} {measured} That is no better, so the settings stay as they were."
        off = "" if self.improves else " Adaptation is turned off (num_steps=0)."
        return f"{found} {measured}{off} Other corruptions may gain less: measure them."

    def table(self) -> str:
        """Accuracy in percent on images not used to choose, every setting that was tried, and the verdict."""
        trials = self._compared.values()
        rows = [["", *self._compared]]
        rows += [[name, *(_percent(trial.accuracy[name]) for trial in trials)] for name in self.baseline.correct]
        rows.append(["mean of corruptions", *(_percent(trial.mean_accuracy) for trial in trials)])
        settings = self.chosen.settings
        head = (
            f"Accuracy in percent, {self.comparison.chosen.num_images} held-out images not used to choose, scope "
            f"{settings.scope}, batches of {settings.batch_size}, severity {self.severity}"
        )
        grid = [["stage", "images", "clean", "corrupted", "settings"]]
        for trial in self.trials:
            mean = _percent(trial.mean_accuracy) + ("" if trial.admissible else " clean loss")
            clean = _percent(trial.accuracy[CLEAN])
            grid.append(
                [trial.stage, str(trial.num_images), clean, mean.strip(), describe_changes(trial.settings, self.own)]
            )
        tried = f"Tried on {self.baseline.num_images} others"
        return "\n".join([head, *ruled(rows), "", tried, *ruled(grid), "", self.verdict()])

    def __repr__(self) -> str:
        return self.table()

    @property
    def _compared(self) -> dict[str, Trial]:
        """What is compared, by the headings of table and plot."""
        return {"without": self.comparison.without, "as it was": self.comparison.own, "chosen": self.comparison.chosen}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `calibration.json`; accuracies are fractions."""
        gain, error = self.chosen.gain_over(self.baseline)
        return {
            "improves": self.improves,
            "verdict": self.verdict(),
            "adaptation": self.settings.to_dict(),
            "previous_adaptation": self.previous.to_dict(),
            "reference_distance": self.reference_distance,
            "corruptions": self.corruptions,
            "severity": self.severity,
            "max_clean_loss": self.max_clean_loss,
            "seed": self.seed,
            "gain": gain,
            "gain_standard_error": error,
            "comparison": self.comparison.to_dict(),
            "without": self.baseline.to_dict(),
            "with": self.chosen.to_dict(),
            "trials": [trial.to_dict() for trial in self.trials],
        }

    def plot(self) -> "Figure":
        """Draws bars of accuracy under each condition, on images not used to choose: without, as it was, as chosen.

        Raises:
            ImportError: if matplotlib is missing.
        """
        names = list(self.baseline.correct)
        figure, axes = new_figure(2.0 + 1.7 * len(names), 3.8)
        axis = axes[0]
        colors = ("#9aa5b1", "#c9b458", "#f2a33a")
        for side, ((label, trial), color) in enumerate(zip(self._compared.items(), colors, strict=True)):
            positions = [index + 0.28 * (side - 1) for index in range(len(names))]
            values = [100 * trial.accuracy[name] for name in names]
            bars = axis.bar(positions, values, width=0.26, label=label, color=color, edgecolor="#39424e")
            axis.bar_label(bars, fmt="%.1f", fontsize=7)
        axis.set_xticks(range(len(names)), [name.rpartition("/")[2].replace("_", "\n") for name in names])
        axis.set_ylabel("accuracy (%)")
        axis.set_ylim(0, 112)
        axis.grid(axis="y", linestyle="--", alpha=0.5)
        axis.set_axisbelow(True)
        axis.legend(loc="upper right", frameon=False, ncols=3)
        return figure

    def save(self, folder: str | os.PathLike) -> list[str]:
        """Writes `calibration.json`, and `calibration.png` where matplotlib is installed.

        Returns:
            The names of the files.
        """
        folder = Path(folder)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        write_atomically(folder / REPORT_FILE, text.encode())
        try:
            figure = self.plot()
        except ImportError:
            return [REPORT_FILE]
        figure.savefig(folder / PLOT_FILE, dpi=150)
        return [REPORT_FILE, PLOT_FILE]


def describe_changes(settings: AdaptationConfig, own: AdaptationConfig) -> str:
    """The settings that differ from a model's own: `"num_steps=3, gate=None"`."""
    ours, theirs = settings.to_dict(), own.to_dict()
    changes = [f"{name}={_short(value)}" for name, value in ours.items() if value != theirs[name]]
    return ", ".join(changes) or "the model's own settings"


def _gain(trial: Trial, other: Trial) -> str:
    gain, error = trial.gain_over(other)
    return f"{100 * gain:+.1f} ({100 * error:.1f})"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(fraction: float) -> str:
    return "" if math.isnan(fraction) else f"{100 * fraction:.1f}"
