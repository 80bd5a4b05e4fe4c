"""Draws corruptions on digits and photographs that come with scikit-learn."""

import io
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps


if TYPE_CHECKING:
    from torch import Tensor

_DIGIT_SIDE = 28
_PHOTO_SIDE = 160
_TITLE_HEIGHT = 36


def draw_suites(suites: list[str], seed: int = 0) -> Image.Image:
    """Draws suites side by side: ImageNet-C and the graded suite on photographs, all others on digits.

    Raises:
        ValueError: for an unknown suite.
        ImportError: without matplotlib (extra `eval`).
    """
    from ..evaluation.corruptions import corruption_gallery, get_corruption, list_corruptions

    graded: list[Image.Image] = []
    others: list[Image.Image] = []
    for suite in suites:
        images = photographs() if suite in ("imagenet-c", "graded") else digits()
        buffer = io.BytesIO()
        corruption_gallery(images, suite, seed=seed).savefig(buffer, format="png", dpi=100)
        has_severities = any(get_corruption(name).severities for name in list_corruptions(suite))
        (graded if has_severities else others).append(_titled(suite, Image.open(buffer).convert("RGB")))
    # Suites without severities have few rows: they go below the others.
    top = max((sheet.height for sheet in graded), default=0)
    width = max([sum(sheet.width for sheet in graded), *(sheet.width for sheet in others)])
    picture = Image.new("RGB", (width, top + sum(sheet.height for sheet in others)), "white")
    left = 0
    for sheet in graded:
        picture.paste(sheet, (left, 0))
        left += sheet.width
    for sheet in others:
        picture.paste(sheet, (0, top))
        top += sheet.height
    return picture


def _titled(title: str, sheet: Image.Image) -> Image.Image:
    titled = Image.new("RGB", (sheet.width, sheet.height + _TITLE_HEIGHT), "white")
    titled.paste(sheet, (0, _TITLE_HEIGHT))
    ImageDraw.Draw(titled).text((12, 8), title, fill="black", font=ImageFont.load_default(size=18))
    return titled


def digits(count: int = 5) -> "Tensor":
    """Handwritten digits of scikit-learn, enlarged, with MNIST's margin: `(count, 1, 28, 28)` in [0, 1]."""
    from ..data import load_digits

    test = load_digits()["test"]
    small = [row["image"].resize((_DIGIT_SIDE - 8, _DIGIT_SIDE - 8)) for row in test.select(range(count))]
    return _as_tensor([ImageOps.expand(image, border=4) for image in small])


def photographs() -> "Tensor":
    """The two colour photographs of scikit-learn, cropped to squares: `(2, 3, 160, 160)` in [0, 1]."""
    from sklearn.datasets import load_sample_images

    cropped = []
    for array in load_sample_images().images:
        side = min(array.shape[:2])
        top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
        square = Image.fromarray(array[top : top + side, left : left + side])
        cropped.append(square.resize((_PHOTO_SIDE, _PHOTO_SIDE), Image.Resampling.LANCZOS))
    return _as_tensor(cropped)


def _as_tensor(images: list[Image.Image]) -> "Tensor":
    import numpy as np
    import torch

    arrays = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    return torch.from_numpy(arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2).copy())
