"""Statistics of the images that weights were adapted to, which an adapted model carries in its own weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .alignment_it3 import Alignment
from .batchnorm_it3 import NotedStatistics, SplitBatchNorm, noted_statistics


logger = logging.get_logger(__name__)

# Per layer: weighted means over images of the channels' means and of their squares.
_Averages = dict[str, tuple[Tensor, Tensor]]


class SeenStatistics:
    """Remembers what layers corrected their features with, over the latest images.

    Args:
        module (`nn.Module`): whose passes are watched.
        window (`int`): number of latest images that count.
    """

    def __init__(self, module: nn.Module, window: int):
        self._names = {layer: name for name, layer in module.named_modules()}
        self._window = window
        self.forget()

    def forget(self) -> None:
        """Returns to the start, where nothing was seen."""
        self._averages: _Averages = {}
        self._num_images = 0

    @contextmanager
    def watching(self, num_images: int) -> Iterator[None]:
        """Takes note of the statistics that the pass inside the block corrects the features of its images with."""
        with noted_statistics() as noted:
            yield
        self.add(noted, num_images)

    def add(self, noted: NotedStatistics, num_images: int) -> None:
        """Takes note of the statistics that features of so many images were corrected with."""
        self._num_images = min(self._num_images + num_images, self._window)
        share = min(num_images / self._num_images, 1.0)
        for layer, (mean, variance) in noted.items():
            new = mean.flatten(), (variance + mean.square()).flatten()
            old = [value.to(mean.device) for value in self._averages.get(self._names[layer], new)]
            self._averages[self._names[layer]] = (old[0].lerp(new[0], share), old[1].lerp(new[1], share))

    @torch.no_grad()
    def write_into(self, model: nn.Module) -> None:
        """Makes the correction part of a model's weights and BatchNorm statistics, so that plain passes make it.

        Layers that cannot take it are named in a warning; frozen ones are among them.
        """
        left = []
        for name, averages in self._averages.items():
            layer = model.get_submodule(name)
            own = next(chain(layer.parameters(), layer.buffers()), averages[0])
            mean, square = (value.to(own.device) for value in averages)
            variance = (square - mean.square()).clamp_min(0)
            if isinstance(layer, SplitBatchNorm):
                layer.take_over(mean, variance)
            else:
                hooks = (hook for hook in layer._forward_hooks.values() if isinstance(hook, Alignment))
                left += [name for hook in hooks if not hook.fold(layer, mean, variance)]
        if left:
            logger.warning(
                f"{len(left)} of {len(self._averages)} layers, {left[0]} first, have no weight and bias that may take "
                "up the statistics of the images; without adaptation the adapted model answers worse than the adapter"
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything that was remembered."""
        averages = {name: tuple(value.cpu().clone() for value in values) for name, values in self._averages.items()}
        return {"averages": averages, "num_images": self._num_images}

    def check(self, state: Any) -> None:
        """Raises a ValueError for what is not the state of statistics of this module's layers."""
        if not isinstance(state, dict) or not isinstance(state.get("averages"), dict) or "num_images" not in state:
            raise ValueError("this is not the state of a stream: seen must hold averages and num_images")
        if unknown := set(state["averages"]) - set(self._names.values()):
            raise ValueError(f"the stream was saved with statistics of {min(unknown)!r}, a layer this model lacks")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._averages = {name: tuple(value.clone() for value in values) for name, values in state["averages"].items()}
        self._num_images = state["num_images"]
