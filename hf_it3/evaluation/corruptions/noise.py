"""Noise corruptions of ImageNet-C, and the functions that the other suites reuse."""

from functools import partial

import torch

from .corruption import IMAGENET_C, Corruption
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


_imagenet_c = partial(Corruption, suite="imagenet-c", source=IMAGENET_C)

CORRUPTIONS = (
    _imagenet_c(
        name="gaussian_noise",
        function=gaussian_noise,
        tables={
            32: {"sigma": (0.04, 0.06, 0.08, 0.09, 0.10)},
            64: {"sigma": (0.04, 0.08, 0.12, 0.15, 0.18)},
            224: {"sigma": (0.08, 0.12, 0.18, 0.26, 0.38)},
        },
    ),
    _imagenet_c(
        name="shot_noise",
        function=shot_noise,
        tables={
            32: {"photons": (500, 250, 100, 75, 50)},
            64: {"photons": (250, 100, 50, 30, 15)},
            224: {"photons": (60, 25, 12, 5, 3)},
        },
    ),
    _imagenet_c(
        name="impulse_noise",
        function=impulse_noise,
        tables={
            32: {"amount": (0.01, 0.02, 0.03, 0.05, 0.07)},
            64: {"amount": (0.01, 0.02, 0.05, 0.08, 0.14)},
            224: {"amount": (0.03, 0.06, 0.09, 0.17, 0.27)},
        },
    ),
)
