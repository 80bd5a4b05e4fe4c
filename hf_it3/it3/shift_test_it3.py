"""The shift test: is the idempotence distance larger than that of clean images?"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from .interface_it3 import IdempotentModel
from .objective_it3 import IdempotenceDistance
from .task_it3 import Task


logger = logging.get_logger(__name__)


@dataclass
class ShiftTest:
    """One-sided test of the mean idempotence distance of images against that of clean ones.

    Args:
        gate (`float`, *optional*): critical value in standard errors; `None` always sees a shift, infinity never.
        mean, std (`float`, *optional*): of the distance of clean images; without them a shift is always seen.
    """

    gate: float | None
    mean: float | None = None
    std: float | None = None

    @classmethod
    def from_reference(cls, gate: float | None, reference: dict | None, distance: str | None) -> "ShiftTest":
        """The test for a model's `reference_distance`, which has to be one of the same distance."""
        if gate is None:
            return cls(None)
        if gate == math.inf:
            return cls(gate, 0.0, 0.0)
        if reference is None:
            logger.warning_once(
                "The model has no reference_distance, so adaptation is not gated: train it with IT3Trainer or "
                "calibrate it to measure one, or set gate=None."
            )
            return cls(None)
        if reference.get("distance", distance) != distance:
            logger.warning_once(
                f"The model's reference_distance was measured with {reference['distance']!r}, not {distance!r}, so "
                "adaptation is not gated: calibrate the model with this distance, or set gate=None."
            )
            return cls(None)
        return cls(gate, reference["mean"], reference["std"])

    def is_shifted(self, distances: Tensor) -> bool:
        """Whether images with these distances, shape `(N,)`, are shifted as a group."""
        limit = self.limit(len(distances))
        # On the CPU, because not every device has double precision.
        return limit is None or distances.cpu().double().mean().item() > limit

    def are_shifted(self, distances: Tensor) -> Tensor:
        """For each image alone, shape `(N,)` of bool, whether it is shifted."""
        limit = self.limit(1)
        return torch.ones_like(distances, dtype=torch.bool) if limit is None else distances > limit

    def limit(self, num_images: int) -> float | None:
        """The mean distance of so many images above which they are shifted; `None` where they always are."""
        if self.gate is None or self.mean is None or self.std is None:
            return None
        if self.gate == math.inf:
            return math.inf
        return self.mean + self.gate * (self.std / math.sqrt(num_images))


@torch.no_grad()
def idempotence_distances(model: IdempotentModel, pixel_values: Tensor) -> Tensor:
    """D(y1, y0) of each image, shape `(B,)`, for images `(B, C, H, W)` and a model in eval mode."""
    task = Task.of(model.config)
    y0 = task.predict(model(pixel_values, return_dict=True).logits)
    y1 = task.predict(model(pixel_values, label_signal=y0, return_dict=True).logits)
    return IdempotenceDistance(model.config.distance, task)(y1, y0)
