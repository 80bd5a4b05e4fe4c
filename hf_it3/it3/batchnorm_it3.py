"""BatchNorm with statistics of its own for the signal pass, and statistics chosen at test time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from .injection_it3 import current_pass, statistics_prefix
from .moments_it3 import mean_and_variance


logger = logging.get_logger(__name__)

_EPSILON = 1e-5
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ChosenStatistics(NamedTuple):
    """Which statistics features are normalised with at test time.

    Args:
        kind (`"batch"`, `"mixed"` or `"shrunk"`): those of the images at hand, or both those and the ones of training.
        prior_count (`int`): weight of the latter, in images.
        per_image (`bool`): whether each image is normalised with statistics of its own, rather than of its batch.
        weights (`Tensor` of shape `(B,)`, *optional*): how much each image counts in those of the batch, 1 in all.
        num_layers (`int`, *optional*): how many layers correct their features, the first ones of a model's pass; by
            default all do.
    """

    kind: str
    prior_count: int
    per_image: bool
    weights: Tensor | None = None
    num_layers: int | None = None

    def reach(self, layer: nn.Module) -> bool:
        """Whether a layer is among those that correct their features."""
        if self.num_layers is None or (forward_pass := current_pass()) is None:
            return True
        return forward_pass.turn_of(layer) < self.num_layers

    def mix(self, features: Tensor, mean: Tensor, var: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of features, mixed with those of training.

        Where statistics are `"shrunk"`, the share of the latter is how much of the squared distance between both means
        chance alone explains, the shrinkage of James and Stein (1961) over the channels of a layer.

        Args:
            features (`Tensor` of shape `(B, ...)`): a batch, as it is going to be normalised.
            mean, var (`Tensor`): of training, in a shape that broadcasts to that of features.
            channels (`int`): dimension of the channels, 1 or -1.
        """
        if self.per_image:
            own_mean, own_var = mean_and_variance(features, self.pooled(features, channels), keepdim=True)
            share: float | Tensor = self.prior_count / (self.prior_count + 1)
        else:
            weights = self._weights_of(features)
            moments = _weighted_moments(features, weights, channels)
            own_mean, own_var, between = (moment.view(mean.shape) for moment in moments)
            count = 1 / weights.square().sum()  # of equal weights that would tell as much (Kish, 1965)
            share = self.prior_count / (self.prior_count + count)
            if self.kind == "shrunk" and len(weights) > 1:
                share = _explained_by_chance(own_mean - mean, between / (count - 1), var)
        return torch.lerp(own_mean, mean, share), torch.lerp(own_var, var, share)

    def _weights_of(self, features: Tensor) -> Tensor:
        """The weights of images, or equal ones of rows where nothing tells which rows are of one image."""
        rows = len(features)
        if self.weights is None or rows % len(self.weights):
            return features.new_full((rows,), 1 / rows)
        return self.weights.to(features.dtype)

    def pooled(self, features: Tensor, channels: int) -> list[int]:
        """The dimensions of features that variance and mean are taken over; never that of the channels."""
        first = 1 if self.per_image else 0
        return [dim for dim in range(first, features.ndim) if dim != channels % features.ndim]


def _weighted_moments(features: Tensor, weights: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance, and the part of the latter that lies between images, of each channel `(C,)`, for features of as
    many images as there are weights. Some backbones put rows of places into the batch: they are of one image, too."""
    images, width = len(weights), features.shape[channels]
    if channels % features.ndim == features.ndim - 1:
        image_mean, image_var = mean_and_variance(features.reshape(images, -1, width), (1,))
    else:
        places = features[0, 0].numel()
        image_mean, image_var = mean_and_variance(features.reshape(images, -1, width, places), (1, 3))
    weights = weights[:, None]  # times them, because autocast rounds what is multiplied as matrices
    mean = (weights * image_mean).sum(0)
    between = (weights * (image_mean - mean).square()).sum(0)
    return mean, (weights * image_var).sum(0) + between, between


@torch.no_grad()
def _explained_by_chance(apart: Tensor, by_chance: Tensor, var: Tensor) -> Tensor:
    """The part, in [0, 1], of the squared distance between two means that their squared standard errors explain, both
    in units of the variance and summed over channels."""
    precision = (var + _EPSILON).reciprocal()
    distance = (apart.square() * precision).sum()
    return ((by_chance * precision).sum() / distance.clamp_min(_EPSILON)).clamp(0, 1).to(apart.dtype)


# `None` for the statistics of training.
_test_statistics: ContextVar[ChosenStatistics | None] = ContextVar("it3_test_statistics", default=None)

# Per layer: mean and variance of each channel that its features were corrected with.
NotedStatistics = dict[nn.Module, tuple[Tensor, Tensor]]
_noted: ContextVar[NotedStatistics | None] = ContextVar("it3_noted_statistics", default=None)


@contextmanager
def noted_statistics() -> Iterator[NotedStatistics]:
    """Yields what fills, inside the block, with the statistics that layers correct their features with."""
    noted: NotedStatistics = {}
    token = _noted.set(noted)
    try:
        yield noted
    finally:
        _noted.reset(token)


def note_statistics(layer: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Notes what a layer corrects its features with, where somebody asked for it."""
    if (noted := _noted.get()) is not None:
        noted[layer] = (mean, variance)


@contextmanager
def norm_statistics(
    kind: str,
    prior_count: int = 0,
    per_image: bool = False,
    weights: Tensor | None = None,
    num_layers: int | None = None,
) -> Iterator[None]:
    """Chooses the statistics that [`SplitBatchNorm`] layers in eval mode use inside the block.

    Args:
        kind (`"source"`, `"batch"`, `"mixed"` or `"shrunk"`): those of training; those of the batch; both, weighted by
            number of images with the former counting as `prior_count` (Schneider et al., NeurIPS 2020); both, weighted
            by how much of their distance is chance.
        prior_count (`int`): weight of the training statistics in `"mixed"`, and in `"shrunk"` for a single image.
        per_image (`bool`): statistics of each image by itself instead of those of the batch.
        weights (`Tensor` of shape `(B,)`, *optional*): how much each image counts in `"mixed"` and `"shrunk"`, 1 in
            all; by default each as much as others.
        num_layers (`int`, *optional*): how many layers correct their features, the first ones that these pass; those
            behind them use the statistics of training. By default all do.
    """
    prior_count = 0 if kind == "batch" else prior_count
    chosen = None if kind == "source" else ChosenStatistics(kind, prior_count, per_image, weights, num_layers)
    token = _test_statistics.set(chosen)
    try:
        yield
    finally:
        _test_statistics.reset(token)


def mixed_statistics() -> ChosenStatistics | None:
    """The choice where statistics of clean images are mixed with those at hand; else `None`."""
    chosen = _test_statistics.get()
    return None if chosen is None or chosen.kind == "batch" else chosen


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with a second set of running statistics, used and updated in signal passes alone.

    Features with and without an injected label signal are distributed differently; one shared set of statistics fits
    neither. This is the split BatchNorm of AdvProp (Xie et al., CVPR 2020) with shared weights. In eval mode nothing
    is ever written, unless `collects_signal_statistics`: then signal passes run as in training, and others as in eval
    mode.

    Args:
        source (`nn.BatchNorm1d`, `2d`, `3d`): the layer to take over, parameters and buffers themselves included.
    """

    collects_signal_statistics = False

    def __init__(self, source: nn.modules.batchnorm._BatchNorm):
        nn.Module.__init__(self)
        self.__dict__.update({key: value for key, value in vars(source).items() if key not in vars(self)})
        self.training = source.training
        self._parameters.update(source._parameters)
        self._buffers.update(source._buffers)
        self._modules.update(source._modules)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            getattr(self, hooks).update(getattr(source, hooks))
        for name in _STATISTICS:
            if (value := source._buffers.get(name)) is not None:
                self.register_buffer(f"signal_{name}", value.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        output = self._normalize(input)
        if len(output) == 1 and output.requires_grad and output.device.type == "cpu":
            # On CPU, torch's backward pass of batch_norm is wrong for a single image where the gradient comes in
            # transposed, as it does from the `flatten(2).transpose(1, 2)` of LeViT and CvT.
            output.register_hook(Tensor.contiguous)
        # timm's BatchNormAct2d keeps dropout and activation inside the layer.
        for name in ("drop", "act"):
            if name in self._modules:
                output = self.get_submodule(name)(output)
        return output

    def _normalize(self, input: Tensor) -> Tensor:
        if self.running_mean is None:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        prefix = statistics_prefix()
        mean, var = getattr(self, f"{prefix}running_mean"), getattr(self, f"{prefix}running_var")
        if self.training or (prefix and self.collects_signal_statistics):
            count = getattr(self, f"{prefix}num_batches_tracked")
            if count is not None:
                count.add_(1)
            momentum = 1.0 / float(count) if self.momentum is None else self.momentum
            return F.batch_norm(input, mean, var, self.weight, self.bias, True, momentum, self.eps)
        # A compiled forward pass has no test-time choice: adaptation runs on an uncompiled shell.
        chosen = None if torch.compiler.is_compiling() else _test_statistics.get()
        # Autocast mixes types, which batch_norm does not take under vmap.
        features = input.to(torch.promote_types(input.dtype, mean.dtype))
        if chosen is None:
            features = F.batch_norm(features, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        else:
            features = self._normalize_with(chosen, features, mean, var)
        return features.to(input.dtype)

    def _normalize_with(self, chosen: ChosenStatistics, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        has_spread = math.prod(input.shape[dim] for dim in chosen.pooled(input, channels=1)) > 1
        if not (has_spread and chosen.reach(self)):
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if chosen.kind == "batch" and not chosen.per_image:
            if _noted.get() is not None:
                note_statistics(self, *mean_and_variance(input, chosen.pooled(input, channels=1)))
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        shape = [1, -1, *[1] * (input.ndim - 2)]
        mean, var = chosen.mix(input, mean.view(shape), var.view(shape), channels=1)
        note_statistics(self, mean, var)
        scale = torch.rsqrt(var + self.eps) * (1 if self.weight is None else self.weight.view(shape))
        shift = -mean * scale + (0 if self.bias is None else self.bias.view(shape))
        return input * scale + shift

    @torch.no_grad()
    def take_over(self, mean: Tensor, variance: Tensor) -> None:
        """Makes these the running statistics of plain passes; those of signal passes move along, as if the features
        had been brought back to the statistics of training first."""
        old_mean, old_var, signal_mean, signal_var = (
            getattr(self, name)
            for name in ("running_mean", "running_var", "signal_running_mean", "signal_running_var")
        )
        stretch = (variance.to(old_var) + self.eps) / (old_var + self.eps)
        signal_mean.copy_(mean.to(signal_mean) + (signal_mean - old_mean) * stretch.sqrt())
        signal_var.copy_((signal_var + self.eps) * stretch - self.eps)
        old_mean.copy_(mean)
        old_var.copy_(variance)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions: the layer stands in for 1d, 2d and 3d alike."""


def _is_plain(module: nn.Module) -> bool:
    keeps_activation_inside = not {"drop", "act"}.isdisjoint(module._modules)
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) or keeps_activation_inside


def split_batch_norms(root: nn.Module) -> list[str]:
    """Replaces the BatchNorm layers below `root` by [`SplitBatchNorm`] in place, and returns their names.

    Parameters and buffers stay the same tensors under the same names. Layers of unknown subclasses are left as they
    are, with a warning: their forward pass is not known to be BatchNorm's.
    """
    names = []
    for name, module in list(root.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or isinstance(module, SplitBatchNorm) or not name:
            continue
        if not _is_plain(module):
            logger.warning(
                f"{name} is a {type(module).__name__}, which keeps one set of statistics for both passes; expect a "
                "weaker signal pass"
            )
            continue
        parent, _, child = name.rpartition(".")
        setattr(root.get_submodule(parent), child, SplitBatchNorm(module))
        names.append(name)
    return names
