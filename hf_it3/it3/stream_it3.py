"""Weights that live on from call to call, and the guard that sends them back when they collapse."""

import copy
import math
from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .adaptation_config_it3 import AdaptationConfig
from .shift_reference_it3 import Observation
from .steps_it3 import Passes, SharedAdaptation
from .task_it3 import Task


logger = logging.get_logger(__name__)

# A loss is running away if it lies this many running standard deviations above its running mean.
_RUNAWAY_DEVIATIONS = 6.0
_RUNNING_DECAY = 0.95
_MIN_LOSSES = 10
_MIN_IMAGES = 32
_COUNTERS = ("num_images", "num_steps", "num_resets")
_STATE = {"settings", "source", "parameters", "anchor", "optimizer", "guard", "window", *_COUNTERS}
_GUARD_STATE = {"predicted", "mean", "square", "count"}


class CollapseGuard:
    """Watches how far a stream's predictions drift from the unadapted ones, and its loss.

    Args:
        task ([`Task`]): says what drift is: into one class, to another rate of labels, away from the values.
        window (`int`): number of latest images that are watched.
    """

    def __init__(self, task: Task, window: int):
        self.task = task
        self.predicted: deque[Tensor] = deque(maxlen=window)
        self.window = window
        self.mean, self.square, self.count = 0.0, 0.0, 0

    def verdict(self, adapted: Tensor, unadapted: Tensor, loss: float | None) -> str | None:
        """Takes note of a batch's predictions `(B, num_labels, ...)` and loss; the reason if the stream went wrong."""
        self.predicted.extend(torch.stack([self.task.watched(adapted), self.task.watched(unadapted)], 1).cpu())
        if len(self.predicted) >= min(_MIN_IMAGES, self.window):
            watched = torch.stack(list(self.predicted))
            if reason := self.task.drift(watched[:, 0], watched[:, 1]):
                return reason
        return None if loss is None else self._loss_verdict(loss)

    def _loss_verdict(self, loss: float) -> str | None:
        if self.count >= _MIN_LOSSES:
            deviation = math.sqrt(max(self.square - self.mean**2, 1e-12))
            if loss > self.mean + _RUNAWAY_DEVIATIONS * deviation:
                return f"the loss rose to {loss:.3g} from a running mean of {self.mean:.3g}"
        decay = min(_RUNNING_DECAY, self.count / (self.count + 1))
        self.mean = decay * self.mean + (1 - decay) * loss
        self.square = decay * self.square + (1 - decay) * loss**2
        self.count += 1
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything the guard remembers."""
        predicted = [pair.tolist() for pair in self.predicted]
        return {"predicted": predicted, "mean": self.mean, "square": self.square, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.predicted = deque((torch.tensor(pair) for pair in state["predicted"]), maxlen=self.window)
        self.mean, self.square, self.count = state["mean"], state["square"], state["count"]


class Stream:
    """The running state of scope `"stream"`.

    Args:
        shared ([`SharedAdaptation`]): takes the steps, on a shell of its own.
        config ([`AdaptationConfig`]): the settings.
    """

    def __init__(self, shared: SharedAdaptation, config: AdaptationConfig):
        self.shared = shared
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Returns to the source weights, and forgets everything else."""
        self.shared.reset()
        self.optimizer = self.shared.fresh_optimizer()
        self.guard = CollapseGuard(self.shared.task, self.config.gate_window)
        self.window: Observation | None = None
        self.num_images = 0
        self.num_steps = 0
        self.num_resets = 0

    def start_again(self) -> None:
        """Resets a stream that went wrong, and counts it."""
        resets = self.num_resets + 1
        self.reset()
        self.num_resets = resets

    @property
    def counts(self) -> dict[str, int]:
        """Images adapted to and steps taken since the last reset."""
        return {"num_images": self.num_images, "num_steps": self.num_steps}

    def observe(self, seen: Observation) -> Observation:
        """Takes note of what was seen in a batch, and returns that of the latest `gate_window` images."""
        parts = [seen] if self.window is None else [self.window, seen]
        self.window = Observation.join(parts)[-self.config.gate_window :]
        return self.window

    def run(self, pixel_values: Tensor, first: Passes) -> tuple[Tensor | None, Tensor]:
        """Takes the stream one batch further; see `SharedAdaptation.run`. A collapsed stream has no logits."""
        logits, history = self.shared.continue_from(pixel_values, first, self.optimizer)
        self.num_images += len(pixel_values)
        self.num_steps += len(history)
        if self.config.collapse_guard and logits.isfinite().all():
            loss = history[0].item() if len(history) else None
            reason = self.guard.verdict(self.shared.task.predict(logits), first.y0.detach(), loss)
            if reason is not None:
                logger.warning(f"The stream collapsed: {reason}. It starts again from the source weights.")
                self.start_again()
                return None, history
        return logits, history

    def state_dict(self) -> dict[str, Any]:
        """Weights, anchor, optimizer, guard, gate window, statistics and counters."""
        shell, anchor = self.shared.shell, self.shared.anchor_shell
        return {
            "settings": self.config.to_dict(),
            "source": _checksum(shell.source),
            "parameters": _copies(shell.names, shell.masters),
            "anchor": None if anchor is None else _copies(anchor.names, anchor.masters),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "guard": self.guard.state_dict(),
            "window": None if self.window is None else vars(self.window.cpu()),
            "seen": self.shared.seen.state_dict(),
            "num_images": self.num_images,
            "num_steps": self.num_steps,
            "num_resets": self.num_resets,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, after checking that it fits; nothing changes if it does not."""
        self._check(state)
        guard = CollapseGuard(self.shared.task, self.config.gate_window)
        guard.load_state_dict(state["guard"])
        self.optimizer = self.shared.restored_optimizer(state["optimizer"])
        self.guard = guard
        shell, anchor = self.shared.shell, self.shared.anchor_shell
        shell.load([state["parameters"][name] for name in shell.names])
        if anchor is not None:
            anchor.load([state["anchor"][name] for name in anchor.names])
        if (seen := state.get("seen")) is None:  # saved by a version that did not keep them
            self.shared.seen.forget()
        else:
            self.shared.seen.load_state_dict(seen)
        window = state["window"]
        device = shell.masters[0].device
        moved = {} if window is None else {name: value.to(device) for name, value in window.items()}
        self.window = Observation(**moved)[-self.config.gate_window :] if moved else None
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _check(self, state: dict[str, Any]) -> None:
        """Raises a ValueError if a state is not complete, or not of a stream with this model and these settings."""
        if not isinstance(state, dict):
            raise ValueError(f"the state of a stream is a dict, got {type(state).__name__}")
        missing = _STATE - set(state)
        missing |= {f"guard.{key}" for key in _GUARD_STATE - set(state.get("guard", _GUARD_STATE))}
        if missing:
            raise ValueError(f"this is not the state of a stream: it lacks {', '.join(sorted(missing))}")
        if state.get("seen") is not None:
            self.shared.seen.check(state["seen"])
        ours, theirs = self.config.to_dict(), state["settings"]
        for name in ("optimizer", "learning_rate", "parameters", "anchor"):
            saved = theirs.get(name)
            if saved != ours[name]:
                raise ValueError(f"the stream was saved with {name}={saved!r}, this adapter has {name}={ours[name]!r}")
        shell, anchor = self.shared.shell, self.shared.anchor_shell
        expected = _shapes(dict(zip(shell.names, shell.masters, strict=True)))
        if _shapes(state["parameters"]) != expected or (anchor is not None and _shapes(state["anchor"]) != expected):
            raise ValueError("the stream was saved with other parameters than this model's; load the same base model")
        if not math.isclose(state["source"], _checksum(shell.source), rel_tol=1e-9):
            raise ValueError("the stream was saved with other base weights than this model's; load its base model")
        if (saved := theirs.get("norm_statistics")) != ours["norm_statistics"]:
            raise ValueError(
                f"the stream was saved with norm_statistics={saved!r}, this adapter has {ours['norm_statistics']!r}; "
                "clean images may have been measured in between, so set norm_statistics"
            )


def _shapes(values: dict[str, Tensor] | None) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in (values or {}).items()}


def _copies(names: list[str], values: list[Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in zip(names, values, strict=True)}


def _checksum(values: list[Tensor]) -> float:
    """A number that tells one model's weights from another's."""
    return sum(value.detach().cpu().double().abs().sum().item() for value in values)
