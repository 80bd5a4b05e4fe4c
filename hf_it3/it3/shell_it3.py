"""A copy of a model that shares its tensors, where some parameters may change without touching the model."""

import copy
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .weights_it3 import check_adaptable


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel` or `DataParallel` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers."""
    names: set[str] = set()
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
        if is_norm or "norm" in type(module).__name__.lower():
            names.update(f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False))
    return names


def select_parameters(model: nn.Module, choice: str) -> dict[str, nn.Parameter]:
    """The parameters that adaptation may change, by name.

    Args:
        model (`nn.Module`): the model; parameters of its `embedder` are never selected.
        choice (`str`): `"all"`, `"norm"`, `"bias"`, or a regular expression searched in the names.

    Raises:
        ValueError: if nothing is selected.
    """
    candidates = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("embedder.") and parameter.is_floating_point()
    }
    if choice == "all":
        return candidates
    if choice == "norm":
        norms = norm_parameter_names(model)
        selected = {name: parameter for name, parameter in candidates.items() if name in norms}
    elif choice == "bias":
        selected = {name: parameter for name, parameter in candidates.items() if name.split(".")[-1] == "bias"}
    else:
        selected = {name: parameter for name, parameter in candidates.items() if re.search(choice, name)}
    if not selected:
        raise ValueError(
            f"parameters={choice!r} selects none of the {len(candidates)} parameters of {type(model).__name__}; use "
            f"'all', or an expression that matches names such as {', '.join(list(candidates)[:3])}"
        )
    return selected


def _alias(tensor: Tensor) -> Tensor:
    # Autograd refuses inference tensors and their aliases, so those have to be copied.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


class _Fingerprint:
    """Remembers which modules and tensors a model is made of, to notice when one is replaced; cheap to ask often."""

    def __init__(self, model: nn.Module):
        self.children = [
            (module._modules, name, child) for module in model.modules() for name, child in module._modules.items()
        ]
        self.tensors = [
            (tensors, name, tensor, tensor.data_ptr())
            for module in model.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def still_holds(self) -> bool:
        """Whether all of them are still where they were."""
        return all(children.get(name) is child for children, name, child in self.children) and all(
            tensors.get(name) is tensor and tensor.data_ptr() == address
            for tensors, name, tensor, address in self.tensors
        )


class ModelShell:
    """A model's modules once more, around the same tensors except for the selected parameters, which are copies.

    Building one costs little memory, and whatever happens to it, the model stays bit-identical. Half-precision
    parameters are kept in single precision beside the shell, since small steps would be rounded away.

    Args:
        model (`nn.Module`): the model to shadow.
        choice (`str`, *optional*): which parameters may change, see [`select_parameters`]; `None`: nothing may.

    Raises:
        ValueError: if weights are offloaded, not loaded, sharded or quantised, or nothing is selected.
    """

    def __init__(self, model: nn.Module, choice: str | None):
        with torch.inference_mode(False), torch.no_grad():
            self.model = model
            self.fingerprint = _Fingerprint(model)
            check_adaptable(model)
            selected = {} if choice is None else select_parameters(model, choice)
            self.names = list(selected)
            self.source: list[Tensor] = list(selected.values())
            self.module = self._copy_around(model, {id(parameter) for parameter in self.source})
            parameters = dict(self.module.named_parameters())
            self.parameters: list[Tensor] = [parameters[name] for name in self.names]
            self.masters: list[Tensor] = [
                parameter.detach().float().requires_grad_(True)
                if parameter.dtype in (torch.float16, torch.bfloat16)
                else parameter
                for parameter in self.parameters
            ]

    @staticmethod
    def _copy_around(model: nn.Module, selected: set[int]) -> nn.Module:
        memo: dict[int, object] = {}
        for parameter in model.parameters():
            if id(parameter) in selected:
                memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=True)
            else:
                memo[id(parameter)] = nn.Parameter(_alias(parameter), requires_grad=False)
        for buffer in model.buffers():
            memo[id(buffer)] = _alias(buffer)
        if hasattr(model, "config"):
            memo[id(model.config)] = model.config
        return copy.deepcopy(model, memo).eval()

    def is_stale(self) -> bool:
        """Whether the model has other tensors since, through `to()`, `half()` or `load_state_dict(assign=True)`."""
        return not self.fingerprint.still_holds()

    @functools.cached_property
    def has_masters(self) -> bool:
        """Whether the optimizer works on single-precision copies of half-precision parameters."""
        return any(master is not parameter for master, parameter in zip(self.masters, self.parameters, strict=True))

    @property
    def num_adapted(self) -> int:
        """Number of values in the selected parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def reset(self) -> None:
        """Gives the selected parameters the model's present values."""
        self.load(self.source)

    @torch.no_grad()
    def load(self, values: list[Tensor]) -> None:
        """Gives the selected parameters these values."""
        for targets in (self.masters, self.parameters) if self.has_masters else (self.parameters,):
            torch._foreach_copy_(targets, values)

    @torch.no_grad()
    def set_gradients(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Stores gradients for the optimizer, which works on `masters`."""
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)

    @torch.no_grad()
    def after_step(self) -> None:
        """Brings the outcome of an optimizer step from `masters` to the parameters."""
        if self.has_masters:
            torch._foreach_copy_(self.parameters, self.masters)

    def __call__(self, pixel_values: Tensor, label_signal: Tensor | None = None) -> Tensor:
        """Logits of shape `(B, num_labels)`."""
        return self.module(pixel_values, label_signal=label_signal, return_dict=False)[0]


@contextmanager
def gradients_allowed() -> Iterator[None]:
    """Autograd on, whatever the caller's `no_grad` or `inference_mode`, and no weights cast by autocast kept.

    Autocast would go on to use casts of the weights from before an optimizer step, or casts made without a graph.
    """
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(caches)


@contextmanager
def frozen_modes(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each of its modules is in the mode that it was in before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
