"""The eight conditions under which this project measures adaptation on digits: one clean, seven shifted.

They have no severities. Lengths are for 28 px and scale with the image side.
"""

import math

import torch

from .noise import gaussian_noise, impulse_noise
from .operations import gaussian_blur, per_image, rotation_matrix, warp
from .randomness import ImageRandom
from .registry import Corruption, register
from .sources import DIGITS_SHIFT

MNIST_STD = 0.3081
"""Standard deviation of the pixels of MNIST, by which its images are normalised."""


def clean(images: torch.Tensor, random: ImageRandom) -> torch.Tensor:
    """The images (B, C, H, W) as they are."""
    return images.clone()


def normalised_noise(images: torch.Tensor, random: ImageRandom, sigma: float) -> torch.Tensor:
    """Normal noise added to digits that are normalised with mean 0.1307 and standard deviation 0.3081.

    In pixels (B, C, H, W) this is noise of standard deviation `sigma` * 0.3081. The result is **not clipped** to
    [0, 1], so that normalising it gives exactly the normalised image plus noise of standard deviation `sigma`.
    """
    return gaussian_noise(images, random, sigma * MNIST_STD)


def lower_contrast(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Pulls each value (B, C, H, W) towards the mean of its image: mean + `factor` * (value - mean)."""
    means = per_image(torch.mean, images)[:, None, None, None]
    return means + factor * (images - means)


def add_constant(images: torch.Tensor, random: ImageRandom, amount: float) -> torch.Tensor:
    """Adds `amount` to each value (B, C, H, W)."""
    return images + amount


def blur(images: torch.Tensor, random: ImageRandom, sigma: float) -> torch.Tensor:
    """Gaussian blur with a standard deviation of `sigma` pixels of images (B, C, H, W)."""
    return gaussian_blur(images, sigma)


def rotation(images: torch.Tensor, random: ImageRandom, degrees: float) -> torch.Tensor:
    """Turns images (B, C, H, W) counter-clockwise about their centre; what comes in from outside is 0."""
    return warp(images, rotation_matrix(images.new_tensor([math.radians(degrees)])))


_CONDITIONS = (
    ("clean", clean, {}, {}),
    ("noise_1", normalised_noise, {"sigma": (1.0,)}, {"clipped": False}),
    ("noise_2", normalised_noise, {"sigma": (2.0,)}, {"clipped": False}),
    ("contrast", lower_contrast, {"factor": (0.4,)}, {}),
    ("brightness", add_constant, {"amount": (0.5,)}, {}),
    ("blur", blur, {"sigma": (2.5,)}, {"lengths": ("sigma",)}),
    ("salt_and_pepper", impulse_noise, {"amount": (0.3,)}, {}),
    ("rotation", rotation, {"degrees": (35.0,)}, {}),
)
for _name, _function, _table, _options in _CONDITIONS:
    register(
        Corruption(
            name=_name,
            suite="digits-shift",
            function=_function,
            tables={28: _table},
            source=DIGITS_SHIFT,
            **_options,
        )
    )
