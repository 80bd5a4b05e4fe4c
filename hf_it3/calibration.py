"""Calibration under its public name; it lives in `hf_it3.evaluation.calibration`."""

from .evaluation.calibration import CalibrationResult, Trial, calibrate, calibrate_trainer, check_trainer


__all__ = ["CalibrationResult", "Trial", "calibrate", "calibrate_trainer", "check_trainer"]
