"""Noise."""

import torch

from .randomness import ImageRandom


def gaussian_noise(images: torch.Tensor, random: ImageRandom, sigma: float) -> torch.Tensor:
    """Adds normal noise of standard deviation `sigma` (of the range [0, 1]) to each value (B, C, H, W)."""
    return images + sigma * random.normal(images.shape[1:])


def shot_noise(images: torch.Tensor, random: ImageRandom, photons: float) -> torch.Tensor:
    """Replaces each value v (B, C, H, W) by a Poisson count of mean v * `photons`, divided by `photons`."""
    return random.poisson(images * photons) / photons


def impulse_noise(images: torch.Tensor, random: ImageRandom, amount: float) -> torch.Tensor:
    """Salt and pepper: sets the share `amount` of the values (B, C, H, W) to 0 or 1 with equal chance."""
    draw = random.uniform(0, 1, images.shape[1:])
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, images))
