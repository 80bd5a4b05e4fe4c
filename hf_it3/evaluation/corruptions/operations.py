"""Image operations that the corruptions share.

Each gives an image the same bits whatever batch it is in. Matrix products are therefore taken image by image: in a
batched product the order of summation may change with the batch size.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from .randomness import ImageRandom


def per_image(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Applies `function` to each image (C, H, W) of a batch on its own and stacks the results."""
    return torch.stack([function(image) for image in images])


def gaussian_matrix(size: int, sigma: float, truncate: float = 4.0, boundary: str = "nearest") -> torch.Tensor:
    """Matrix (size, size), float64, that smooths a row of pixels with a Gaussian of `sigma` pixels.

    Beyond the ends the row goes on with its last pixel (`boundary="nearest"`) or its mirror image ("reflect").
    The kernel is cut at `truncate` sigmas.
    """
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)) ** 2).double()
    columns = torch.arange(size)[:, None] + offsets
    if boundary == "nearest":
        columns = columns.clamp(0, size - 1)
    else:
        columns = columns % (2 * size)
        columns = torch.minimum(columns, 2 * size - 1 - columns)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, columns, (weights / weights.sum()).expand(size, -1))


def gaussian_blur(
    images: torch.Tensor, sigma: float, truncate: float = 4.0, boundary: str = "nearest"
) -> torch.Tensor:
    """Gaussian blur of images (B, C, H, W); `sigma` in pixels, see `gaussian_matrix`."""
    height, width = images.shape[-2:]
    rows, columns = (gaussian_matrix(size, sigma, truncate, boundary).to(images) for size in (height, width))
    return per_image(lambda image: rows @ image @ columns.T, images)


def pixel_grid(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row (1, H, 1) and column (1, 1, W) numbers of the pixels of images (B, C, H, W)."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=images.dtype, device=images.device)
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    return rows[None, :, None], columns[None, None, :]


def sample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """Reads images (B, C, H, W) at fractional pixel positions, bilinearly.

    Args:
        images: (B, C, H, W).
        rows, columns: positions, broadcastable to (B, H, W), in pixels.
        padding: "zeros", "border" or "reflection", for positions outside of the image.

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = images.shape
    x, y = columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([x.expand(batch, height, width), y.expand(batch, height, width)], dim=-1)
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=True)


def grainy_noise(random: ImageRandom, height: int, width: int, grain: float) -> torch.Tensor:
    """Normal noise (B, 1, height, width) with grains of `grain` pixels (at least 1), bilinear between them."""
    grain = max(1.0, grain)
    noise = random.normal((1, math.ceil(height / grain), math.ceil(width / grain)))
    return functional.interpolate(noise, size=(height, width), mode="bilinear", align_corners=True)


def warp(images: torch.Tensor, matrix: torch.Tensor, padding: str = "zeros") -> torch.Tensor:
    """Linear map about the centre of the image.

    Args:
        images: (B, C, H, W).
        matrix: (B, 2, 2) or (1, 2, 2), in (row, column) order; maps a position relative to the centre in the result
            to the position in `images` that it is read from.
        padding: as in `sample`.
    """
    height, width = images.shape[-2:]
    rows, columns = pixel_grid(images)
    row_centre, column_centre = (height - 1) / 2, (width - 1) / 2
    rows, columns = rows - row_centre, columns - column_centre
    m = matrix[:, :, :, None, None]
    return sample(
        images,
        m[:, 0, 0] * rows + m[:, 0, 1] * columns + row_centre,
        m[:, 1, 0] * rows + m[:, 1, 1] * columns + column_centre,
        padding,
    )


def rotation_matrix(angles: torch.Tensor) -> torch.Tensor:
    """Matrices (B, 2, 2) for `warp` that turn images by `angles` (B,), in radians, counter-clockwise."""
    cosine, sine = torch.cos(angles), torch.sin(angles)
    return torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)


def smear(
    images: torch.Tensor, angles: torch.Tensor, radius: float, sigma: float, padding: str = "border"
) -> torch.Tensor:
    """Motion blur: a mean of copies along a ray, weighted with one half of a Gaussian (as ImageMagick's motion blur).

    Args:
        images: (B, C, H, W).
        angles: direction per image (B,), in radians.
        radius: half the number of copies, in pixels.
        sigma: standard deviation of the weights, in pixels.
        padding: as in `sample`.
    """
    steps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-0.5 * (step / max(sigma, 1e-6)) ** 2) for step in steps]
    rows, columns = pixel_grid(images)
    down, right = torch.sin(angles)[:, None, None], torch.cos(angles)[:, None, None]
    total = torch.zeros_like(images)
    for step, weight in zip(steps, weights, strict=True):
        if weight > 1e-4:
            total += weight * sample(images, rows + step * down, columns + step * right, padding)
    return total / sum(weight for weight in weights if weight > 1e-4)
