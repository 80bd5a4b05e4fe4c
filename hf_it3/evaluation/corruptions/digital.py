"""Digital corruptions of ImageNet-C."""

import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from .corruption import IMAGENET_C, Corruption
from .operations import gaussian_blur, per_image, pixel_grid, sample
from .randomness import ImageRandom


def contrast(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Pulls each value (B, C, H, W) towards the mean of its channel: mean + `factor` * (value - mean)."""
    means = per_image(lambda image: torch.stack([channel.mean() for channel in image]), images)[:, :, None, None]
    return means + factor * (images - means)


def elastic_transform(
    images: torch.Tensor, random: ImageRandom, alpha: float, sigma: float, corner: float
) -> torch.Tensor:
    """Warps images (B, C, H, W) by a random affine map and a smooth random displacement.

    The five settings of each image size are the published ones, in the order of the change they make: the published
    severities 1 and 2 come last (for 32 px: all five are reversed), since there the affine map outweighs the rest. For
    64 px, where some would come out equal, `alpha` is 6.4 at severity 1 (published: 10.24) and `corner` is 3.2 at
    severity 3 (published: 3.84).

    Args:
        alpha: factor of the displacement, in pixels.
        sigma: of the Gaussian that smooths the displacement (uniform in [-1, 1] before), in pixels.
        corner: the affine map moves three points around the centre by up to this many pixels in each direction.
    """
    height, width = images.shape[-2:]
    noise = random.uniform(-1, 1, (2, height, width))
    shift = alpha * gaussian_blur(noise, sigma, truncate=3.0, boundary="reflect")
    rows, columns = pixel_grid(images)
    rows, columns = rows + shift[:, 0], columns + shift[:, 1]
    inverse = _random_affine(random, height, width, corner).to(images)[:, :, :, None, None]
    return sample(
        images,
        inverse[:, 0, 0] * rows + inverse[:, 0, 1] * columns + inverse[:, 0, 2],
        inverse[:, 1, 0] * rows + inverse[:, 1, 1] * columns + inverse[:, 1, 2],
        "reflection",
    )


def _random_affine(random: ImageRandom, height: int, width: int, corner: float) -> torch.Tensor:
    """Maps (B, 2, 3) that bring three moved points back to where they were, in (row, column, 1)."""
    row, column, reach = height // 2, width // 2, max(1, min(height, width) // 3)
    points = [(row + reach, column + reach), (row + reach, column - reach), (row - reach, column - reach)]
    start = torch.tensor(points, dtype=torch.float64)
    moved = start + random.uniform(-corner, corner, (3, 2)).double().cpu()
    homogeneous = torch.cat([moved, torch.ones_like(moved[..., :1])], dim=-1)
    return torch.stack([torch.linalg.solve(matrix, start).T for matrix in homogeneous])


def pixelate(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Shrinks images (B, C, H, W) to `factor` of their sides and enlarges them again, with Pillow's box filter.

    For 32 px, severity 1 has a factor of 0.965 (published: 0.95), which at 28 px would change as much as severity 2.
    """
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


_imagenet_c = partial(Corruption, suite="imagenet-c", source=IMAGENET_C)

CORRUPTIONS = (
    _imagenet_c(
        name="contrast",
        function=contrast,
        tables={
            32: {"factor": (0.75, 0.5, 0.4, 0.3, 0.15)},
            64: {"factor": (0.4, 0.3, 0.2, 0.1, 0.05)},
            224: {"factor": (0.4, 0.3, 0.2, 0.1, 0.05)},
        },
    ),
    _imagenet_c(
        name="elastic_transform",
        function=elastic_transform,
        tables={
            32: {
                "alpha": (3.2, 3.2, 2.56, 1.6, 0),
                "sigma": (0.96, 1.28, 1.92, 6.4, 0),
                "corner": (0.96, 1.6, 1.92, 2.24, 2.56),
            },
            64: {
                "alpha": (6.4, 6.4, 3.2, 6.4, 0),
                "sigma": (1.92, 1.92, 19.2, 5.12, 0),
                "corner": (1.28, 1.92, 3.2, 3.84, 5.12),
            },
            224: {
                "alpha": (12.2, 17.08, 29.28, 488, 488),
                "sigma": (2.44, 2.44, 2.44, 170.8, 19.52),
                "corner": (4.88, 4.88, 4.88, 24.4, 48.8),
            },
        },
        lengths=("alpha", "sigma", "corner"),
    ),
    _imagenet_c(
        name="pixelate",
        function=pixelate,
        tables={
            32: {"factor": (0.965, 0.9, 0.85, 0.75, 0.65)},
            64: {"factor": (0.9, 0.8, 0.7, 0.6, 0.5)},
            224: {"factor": (0.6, 0.5, 0.4, 0.3, 0.25)},
        },
    ),
    _imagenet_c(
        name="jpeg_compression",
        function=jpeg_compression,
        tables={
            32: {"quality": (80, 65, 58, 50, 40)},
            64: {"quality": (65, 58, 50, 40, 25)},
            224: {"quality": (25, 18, 15, 10, 7)},
        },
    ),
)
