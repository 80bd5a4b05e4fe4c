"""Shear, scale, rotation, translation and stripes, as in MNIST-C; 0 comes in from outside of the image."""

import torch

from .operations import rotation_matrix, warp
from .randomness import ImageRandom


def shear(images: torch.Tensor, random: ImageRandom, angle: float) -> torch.Tensor:
    """Shears images (B, C, H, W) by `angle` radians to the left or right, about the centre.

    What a pixel reads lies at cos(angle) of its own height, as in the scikit-image that the suite was made with.
    """
    angles = angle * random.sign()
    ones, zeros = torch.ones_like(angles), torch.zeros_like(angles)
    rows = torch.stack([torch.cos(angles), zeros], -1)
    columns = torch.stack([-torch.sin(angles), ones], -1)
    return warp(images, torch.stack([rows, columns], -2))


def scale(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Shrinks the content of images (B, C, H, W) to `factor` of its size, about the centre."""
    return warp(images, torch.eye(2, dtype=images.dtype, device=images.device)[None] / factor)


def rotate(images: torch.Tensor, random: ImageRandom, angle: float) -> torch.Tensor:
    """Turns images (B, C, H, W) by `angle` radians to the left or right, about the centre."""
    return warp(images, rotation_matrix(angle * random.sign()))


def translate(images: torch.Tensor, random: ImageRandom, distance: float) -> torch.Tensor:
    """Moves images (B, C, H, W) by `distance` pixels up or down, and left or right."""
    offsets = max(1, round(distance)) * random.sign((2,)).long()
    return torch.stack([_move(image, *offset) for image, offset in zip(images, offsets.tolist(), strict=True)])


def _move(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    down, right = max(-height, min(down, height)), max(-width, min(right, width))
    moved = torch.zeros_like(image)
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def stripe(images: torch.Tensor, random: ImageRandom, width: float) -> torch.Tensor:
    """Inverts the left and right `width` pixels of images (B, C, H, W)."""
    columns = max(1, round(width))
    inverted = images.clone()
    inverted[..., :columns] = 1 - images[..., :columns]
    inverted[..., -columns:] = 1 - images[..., -columns:]
    return inverted
