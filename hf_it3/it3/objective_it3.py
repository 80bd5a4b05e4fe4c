"""What adaptation minimises: the idempotence distance, and the diversity term that keeps classes apart."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .distances_it3 import DISTANCES
from .task_it3 import Task, over_space


class IdempotenceDistance:
    """D(y1, y0) per image.

    Args:
        distance (`str` or callable): `"neg_dot"`: minus the dot product (torch-ttt's MNIST tutorial); `"mse"`: mean
            squared difference; `"js"`: Jensen-Shannon divergence; `"kl"`: KL(y1 || y0); `"cross_entropy"`: of y0 under
            y1; `"entropy"`: of y0 alone (Tent, Wang et al., ICLR 2021); or a callable of `(y1, y0)` that returns shape
            `(B,)`, or a scalar, in which case it is called image by image.
        task ([`Task`]): what is predicted. Multi-label predictions are compared label by label, each as a distribution
            over yes and no; dense ones pixel by pixel, and averaged.

    Raises:
        ValueError: for a distance that does not suit the task: in regression only `"mse"` is bounded below.
    """

    def __init__(self, distance: str | Callable[[Tensor, Tensor], Tensor], task: Task):
        if not callable(distance) and distance not in task.distances:
            raise ValueError(
                f"distance={distance!r} compares probabilities, which a {task.name} model does not predict; use "
                f"{' or '.join(map(repr, task.distances))}, or a callable"
            )
        self.function = distance if callable(distance) else DISTANCES[distance]
        self.name = distance if isinstance(distance, str) else None
        self.per_label = task.per_label and self.name not in (None, "mse")

    def __call__(self, y1: Tensor, y0: Tensor) -> Tensor:
        """Distances of shape `(B,)` between predictions of shape `(B, num_labels, ...)`."""
        if self.per_label:
            y1, y0 = (torch.stack([y, 1 - y], 1) for y in (y1, y0))
        distances = self.function(y1, y0)
        if self.name is not None:
            return over_space(distances)
        if distances.ndim == 0:
            return torch.stack([self.function(y1[i : i + 1], y0[i : i + 1]) for i in range(len(y0))])
        if distances.shape != y0.shape[:1]:
            raise ValueError(
                f"the distance callable must return a scalar or one value per image, shape {tuple(y0.shape[:1])}, "
                f"got shape {tuple(distances.shape)}"
            )
        return distances


@dataclass
class Objective:
    """The loss that every step of adaptation minimises:

        mean over images of D(y1, y0)  -  diversity_weight * H(mean over images of y0)

    Args:
        task ([`Task`]): what is predicted.
        distance ([`IdempotenceDistance`]): D.
        diversity_weight (`float`): weight of the entropy H of the mean prediction (Liang et al., SHOT, ICML 2020).
    """

    task: Task
    distance: IdempotenceDistance
    diversity_weight: float

    def __call__(self, distances: Tensor, y0: Tensor, with_diversity: bool) -> Tensor:
        """The objective, a scalar, for distances `(B,)` and first predictions `(B, num_labels, ...)`."""
        loss = distances.mean()
        if with_diversity:
            loss = loss - self.diversity_weight * self.task.spread(y0)
        return loss


@torch.no_grad()
def move_average(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """One step of an exponential moving average of weights, in place: decay x average + (1 - decay) x value."""
    torch._foreach_lerp_(averages, values, 1 - decay)
