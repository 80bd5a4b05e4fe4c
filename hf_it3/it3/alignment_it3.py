"""Aligns features of shifted images with those of clean ones, in backbones that have no BatchNorm to do so."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import CompileableContextVar

from .batchnorm_it3 import ChosenStatistics, SplitBatchNorm, mixed_statistics, note_statistics
from .clean_buffers_it3 import CleanBuffers
from .injection_it3 import drop_hooks, last_channels, statistics_prefix


_EPSILON = 1e-5
_NORM_LAYERS = ("LayerNorm", "GroupNorm", "RMSNorm")
# What a collector holds of one kind of pass: numbers of values, their sums and sums of squares, per channel.
Sums = dict[str, tuple[float, Tensor, Tensor]]

_collector = CompileableContextVar("it3_feature_statistics")


@contextmanager
def collected_statistics(sums: Sums) -> Iterator[None]:
    """Inside the block, the layers of [`FeatureStatistics`] add the features of every pass to `sums`."""
    token = _collector.set(sums)
    try:
        yield
    finally:
        _collector.reset(token)


class LayerStatistics(CleanBuffers):
    """Mean and standard deviation over clean images of each channel of one layer's output, in both passes.

    Args:
        channels (`int`): of the output.
    """

    mean: Tensor
    std: Tensor
    signal_mean: Tensor
    signal_std: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.add(**dict.fromkeys(("mean", "std", "signal_mean", "signal_std"), (channels,)))

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to align with."""
        return self.signal_std.device.type != "meta" and bool(self.signal_std.any())


class Alignment:
    """Forward hook that gives a batch's features the mean and standard deviation of clean images, channel by channel.

    It acts while `norm_statistics("mixed", prior_count)` or `"shrunk"` is in force: `(x - mean) / std * clean std +
    clean mean`, where mean and std are those of the batch, or of each image by itself, mixed with the clean ones that
    count as `prior_count` images, or as much as chance explains of the distance. Schneider et al. (NeurIPS 2020) do
    that in BatchNorm layers; the formula is that of AdaIN (Huang and Belongie, ICCV 2017). Signal passes have
    statistics of their own.

    Args:
        name (`str`): of the layer in the backbone.
        statistics ([`LayerStatistics`]): of the layer.
        axis (`int`): of the channels in its output, 1 or -1.
    """

    def __init__(self, name: str, statistics: LayerStatistics, axis: int):
        self.name = name
        self.statistics = statistics
        self.axis = axis

    def __call__(self, module: nn.Module, inputs: tuple, output: Any) -> Tensor | None:
        if torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.ndim < 3:
            return None
        if (sums := _collector.get()) is not None:
            self._collect(output, sums)
        chosen = mixed_statistics()
        if chosen is None or not (self.statistics.is_measured and chosen.reach(module)):
            return None
        return self._align(module, output, chosen)

    @torch.no_grad()
    def _collect(self, output: Tensor, sums: Sums) -> None:
        values, dims = output.float(), [dim for dim in range(output.ndim) if dim != self.axis % output.ndim]
        mean, count = values.mean(dims), values.numel() / values.shape[self.axis]
        square = values.square().mean(dims)
        # On the CPU, because not every device has double precision.
        new = (count, mean.cpu().double() * count, square.cpu().double() * count)
        _add(sums, f"{statistics_prefix()}{self.name}", new)

    def _align(self, layer: nn.Module, output: Tensor, chosen: ChosenStatistics) -> Tensor:
        features = output.to(torch.promote_types(output.dtype, torch.float32))
        shape = [1] * output.ndim
        shape[self.axis] = -1
        clean = [value.to(features.dtype).view(shape) for value in self._clean(statistics_prefix())]
        mean, variance = chosen.mix(features, clean[0], clean[1].square(), self.axis)
        note_statistics(layer, mean, variance)
        scale, shift = _correction(mean, variance, *clean)
        return (features * scale + shift).to(output.dtype)

    def _clean(self, prefix: str) -> list[Tensor]:
        return [getattr(self.statistics, f"{prefix}{name}") for name in ("mean", "std")]

    @torch.no_grad()
    def fold(self, layer: nn.Module, mean: Tensor, variance: Tensor) -> bool:
        """Makes the correction of features with this mean and variance part of a layer's weights.

        Returns:
            `False`, and nothing changed, where it cannot: where the layer has no weight and bias of its own, they are
            frozen, or it is a convolution that treats its weight in its own way.
        """
        weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
        is_known = type(layer) is nn.Conv2d or not isinstance(layer, nn.Conv2d)
        if weight is None or bias is None or not (is_known and weight.requires_grad and bias.requires_grad):
            return False
        scale, shift = _correction(mean, variance, *self._clean(""))
        weight.copy_(weight * scale.view(-1, *[1] * (weight.ndim - 1) if isinstance(layer, nn.Conv2d) else ()))
        bias.copy_(bias * scale + shift)
        return True


class FeatureStatistics(nn.ModuleDict):
    """The clean statistics of a backbone's layers: of its normalisation layers, or else of its convolutions.

    Empty where the backbone has BatchNorm, whose statistics serve. The layers get a hook, see [`Alignment`].

    Args:
        backbone (`nn.Module`): the backbone; nothing of it is run.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        drop_hooks(backbone, Alignment)  # of a model that the backbone comes out of
        for name, layer in aligned_layers(backbone):
            channels = last_channels(layer)
            if channels is None:
                continue
            statistics = self[_key(name)] = LayerStatistics(channels)
            layer.register_forward_hook(Alignment(name, statistics, _channel_axis(layer)))

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to align with."""
        values: list[LayerStatistics] = list(self.values())  # type: ignore[arg-type]
        return any(one.is_measured for one in values)

    def forget(self) -> None:
        """Discards what was measured."""
        for statistics in self.values():
            statistics.forget()  # type: ignore[operator]

    def measure(self, parts: Iterable[Sums]) -> None:
        """Stores what [`collected_statistics`] collected, in parts, from plain passes and signal passes."""
        totals: Sums = {}
        for sums in parts:
            for key, new in sums.items():
                _add(totals, key, new)
        for name, statistics in self.items():
            values = {}
            for prefix in ("", "signal_"):
                if (found := totals.get(f"{prefix}{name.replace('/', '.')}")) is None:
                    break  # a layer behind the pooling, whose output has no space
                count, total, squares = found
                values[f"{prefix}mean"] = total / count
                values[f"{prefix}std"] = (squares / count - (total / count).square()).clamp_min(0).sqrt()
            else:
                statistics.store(**values)  # type: ignore[operator]


def num_correcting_layers(model: nn.Module) -> int:
    """How many layers of a model can correct their features at test time: those of BatchNorm, or those whose clean
    statistics were measured."""
    return sum(map(_corrects, model.modules()))


def _corrects(module: nn.Module) -> bool:
    return isinstance(module, SplitBatchNorm) or (isinstance(module, LayerStatistics) and module.is_measured)


def _correction(mean: Tensor, variance: Tensor, clean_mean: Tensor, clean_std: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift that give features of this mean and variance the clean ones."""
    scale = clean_std * torch.rsqrt(variance + _EPSILON)
    return scale, clean_mean - mean * scale


def _add(sums: Sums, key: str, new: tuple[float, Tensor, Tensor]) -> None:
    if key in sums:
        (count, total, squares), (more, values, their_squares) = sums[key], new
        new = (count + more, total + values, squares + their_squares)
    sums[key] = new


def _key(name: str) -> str:
    return name.replace(".", "/")  # names of modules hold no dots


def aligned_layers(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and layers whose output can be aligned: normalisation layers, or else convolutions."""
    modules = list(backbone.named_modules())
    if any(isinstance(module, SplitBatchNorm) for _, module in modules):
        return []
    norms = [(name, module) for name, module in modules if type(module).__name__.endswith(_NORM_LAYERS)]
    return norms or [(name, module) for name, module in modules if isinstance(module, nn.Conv2d)]


def _channel_axis(layer: nn.Module) -> int:
    if isinstance(layer, (nn.Conv2d, nn.GroupNorm)) or getattr(layer, "data_format", None) == "channels_first":
        return 1
    return -1
