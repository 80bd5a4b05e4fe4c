"""Means and variances of features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_and_variance(values: Tensor, dims: Sequence[int], keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over some dimensions, as `torch.var_mean` has them; on a CPU that takes ten times as
    long, more than the layers whose features these are."""
    mean = values.mean(tuple(dims), keepdim=True)
    count = math.prod(values.shape[dim] for dim in dims)
    deviation = torch.linalg.vector_norm(values - mean, dim=tuple(dims), keepdim=keepdim)
    return mean if keepdim else mean.squeeze(tuple(dims)), deviation.square() / count
