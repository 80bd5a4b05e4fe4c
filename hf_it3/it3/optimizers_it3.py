"""The optimizers by name. To add one, add a function to the table.

They have to act on each value alone: where every image has its own weights, those of many images lie in one tensor.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _adam(parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    # The fused kernel is the fastest where it exists; it wants real floating point tensors of one kind.
    fused = all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters)
    return torch.optim.Adam(parameters, lr=learning_rate, fused=fused)


def _sgd(parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=learning_rate)


OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


def make_optimizer(choice: Any, learning_rate: float, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a name, or what a callable of the parameters returns.

    Raises:
        TypeError: if the callable returns something else than a torch optimizer.
    """
    if not callable(choice):
        return OPTIMIZERS[choice](parameters, learning_rate)
    optimizer = choice(parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "the optimizer callable takes the parameters and must return a torch.optim.Optimizer, got "
            f"{type(optimizer).__name__}"
        )
    return optimizer


@torch.no_grad()
def forget_history(optimizer: torch.optim.Optimizer) -> None:
    """Makes an optimizer as good as new, in the memory that it already has."""
    history = [entry for state in optimizer.state.values() for entry in state.values() if isinstance(entry, Tensor)]
    if history:
        torch._foreach_zero_(history)


def lay_out_history(optimizer: torch.optim.Optimizer) -> None:
    """Gives moments the memory layout of their parameters, which fused kernels rely on as they do for gradients.

    A state that was saved from a model in another memory format comes in that one's.
    """
    for parameter, state in optimizer.state.items():
        for name, entry in state.items():
            if isinstance(entry, Tensor) and entry.shape == parameter.shape and entry.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=entry.dtype).copy_(entry)
