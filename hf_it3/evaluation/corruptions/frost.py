"""Frost: cut from photographs, as published, or computed."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from .operations import luminance, smear
from .randomness import ImageRandom
from .weather import cropped_plasma


# The published code has six photographs and draws from the first five.
_PHOTOGRAPHS = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")


_MISSING = (
    "it is cut from photographs that come with the package imagecorruptions, which is not installed: "
    'pip install "hf-it3[frost]" (graded/frost is computed instead)'
)


def _paths() -> list[Path]:
    """The photographs that the package imagecorruptions brings; it is not imported."""
    package = importlib.util.find_spec("imagecorruptions")
    folders = [] if package is None else package.submodule_search_locations or []
    paths = [Path(folder) / "frost" / name for folder in folders for name in _PHOTOGRAPHS]
    return [path for path in paths if path.is_file()]


def why_no_photographs() -> str | None:
    """What to do where the photographs are missing, or `None` if they are there."""
    return None if len(_paths()) == len(_PHOTOGRAPHS) else _MISSING


@lru_cache(maxsize=2)
def _photographs(paths: tuple[Path, ...], scale: float, height: int, width: int) -> list[torch.Tensor]:
    """The photographs (1, 3, h, w) in [0, 1], scaled, and enlarged where the images are larger."""
    photographs = []
    for path in paths:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        factor = max(scale, height / pixels.shape[2], width / pixels.shape[3])
        if factor != 1:
            size = [max(height, round(factor * pixels.shape[2])), max(width, round(factor * pixels.shape[3]))]
            pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        photographs.append(pixels)
    return photographs


def frost(images: torch.Tensor, random: ImageRandom, keep: float, amount: float, scale: float) -> torch.Tensor:
    """`keep` * image + `amount` * a random part of a random photograph of frost, (B, C, H, W).

    Args:
        scale: of the photographs; without antialiasing, as published.

    Raises:
        ImportError: without the photographs, see `why_no_photographs`.
    """
    paths = tuple(_paths())
    if len(paths) < len(_PHOTOGRAPHS):
        raise ImportError(f"frost cannot be drawn: {_MISSING}")
    height, width = images.shape[-2:]
    photographs = _photographs(paths, scale, height, width)
    numbers, places = random.integers(0, len(photographs)), random.uniform(0, 1, (2,))
    parts = []
    for number, (down, right) in zip(numbers.tolist(), places.tolist(), strict=True):
        photograph = photographs[number]
        top, left = int(down * (photograph.shape[2] - height)), int(right * (photograph.shape[3] - width))
        parts.append(photograph[..., top : top + height, left : left + width])
    texture = torch.cat(parts).to(images)
    return keep * images + amount * (texture if images.shape[1] == 3 else luminance(texture))


def ice(images: torch.Tensor, random: ImageRandom) -> torch.Tensor:
    """Texture of frozen glass (B, C, H, W) in [0, 1]: needles in a few directions, over clouds, faintly blue."""
    height, width = images.shape[-2:]
    side = min(height, width)
    # Small images hold fewer needles, or they would merge into noise.
    threshold = 1 + max(0.0, 1.4 * (1 - side / 96))
    needles = torch.zeros_like(images[:, :1])
    for _ in range(6):
        seeds = (random.normal((1, height, width)) - threshold).clamp(min=0)
        needles = torch.maximum(needles, smear(seeds, random.uniform(0, 360), 2 + side / 16, 1.5 + side / 24))
    needles = needles / needles.flatten(1).quantile(0.95, dim=1)[:, None, None, None].clamp(min=1e-12)
    patches = (4 * cropped_plasma(images, random, side, 1.6) - 1.6).clamp(0, 1)
    texture = (needles * (0.5 + patches) - 0.25 + 0.15 * patches).clamp(0, 1)
    tint = images.new_tensor([0.88, 0.96, 1.0] if images.shape[1] == 3 else [0.95])
    return texture * tint[:, None, None]


def synthetic_frost(images: torch.Tensor, random: ImageRandom, keep: float, amount: float) -> torch.Tensor:
    """`keep` * image + `amount` * texture of ice, (B, C, H, W), which is computed (see `ice`)."""
    return keep * images + amount * ice(images, random)
