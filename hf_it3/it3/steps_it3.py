"""Optimizer steps on the objective, for images that share adapted weights."""

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adaptation_config_it3 import AdaptationConfig
from .batchnorm_it3 import norm_statistics
from .objective_it3 import IdempotenceDistance, largest_class_share, negative_diversity, predict
from .shell_it3 import ModelShell


@dataclass
class Passes:
    """Both predictions for a batch, `(B, num_labels)` each, the logits of the first and their distances `(B,)`."""

    logits: Tensor
    y0: Tensor
    y1: Tensor
    distances: Tensor

    @classmethod
    def join(cls, parts: Sequence["Passes"]) -> "Passes":
        """The passes of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        names = ("logits", "y0", "y1", "distances")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def __getitem__(self, chosen: Tensor | slice) -> "Passes":
        return Passes(self.logits[chosen], self.y0[chosen], self.y1[chosen], self.distances[chosen])


def first_passes(shell: ModelShell, owner: "SharedAdaptation", pixel_values: Tensor, with_graph: bool) -> Passes:
    """Both passes of the unadapted model, with its training statistics; with autograd's graph if asked for."""
    with torch.set_grad_enabled(with_graph):
        logits = shell(pixel_values)
        y0 = predict(logits, owner.problem_type)
    with torch.set_grad_enabled(with_graph and owner.config.effective_anchor == "self"):
        y1 = predict(shell(pixel_values, y0), owner.problem_type)
    with torch.set_grad_enabled(with_graph):
        return Passes(logits, y0, y1, owner.distance(y1, y0))


def make_optimizer(config: AdaptationConfig, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer that the settings name, or that their callable returns.

    Raises:
        TypeError: if the callable returns something else than a torch optimizer.
    """
    if config.optimizer == "adam":
        # The fused kernel is the fastest where it exists; it wants real floating point tensors of one kind.
        fused = all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
        return torch.optim.Adam(parameters, lr=config.learning_rate, fused=fused)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate)
    build: Any = config.optimizer  # the settings let no other names pass
    optimizer = build(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "the optimizer callable takes the parameters and must return a torch.optim.Optimizer, got "
            f"{type(optimizer).__name__}"
        )
    return optimizer


@torch.no_grad()
def forget_history(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer that was named in the settings as good as new, in the memory that it already has."""
    history = [entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, Tensor)]
    if history:
        torch._foreach_zero_(history)


def test_statistics(config: AdaptationConfig) -> contextlib.AbstractContextManager:
    """The BatchNorm statistics that the settings ask for."""
    if config.norm_statistics == "source":
        return contextlib.nullcontext()
    return norm_statistics(config.norm_statistics, config.prior_count)


class SharedAdaptation:
    """Adapts one set of weights, the shell's, to a group of images.

    Args:
        shell ([`ModelShell`]): whose parameters change.
        source_shell ([`ModelShell`]): the unadapted model; may be `shell` itself where that starts out unadapted.
        config ([`AdaptationConfig`]): the settings.
        distance ([`IdempotenceDistance`]): D(y1, y0).
        problem_type (`str`, *optional*): of the model.
    """

    def __init__(
        self,
        shell: ModelShell,
        source_shell: ModelShell,
        config: AdaptationConfig,
        distance: IdempotenceDistance,
        problem_type: str | None,
    ):
        self.shell = shell
        self.source_shell = source_shell
        self.config = config
        self.distance = distance
        self.problem_type = problem_type
        self.anchor_shell = ModelShell(shell.model, config.parameters) if config.effective_anchor == "ema" else None
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def reuses_first_passes(self) -> bool:
        """Whether the first step can start from the passes that the gate looked at."""
        config = self.config
        return self.shell is self.source_shell and config.norm_statistics == "source" and config.num_steps > 0

    def run(self, pixel_values: Tensor, first: Passes) -> tuple[Tensor, Tensor]:
        """Adapts from the source weights.

        Returns:
            Adapted logits `(B, num_labels)`, NaN if the objective was not finite, and the loss history `(steps,)`.
        """
        if self.anchor_shell is not None:
            self.anchor_shell.reset()
        return self.continue_from(pixel_values, first, self.fresh_optimizer())

    def restored_optimizer(self, state: dict[str, Any]) -> torch.optim.Optimizer:
        """An optimizer that goes on from a saved state; the one in use stays as it is.

        Raises:
            ValueError: if the state is not one of an optimizer of these parameters.
        """
        optimizer = make_optimizer(self.config, self.shell.masters)
        problem = "the saved state of the optimizer does not fit the parameters"
        try:
            # Copied, because the optimizer goes on to change in place what it is given.
            optimizer.load_state_dict(copy.deepcopy(state))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{problem}: {error}") from error
        if not callable(self.config.optimizer):
            for parameter, entries in optimizer.state.items():
                shapes = {tuple(entry.shape) for entry in entries.values() if isinstance(entry, Tensor)}
                if not shapes <= {(), tuple(parameter.shape)}:
                    raise ValueError(f"{problem}: it has shapes {shapes} for one of shape {tuple(parameter.shape)}")
        self._optimizer = optimizer
        return optimizer

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer without history; named ones are built once and emptied."""
        if self._optimizer is None or callable(self.config.optimizer):
            self._optimizer = make_optimizer(self.config, self.shell.masters)
        forget_history(self._optimizer)
        return self._optimizer

    def continue_from(
        self, pixel_values: Tensor, first: Passes, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Adapts from whatever weights the shell has; see `run`."""
        losses: list[float] = []
        passes = first if self.reuses_first_passes else None
        frozen_y1 = first.y1 if self.config.norm_statistics == "source" else None
        with_diversity = self._wants_diversity(first.y0.detach())
        with test_statistics(self.config):
            for _ in range(self.config.num_steps):
                if passes is None:
                    y0 = predict(self.shell(pixel_values), self.problem_type)
                    y1, frozen_y1 = self._second_prediction(pixel_values, y0, frozen_y1)
                else:
                    y0, y1, passes = passes.y0, passes.y1, None
                loss = self._objective(y0, y1, with_diversity)
                losses.append(loss.item())
                if not (math.isfinite(losses[-1]) and self._step(loss, optimizer)):
                    return torch.full_like(first.logits.detach(), float("nan")), first.distances.new_tensor(losses)
            with torch.no_grad():
                logits = self.shell(pixel_values)
        return logits, first.distances.new_tensor(losses)

    def _wants_diversity(self, y0: Tensor) -> bool:
        config = self.config
        return config.diversity_weight > 0 and len(y0) > 1 and largest_class_share(y0) <= config.max_class_share

    def _second_prediction(
        self, pixel_values: Tensor, y0: Tensor, frozen_y1: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.effective_anchor == "self":
            return predict(self.shell(pixel_values, y0), self.problem_type), None
        with torch.no_grad():
            if self.anchor_shell is not None:
                return predict(self.anchor_shell(pixel_values, y0), self.problem_type), None
            if frozen_y1 is None:
                # With other statistics than the gate's, the source model has to look again, once.
                source_y0 = predict(self.source_shell(pixel_values), self.problem_type)
                frozen_y1 = predict(self.source_shell(pixel_values, source_y0), self.problem_type)
            return frozen_y1, frozen_y1

    def _objective(self, y0: Tensor, y1: Tensor, with_diversity: bool) -> Tensor:
        loss = self.distance(y1, y0).mean()
        if with_diversity:
            loss = loss + self.config.diversity_weight * negative_diversity(y0, self.problem_type)
        return loss

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> bool:
        """One optimizer step; without effect, and False, if a gradient that has to be looked at is not finite."""
        gradients = torch.autograd.grad(loss, self.shell.parameters, allow_unused=True)
        self.shell.set_gradients(gradients)
        max_norm = self.config.max_grad_norm
        # A bad step shows in the answers and is forgotten with the batch, but a stream would have to live with it.
        if max_norm is not None or self.config.scope == "stream":
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            if not norm.isfinite():
                return False
            if max_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self.shell.masters, max_norm, norm)
        optimizer.step()
        self.shell.after_step()
        if self.anchor_shell is not None:
            self._move(self.anchor_shell)
        return True

    @torch.no_grad()
    def _move(self, anchor: ModelShell) -> None:
        torch._foreach_lerp_(anchor.masters, self.shell.masters, 1 - self.config.ema_decay)
        anchor.after_step()
