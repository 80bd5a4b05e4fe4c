"""The shift test: do images differ from clean ones, in their idempotence distance or in their first features?"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .injection_it3 import watched_features
from .interface_it3 import IdempotentModel
from .objective_it3 import IdempotenceDistance
from .shift_reference_it3 import LEVELS, Observation, ShiftReference, in_standard_errors, limit_at, scale
from .task_it3 import Task


logger = logging.get_logger(__name__)

# Images of another day differ a little from those that were measured, and images of few classes, sorted ones for
# instance, differ more. Unlike what chance does, this does not fade with their number. Both are squared distances
# between means, in units of the one that an image has from the mean of clean images.
_DRIFT = 0.05
_ORDER_DRIFT = 0.2


@dataclass
class ShiftScores:
    """How far groups of images lie from clean ones, in standard errors of a normal distribution: the gate opens where
    one of them is above it. NaN where nothing was measured.

    Args:
        distance (`Tensor` of shape `(G,)`): by their mean idempotence distance.
        features (`Tensor` of shape `(G,)`): by their first features, less what images of another day may differ.
    """

    distance: Tensor
    features: Tensor


class ShiftTest:
    """Compares groups of images with clean ones: a one-sided test of the mean idempotence distance, and one of the
    first features, both with limits resampled from clean images.

    The first features see what the distance does not, shifts that leave the model sure of itself. Their limit for n
    images leaves room for another day: 5 % of n times what one image differs by. A group in which one class is more
    frequent than in groups of clean images may be sorted rather than shifted; there the first features alone count,
    and have 20 %.

    Args:
        gate (`float`, *optional*): critical value in standard errors, 3 for a false alarm in at most 1 of 740
            groups by either statistic; `None` always sees a shift, infinity never.
        reference ([`ShiftReference`]): first features and limits of clean images.
        distances (`dict`, *optional*): mean and standard deviation of the distance of clean images.
        distance_name (`str`, *optional*): of the distance that is asked about.
    """

    def __init__(
        self,
        gate: float | None,
        reference: ShiftReference,
        distances: dict[str, Any] | None,
        distance_name: str | None,
    ):
        self.gate = gate
        self.reference = reference
        self.distances = distances
        self.sees_features = reference.is_measured
        if gate is not None and gate != math.inf:
            self._warn(distance_name)
        if distances is not None and distances.get("distance", distance_name) != distance_name:
            self.distances = None

    def _warn(self, distance_name: str | None) -> None:
        measure = "train it with IT3Trainer, or calibrate it, to measure both"
        if self.distances is None and not self.sees_features:
            logger.warning_once(
                f"The model has neither reference_distance nor first features of clean images, so adaptation is not "
                f"gated: {measure}, or set gate=None."
            )
        elif not self.sees_features:
            logger.warning_once(
                "The model has no first features of clean images, so the gate looks at the idempotence distance alone "
                f"and does not see shifts that leave the model sure of itself: {measure}."
            )
        if self.distances is not None and self.distances.get("distance", distance_name) != distance_name:
            then = "the gate looks at the first features alone" if self.sees_features else "adaptation is not gated"
            logger.warning_once(
                f"The model's reference_distance was measured with {self.distances['distance']!r}, not "
                f"{distance_name!r}, so {then}: calibrate the model with this distance, or set gate=None."
            )

    def scores(self, groups: Observation) -> ShiftScores:
        """How far groups of images lie from clean ones, for observations of shape `(G, n, ...)`."""
        count, size = groups.distances.shape
        unknown = torch.full((count,), math.nan)
        distance = features = unknown
        if self.distances is not None:
            distances = groups.distances.cpu().double()  # not every device has double precision
            standardised = (distances - self.distances["mean"]) / max(self.distances["std"], 1e-12)
            limits = self._distance_limits(size)
            values = self._distance_statistics(standardised, groups.classes.cpu()).tolist()
            distance = torch.tensor([in_standard_errors(value, limits) for value in values])
        if self.sees_features:
            limits = self.reference.limits("feature", size)
            values = (self.reference.feature_statistics(groups) - self._drift(_DRIFT, limits, size)).tolist()
            features = torch.tensor([in_standard_errors(value, limits) for value in values])
        return ShiftScores(distance, features)

    def opens(self, groups: Observation, scores: ShiftScores) -> Tensor:
        """Which groups are shifted, shape `(G,)` of bool."""
        gate = self.gate
        if gate is None or (self.distances is None and not self.sees_features and gate != math.inf):
            return torch.ones(len(groups), dtype=torch.bool)
        if not self.sees_features:
            return scores.distance > gate
        size = groups.distances.shape[1]
        limits = self.reference.limits("feature", size)
        far = gate
        if gate != math.inf:
            more = self._drift(_ORDER_DRIFT - _DRIFT, limits, size)
            far = in_standard_errors(limit_at(gate, limits) + more, limits)
        by_order = scores.features > far
        shifted = (scores.distance > gate) | (scores.features > gate)
        return torch.where(self.reference.are_of_few_classes(groups.classes).cpu(), by_order, shifted)

    def _drift(self, share: float, limits: list[float], size: int) -> float:
        """What this share of an image's difference adds to the statistic of first features, whose median for one image
        is about the same as for any other number."""
        return share * limits[0] * scale(size, self.reference.num_images.item()) ** 2

    @property
    def _has_own_limits(self) -> bool:
        """Whether clean distances were measured, not only given as a mean and a deviation."""
        return self.distances is not None and "num_images" in self.distances and self.sees_features

    def _distance_limits(self, size: int) -> list[float]:
        """Resampled limits; those of a normal distribution where nothing else is known."""
        return self.reference.limits("distance", size) if self._has_own_limits else list(LEVELS)

    def _distance_statistics(self, standardised: Tensor, classes: Tensor) -> Tensor:
        """What is compared with these limits, for standardised distances `(G, n)`."""
        size = standardised.shape[1]
        if not self._has_own_limits:
            measured = math.inf if self.distances is None else self.distances.get("num_images", math.inf)
            return standardised.mean(1) * scale(size, measured)
        drift = math.sqrt(_DRIFT) * scale(size, self.reference.num_images.item())
        return self.reference.distance_statistics(standardised, classes) - drift

    def distance_limit(self, classes: Tensor) -> float | None:
        """The mean distance of images predicted as these classes `(n,)` above which they are shifted; `None` where
        there is none."""
        if self.gate is None or self.distances is None:
            return None
        if self.gate == math.inf:
            return math.inf
        level = limit_at(self.gate, self._distance_limits(len(classes)))
        # The statistic is linear in the mean distance.
        standardised = torch.zeros(1, len(classes), dtype=torch.float64)
        at_mean, above = (self._distance_statistics(standardised + more, classes[None]).item() for more in (0, 1))
        return self.distances["mean"] + (level - at_mean) / (above - at_mean) * self.distances["std"]


@torch.no_grad()
def idempotence_distances(model: IdempotentModel, pixel_values: Tensor) -> Tensor:
    """D(y1, y0) of each image, shape `(B,)`, for images `(B, C, H, W)` and a model in eval mode."""
    return observe(model, pixel_values).distances


@torch.no_grad()
def observe(model: IdempotentModel, pixel_values: Tensor, distance: IdempotenceDistance | None = None) -> Observation:
    """What a model in eval mode sees in images `(B, C, H, W)`, with a distance of its own or another.

    Raises:
        ValueError: if the injection layer does not run.
    """
    task = Task.of(model.config)
    with watched_features() as features:
        y0 = task.predict(model(pixel_values, return_dict=True).logits)
    y1 = task.predict(model(pixel_values, label_signal=y0, return_dict=True).logits)
    distance = distance or IdempotenceDistance(model.config.distance, task)
    return Observation(features[0], task.image_classes(y0), distance(y1, y0))
