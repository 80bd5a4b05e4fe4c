"""Carries out an evaluation: run by run, pass by pass, each saved as soon as it is finished."""

from collections.abc import Sequence
from typing import Any

from ..it3.shell_it3 import frozen_modes
from .images import CACHE_BYTES, ImageSource
from .inputs import LoadedModel
from .methods import UNADAPTED, Method, why_not_applicable
from .outcomes import Outcomes
from .processes import on_main_process, process_state
from .results import RobustnessResults
from .runner import Runner, by_condition
from .storage import ResultsFolder
from .tracking import Tracker


class EvaluationInterrupted(KeyboardInterrupt):
    """Raised on Ctrl-C during an evaluation.

    Attributes:
        results ([`RobustnessResults`]): of the conditions that were finished.
    """

    def __init__(self, results: RobustnessResults):
        super().__init__("the evaluation was interrupted")
        self.results = results


class Evaluation:
    """The loop over models, seeds and conditions.

    Args:
        results ([`RobustnessResults`]): filled on the way.
        models: the models.
        methods: the methods of each model, also those that it cannot use.
        subsets: data sets by name.
        seeds: seeds of each model.
        folder ([`ResultsFolder`], *optional*): where finished passes are saved, in the main process.
        tracker ([`Tracker`], *optional*): in the main process.
        show_progress: whether to show a progress bar.
    """

    def __init__(
        self,
        results: RobustnessResults,
        models: Sequence[LoadedModel],
        methods: Sequence[Sequence[Method]],
        subsets: dict[str | None, Any],
        seeds: Sequence[int],
        folder: ResultsFolder | None = None,
        tracker: Tracker | None = None,
        show_progress: bool = True,
    ):
        self.results = results
        self.models = models
        self.methods = methods
        self.subsets = subsets
        self.seeds = seeds
        self.folder = folder
        self.tracker = tracker
        self.show_progress = show_progress
        self.is_main = process_state().is_main_process
        self._reported: set[str] = set()

    def run(self, **source_options: Any) -> None:
        """Runs everything that is not done yet. The options are those of [`ImageSource`].

        Raises:
            EvaluationInterrupted: on Ctrl-C, with what was finished saved.
        """
        if self.tracker is not None:
            self.tracker.start(self.models[0].model)
        try:
            for loaded, methods in zip(self.models, self.methods, strict=True):
                self._run_model(loaded, methods, source_options)
        except KeyboardInterrupt:
            self._save(with_overall=True)
            raise EvaluationInterrupted(self.results) from None
        self.results.complete = True
        self._save(with_overall=True)
        if self.tracker is not None:
            self.tracker.finish(self.results, self.models[0].model)

    def _run_model(self, loaded: LoadedModel, methods: Sequence[Method], source_options: dict[str, Any]) -> None:
        source_options["cache_bytes"] = CACHE_BYTES // max(len(self.subsets), 1)
        sources = {
            name: ImageSource(dataset, loaded.image_processor, loaded.model.config, **source_options)
            for name, dataset in self.subsets.items()
        }
        usable = [method for method in methods if why_not_applicable(method, loaded.model) is None]
        with frozen_modes(loaded.model):
            for seed in self.seeds:
                settings = self.results.settings
                runner = Runner(
                    loaded.model,
                    loaded.image_processor,
                    sources,
                    self.results.conditions,
                    usable,
                    settings["order"],
                    settings["batch_size"],
                    seed,
                    self.show_progress,
                )
                self._run_seed(runner)

    def _run_seed(self, runner: Runner) -> None:
        run = len(self.results.outcomes)
        done = self._resume(runner, run)
        # Filled in place, so that an interruption finds what is finished.
        self.results.outcomes.append(by_condition(done, len(runner.conditions)))
        for sweep in runner.passes()[len(done) :]:
            outcomes = runner.run(sweep)
            done.append(outcomes)
            self.results.outcomes[run].update(by_condition(done, len(runner.conditions)))
            # Outcomes come last: without results.json, nothing would tell of which settings they are.
            self._save(with_overall=False)
            if self.folder is not None and self.is_main:
                self.folder.add(run, sweep.number, outcomes, runner.stream_state())
            self._report()

    def _resume(self, runner: Runner, run: int) -> list[Outcomes]:
        """The passes of a run that were finished earlier; streams go on from where they were."""
        state: dict[str, Any] | None = None

        def load() -> list[Outcomes]:
            nonlocal state
            if self.folder is None:
                return []
            passes, state = self.folder.load(run)
            return passes

        runner.reset_streams()
        done = on_main_process(load)
        if state is not None:
            runner.load_stream_state(state)
        return done

    def _save(self, with_overall: bool) -> None:
        if self.folder is not None and self.is_main:
            self.folder.write(self.results, with_overall)

    def _report(self) -> None:
        """Sends conditions that are done in all runs to the trackers, once."""
        if self.tracker is None:
            return
        for score in self.results.condition_scores:
            runs_done = len(score["methods"][UNADAPTED][f"{self.results.kind.metric}_by_run"])
            if runs_done == len(self.results.runs) and score["name"] not in self._reported:
                self._reported.add(score["name"])
                self.tracker.log_condition(self.results, score)
