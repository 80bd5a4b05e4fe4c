"""Weather corruptions of ImageNet-C, and the functions that MNIST-C reuses."""

import math
from functools import partial

import torch

from .corruption import IMAGENET_C, Corruption
from .operations import grainy_noise, smear
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


def fog(images: torch.Tensor, random: ImageRandom, amount: float, decay: float, side: float) -> torch.Tensor:
    """Adds clouds to images (B, C, H, W) and scales the sum back to the range of each image.

    For 224 px, severities 4 and 5 have amounts of 3 and 3.5 (published: 2.5 and 3, which with their slower decay
    may change the image less than severity 3).

    Args:
        amount: brightness of the clouds.
        decay: how fast fine structure fades, see `plasma`.
        side: of the square of clouds that the image is cut from, in pixels.
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

    For 224 px, severity 2 has a mean of 0.15 and flakes of 3 px (published: 0.2 and 2 px, which change the image more
    than severity 3); for 32 px, severity 3 has a mean of 0.2 (published: 0.15) for the same reason.

    Args:
        mean, spread: of the normal noise that becomes flakes where it exceeds `threshold`.
        flake: size of a flake, in pixels.
        radius, sigma: of the flakes' motion blur, in pixels.
        keep: share of the image that is not whitened.
    """
    height, width = images.shape[-2:]
    flakes = mean + spread * grainy_noise(random, height, width, flake)
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = smear(flakes, random.uniform(-0.75 * math.pi, -0.25 * math.pi), radius, sigma, "reflection")
    whitened = torch.maximum(images, 1.5 * luminance(images) + 0.5)
    return keep * images + (1 - keep) * whitened + flakes + flakes.flip(-1, -2)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """Brightness (B, 1, H, W) of grey or RGB images (B, C, H, W) (ITU-R BT.601)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def ice(images: torch.Tensor, random: ImageRandom) -> torch.Tensor:
    """Texture of frozen glass (B, C, H, W) in [0, 1]: needles in a few directions, over clouds, faintly blue."""
    height, width = images.shape[-2:]
    side = min(height, width)
    # Small images hold fewer needles, or they would merge into noise.
    threshold = 1 + max(0.0, 1.4 * (1 - side / 96))
    needles = torch.zeros_like(images[:, :1])
    for _ in range(6):
        seeds = (grainy_noise(random, height, width, side / 96) - threshold).clamp(min=0)
        angles = random.uniform(0, 2 * math.pi)
        needles = torch.maximum(needles, smear(seeds, angles, 2 + side / 16, 1.5 + side / 24, "reflection"))
    needles = needles / needles.flatten(1).quantile(0.95, dim=1)[:, None, None, None].clamp(min=1e-12)
    patches = (4 * cropped_plasma(images, random, side, 1.6) - 1.6).clamp(0, 1)
    texture = (needles * (0.5 + patches) - 0.25 + 0.15 * patches).clamp(0, 1)
    tint = images.new_tensor([0.88, 0.96, 1.0] if images.shape[1] == 3 else [0.95])
    return texture * tint[:, None, None]


def frost(images: torch.Tensor, random: ImageRandom, keep: float, amount: float) -> torch.Tensor:
    """`keep` * image + `amount` * texture of ice, (B, C, H, W).

    The published code crops its texture from six photographs; here it is computed (see `ice`), so the pattern, its
    brightness and its tint differ from the published images.
    """
    return keep * images + amount * ice(images, random)


def brightness(images: torch.Tensor, random: ImageRandom, amount: float) -> torch.Tensor:
    """Adds `amount` to the value of each pixel's HSV colour, cut at 1; for grey images (B, 1, H, W) to the pixel."""
    value = images.amax(1, keepdim=True)
    brighter = (value + amount).clamp(0, 1)
    return torch.where(value > 0, images * (brighter / value.clamp(min=1e-12)), brighter)


_imagenet_c = partial(Corruption, suite="imagenet-c", source=IMAGENET_C)

CORRUPTIONS = (
    _imagenet_c(
        name="snow",
        function=snow,
        tables={
            32: {
                "mean": (0.1, 0.1, 0.2, 0.25, 0.3),
                "spread": (0.2, 0.2, 0.3, 0.3, 0.3),
                "flake": (1, 1, 1.75, 2.25, 1.25),
                "threshold": (0.6, 0.5, 0.55, 0.6, 0.65),
                "radius": (8, 10, 10, 12, 14),
                "sigma": (3, 4, 4, 6, 12),
                "keep": (0.95, 0.9, 0.9, 0.85, 0.8),
            },
            64: {
                "mean": (0.1, 0.1, 0.15, 0.25, 0.3),
                "spread": (0.2, 0.2, 0.3, 0.3, 0.3),
                "flake": (1, 1, 1.75, 2.25, 1.25),
                "threshold": (0.6, 0.5, 0.55, 0.6, 0.65),
                "radius": (8, 10, 10, 12, 14),
                "sigma": (3, 4, 4, 6, 12),
                "keep": (0.8, 0.8, 0.7, 0.65, 0.6),
            },
            224: {
                "mean": (0.1, 0.15, 0.55, 0.55, 0.55),
                "spread": (0.3,) * 5,
                "flake": (3, 3, 4, 4.5, 2.5),
                "threshold": (0.5, 0.5, 0.9, 0.85, 0.85),
                "radius": (10, 12, 12, 12, 12),
                "sigma": (4, 4, 8, 8, 12),
                "keep": (0.8, 0.7, 0.7, 0.65, 0.55),
            },
        },
        lengths=("flake", "radius", "sigma"),
    ),
    _imagenet_c(
        name="frost",
        function=frost,
        tables={
            32: {"keep": (1, 1, 0.9, 0.85, 0.75), "amount": (0.2, 0.3, 0.4, 0.4, 0.45)},
            64: {"keep": (1, 0.9, 0.8, 0.75, 0.7), "amount": (0.3, 0.4, 0.45, 0.5, 0.55)},
            224: {"keep": (1, 0.8, 0.7, 0.65, 0.6), "amount": (0.4, 0.6, 0.7, 0.7, 0.75)},
        },
    ),
    _imagenet_c(
        name="fog",
        function=fog,
        tables={
            32: {"amount": (0.2, 0.5, 0.75, 1, 1.5), "decay": (3, 3, 2.5, 2, 1.75), "side": (32,) * 5},
            64: {"amount": (0.4, 0.7, 1, 1.5, 2), "decay": (3, 3, 2.5, 2, 1.75), "side": (64,) * 5},
            224: {"amount": (1.5, 2, 2.5, 3, 3.5), "decay": (2, 2, 1.7, 1.5, 1.4), "side": (224,) * 5},
        },
        lengths=("side",),
    ),
    _imagenet_c(
        name="brightness",
        function=brightness,
        tables={
            32: {"amount": (0.05, 0.1, 0.15, 0.2, 0.3)},
            64: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)},
            224: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)},
        },
    ),
)
