"""The staged search for adaptation settings."""

import math

import torch
from tqdm.auto import tqdm

from ...it3.adaptation_config_it3 import AdaptationConfig
from ...it3.adaptation_it3 import TestTimeAdapter
from ...it3.interface_it3 import IdempotentModel
from ..conditions import CLEAN
from .grid import do_nothing, make_stages
from .images import ImagePart
from .report import Trial


# Every setting of the grid sees this part of the images; the best ones then see all.
_SCREENING_SHARE = 0.25
_FINALISTS = 4  # the model's own settings among them
# Few images tell little of a small loss on clean ones, so screening allows for more.
_SCREENING_LOSS_FACTOR = 2.0


class Search:
    """The staged search; see [`~hf_it3.calibration.calibrate`]."""

    def __init__(
        self,
        model: IdempotentModel,
        own: AdaptationConfig,
        images: ImagePart,
        max_clean_loss: float,
        show_progress: bool,
    ):
        self.model = model
        self.own = own
        self.images = images
        self.max_clean_loss = max_clean_loss
        self.show_progress = show_progress
        self.trials: list[Trial] = []

    def run(self) -> tuple[Trial, Trial]:
        """The baseline and the chosen trial, which may be the baseline, on all images."""
        everything = self.images.num_batches
        part = min(everything, max(2, math.ceil(_SCREENING_SHARE * everything)))
        allowed = self.max_clean_loss * (_SCREENING_LOSS_FACTOR if part < everything else 1.0)
        stages = make_stages(self.model, self.own)
        expected = sum(len(stage.candidates(self.own)) for stage in stages) + _FINALISTS
        with tqdm(total=expected, desc="Calibration", unit="setting", disable=not self.show_progress) as bar:
            baseline = self._measure("none", do_nothing(self.own), everything)
            screening_baseline = _first_images(baseline, min(part * self.own.batch_size, self.images.num_images))
            screened: list[Trial] = []
            for stage in stages:
                bar.set_description(f"Calibration: {stage.name}")
                tried = [screening_baseline.settings, *(trial.settings for trial in screened)]
                best = self._best(screened)
                for settings in stage.candidates(best.settings if best else self.own):
                    if settings not in tried:
                        tried.append(settings)
                        screened.append(self._measure(stage.name, settings, part, screening_baseline, allowed))
                        self.trials.append(screened[-1])
                    bar.update()
            bar.set_description("Calibration: final")
            finalists = self._finalists(screened, baseline, everything, part == everything, bar)
            bar.total = bar.n
            bar.refresh()
        best = self._best(finalists)
        if best is None or not best.mean_accuracy > baseline.mean_accuracy:
            return baseline, baseline
        return baseline, best

    @staticmethod
    def _best(trials: list[Trial]) -> Trial | None:
        """The best admissible trial, the earliest among equals."""
        admissible = [trial for trial in trials if trial.admissible]
        return max(admissible, key=lambda trial: trial.mean_accuracy, default=None)

    def _finalists(
        self, screened: list[Trial], baseline: Trial, everything: int, is_final: bool, bar: tqdm
    ) -> list[Trial]:
        if is_final:
            return screened
        finalists: list[Trial] = []
        for trial in self._ranked(screened):
            final = self._measure("final", trial.settings, everything, baseline, self.max_clean_loss)
            self.trials.append(final)
            if final.admissible:
                finalists.append(final)
                bar.update()
            if len(finalists) == _FINALISTS:
                break
        return finalists

    def _ranked(self, screened: list[Trial]) -> list[Trial]:
        """The model's own settings, then the admissible trials from the best down; of those that answer alike, one."""
        admissible = [trial for trial in screened if trial.admissible]
        own = [trial for trial in admissible if trial.settings == self.own]
        ranked: list[Trial] = []
        for trial in own + sorted(admissible, key=lambda trial: trial.mean_accuracy, reverse=True):
            if not any(trial.answers_as(other) for other in ranked):
                ranked.append(trial)
        return ranked

    def _measure(
        self,
        stage: str,
        settings: AdaptationConfig,
        num_batches: int,
        baseline: Trial | None = None,
        allowed_loss: float = math.inf,
    ) -> Trial:
        """Which images the model answers correctly with some settings; only the clean ones if it loses there."""
        allowed = None if baseline is None else (baseline, allowed_loss)
        return measure(self.model, self.images, stage, settings, num_batches, allowed)


def measure(
    model: IdempotentModel,
    images: ImagePart,
    stage: str,
    settings: AdaptationConfig,
    num_batches: int,
    allowed: tuple[Trial, float] | None = None,
) -> Trial:
    """Which images a model answers correctly with some settings.

    Args:
        model: the model.
        images: held-out images.
        stage: name of the trial's stage.
        settings: the settings.
        num_batches: of the images.
        allowed: a trial, and how many points may be lost to it on clean images; beyond, no corruption is measured.
    """
    adapter = TestTimeAdapter(model, settings)
    trial = Trial(stage, settings, {})
    for condition in images.conditions:
        adapter.reset()
        correct = [
            adapter(pixel_values).logits.argmax(-1) == labels
            for pixel_values, labels in images.batches(condition, num_batches)
        ]
        trial.correct[condition.name] = torch.cat(correct).cpu()
        if condition.name == CLEAN and allowed is not None and trial.clean_loss(allowed[0]) > allowed[1] + 1e-9:
            trial.admissible = False
            return trial
    return trial


def _first_images(trial: Trial, count: int) -> Trial:
    return Trial(trial.stage, trial.settings, {name: correct[:count] for name, correct in trial.correct.items()})
