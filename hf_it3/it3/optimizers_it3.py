"""The optimizers by name. To add one, add a function to the table.

They have to act on each value alone: where every image has its own weights, those of many images lie in one tensor.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


class FusedAdam(torch.optim.Adam):
    """torch's fused Adam with steps that go straight to the kernel: for small networks most of `step` is around it.

    Args:
        parameters (`list[Tensor]`): real floating point tensors of one kind.
        learning_rate (`float`).
    """

    def __init__(self, parameters: list[Tensor], learning_rate: float):
        super().__init__(parameters, lr=learning_rate, fused=True)

    def step_with(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """A step on some of the parameters, all of which have taken one before."""
        group, history = self.param_groups[0], [self.state[parameter] for parameter in parameters]
        averages, squares, steps = ([entry[key] for entry in history] for key in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        settings = {key: group[key] for key in ("fused", "amsgrad", "lr", "weight_decay", "eps", "maximize")}
        adam(list(parameters), list(gradients), averages, squares, [], steps, beta1=beta1, beta2=beta2, **settings)


def _adam(parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    if all(parameter.dtype in (torch.float32, torch.float64) for parameter in parameters):
        return FusedAdam(parameters, learning_rate)
    return torch.optim.Adam(parameters, lr=learning_rate)


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
def take_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> None:
    """A step of an optimizer of these parameters; those whose gradient is `None` stay as they are."""
    moving = [(value, gradient) for value, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    if moving and isinstance(optimizer, FusedAdam) and all(value in optimizer.state for value, _ in moving):
        optimizer.step_with(*zip(*moving, strict=True))
        return
    for value, gradient in moving:
        value.grad = gradient
    optimizer.step()
    for value, _ in moving:
        value.grad = None


@torch.no_grad()
def forget_history(optimizer: torch.optim.Optimizer) -> None:
    """Resets the state of an optimizer, in the memory that it already has."""
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
