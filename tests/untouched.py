"""Checks that a piece of code left a model exactly as it was."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything about a model that adaptation must not change, copied; tensors bit by bit."""
    state: dict[str, object] = {}
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            state[f"{kind} {name}"] = (tensor.detach().clone(), id(tensor), tensor.data_ptr(), tensor.requires_grad)
            state[f"gradient of {name}"] = None if tensor.grad is None else (tensor.grad.clone(), id(tensor.grad))
    for name, module in model.named_modules():
        hooks = (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        state[f"module {name}"] = (module.training, id(module), hooks)
    state["configuration"] = model.config.to_json_string() if hasattr(model, "config") else None
    return state


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names of what differs between two snapshots."""
    return [name for name in before.keys() | after.keys() if not _equal(before.get(name), after.get(name))]


def _equal(left: object, right: object) -> bool:
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        same_kind = left.dtype == right.dtype and left.shape == right.shape
        return same_kind and torch.equal(_bits(left), _bits(right))
    return left == right


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Asserts that the block leaves the model as it was, also when it raises."""
    before = snapshot(model)
    try:
        yield
    finally:
        assert differences(before, snapshot(model)) == []
