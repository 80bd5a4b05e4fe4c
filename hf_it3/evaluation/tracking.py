"""Reports results to experiment trackers, with the callbacks that Trainer uses."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks


if TYPE_CHECKING:
    from .results import RobustnessResults


class Tracker:
    """Sends figures to trackers as `Trainer` does, one step per condition.

    Args:
        report_to: `"trackio"`, `"tensorboard"`, `"wandb"` or any other integration of transformers, `"all"`, `"none"`,
            or a list.
        output_dir: where trackers that write files do so.
        run_name (*optional*): name of the run.

    Raises:
        ValueError: for an unknown tracker.
        RuntimeError: for one that is not installed.
    """

    def __init__(self, report_to: Any, output_dir: str, run_name: str | None = None):
        if isinstance(report_to, (list, tuple)):
            report_to = [name for name in report_to if name != "none"]
        self.callbacks = [make() for make in get_reporting_integration_callbacks(report_to or "none")]
        self.state = TrainerState(is_world_process_zero=True, is_local_process_zero=True)
        self.control = TrainerControl()
        self.arguments = None
        if self.callbacks:
            self.arguments = TrainingArguments(output_dir, run_name=run_name, report_to="none")

    def start(self, model: nn.Module) -> None:
        """Opens the run."""
        self._call("on_train_begin", model=model)

    def log_condition(self, results: "RobustnessResults", score: dict[str, Any]) -> None:
        """Sends the figures of a condition, named `eval/{condition}/{method}/{figure}`."""
        self.state.global_step += 1
        name = score["name"]
        logs = {
            # Loggers of Trainer turn the prefix eval_ into eval/.
            f"eval_{name}/{method}/{figure}": figures[figure]
            for method, figures in score["methods"].items()
            for figure in (results.kind.metric, "expected_calibration_error", "negative_log_likelihood")
            if figures.get(figure) is not None
        }
        for method, figures in score["methods"].items():
            if "gain" in figures:
                logs[f"eval_{name}/{method}/gain"] = figures["gain"]["gain"]
        self._call("on_log", logs=logs)

    def finish(self, results: "RobustnessResults", model: nn.Module) -> None:
        """Sends the means over all shifted conditions and closes the run."""
        logs, metric = {}, results.kind.metric
        for method, summary in results.overall.items():
            logs[f"eval_mean/{method}/{metric}"] = summary[f"mean_{metric}"]
            logs[f"eval_mean/{method}/error"] = summary["mean_error"]
            for other, gain in summary["gain_over"].items():
                logs[f"eval_mean/{method}/gain_over_{other}"] = gain["gain"]
        self.state.global_step += 1
        self._call("on_log", logs=logs)
        self._call("on_train_end", model=model)

    def _call(self, event: str, **kwargs: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self.arguments, self.state, self.control, **kwargs)
