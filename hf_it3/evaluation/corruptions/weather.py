"""Weather: fog, snow, bright light."""

import math

import torch

from .operations import as_8_bit, enlarge, luminance, smear
from .randomness import ImageRandom


def plasma(random: ImageRandom, side: int, decay: float) -> torch.Tensor:
    """Clouds from the diamond-square algorithm (Fournier, Fussell and Carpenter, 1982), on a torus.

    Args:
        random: one stream per image.
        side: a power of two.
        decay: the range of a level's random part is that of the level before over `decay` squared.

    Returns:
        (B, 1, side, side), from 0 to 1 in each image.
    """
    clouds = random.uniform(-1, 1, (1, side, side))
    clouds[..., 0, 0] = 0
    # In groups that fit into the processor's cache: this is bound by memory access.
    for group in clouds.split(max(1, 2**17 // side**2)):
        _diamond_square(group, decay)
    low, high = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    return (clouds - low) / (high - low).clamp(min=1e-12)


def _diamond_square(clouds: torch.Tensor, decay: float) -> None:
    """Turns uniform noise (B, 1, side, side) into heights, in place."""
    step, scale = clouds.shape[-1], 1.0
    while step > 1:
        half = step // 2
        corners = clouds[..., ::step, ::step]
        beside = corners + corners.roll(-1, -1)
        middles = clouds[..., half::step, half::step]
        middles.mul_(scale).add_((beside + beside.roll(-1, -2)) / 4)
        top = clouds[..., ::step, half::step]
        top.mul_(scale).add_((beside + middles + middles.roll(1, -2)) / 4)
        left = clouds[..., half::step, ::step]
        left.mul_(scale).add_((corners + corners.roll(-1, -2) + middles + middles.roll(1, -1)) / 4)
        step, scale = half, scale / decay**2


def cropped_plasma(images: torch.Tensor, random: ImageRandom, side: float, decay: float) -> torch.Tensor:
    """The corner (B, 1, H, W) of a plasma whose side is the next power of two from `side`, H and W."""
    height, width = images.shape[-2:]
    power = 2 ** math.ceil(math.log2(max(side, height, width, 2)))
    return plasma(random, power, decay)[..., :height, :width]


def fog(images: torch.Tensor, random: ImageRandom, amount: float, decay: float, side: float = 0) -> torch.Tensor:
    """Adds clouds to images (B, C, H, W) and scales the sum back to the range of each image.

    Args:
        amount: brightness of the clouds.
        decay: how fast fine structure fades, see `plasma`.
        side: least side of the square of clouds that the image is cut from, in pixels.
    """
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + amount * cropped_plasma(images, random, side, decay)) * brightest / (brightest + amount)


def snow(
    images: torch.Tensor,
    random: ImageRandom,
    mean: float,
    spread: float,
    flake: float,
    threshold: float,
    radius: float,
    sigma: float,
    keep: float,
) -> torch.Tensor:
    """Falling flakes on whitened images (B, C, H, W).

    Args:
        mean, spread: of the normal noise that becomes flakes where it exceeds `threshold`.
        flake: size of a flake, in pixels.
        radius, sigma: of the flakes' motion blur, in pixels.
        keep: share of the image that is not whitened.
    """
    flakes = enlarge(mean + spread * random.normal((1, *images.shape[-2:])), flake)
    flakes = as_8_bit(torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1))
    flakes = as_8_bit(smear(flakes, random.uniform(-135, -45), radius, sigma))
    whitened = torch.maximum(images, 1.5 * luminance(images) + 0.5)
    return keep * images + (1 - keep) * whitened + flakes + flakes.flip(-1, -2)


def brightness(images: torch.Tensor, random: ImageRandom, amount: float) -> torch.Tensor:
    """Adds `amount` to the value of each pixel's HSV colour, cut at 1; for grey images (B, 1, H, W) to the pixel."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter)
