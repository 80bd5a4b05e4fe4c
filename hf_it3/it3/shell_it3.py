"""A copy of a model that shares its tensors, where some parameters may change without touching the model."""

import contextvars
import copy
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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


def compiled_parts(model: nn.Module) -> list[nn.Module]:
    """The wrappers that `torch.compile` put around parts of a model, inner ones first."""
    return [module for module in reversed(list(model.modules())) if unwrap(module) is not module]


def plain_name(name: str) -> str:
    """The name of a tensor as it is where no part of its model is compiled."""
    return name.replace("_orig_mod.", "")


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dictionary of a model as it is where no part of it is compiled."""
    return {plain_name(name): value for name, value in model.state_dict().items()}


def norm_parameter_names(model: nn.Module) -> set[str]:
    """Names of the parameters of normalisation layers."""
    names: set[str] = set()
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm))
        if is_norm or "norm" in type(module).__name__.lower():
            names.update(f"{module_name}.{name}" for name, _ in module.named_parameters(recurse=False))
    return names


def freeze_in_training(model: nn.Module, names: Iterable[str]) -> None:
    """Keeps training from changing parameters; adaptation, which works on copies, may still change those that it could
    before, as it may once the model was saved and loaded."""
    parameters = dict(model.named_parameters())
    frozen = {name for name in names if parameters[name].requires_grad}
    for name in frozen:
        parameters[name].requires_grad_(False)
    model.frozen_in_training = {*map(plain_name, frozen), *frozen_in_training(model)}  # type: ignore[assignment]


def frozen_in_training(model: nn.Module) -> set[str]:
    """Names of the parameters that `freeze_in_training` froze."""
    return getattr(model, "frozen_in_training", set())


def unfreeze_in_training(model: nn.Module) -> None:
    """Lets training change those again."""
    frozen = frozen_in_training(model)
    for name, parameter in model.named_parameters():
        if plain_name(name) in frozen:
            parameter.requires_grad_(True)
    model.frozen_in_training = set()  # type: ignore[assignment]


def select_parameters(model: nn.Module, choice: str, with_frozen: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that adaptation may change, by name.

    Args:
        model (`nn.Module`): the model; neither parameters of its `embedder` nor those that do not require gradients
            are ever selected, but for what was frozen for training alone.
        choice (`str`): `"all"`, `"norm"`, `"bias"`, or a regular expression searched in the names.
        with_frozen (`bool`): whether to select those that do not require gradients, too, where no steps are taken.

    Raises:
        ValueError: if nothing is selected.
    """
    thawed = frozen_in_training(model)
    candidates = {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("embedder.")
        and parameter.is_floating_point()
        and (with_frozen or parameter.requires_grad or plain_name(name) in thawed)
    }
    if not candidates:
        raise ValueError(
            f"no parameter of {type(model).__name__} beside its embedder requires gradients, and adaptation leaves "
            "frozen ones as they are; call requires_grad_(True) on what may adapt"
        )
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


def laid_out_as(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in the type and memory layout of its parameter, copied where it is in another.

    Optimizers may rely on it: on a CPU torch's fused Adam reads gradients without regard to strides, and
    `torch.autograd.grad` and `vmap` hand out transposed and expanded ones.
    """
    if gradient.dtype == parameter.dtype and gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _alias(tensor: Tensor) -> Tensor:
    # Autograd refuses inference tensors and their aliases, so those have to be copied.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    """Numbers that change when tensors are written to; inference tensors, which nobody can write to, have none."""
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in tensors)


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


class _LayerBuffers:
    """The buffers of one layer of a shell, `own`, and those of the model, `given`, which they are copies of.

    They are restored together: in training `torch.nn.functional.batch_norm` writes running statistics without a change
    of their versions, and only the layer's count of batches tells. Layers without one are restored each time.
    """

    def __init__(self, layer: nn.Module, own: list[Tensor]):
        self.own, self.given = own, list(layer.buffers(recurse=False))
        self.counts = layer._buffers.get("running_mean") is None or "num_batches_tracked" in layer._buffers
        self.versions = _versions(*self.own, *self.given)

    def restore(self) -> None:
        """Gives buffers that were written to, on either side, the model's present values."""
        if self.counts and _versions(*self.own, *self.given) == self.versions:
            return
        for own, given in zip(self.own, self.given, strict=True):
            own.copy_(given)
        self.versions = _versions(*self.own, *self.given)


class ModelShell:
    """A model's modules once more, around the same tensors except for the selected parameters, and for the buffers,
    which some backbones write to in eval mode, too: these are copies.

    Building one costs little memory, and whatever happens to it, the model stays bit-identical. Half-precision
    parameters are kept in single precision beside the shell, since small steps would be rounded away.

    Args:
        model (`nn.Module`): the model to shadow.
        choice (`str`, *optional*): which parameters may change, see [`select_parameters`]; `None`: nothing may.
        takes_steps (`bool`): whether anything will change them; else frozen ones may be among them.

    Raises:
        ValueError: if weights are offloaded, not loaded, sharded or quantised, or nothing is selected.
    """

    def __init__(self, model: nn.Module, choice: str | None, takes_steps: bool = True):
        with torch.inference_mode(False), torch.no_grad():
            self.model = model
            self.takes_steps = takes_steps
            self.fingerprint = _Fingerprint(model)
            check_adaptable(model)
            selected = {} if choice is None else select_parameters(model, choice, with_frozen=not takes_steps)
            self.names = list(selected)
            self.source: list[Tensor] = list(selected.values())
            memo: dict[int, Any] = {}
            self.module = self._copy_around(model, {id(parameter) for parameter in self.source}, memo)
            self._layers = [
                _LayerBuffers(layer, [memo[id(given)] for given in layer.buffers(recurse=False)])
                for layer in model.modules()
                if layer._buffers
            ]
            self.parameters: list[Tensor] = [memo[id(parameter)] for parameter in self.source]
            self.masters: list[Tensor] = [
                parameter.detach().float().requires_grad_(True)
                if parameter.dtype in (torch.float16, torch.bfloat16)
                else parameter
                for parameter in self.parameters
            ]

    @staticmethod
    def _copy_around(model: nn.Module, selected: set[int], memo: dict[int, Any]) -> nn.Module:
        for parameter in model.parameters():
            if id(parameter) in selected:
                memo[id(parameter)] = nn.Parameter(parameter.detach().clone(), requires_grad=True)
            else:
                memo[id(parameter)] = nn.Parameter(_alias(parameter), requires_grad=False)
        for buffer in model.buffers():
            memo[id(buffer)] = buffer.detach().clone()
        if hasattr(model, "config"):
            memo[id(model.config)] = model.config
        # Compiled code knows nothing of statistics that are chosen after it was compiled.
        for module in compiled_parts(model):
            memo[id(module)] = copy.deepcopy(unwrap(module), memo)
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
        """Gives the selected parameters, and buffers that were written to, the model's present values."""
        self.load(self.source)
        self.restore_buffers()

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Gives buffers that were written to, here or in the model, the model's present values."""
        for layer in self._layers:
            layer.restore()

    @torch.no_grad()
    def load(self, values: list[Tensor]) -> None:
        """Gives the selected parameters these values."""
        for targets in (self.masters, self.parameters) if self.has_masters else (self.parameters,):
            torch._foreach_copy_(targets, values)

    @torch.no_grad()
    def laid_out(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the parameters for the optimizer, which works on `masters`."""
        pairs = zip(gradients, self.masters, strict=True)
        return [None if gradient is None else laid_out_as(gradient, master) for gradient, master in pairs]

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
def unchanged_context() -> Iterator[Callable]:
    """Leaves grad mode, inference mode, autocast's cache, `torch.func`'s stack and context variables as they were.

    Those who set them for a while put them back themselves, but an interrupt may come between two of their lines.

    Yields:
        A function that calls another one in a copy of the current context.
    """
    functorch = torch._C._functorch
    depth = functorch.get_dynamic_layer_stack_depth()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    caches = torch.is_autocast_cache_enabled()
    try:
        yield contextvars.copy_context().run
    finally:
        if functorch.get_dynamic_layer_stack_depth() > depth:
            functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
        if torch.is_inference_mode_enabled() != inference:
            torch._C._InferenceMode(inference).__enter__()
        torch.set_grad_enabled(grad)
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
