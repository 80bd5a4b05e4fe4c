"""Measurements on clean images that travel with a model's weights."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class CleanBuffers(nn.Module):
    """Buffers that hold what was measured on clean images, all zero where nothing was.

    They stay in single precision, whatever type the model is cast to, and weights from before there were any load as
    those that nothing was measured for.
    """

    def add(self, **shapes: tuple[int, ...]) -> None:
        """Registers buffers of these names and shapes, in place of former ones and on their device."""
        for name, shape in shapes.items():
            device = None if name not in self._buffers else self.get_buffer(name).device
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32, device=device))

    @torch.no_grad()
    def store(self, **values: Tensor) -> None:
        """Stores measured values."""
        for name, value in values.items():
            self.get_buffer(name).copy_(value)

    @torch.no_grad()
    def forget(self) -> None:
        """Discards what was measured."""
        for buffer in self.buffers(recurse=False):
            buffer.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                moved = fn(buffer)
                self._buffers[name] = moved if moved.dtype == buffer.dtype else buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                state_dict.setdefault(prefix + name, torch.zeros_like(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args)
