"""How the label signal reaches a backbone: one permanent hook that reads what the current forward pass injects."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import CompileableContextVar

from .moments_it3 import mean_and_variance


@dataclass
class ForwardPass:
    """Describes what one pass through the backbone injects.

    Args:
        embedding (`Tensor` of shape `(B, C)` or `(B, C, h, w)`, *optional*): the embedded label signal, of the image
            or of each of its places; `None` injects nothing.
        image_size (`tuple[int, int]`): height and width of the images.
        is_signal_pass (`bool`): whether the pass uses the signal statistics of BatchNorm layers.
        injected (`bool`): set by the hook once the embedding has been used.
        order (`dict`, *optional*): set by layers that correct features: when each had its turn.
    """

    embedding: Tensor | None = None
    image_size: tuple[int, int] = (1, 1)
    is_signal_pass: bool = False
    injected: bool = False
    order: dict[nn.Module, int] | None = None

    def turn_of(self, layer: nn.Module) -> int:
        """How many layers asked for their turn before this one; the same when a pass is computed again."""
        self.order = {} if self.order is None else self.order
        return self.order.setdefault(layer, len(self.order))


# A context variable, so that threads that share a model do not see each other's signals.
_current_pass = CompileableContextVar("it3_forward_pass")


def current_pass() -> ForwardPass | None:
    """The pass that runs in this context, or `None` outside of [`IT3ForImageClassification`]."""
    return _current_pass.get()


def statistics_prefix() -> str:
    """Prefix of the names of the statistics of the running pass: signal passes have statistics of their own."""
    forward_pass = current_pass()
    return "signal_" if forward_pass is not None and forward_pass.is_signal_pass else ""


# Collects the first features of passes, where somebody looks at them.
_watched = CompileableContextVar("it3_watched_features")


@contextmanager
def watched_features() -> Iterator[list[Tensor]]:
    """Yields a list that each pass inside the block adds its first features to, of shape `(B, 2 x channels)`: mean and
    standard deviation over space of every channel of the injection layer's output, before anything is injected."""
    collected: list[Tensor] = []
    token = _watched.set(collected)
    try:
        yield collected
    finally:
        _watched.reset(token)


@contextmanager
def running_pass(forward_pass: ForwardPass | None) -> Iterator[None]:
    """Makes `forward_pass` the current one inside the block."""
    token = _current_pass.set(forward_pass)
    try:
        yield
    finally:
        _current_pass.reset(token)


def in_same_pass(function: Callable) -> Callable:
    """Binds the current pass to a function that runs later, as activation checkpointing does in the backward pass."""
    forward_pass = current_pass()

    def run(*args: Any, **kwargs: Any) -> Any:
        with running_pass(forward_pass):
            return function(*args, **kwargs)

    return run


class CheckpointInSamePass:
    """An activation checkpointing function whose recomputation sees the signal of the pass it belongs to."""

    def __init__(self, checkpoint: Callable):
        self.checkpoint = checkpoint

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return self.checkpoint(in_same_pass(function), *args, **kwargs)


class SignalInjection:
    """Forward hook that joins the current pass's embedded signal with the output of the injection layer.

    Handles outputs of shape `(B, C, H, W)`, `(B, N, C)`, `(B, H, W, C)` and `(B, C)`, and tuples and outputs of
    transformers that start with one.

    Args:
        layer (`str`): name of the layer, for error messages.
        combine (`"add"`, `"multiply"` or a callable): how features and embedding are joined.
        channels_last (`bool`): read an output with as many columns as channels as `(B, H, W, C)`.
        better (`str`, *optional*): name of a layer that error messages recommend.
        channels (`int`, *optional*): of the layer's output; without, its first features cannot be watched.
    """

    def __init__(
        self,
        layer: str,
        combine: str | Callable[[Tensor, Tensor], Tensor] = "add",
        channels_last: bool = False,
        better: str | None = None,
        channels: int | None = None,
    ):
        self.layer = layer
        self.channels = channels
        self.combine = combine
        self.channels_last = channels_last
        self.advice = f"choose another layer, for example {better!r}" if better not in (None, layer) else ""

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> Any:
        if not torch.compiler.is_compiling() and (watched := _watched.get()) is not None:
            watched.append(self._first_features(output))
        forward_pass = current_pass()
        if forward_pass is None or forward_pass.embedding is None:
            return None
        forward_pass.injected = True
        if isinstance(output, ModelOutput):
            first = next(iter(output))
            return type(output)(**{**output, first: self._join(output[first], forward_pass)})
        if isinstance(output, tuple):
            return (self._join(output[0], forward_pass), *output[1:])
        return self._join(output, forward_pass)

    @torch.no_grad()
    def _first_features(self, output: Any) -> Tensor:
        while not isinstance(output, Tensor):
            output = output[0] if isinstance(output, tuple) else next(iter(output.values()))
        layout = feature_layout(output.shape, len(output), self.channels or 0, self.channels_last)
        if layout == "B C H W":
            output = output.flatten(2)
        elif layout is not None and layout != "B C":
            output = output.flatten(1, -2).transpose(1, 2)
        else:
            return output.new_zeros(len(output), 2 * (self.channels or 0), dtype=torch.float32)
        mean, variance = mean_and_variance(output.float(), (2,))
        return torch.cat([mean, variance.sqrt()], 1)

    def _join(self, features: Tensor, forward_pass: ForwardPass) -> Tensor:
        if not isinstance(features, Tensor):
            raise TypeError(
                f"injection_layer={self.layer!r} returns {type(features).__name__}, which cannot take a label signal; "
                f"{self.advice or 'choose a layer that returns a tensor or a tuple that starts with one'}"
            )
        embedding = self._broadcastable(forward_pass.embedding, features, forward_pass.image_size)
        if callable(self.combine):
            return self.combine(features, embedding)
        return features + embedding if self.combine == "add" else features * (1 + embedding)

    def _broadcastable(self, embedding: Any, features: Tensor, image_size: tuple[int, int]) -> Tensor:
        embedding = embedding.to(features.dtype)
        batch, channels = embedding.shape[:2]
        layout = feature_layout(features.shape, batch, channels, self.channels_last)
        if layout is None:
            raise ValueError(
                f"injection_layer={self.layer!r} returns features of shape {tuple(features.shape)}, which cannot take "
                f"a label signal of {batch} images and {channels} channels; "
                f"{self.advice or 'choose another layer or set injection_channels'}"
            )
        if embedding.ndim == 4:
            return place_map(embedding, features.shape, layout, image_size)
        ones = [1] * (features.ndim - 2)
        return (
            embedding.reshape(batch, *ones, channels)
            if layout.endswith("C")
            else embedding.reshape(*embedding.shape, *ones)
        )


def drop_hooks(root: nn.Module, kind: type) -> None:
    """Removes the hooks of a kind that an idempotent model left on a module."""
    for module in root.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, kind):
                del module._forward_hooks[key]


def feature_layout(shape: Sequence[int], batch: int, channels: int, channels_last: bool = False) -> str | None:
    """How features of that shape are laid out: `"B C H W"`, `"B H W C"`, `"B N C"` or `"B C"`; `None` if they cannot
    take a label signal of `batch` images and `channels` channels.

    Where both readings of four dimensions fit, `channels_last` decides.
    """
    if len(shape) not in (2, 3, 4) or shape[0] != batch:
        return None
    if len(shape) < 4:
        return ("B C" if len(shape) == 2 else "B N C") if shape[-1] == channels else None
    fitting = [name for name, axis in (("B C H W", 1), ("B H W C", 3)) if shape[axis] == channels]
    if len(fitting) == 2:
        return fitting[channels_last]
    return fitting[0] if fitting else None


def place_map(embedding: Tensor, shape: Sequence[int], layout: str, image_size: tuple[int, int]) -> Tensor:
    """An embedding of places `(B, C, h, w)`, resized to the grid of features of that shape and laid out as they are.

    Tokens that stand for no place, as class and register tokens, get zeros; features without places get the mean.
    """
    if layout == "B C":
        return embedding.mean((2, 3))
    if layout == "B N C":
        extra, *grid = token_grid(shape[1], image_size)
        places = _resize(embedding, grid).flatten(2).transpose(1, 2)
        return F.pad(places, (0, 0, extra, 0))
    if layout == "B H W C":
        return _resize(embedding, shape[1:3]).movedim(1, -1)
    return _resize(embedding, shape[2:])


def _resize(embedding: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(embedding, tuple(size), mode="bilinear", align_corners=False)


# More tokens that stand for no place than any model of transformers puts in front.
_MAX_EXTRA_TOKENS = 16


def token_grid(num_tokens: int, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """How tokens lie over an image: number of tokens in front that stand for no place, rows and columns.

    Raises:
        ValueError: if no grid of the image's shape has this number of tokens.
    """
    height, width = image_size
    for extra in range(min(_MAX_EXTRA_TOKENS, num_tokens - 1) + 1):
        places = num_tokens - extra
        rows = max(1, round((places * height / width) ** 0.5))
        columns = places // rows
        # A grid of patches has the shape of the image, to less than a patch.
        if rows * columns == places and abs(rows * width - columns * height) < max(height, width):
            return extra, rows, columns
    raise ValueError(
        f"{num_tokens} tokens form no grid over an image of {height} x {width} pixels; choose an injection layer "
        "whose output has the shape (B, C, H, W)"
    )


def batch_norm_behind(backbone: nn.Module, name: str) -> str | None:
    """Name of the BatchNorm that the structure shows right behind a layer, or `None`.

    With batch statistics it subtracts from an injected signal whatever the images of the batch share.
    """
    names = [other for other, _ in backbone.named_modules()]
    inside = [index for index, other in enumerate(names) if other == name or other.startswith(f"{name}.")]
    for other in names[inside[-1] + 1 :] if inside else ():
        module = backbone.get_submodule(other)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            channels = last_channels(backbone.get_submodule(name))
            return other if channels in (None, module.num_features) else None
        if next(module.children(), None) is None and not isinstance(module, nn.Identity):
            return None
    return None


def last_channels(layer: nn.Module) -> int | None:
    """Channels of a layer's output, read from the last convolution, linear or normalisation layer inside it; `None`
    where there is none."""
    for module in reversed(list(layer.modules())):
        for attribute in ("out_channels", "out_features", "num_features", "normalized_shape", "num_channels"):
            value = getattr(module, attribute, None)
            is_leaf = next(module.children(), None) is None or isinstance(module, nn.modules.batchnorm._BatchNorm)
            if value is not None and is_leaf:
                return value[-1] if isinstance(value, (tuple, list, torch.Size)) else int(value)
    return None


def puts_channels_last(layer: nn.Module) -> bool:
    """Whether the layer is one that puts channels on the last axis, whatever the shape."""
    return type(layer) in (nn.Linear, nn.LayerNorm)
