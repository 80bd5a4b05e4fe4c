"""Contrast, elastic deformation and lossy storage."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from .operations import gaussian_blur, per_image, pixel_grid, sample
from .randomness import ImageRandom


def contrast(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Pulls each value (B, C, H, W) towards the mean of its channel: mean + `factor` * (value - mean)."""
    means = per_image(lambda image: torch.stack([channel.mean() for channel in image]), images)[:, :, None, None]
    return means + factor * (images - means)


def elastic_transform(
    images: torch.Tensor, random: ImageRandom, alpha: float, sigma: float, corner: float
) -> torch.Tensor:
    """Warps images (B, C, H, W) by a random affine map, then by a smooth random displacement.

    Args:
        alpha: factor of the displacement, in pixels.
        sigma: of the Gaussian that smooths the displacement (uniform in [-1, 1] before), in pixels.
        corner: the affine map moves three points around the centre (bottom right, top right, top left) by up to
            this many pixels in each direction.
    """
    height, width = images.shape[-2:]
    rows, columns = pixel_grid(images)
    inverse = _random_affine(random, height, width, corner).to(images)[:, :, :, None, None]
    warped = sample(
        images,
        inverse[:, 0, 0] * rows + inverse[:, 0, 1] * columns + inverse[:, 0, 2],
        inverse[:, 1, 0] * rows + inverse[:, 1, 1] * columns + inverse[:, 1, 2],
        "mirror",
    )
    if alpha == 0:
        return warped
    noise = random.uniform(-1, 1, (2, height, width))
    shift = alpha * gaussian_blur(noise, sigma, truncate=3.0, boundary="reflect")
    return sample(warped, rows + shift[:, 0], columns + shift[:, 1], "reflect")


def _random_affine(random: ImageRandom, height: int, width: int, corner: float) -> torch.Tensor:
    """Maps (B, 2, 3) that bring three moved points back to where they were, in (row, column, 1)."""
    row, column, reach = height // 2, width // 2, max(1, min(height, width) // 3)
    points = [(row + reach, column + reach), (row - reach, column + reach), (row - reach, column - reach)]
    start = torch.tensor(points, dtype=torch.float64)
    moved = start + random.uniform(-corner, corner, (3, 2)).cpu().double()
    homogeneous = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=-1)
    return torch.stack([torch.linalg.solve(matrix, start).T for matrix in homogeneous])


def pixelate(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Shrinks images (B, C, H, W) to `factor` of their sides and enlarges them again, with Pillow's box filter."""
    height, width = images.shape[-2:]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    return _through_pillow(
        images, lambda image: image.resize(small, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX)
    )


def jpeg_compression(images: torch.Tensor, random: ImageRandom, quality: int) -> torch.Tensor:
    """Stores images (B, C, H, W) as JPEG files of the given quality (1 to 100) and reads them back."""

    def compress(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _through_pillow(images, compress)


def _through_pillow(images: torch.Tensor, function: Callable[[Image.Image], Image.Image]) -> torch.Tensor:
    """Applies a function of 8-bit Pillow images, which keeps their size, to images (B, C, H, W)."""

    def apply(image: torch.Tensor) -> torch.Tensor:
        pixels = (image * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        result = function(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))
        return torch.from_numpy(np.array(result).reshape(pixels.shape)).permute(2, 0, 1).to(images) / 255

    return per_image(apply, images)
