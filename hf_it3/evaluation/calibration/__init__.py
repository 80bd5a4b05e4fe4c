"""Calibration: adaptation settings chosen by measurement on held-out labelled images.

>>> from hf_it3.calibration import calibrate
>>> result = calibrate(model, image_processor, held_out_images, batch_size=8)
>>> print(result.table())
"""

from .calibrate import calibrate
from .report import CalibrationResult, Trial
from .training import calibrate_trainer, check_trainer


__all__ = ["CalibrationResult", "Trial", "calibrate", "calibrate_trainer", "check_trainer"]
