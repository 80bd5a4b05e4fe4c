"""Teaches `Trainer` about a model whose one forward pass holds two passes and two losses."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from ..data import LABEL_COLUMNS
from ..it3.interface_it3 import idempotent_model
from ..it3.modeling_it3 import IT3ImageClassifierOutput
from ..it3.task_it3 import Task


_LOSSES = ("classification_loss", "idempotence_loss")
# Elsewhere gradients are in parts, or gone after the backward pass.
_KEEPS_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class TwoPassTrainer(Trainer):
    """Trainer whose losses, the caller's too, cover the first pass and the signal pass, and are logged one by one.

    Args:
        args (`TrainingArguments`): as in `Trainer`; label smoothing as `compute_loss_func`.
        compute_loss_func (callable, *optional*): takes the place of the model's own loss in both passes:
            `loss(f(x), y) + idempotence_weight * loss(f(x, y), y)`.
        kwargs: as in `Trainer`.
    """

    def __init__(self, *, args: TrainingArguments, compute_loss_func: Callable | None = None, **kwargs: Any):
        smoothing = args.label_smoothing_factor
        smoother = LabelSmoother(epsilon=smoothing) if smoothing else None
        self._loss_of_one_pass: Callable | None = compute_loss_func or smoother
        self._loss_sums: dict[str, Any] = dict.fromkeys(_LOSSES, 0.0)
        self._loss_count = 0
        given = None if self._loss_of_one_pass is None else self._loss_of_both_passes
        super().__init__(args=args, compute_loss_func=given, **kwargs)

    def _loss_of_both_passes(
        self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        config, loss_of = idempotent_model(self.model).config, self._loss_of_one_pass
        assert loss_of is not None
        task = Task.of(config)
        if isinstance(loss_of, LabelSmoother) and task.index_dims != 1:
            raise ValueError(
                f"label_smoothing_factor={loss_of.epsilon} is for one class per image, and the model has problem_type="
                f"{task.name!r}; leave it out"
            )
        first = loss_of(outputs, labels, num_items_in_batch=num_items_in_batch)
        given_signal = IT3ImageClassifierOutput(logits=outputs["signal_logits"])
        second = loss_of(given_signal, labels, num_items_in_batch=num_items_in_batch)
        outputs["classification_loss"], outputs["idempotence_loss"] = first.detach(), second.detach()
        return first + config.idempotence_weight * second

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of both passes; in training, each of its parts is remembered for the next log entry."""
        if "labels" not in inputs:
            raise ValueError(
                f"the batch has no labels, only {', '.join(inputs)}; the data set needs a label column, one of "
                f"{', '.join(LABEL_COLUMNS)}, or name it with label_column"
            )
        # `Trainer` keeps the labels from the model where another loss is given, which needs them for the signal pass.
        called: Any = functools.partial(model, labels=inputs["labels"]) if self._loss_of_one_pass else model
        loss, outputs = super().compute_loss(called, inputs, True, num_items_in_batch)
        if model.training and isinstance(outputs, dict):
            for name in _LOSSES:
                self._loss_sums[name] = self._loss_sums[name] + outputs[name].detach().mean()
            self._loss_count += 1
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One training step.

        Raises:
            ValueError: after the first one, if a subclass computes a loss that the label embedder has no part in.
        """
        loss = super().training_step(*args, **kwargs)
        is_own = type(self).compute_loss is not TwoPassTrainer.compute_loss
        if is_own and self.state.global_step == 0 and self.accelerator.distributed_type in _KEEPS_GRADIENTS:
            self._check_embedder_trains()
        return loss

    def _check_embedder_trains(self) -> None:
        trained = [value for value in idempotent_model(self.model).embedder.parameters() if value.requires_grad]
        if trained and all(value.grad is None for value in trained):
            raise ValueError(
                f"compute_loss of {type(self).__name__} gives the label embedder no gradient, so the model would not "
                "learn what label signals mean; pass the labels to the model, whose output then has signal_logits and "
                "idempotence_loss too, or give the loss as compute_loss_func, which both passes get"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with the mean of both losses since the last entry beside the training loss."""
        if "loss" in logs and self._loss_count:
            for name in _LOSSES:
                mean = torch.as_tensor(self._loss_sums[name] / self._loss_count, device=self.args.device)
                logs[name] = self.accelerator.gather(mean).mean().item()
                self._loss_sums[name] = 0.0
            self._loss_count = 0
        super().log(logs, *args, **kwargs)
