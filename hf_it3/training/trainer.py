"""A Trainer for idempotent models."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput
from transformers.utils import logging

from ..data import IMAGE_COLUMNS, LABEL_COLUMNS, MAP_COLUMNS, first_rows
from ..it3.adaptation_it3 import TestTimeAdapter
from ..it3.alignment_it3 import Sums
from ..it3.interface_it3 import IdempotentModel, idempotent_model
from ..it3.shell_it3 import frozen_modes
from ..it3.shift_reference_it3 import Observation
from ..it3.task_it3 import Task
from ..utils import load_room
from .checkpoints import check_whole, last_whole_checkpoint
from .clean_images import (
    MAX_COMPARED,
    classes_of_copies,
    look_at_clean,
    store_agreement,
    store_reference,
    uncompiled,
)
from .trainer_defaults import (
    check_metrics,
    check_optimizer,
    measure_targets,
    name_classes,
    prepare_model,
    with_defaults,
    with_our_arguments,
)
from .trainer_hub import PushingTrainer
from .training_arguments import IT3TrainingArguments, replaced
from .two_passes import TwoPassTrainer


if TYPE_CHECKING:
    from ..evaluation.calibration import CalibrationResult


logger = logging.get_logger(__name__)

T = TypeVar("T")

# Loaders with these arguments yield every image of the data set that they are asked for: no incomplete batch is left
# out, and no workers persist, which transformers would hand out for the next data set again.
_EVERY_IMAGE = {"dataloader_drop_last": False, "dataloader_persistent_workers": False}


class IT3Trainer(PushingTrainer, TwoPassTrainer):
    """Trains an idempotent model: the loss of `f(x)` plus the weighted loss of `f(x, y)`.

    Everything that `Trainer` does works unchanged, because one forward pass of the model holds both. Data sets with an
    image and a label column, and those of pairs as torchvision has them, need no preparation: images are processed
    batch by batch, and classes that have no names yet get those of the data set. In segmentation the labels are maps
    of classes, in a column `annotation` or `label`. In regression, mean and standard deviation of the training targets
    are measured before training. After training, clean images are measured, those of `reference_dataset` or else
    training images: their idempotence distance and first features for the gate, and the statistics that features of
    shifted images are aligned with; see `measure_reference_distance`.

    Args:
        model ([`IT3ForImageClassification`] or [`IT3ForSemanticSegmentation`]): the model.
        args ([`IT3TrainingArguments`], *optional*): the arguments; plain `TrainingArguments` are accepted.
        data_collator (callable, *optional*): by default an [`~hf_it3.data.ImageCollator`], or in segmentation a
            [`~hf_it3.data.SegmentationCollator`].
        processing_class (*optional*): the image processor; by default the backbone's own, or one made for its image
            size and channels.
        compute_metrics (callable, *optional*): takes an `EvalPrediction`; by default accuracy, negative log-likelihood
            and expected calibration error of models that tell one class; `f1_micro` and `label_accuracy` of those that
            tell several; `mse` and `mae` in regression; `mean_iou` and `pixel_accuracy` in segmentation.
        reference_dataset (*optional*): clean images to measure after training, with or without labels; by default the
            training images. Held-out images are better: a model that trained long is surer of those it was trained on,
            and then the gate takes clean images for shifted ones.
        calibrate (`bool`, defaults to `False`): choose the adaptation settings on `eval_dataset` after training, see
            [`~hf_it3.calibration.calibrate`]; the result is in `trainer.calibration`, the report in `calibration/` of
            the output folder.
        kwargs: as in `Trainer`. A `compute_loss_func`, with class weights for instance, and label smoothing take the
            place of the loss in both passes.

    Raises:
        TypeError: if the model takes no label signal.
        ValueError: for a model that cannot be saved, unless `save_strategy="no"`, and for an `embedder_learning_rate`
            beside an optimizer of one's own; when training starts, if it could not be followed by the calibration
            asked for.

    Example:

    ```python
    >>> import torch
    >>> from hf_it3 import IT3Config, IT3ForImageClassification, IT3Trainer, IT3TrainingArguments
    >>> data = [{"pixel_values": torch.rand(1, 28, 28), "label": i % 10} for i in range(20)]
    >>> arguments = IT3TrainingArguments("runs/example", max_steps=2, disable_tqdm=True, logging_strategy="no")
    >>> trainer = IT3Trainer(IT3ForImageClassification(IT3Config()), arguments, train_dataset=data)
    >>> trainer.train().global_step
    {'train_runtime': ..., 'train_loss': ...}
    2

    ```
    """

    args: IT3TrainingArguments
    _signature_columns: Any  # transformers declares its first value, None, and no type

    def __init__(
        self,
        model: IdempotentModel | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable | None = None,
        calibrate: bool = False,
        reference_dataset: Any = None,
        **kwargs: Any,
    ):
        args = with_our_arguments(args)
        check_optimizer(args, (kwargs.get("optimizers") or [None])[0])
        check_metrics(args, compute_metrics)
        given = (data_collator, processing_class)
        if model is not None:
            prepare_model(model, args)
            data_collator, processing_class = with_defaults(model, args, *given)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self._metrics_of_task if compute_metrics is None else compute_metrics,
            **({"preprocess_logits_for_metrics": self._for_metrics, **kwargs} if compute_metrics is None else kwargs),
        )
        if model is None:
            self.data_collator, self.processing_class = with_defaults(self.model, args, *given)
            self.callback_handler.processing_class = self.processing_class
        name_classes(idempotent_model(self.model).config, self.train_dataset, self.args.label_column)
        self.calibrate = calibrate
        self.reference_dataset = reference_dataset
        self.calibration: CalibrationResult | None = None
        self._evaluates_adapted = False
        self._adapter: TestTimeAdapter | None = None
        self._reference_step: int | None = None  # of the latest measurement while training

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A fresh model from `model_init`, with the parts frozen that the arguments name."""
        model: Any = super().call_model_init(trial)
        prepare_model(model, self.args)
        dataset = getattr(self, "train_dataset", None)
        name_classes(model.config, dataset, self.args.label_column)
        measure_targets(model.config, dataset, self.args.label_column)
        model._image_processor = getattr(self, "processing_class", None)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as `Trainer.train` does, then measures the clean reference distance and calibrates if asked to.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): a checkpoint; `True` takes the last one in the output
                folder that was written to its end, and warns of those that were cut off.
            args, kwargs: as in `Trainer`.

        Raises:
            ValueError: if the checkpoint was not written to its end, or there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args)
        elif resume_from_checkpoint:
            check_whole(resume_from_checkpoint, self.args)
        if self.calibrate:
            load_room("evaluation.calibration").check_trainer(self)
        if self.model is not None:
            measure_targets(idempotent_model(self.model).config, self.train_dataset, self.args.label_column)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.args.reference_images:
            self.measure_reference_distance()
        if self.calibrate:
            self.calibration = load_room("evaluation.calibration").calibrate_trainer(self)
        return output

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        given = [name for name in (self.args.image_column, self.args.label_column) if name is not None]
        self._signature_columns = list(
            dict.fromkeys([*self._signature_columns, *IMAGE_COLUMNS, *LABEL_COLUMNS, *MAP_COLUMNS, *given])
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The optimizer of `Trainer`, with the embedder in groups of its own if it has its own learning rate."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        rate = self.args.embedder_learning_rate
        if is_new and rate is not None:
            embedder = {id(parameter) for parameter in idempotent_model(self.model).embedder.parameters()}
            groups = []
            for group in optimizer.param_groups:
                ours = [parameter for parameter in group["params"] if id(parameter) in embedder]
                rest = [parameter for parameter in group["params"] if id(parameter) not in embedder]
                groups += [{**group, "params": rest}] if rest else []
                groups += [{**group, "params": ours, "lr": rate}] if ours else []
            optimizer.param_groups[:] = groups
        return optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluates as `Trainer.evaluate` does; with `eval_adapted`, once more with test-time adaptation.

        The adapted metrics are named `{prefix}_adapted_{metric}`; callbacks and the log get them together with the
        others, and the runtime is that of both. `config.adaptation.batch_size` says how many images adapt together, on
        each device; the evaluation batch size is for speed alone. While training, and where the model has none yet,
        the clean reference distance is measured before, so that the gate is that of the model as it would be saved.
        """
        self._evaluates_adapted = self.args.eval_adapted
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._evaluates_adapted = False

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The loop of `Trainer`; in an evaluation with `eval_adapted`, its metrics are joined by the adapted ones."""
        loop = super().evaluation_loop
        output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if not self._evaluates_adapted:
            return output
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback):
                callback.on_predict(self.args, self.state, self.control)  # closes the bar, the next loop opens another
        self._measure_reference_before_adapting()
        self._adapter = TestTimeAdapter(idempotent_model(self.model))
        try:
            adapted = loop(
                self._adaptation_batches(dataloader),
                f"{description} with adaptation",
                False,
                ignore_keys,
                f"{metric_key_prefix}_adapted",
            )
        finally:
            self._adapter = None
        metrics = {
            name: value
            for name, value in (adapted.metrics or {}).items()
            if not name.endswith("model_preparation_time")
        }
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def _measure_reference_before_adapting(self) -> None:
        """Measures clean images where needed, so that the gate is that of the model as it would be saved now."""
        is_measured = idempotent_model(self.model).config.reference_distance is not None
        step = self.state.global_step if self.is_in_train else None
        if step == self._reference_step if self.is_in_train else is_measured:
            return
        if self.args.reference_images and self._clean_images is not None:
            self.measure_reference_distance()
            self._reference_step = step

    def _adaptation_batches(self, dataloader: DataLoader) -> DataLoader:
        """All images in batches of those that adapt together, on each device."""
        size = idempotent_model(self.model).config.adaptation.batch_size
        with replaced(self.args, per_device_eval_batch_size=size, **_EVERY_IMAGE):
            return self.get_eval_dataloader(dataloader.dataset)

    @property
    def _task(self) -> Task:
        """The task that the model has by now: labels may have told it."""
        return Task.of(idempotent_model(self.model).config)

    def _metrics_of_task(self, prediction: EvalPrediction) -> dict[str, float]:
        """The default metrics."""
        if not self.args.eval_do_concat_batches:
            predictions, labels = (np.concatenate(part) for part in (prediction.predictions, prediction.label_ids))
            prediction = EvalPrediction(predictions=predictions, label_ids=labels)
        return load_room("evaluation.metrics").metrics_of_task(self._task, prediction)

    def _for_metrics(self, logits: Any, labels: Tensor) -> Any:
        """What the default metrics take of the logits, or of a tuple that begins with them."""
        return self._task.for_metrics(logits, labels)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One evaluation step, with or without adaptation."""
        if self._adapter is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            output = self._adapter(inputs["pixel_values"])
        return None, output.logits, inputs.get("labels")

    def measure_reference_distance(self, dataset: Any = None) -> dict[str, Any] | None:
        """Measures clean images, and stores in the model what adaptation compares others with.

        The gate needs the mean and standard deviation of their idempotence distance, stored in the model's config, and
        their first features, in `model.shift_reference`; shifted features are aligned with the statistics in
        `model.feature_statistics`.

        Args:
            dataset (*optional*): by default `reference_dataset`, or else the training images; of each, the first
                `args.reference_images`. Images that the model was not trained on tell better how sure it is of new
                ones.

        Returns:
            `reference_distance` as stored in the config; `None`, with a warning, where a distance is not finite.

        Raises:
            ValueError: if the data set is empty.
        """
        dataset = self._clean_images if dataset is None else dataset
        model, gather = idempotent_model(self.model), self.accelerator.gather_for_metrics
        watched = uncompiled(model)
        sums: Sums = {}

        def look(images: Tensor) -> Observation:
            seen = look_at_clean(watched, images, sums, num_new=self._num_new(images))
            return Observation(*(gather(value) for value in vars(seen).values())).cpu()

        def change(images: Tensor) -> dict[str, Tensor]:
            return gather(classes_of_copies(watched, images))

        seen = self._look_at(first_rows(dataset, self.args.reference_images or None), look, "Reference distance")
        clean = Observation.join([Observation.empty(model.shift_reference), *seen])
        if not len(clean):
            raise ValueError("the reference distance needs at least one image, and the data set has none")
        reference = store_reference(model, clean, gather_object([sums]))
        if reference is not None:
            # Now that the model has the statistics of clean features, which those of copies are corrected with.
            watched = uncompiled(model)
            first = first_rows(dataset, min(len(clean), MAX_COMPARED))
            store_agreement(model, self._look_at(first, change, "Copies of clean images"))
        return reference

    @property
    def _clean_images(self) -> Any:
        """The data set that is measured for test time, if there is one."""
        return self.train_dataset if self.reference_dataset is None else self.reference_dataset

    def _num_new(self, images: Tensor) -> int:
        """How many images of this process's batch, the first ones, are not there a second time to make the last
        batches of all processes equally large."""
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return len(images)
        return min(max(state.remainder - self.args.process_index * len(images), 0), len(images))

    def _look_at(self, dataset: Any, look: Callable[[Tensor], T], description: str) -> list[T]:
        """What is seen in the images of a data set, batch by batch, the last incomplete one included, while the model
        is in eval mode."""
        with replaced(self.args, **_EVERY_IMAGE):
            batches = self.get_test_dataloader(dataset)
        is_silent = self.args.disable_tqdm or not self.is_world_process_zero()
        found = []
        with frozen_modes(idempotent_model(self.model)):
            for inputs in tqdm(batches, description, disable=is_silent):
                images = self._prepare_inputs(inputs)["pixel_values"]
                with self.compute_loss_context_manager():
                    found.append(look(images))
        return found
