"""Optimizer steps on the objective, for images that share adapted weights."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adaptation_config_it3 import AdaptationConfig
from .alignment_it3 import num_correcting_layers
from .augmentation_it3 import Augmentation
from .backbone_defaults_it3 import backbone_kind
from .batchnorm_it3 import norm_statistics, noted_statistics
from .distances_it3 import entropy
from .injection_it3 import watched_features
from .objective_it3 import Objective, move_average
from .optimizers_it3 import forget_history, lay_out_history, make_optimizer, take_step
from .seen_statistics_it3 import SeenStatistics
from .shell_it3 import ModelShell
from .shift_reference_it3 import ShiftReference


# Mean entropy of predictions for sorted images where all layers are corrected, over that where the first half is, at
# least, for each kind of backbone; and where a strong shift leaves the first half overconfident.
_LESS_SURE = {"batch_norm": 1.03, "layer_norm": 1.0}
_MUCH_LESS_SURE = 1.15
# A shift is strong where correcting the first half of the layers changes more than this share of the predictions.
_CHANGED = 0.5


@dataclass
class Passes:
    """Both predictions for a batch, `(B, num_labels, ...)` each, logits of the first, their distances `(B,)`, and the
    first features `(B, F)` where somebody looked at them."""

    logits: Tensor
    y0: Tensor
    y1: Tensor
    distances: Tensor
    features: Tensor | None = None

    @classmethod
    def join(cls, parts: Sequence["Passes"]) -> "Passes":
        """The passes of several batches as one."""
        if len(parts) == 1:
            return parts[0]
        names = ("logits", "y0", "y1", "distances")
        features = [part.features for part in parts if part.features is not None]
        joined = torch.cat(features) if len(features) == len(parts) else None
        values = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**values, features=joined)

    def __getitem__(self, chosen: Tensor | slice) -> "Passes":
        features = None if self.features is None else self.features[chosen]
        return Passes(self.logits[chosen], self.y0[chosen], self.y1[chosen], self.distances[chosen], features)

    @property
    def has_graph(self) -> bool:
        """Whether a step can start from these passes."""
        return self.distances.requires_grad


def chosen_statistics(
    config: AdaptationConfig, per_image: bool, weights: Tensor | None = None, num_layers: int | None = None
) -> AbstractContextManager:
    """The statistics that the settings ask for: of the batch, weighted or not, or of each image by itself; in all
    layers, or so many first ones."""
    return norm_statistics(config.norm_statistics, config.prior_count or 0, per_image, weights, num_layers)


def num_first_layers(model: nn.Module, depth: float) -> int | None:
    """How many layers correct their features, the first ones, where a share of those that do is to; `None` for all."""
    if depth == 1:
        return None
    return max(1, int(depth * num_correcting_layers(model))) if depth else 0


class SharedAdaptation:
    """Adapts one set of weights, the shell's, to a group of images.

    Args:
        shell ([`ModelShell`]): whose parameters change.
        source_shell ([`ModelShell`]): the unadapted model; may be `shell` itself where that starts out unadapted.
        config ([`AdaptationConfig`]): the settings, nothing left open.
        objective ([`Objective`]): what the steps minimise.
        alone (`bool`): whether the images are copies of one, which have statistics of their own and no diversity.
        of_copies ([`AdaptationConfig`], *optional*): by which features of copies are corrected, of images that nothing
            adapts to.
    """

    def __init__(
        self,
        shell: ModelShell,
        source_shell: ModelShell,
        config: AdaptationConfig,
        objective: Objective,
        alone: bool = False,
        of_copies: AdaptationConfig | None = None,
    ):
        self.alone = alone
        self.of_copies = of_copies
        self.shell = shell
        self.source_shell = source_shell
        self.config = config
        self.objective = objective
        self.task = objective.task
        self.augmentation: Augmentation | None = None
        if not alone and config.average_answers != "never" and config.augmentations > 1:
            self.augmentation = self.task.make_augmentation(config.augmentations, config.augmentation_kinds)
        self._less_sure = _LESS_SURE.get(backbone_kind(shell.model))
        self.anchor_shell = None
        if config.anchor == "ema":
            self.anchor_shell = ModelShell(shell.model, config.parameters, shell.takes_steps)
        self.seen = SeenStatistics(shell.module, config.gate_window)
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def sees_as_first(self) -> bool:
        """Whether steps see images with the statistics of the first passes, those of training."""
        return self.config.norm_statistics == "source"

    @property
    def can_start_from_first(self) -> bool:
        """Whether the first step can start from the first passes, if those have a graph."""
        return self.sees_as_first and self.shell is self.source_shell and self.config.num_steps != 0

    def first_passes(self, images: Tensor, with_graph: bool) -> Passes:
        """Both passes of the unadapted model, with its training statistics; with autograd's graph if asked for."""
        with torch.set_grad_enabled(with_graph), watched_features() as features:
            logits = self.source_shell(images)
            y0 = self.task.predict(logits)  # y0 = f(x)
        with torch.set_grad_enabled(with_graph and self.config.anchor == "self"):
            y1 = self.task.predict(self.source_shell(images, y0))  # y1 = f(x, y0)
        with torch.set_grad_enabled(with_graph):
            return Passes(logits, y0, y1, self.objective.distance(y1, y0), features[0] if features else None)

    def run(self, images: Tensor, first: Passes | None) -> tuple[Tensor, Tensor]:
        """Adapts from the source weights, which `reset` has brought back.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`).
            first ([`Passes`], *optional*): of the unadapted model.

        Returns:
            Adapted logits `(B, num_labels, ...)`, NaN if the objective was not finite, and the losses `(steps,)`.
        """
        return self.continue_from(images, first, self.fresh_optimizer())

    def reset(self) -> None:
        """Returns to the source weights, and forgets the images that others were adapted to."""
        self.shell.reset()
        self.seen.forget()
        if self.anchor_shell is not None:
            self.anchor_shell.reset()

    def restored_optimizer(self, state: dict[str, Any]) -> torch.optim.Optimizer:
        """An optimizer that goes on from a saved state; the one in use stays as it is.

        Raises:
            ValueError: if the state is not one of an optimizer of these parameters.
        """
        optimizer = self._new_optimizer()
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
        lay_out_history(optimizer)
        self._optimizer = optimizer
        return optimizer

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.config.optimizer, self.config.learning_rate or 0.0, self.shell.masters)

    def fresh_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer without history; named ones are built once and emptied."""
        if self._optimizer is None or callable(self.config.optimizer):
            self._optimizer = self._new_optimizer()
        forget_history(self._optimizer)
        return self._optimizer

    def continue_from(
        self, images: Tensor, first: Passes | None, optimizer: torch.optim.Optimizer
    ) -> tuple[Tensor, Tensor]:
        """Adapts from whatever weights the shell has; see `run`."""
        losses: list[float] = []
        # The frozen anchor answers the same in every step, so it is asked once.
        frozen_y1 = first.y1.detach() if first is not None and self.sees_as_first else None
        with_diversity = False
        # Shifted images are told apart once features are corrected, so these give the first classes to balance.
        weights = self._image_weights(images)
        if self.config.num_steps == 0:
            y0 = self.task.predict(self._answer(images, weights))
            if (logits := self._answer_if_sorted(images, first, y0, weights)) is not None:
                return logits, _as_losses([], y0)
            weights = weights if self._are_few(y0) else self._image_weights(images, y0)
        for step in range(self.config.num_steps or 0):
            if step == 0 and first is not None and first.has_graph and self.can_start_from_first:
                y0, distances = first.y0, first.distances
            else:
                with chosen_statistics(self.config, self.alone, weights, self.num_layers()):
                    y0 = self.task.predict(self.shell(images))
                    if frozen_y1 is None and self.config.anchor == "frozen":
                        frozen_y1 = self._frozen_prediction(images, y0)
                    y1 = self._second_prediction(images, y0, frozen_y1)
                distances = self.objective.distance(y1, y0)
            if step == 0:
                if (logits := self._answer_if_sorted(images, first, y0.detach(), weights)) is not None:
                    return logits, _as_losses([], y0)
                if self._are_few(y0.detach()):
                    break  # nothing keeps the classes apart, and the statistics are corrected already
                with_diversity = not self.alone and self._wants_diversity(y0.detach())
            loss = self.objective(distances, y0, with_diversity)
            losses.append(loss.item())
            if not (math.isfinite(losses[-1]) and self._step(loss, optimizer)):
                return torch.full_like(y0.detach(), float("nan")), images.new_tensor(losses, dtype=y0.dtype)
            weights = self._image_weights(images, y0.detach())
        with self.seen.watching(len(images)):
            logits = self._answer(images, weights)
        logits = self._average(images, logits, lambda copies: self._answer(copies, weights))
        return logits, _as_losses(losses, logits)

    @property
    def averages(self) -> bool:
        """Whether answers are means over copies."""
        return self.augmentation is not None

    @torch.no_grad()
    def average(self, images: Tensor, logits: Tensor) -> Tensor:
        """Logits of the unadapted model's mean prediction over copies of each image `(B, C, H, W)`, given those of the
        images themselves; both `(B, num_labels, ...)`. To be called with the source weights in the shell."""
        with self.corrected_copies():
            return self._average(images, logits, self.source_shell)

    def corrected_copies(self) -> AbstractContextManager:
        """Inside, features of copies of images that nothing adapts to are corrected, where settings say so."""
        if (config := self.of_copies) is None:
            return nullcontext()
        num_layers = num_first_layers(self.shell.model, config.norm_depth or 0.0)
        return chosen_statistics(config, per_image=True, num_layers=num_layers)

    @torch.no_grad()
    def _average(self, images: Tensor, logits: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of the mean prediction over copies of images `(B, C, H, W)`, of which those of the first are known;
        these where nothing is averaged."""
        if self.augmentation is None:
            return logits
        copies = self.augmentation.each(images)
        next(copies)  # the images themselves
        answers = torch.stack([logits, *map(answer, copies)], 1)
        return self.task.average(self.augmentation.undo(answers))

    def _wants_diversity(self, y0: Tensor) -> bool:
        config = self.config
        several = len(y0) > 1 or y0.ndim > 2
        return config.diversity_weight > 0 and several and self.task.largest_share(y0) <= config.max_class_share

    def _are_few(self, y0: Tensor) -> bool:
        """Whether predictions are of fewer classes than those of clean images, where settings keep classes apart."""
        if not self._minds_order:
            return False
        classes = self.task.image_classes(y0)
        return bool(self._reference.are_of_few_classes(classes[None]).item())

    @property
    def _minds_order(self) -> bool:
        """Whether settings keep classes apart that share statistics of the batch."""
        shares = not (self.alone or self.sees_as_first)
        return shares and self.config.diversity_weight > 0 and self.task.num_classes > 1

    @torch.no_grad()
    def _answer_if_sorted(
        self, images: Tensor, first: Passes | None, corrected: Tensor, weights: Tensor | None
    ) -> Tensor | None:
        """Logits for images that seem to be sorted by class; `None` for others, and where that cannot be told.

        A shift changes features from the first layers on, the order of images those of the last ones, which tell
        classes apart. Where these are corrected as well, sorted images lose what makes them of their class, and are
        predicted less surely than where the first half of the layers is, which is their answer therefore.

        Args:
            images (`Tensor` of shape `(B, C, H, W)`).
            first ([`Passes`], *optional*): of the unadapted model.
            corrected (`Tensor` of shape `(B, num_labels, ...)`): predictions where all layers are corrected.
            weights (`Tensor` of shape `(B,)`, *optional*): of images in the statistics of these.
        """
        if first is None or self._less_sure is None or not self._minds_order:
            return None
        num_layers = self.num_layers(0.5)

        def answer(images: Tensor) -> Tensor:
            return self._answer(images, weights, num_layers)

        with noted_statistics() as noted:
            logits = answer(images)
        early = self.task.predict(logits)
        changed = self.task.image_classes(early) != self.task.image_classes(first.y0.detach())
        least = self._less_sure if changed.float().mean() <= _CHANGED else _MUCH_LESS_SURE
        if entropy(corrected).mean() <= least * entropy(early).mean():
            return None
        self.seen.add(noted, len(images))
        return self._average(images, logits, answer)

    def _image_weights(self, images: Tensor, answers: Tensor | None = None) -> Tensor | None:
        """How much each image counts in the statistics of the batch, by what it was predicted as if that is known."""
        if self.alone or self.sees_as_first:
            return None
        if answers is None or not self.config.class_balance:
            return torch.full((len(images),), 1 / len(images), device=images.device)
        return self._reference.class_weights(self.task.image_classes(answers))

    @property
    def _reference(self) -> ShiftReference:
        return self.shell.model.shift_reference  # type: ignore[return-value]

    def num_layers(self, share: float = 1.0) -> int | None:
        """How many layers correct their features, the first ones, or this share of those; `None` for all."""
        return num_first_layers(self.shell.model, share * (self.config.norm_depth or 0.0))

    @torch.no_grad()
    def _answer(self, images: Tensor, weights: Tensor | None, num_layers: int | None = None) -> Tensor:
        """Logits with the chosen statistics, in so many layers or as many as settings say."""
        num_layers = self.num_layers() if num_layers is None else num_layers
        with chosen_statistics(self.config, self.alone, weights, num_layers):
            return self.shell(images)

    def _second_prediction(self, images: Tensor, y0: Tensor, frozen_y1: Tensor | None) -> Tensor:
        """y1 = f(x, y0) of whoever is the anchor."""
        if frozen_y1 is not None and self.config.anchor == "frozen":
            return frozen_y1
        if self.anchor_shell is None:
            return self.task.predict(self.shell(images, y0))
        with torch.no_grad():
            return self.task.predict(self.anchor_shell(images, y0))

    @torch.no_grad()
    def _frozen_prediction(self, images: Tensor, y0: Tensor) -> Tensor:
        """y1 of the unadapted model, with the statistics of the steps."""
        is_source = self.source_shell is self.shell  # the first step is yet to be taken
        source_y0 = y0.detach() if is_source else self.task.predict(self.source_shell(images))
        return self.task.predict(self.source_shell(images, source_y0))

    def _step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> bool:
        """One optimizer step; without effect, and False, if a gradient that has to be looked at is not finite."""
        gradients = self.shell.laid_out(torch.autograd.grad(loss, self.shell.parameters, allow_unused=True))
        max_norm = self.config.max_grad_norm
        # A bad step shows in the answers and is forgotten with the batch, but a stream would have to live with it.
        if max_norm is not None or self.config.scope == "stream":
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
            if not norm.isfinite():
                return False
            if max_norm is not None:
                factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
                gradients = [None if gradient is None else gradient * factor for gradient in gradients]
        take_step(optimizer, self.shell.masters, gradients)
        self.shell.after_step()
        if self.anchor_shell is not None:
            move_average(self.anchor_shell.masters, self.shell.masters, self.config.ema_decay)
            self.anchor_shell.after_step()
        return True


def _as_losses(values: list[float], logits: Tensor) -> Tensor:
    """Losses `(steps,)` in at least single precision."""
    return logits.new_tensor(values, dtype=torch.promote_types(logits.dtype, torch.float32))
