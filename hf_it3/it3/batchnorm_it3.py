"""BatchNorm with statistics of its own for the signal pass, and statistics chosen at test time."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging

from .injection_it3 import current_pass


logger = logging.get_logger(__name__)

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

# The kind of statistics and the prior count, or `None` for those of training.
_test_statistics: ContextVar[tuple[str, int] | None] = ContextVar("it3_test_statistics", default=None)


@contextmanager
def norm_statistics(kind: str, prior_count: int = 0) -> Iterator[None]:
    """Chooses the statistics that [`SplitBatchNorm`] layers in eval mode use inside the block.

    Args:
        kind (`"source"`, `"batch"` or `"mixed"`): those of training; those of the batch; both, weighted by number of
            images with the former counting as `prior_count` (Schneider et al., NeurIPS 2020).
        prior_count (`int`): weight of the training statistics in `"mixed"`.
    """
    token = _test_statistics.set(None if kind == "source" else (kind, prior_count if kind == "mixed" else 0))
    try:
        yield
    finally:
        _test_statistics.reset(token)


def mixed_prior_count() -> int | None:
    """The weight of the statistics of clean images, in images, where they are mixed with a batch's; else `None`."""
    chosen = _test_statistics.get()
    return chosen[1] if chosen is not None and chosen[0] == "mixed" else None


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
        forward_pass = current_pass()
        prefix = "signal_" if forward_pass is not None and forward_pass.is_signal_pass else ""
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
            features = self._normalize_with_batch(features, mean, var, chosen[1])
        return features.to(input.dtype)

    def _normalize_with_batch(self, input: Tensor, mean: Tensor, var: Tensor, prior_count: int) -> Tensor:
        dims = [0, *range(2, input.ndim)]
        if input.numel() == input.shape[1]:
            # A single value per channel has no spread to estimate.
            return F.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if prior_count == 0:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        batch_var, batch_mean = torch.var_mean(input, dims, unbiased=False)
        share = prior_count / (prior_count + input.shape[0])
        mean = torch.lerp(batch_mean, mean, share)
        var = torch.lerp(batch_var, var, share)
        shape = [1, -1, *[1] * (input.ndim - 2)]
        scale = torch.rsqrt(var + self.eps) * (1 if self.weight is None else self.weight)
        shift = -mean * scale + (0 if self.bias is None else self.bias)
        return input * scale.view(shape) + shift.view(shape)

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
