"""Calibration at the end of training."""

from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...it3.interface_it3 import idempotent_model
from ..processes import on_main_process
from .calibrate import DEFAULT_NUM_SAMPLES, calibrate
from .images import calibration_conditions, check_batches
from .report import CalibrationResult


logger = logging.get_logger(__name__)


def check_trainer(trainer: Any) -> None:
    """Checks that a trainer can calibrate, before a training that may take long.

    Raises:
        ValueError: without an `eval_dataset`, with several, with too few images, and where the model is spread over
            processes.
    """
    dataset = trainer.eval_dataset
    if dataset is None:
        raise ValueError(
            "calibrate=True needs an eval_dataset of held-out labelled images, got None; pass one, or run "
            "hf-it3 calibrate after training"
        )
    if isinstance(dataset, dict):
        raise ValueError(
            f"calibrate=True needs one eval_dataset, got {len(dataset)} ({', '.join(map(str, dataset))}); pass one, "
            "or run hf-it3 calibrate after training"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "calibrate=True needs the whole model in one process, which FSDP and DeepSpeed do not keep; run "
            "hf-it3 calibrate after training"
        )
    model = idempotent_model(trainer.model)
    calibration_conditions(model, None, 3)
    if hasattr(dataset, "__len__"):
        check_batches(min(len(dataset), DEFAULT_NUM_SAMPLES), model.config.adaptation.batch_size)


def calibrate_trainer(trainer: Any) -> CalibrationResult:
    """Calibrates the model of an [`IT3Trainer`] on its `eval_dataset`, in the main process.

    Every process ends with the same configuration. The report goes to `calibration/` in the trainer's output folder.
    """
    check_trainer(trainer)
    arguments, model = trainer.args, idempotent_model(trainer.model)

    def run() -> CalibrationResult:
        result = calibrate(
            model,
            trainer.processing_class,
            trainer.eval_dataset,
            image_column=arguments.image_column,
            label_column=arguments.label_column,
            seed=arguments.seed,
            show_progress=not arguments.disable_tqdm,
        )
        result.save(Path(arguments.output_dir) / "calibration")
        (logger.info if result.improves else logger.warning)(result.verdict())
        return result

    result = on_main_process(run)
    result.apply(model)
    return result
