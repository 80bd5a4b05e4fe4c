"""The eight conditions under which this project measures adaptation on digits, and beside them a tutorial's noise.

One of the eight is clean, seven are shifted. No condition has severities. Lengths are for 28 px and scale with the
image side.
"""

import math
from functools import partial

import torch

from .corruption import Corruption
from .noise import gaussian_noise, impulse_noise
from .operations import gaussian_blur, per_image, rotation_matrix, warp
from .randomness import ImageRandom


MNIST_STD = 0.3081
"""Standard deviation of the pixels of MNIST, by which its images are normalised."""


def clean(images: torch.Tensor, random: ImageRandom) -> torch.Tensor:
    """The images (B, C, H, W) as they are."""
    return images.clone()


def float_noise(images: torch.Tensor, random: ImageRandom, sigma: float) -> torch.Tensor:
    """Adds normal noise to digits that are normalised with mean 0.1307 and standard deviation 0.3081.

    In pixels (B, C, H, W) this is noise of standard deviation `sigma` * 0.3081. The result is **not clipped** to
    [0, 1], so that normalising it gives exactly the normalised image plus noise of standard deviation `sigma`, as in
    the MNIST tutorial of torch-ttt. No picture holds such values.
    """
    return gaussian_noise(images, random, sigma * MNIST_STD)


def picture_noise(images: torch.Tensor, random: ImageRandom, sigma: float) -> torch.Tensor:
    """The same noise in a picture (B, C, H, W) of 8 bits: clipped to [0, 1] and rounded to multiples of 1/255."""
    return (255 * float_noise(images, random, sigma).clamp(0, 1)).round() / 255


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


_condition = partial(
    Corruption, suite="digits-shift", source="the conditions under which this project measures adaptation on MNIST"
)
_tutorial = partial(
    Corruption, suite="float-noise", source="MNIST tutorial of torch-ttt 0.0.2", function=float_noise, clipped=False
)

CORRUPTIONS = (
    _condition(name="clean", function=clean, tables={28: {}}),
    _condition(name="noise_1", function=picture_noise, tables={28: {"sigma": (1.0,)}}),
    _condition(name="noise_2", function=picture_noise, tables={28: {"sigma": (2.0,)}}),
    _condition(name="contrast", function=lower_contrast, tables={28: {"factor": (0.4,)}}),
    _condition(name="brightness", function=add_constant, tables={28: {"amount": (0.5,)}}),
    _condition(name="blur", function=blur, tables={28: {"sigma": (2.5,)}}, lengths=("sigma",)),
    _condition(name="salt_and_pepper", function=impulse_noise, tables={28: {"amount": (0.3,)}}),
    _condition(name="rotation", function=rotation, tables={28: {"degrees": (35.0,)}}, moves=True),
    _tutorial(name="sigma_1", tables={28: {"sigma": (1.0,)}}),
    _tutorial(name="sigma_2", tables={28: {"sigma": (2.0,)}}),
)
