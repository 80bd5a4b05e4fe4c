"""Small geometric changes that turn one image into a batch of itself, and back."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


MAX_SHIFT = 0.03  # of the image side
MAX_ROTATION = 12.0  # degrees
MAX_SCALING = 0.05


class Augmentation:
    """Shifted, rotated and scaled copies of each image; the first copy is the image itself.

    The same `count - 1` changes are used for every image, so results depend on neither batch size nor order.

    Args:
        count (`int`): copies per image.
        seed (`int`): seed of the changes.
    """

    def __init__(self, count: int, seed: int = 0):
        self.count = count
        generator = torch.Generator().manual_seed(seed)
        # Of each copy: rotation, scaling, and shift along either axis, each between -1 and 1.
        self._draws = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 - 1
        self._draws[:1] = 0

    def apply(self, images: Tensor) -> Tensor:
        """Copies of images `(B, C, H, W)`, of shape `(B, count, C, H, W)`."""
        copies = _warp(images[:, None].expand(-1, self.count, -1, -1, -1), self._matrices(*images.shape[-2:]))
        copies[:, 0] = images
        return copies

    def undo(self, maps: Tensor) -> Tensor:
        """Moves what was predicted for every pixel of the copies, `(B, count, num_labels, h, w)`, back to where it
        belongs in the image; predictions without space, `(B, count, num_labels)`, stay as they are."""
        if maps.ndim < 5:
            return maps
        height, width = maps.shape[-2:]
        last_row = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(self.count, 1, 3)
        inverse = torch.linalg.inv(torch.cat([self._matrices(height, width), last_row], 1))
        moved = _warp(maps, inverse[:, :2])
        moved[:, 0] = maps[:, 0]
        return moved

    def _matrices(self, height: int, width: int) -> Tensor:
        """Affine matrices `(count, 2, 3)`, in the coordinates of `F.affine_grid`."""
        angle = self._draws[:, 0] * math.radians(MAX_ROTATION)
        scale = 1 + self._draws[:, 1] * MAX_SCALING
        aspect = width / height
        cos, sin = angle.cos() / scale, angle.sin() / scale
        shift = self._draws[:, 2:] * 2 * MAX_SHIFT
        rows = [torch.stack([cos, -sin / aspect, shift[:, 0]], -1), torch.stack([sin * aspect, cos, shift[:, 1]], -1)]
        return torch.stack(rows, 1)


def _warp(copies: Tensor, matrices: Tensor) -> Tensor:
    """Copies `(B, count, C, H, W)`, each warped by its matrix; what comes in from outside repeats the border."""
    batch, count, channels, height, width = copies.shape
    grid = F.affine_grid(matrices.float().to(copies.device), [count, 1, height, width], align_corners=False)
    # One sampling call for all: copies along the batch axis, images along the channels.
    stacked = copies.transpose(0, 1).reshape(count, batch * channels, height, width)
    warped = F.grid_sample(stacked, grid.to(copies.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return warped.reshape(count, batch, channels, height, width).transpose(0, 1).contiguous()
