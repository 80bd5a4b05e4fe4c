"""Blur."""

import math

import numpy as np
import torch
from torch.nn import functional

from .operations import as_8_bit, enlarge, gaussian_blur, per_image, smear
from .randomness import ImageRandom


def disk_kernel(radius: float, softness: float) -> torch.Tensor:
    """Kernel (K, K), float64: the pixels whose centres lie within `radius`, smoothed by `softness` pixels.

    The smoothing kernel has 3 taps in each direction up to a radius of 8 pixels, 5 beyond, where the kernel ends with
    the disk and what the smoothing would carry further is mirrored, as in the published code.
    """
    reach, taps = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    positions = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (positions[:, None] ** 2 + positions**2 <= radius**2).double()
    disk /= disk.sum()
    line = torch.exp(-0.5 * ((torch.arange(taps, dtype=torch.float64) - taps // 2) / softness) ** 2)
    line /= line.sum()
    padded = functional.pad(disk[None, None], [taps // 2] * 4, "reflect")
    kernel = functional.conv2d(padded, torch.outer(line, line)[None, None])[0, 0]
    outside = reach - min(reach, math.ceil(radius) + taps // 2)
    return kernel[outside : len(kernel) - outside, outside : len(kernel) - outside]


def defocus_blur(images: torch.Tensor, random: ImageRandom, radius: float, softness: float) -> torch.Tensor:
    """Blurs images (B, C, H, W) with a disk of `radius` pixels, smoothed by `softness` pixels."""
    kernel = disk_kernel(radius, softness).to(images)
    reach, (height, width) = len(kernel) // 2, images.shape[-2:]
    around = functional.pad(images, [reach] * 4, "reflect" if reach < min(height, width) else "replicate")
    # By Fourier transform: a convolution with hundreds of weights per pixel takes ten times as long.
    size = around.shape[-2:]
    response = torch.fft.rfft2(kernel, s=size)
    blurred = per_image(lambda image: torch.fft.irfft2(torch.fft.rfft2(image) * response, s=size), around)
    return blurred[..., 2 * reach :, 2 * reach :]


def glass_blur(
    images: torch.Tensor,
    random: ImageRandom,
    sigma: float,
    max_delta: float,
    iterations: int,
    share: float = 1.0,
    as_grey: bool = False,
) -> torch.Tensor:
    """Blurs images (B, C, H, W), displaces their pixels, and blurs again.

    Each of `iterations` rounds goes from the last pixel to the first and gives a `share` of them the value of a pixel
    up to `max_delta` rows and columns before it, or up to `max_delta` - 1 behind it, which may have moved already.
    `max_delta` pixels along the border stay.

    Args:
        sigma: of both Gaussian blurs, in pixels.
        max_delta: in pixels, rounded to whole ones.
        iterations: number of rounds.
        share: chance of a pixel to move in a round.
        as_grey: whether to do what the code for colour images does when it is given the grey ones of MNIST-C: values
            are swapped instead of copied, and the Gaussians blur down the columns only.
    """
    height, width = images.shape[-2:]
    reach = max(1, round(max_delta))
    rows = torch.tensor(range(height - reach, reach, -1), dtype=torch.int64)
    columns = torch.tensor(range(width - reach, reach, -1), dtype=torch.int64)
    here = (rows[:, None] * width + columns).flatten()
    shape = (int(iterations), len(here))
    down, right = (random.integers(-reach, reach, shape).cpu() for _ in range(2))
    there = here + down * width + right
    moves = random.uniform(0, 1, shape).cpu() < share
    places = torch.arange(height * width).repeat(len(images), 1)
    for place, targets, moved in zip(places, there, moves, strict=True):
        values = place.tolist()
        for target, chosen in zip(targets, moved, strict=True):
            for a, b in zip(here[chosen].tolist(), target[chosen].tolist(), strict=True):
                if as_grey:
                    values[a], values[b] = values[b], values[a]
                else:
                    values[a] = values[b]
        place.copy_(torch.tensor(values))
    sigmas = (sigma, 0 if as_grey else sigma)
    blurred = as_8_bit(gaussian_blur(images, sigmas)).flatten(2)
    displaced = blurred.gather(2, places.to(images.device)[:, None].expand_as(blurred))
    return gaussian_blur(displaced.reshape(images.shape), sigmas)


def motion_blur(images: torch.Tensor, random: ImageRandom, radius: float, sigma: float) -> torch.Tensor:
    """Smears images (B, C, H, W) along a direction drawn from -45 to 45 degrees; `radius`, `sigma` in pixels."""
    return as_8_bit(smear(images, random.uniform(-45, 45), radius, sigma))


def zoom_blur(images: torch.Tensor, random: ImageRandom, stop: float, step: float) -> torch.Tensor:
    """Mean of images (B, C, H, W) and their enlargements by 1, 1 + step, ... below `stop`.

    The factors are those of `numpy.arange(1, stop, step)`, with its rounding: from 1 to 1.11 in steps of 0.01 there
    are twelve, 1.11 among them.
    """
    factors = np.arange(1, stop, step).tolist()
    total = images.clone()
    for factor in factors:
        total += enlarge(images, factor)
    return total / (len(factors) + 1)
