"""Small geometric changes that turn one image into a batch of itself."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


MAX_SHIFT = 0.03  # of the image side
MAX_ROTATION = 12.0  # degrees
MAX_SCALING = 0.05


def augment(images: Tensor, count: int, seed: int = 0) -> Tensor:
    """Shifted, rotated and scaled copies of each image; the first copy is the image itself.

    The same `count - 1` changes are used for every image, so results depend on neither batch size nor order.

    Args:
        images (`Tensor` of shape `(B, C, H, W)`).
        count (`int`): copies per image.
        seed (`int`): seed of the changes.

    Returns:
        `Tensor` of shape `(B, count, C, H, W)`.
    """
    batch, channels, height, width = images.shape
    matrices = _affine_matrices(count, height, width, seed).to(images.device, images.dtype)
    grid = F.affine_grid(matrices, [count, 1, height, width], align_corners=False)
    # One sampling call for all: copies along the batch axis, images along the channels.
    stacked = images.reshape(1, batch * channels, height, width).expand(count, -1, -1, -1)
    copies = F.grid_sample(stacked, grid, mode="bilinear", padding_mode="border", align_corners=False)
    copies = copies.reshape(count, batch, channels, height, width).transpose(0, 1).contiguous()
    copies[:, 0] = images
    return copies


def _affine_matrices(count: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 - 1
    angle = uniform[:, 0] * math.radians(MAX_ROTATION)
    scale = 1 + uniform[:, 1] * MAX_SCALING
    aspect = width / height
    cos, sin = angle.cos() / scale, angle.sin() / scale
    shift = uniform[:, 2:] * 2 * MAX_SHIFT
    rows = [torch.stack([cos, -sin / aspect, shift[:, 0]], -1), torch.stack([sin * aspect, cos, shift[:, 1]], -1)]
    return torch.stack(rows, 1)
