"""Image operations that the corruptions share.

Each gives an image the same bits whatever batch it is in. Matrix products are therefore taken image by image: in a
batched product the order of summation may change with the batch size.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional


def per_image(function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Applies `function` to each image (C, H, W) of a batch on its own and stacks the results."""
    return torch.stack([function(image) for image in images])


def as_8_bit(images: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] cut down to multiples of 1/255, as the published code does between two steps."""
    # Rounding errors do not make a value that is such a multiple fall to the one below.
    return (images * 255 + 1e-3).floor() / 255


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Brightness (B, 1, H, W) of grey or RGB images (B, C, H, W) (ITU-R BT.601)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def gaussian_matrix(size: int, sigma: float, truncate: float = 4.0, boundary: str = "nearest") -> torch.Tensor:
    """Matrix (size, size), float64, that smooths a row of pixels with a Gaussian of `sigma` pixels.

    Beyond the ends the row goes on with its last pixel (`boundary="nearest"`), its mirror image ("reflect") or zeros
    ("zeros"). The kernel is cut at `truncate` sigmas.
    """
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-6)) ** 2).double()
    weights = (weights / weights.sum()).expand(size, -1)
    columns = torch.arange(size)[:, None] + offsets
    if boundary == "zeros":
        weights = torch.where((columns >= 0) & (columns < size), weights, 0.0)
    if boundary == "reflect":
        columns = columns % (2 * size)
        columns = torch.minimum(columns, 2 * size - 1 - columns)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, columns.clamp(0, size - 1), weights)


def gaussian_blur(
    images: torch.Tensor, sigma: float | tuple[float, float], truncate: float = 4.0, boundary: str = "nearest"
) -> torch.Tensor:
    """Gaussian blur of images (B, C, H, W); `sigma` in pixels, or down and across; see `gaussian_matrix`."""
    sigmas = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    rows, columns = (
        gaussian_matrix(size, one, truncate, boundary).to(images)
        for size, one in zip(images.shape[-2:], sigmas, strict=True)
    )
    return per_image(lambda image: rows @ image @ columns.T, images)


def pixel_grid(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row (1, H, 1) and column (1, 1, W) numbers of the pixels of images (B, C, H, W)."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, dtype=images.dtype, device=images.device)
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    return rows[None, :, None], columns[None, None, :]


def sample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, boundary: str = "zeros") -> torch.Tensor:
    """Reads images (B, C, H, W) at fractional pixel positions, bilinearly.

    Args:
        images: (B, C, H, W).
        rows, columns: positions, broadcastable to (B, H, W), in pixels.
        boundary: what is outside of the image: "zeros", or its mirror image with the last pixel once ("mirror") or
            twice ("reflect").

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = images.shape
    twice = boundary == "reflect"
    if twice:
        x, y = (2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1
    else:
        x, y = columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([x.expand(batch, height, width), y.expand(batch, height, width)], dim=-1)
    padding = "zeros" if boundary == "zeros" else "reflection"
    return functional.grid_sample(images, grid, padding_mode=padding, align_corners=not twice)


def warp(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Linear map about the centre of the image; 0 comes in from outside.

    Args:
        images: (B, C, H, W).
        matrix: (B, 2, 2) or (1, 2, 2), in (row, column) order; maps a position relative to the centre in the result
            to the position in `images` that it is read from.
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
    )


def rotation_matrix(angles: torch.Tensor) -> torch.Tensor:
    """Matrices (B, 2, 2) for `warp` that turn images by `angles` (B,), in radians, counter-clockwise."""
    cosine, sine = torch.cos(angles), torch.sin(angles)
    return torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)


def enlarge(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarges the middle of images (B, C, H, W) by `factor` >= 1, bilinearly, to the size of the whole.

    The middle is cut out in whole pixels, its corner pixels become those of the result, and what is too large by
    rounding is trimmed evenly: the zoom of ImageNet-C.
    """
    sides = images.shape[-2:]
    middle = [math.ceil(side / factor) for side in sides]
    top, left = ((side - part) // 2 for side, part in zip(sides, middle, strict=True))
    large = functional.interpolate(
        images[..., top : top + middle[0], left : left + middle[1]],
        size=[round(part * factor) for part in middle],
        mode="bilinear",
        align_corners=True,
    )
    top, left = ((part - side) // 2 for side, part in zip(sides, large.shape[-2:], strict=True))
    return large[..., top : top + sides[0], left : left + sides[1]]


def smear(images: torch.Tensor, degrees: torch.Tensor, radius: float, sigma: float) -> torch.Tensor:
    """Motion blur as ImageMagick's: a mean of copies along a ray, weighted with one half of a Gaussian.

    Args:
        images: (B, C, H, W); beyond the border they go on with their last pixel.
        degrees: where the ray that a pixel reads from goes, per image (B,): 0 is to the right, 90 downwards.
        radius: half the number of copies, in pixels.
        sigma: standard deviation of the weights, in pixels.
    """
    height, width = images.shape[-2:]
    steps = range(2 * math.ceil(radius) + 1)
    weights = [math.exp(-0.5 * (step / sigma) ** 2) for step in steps]
    smeared = torch.zeros_like(images)
    for image, total, angle in zip(images, smeared, degrees.double().tolist(), strict=True):
        down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        # Positions on the ray are rounded to whole pixels, halves downwards.
        rows = [math.ceil(step * down - 0.5) for step in steps]
        columns = [math.ceil(step * right - 0.5) for step in steps]
        top, left = -min(rows), -min(columns)
        around = functional.pad(image[None], (left, max(columns), top, max(rows)), mode="replicate")[0]
        for row, column, weight in zip(rows, columns, weights, strict=True):
            part = around[:, top + row : top + row + height, left + column : left + column + width]
            total.add_(part, alpha=weight)
    return smeared / sum(weights)
