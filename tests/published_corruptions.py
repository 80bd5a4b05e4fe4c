"""Pictures that the published corruptions are measured on, and the figures that are compared."""

import math

import numpy as np


DETERMINISTIC = (
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"),
    *("scale", "stripe", "canny_edges"),
)
ONE_SETTING = ("stripe", "dotted_line", "zigzag", "canny_edges")


def picture(side: int, channels: int = 3) -> np.ndarray:
    """A picture (side, side, channels) of 8 bits with slopes, edges, a disk, a grating and fine texture."""
    rows, columns = np.mgrid[:side, :side] / side
    layers = []
    for channel in range(channels):
        light = 0.5 + 0.25 * np.sin(3 * columns + 2 * rows + channel)
        light += 0.2 * (np.hypot(rows - 0.4, columns - 0.6 + 0.05 * channel) < 0.25)
        light -= 0.25 * ((rows > 0.65) & (columns < 0.45))
        light += 0.08 * np.sin(2 * np.pi * (9 * columns + 4 * rows)) * (rows < 0.5)
        # Texture without a random generator, whose numbers may change with its version.
        texture = np.sin(12.9898 * np.arange(side)[:, None] + 78.233 * np.arange(side) + channel) * 43758.5453
        layers.append(light + 0.06 * (texture - np.floor(texture) - 0.5))
    return np.round(255 * np.clip(np.stack(layers, -1), 0.02, 0.98)).astype(np.uint8)


def digit() -> np.ndarray:
    """A grey picture (28, 28) of 8 bits with a ring and a stroke on black, like a digit of MNIST."""
    rows, columns = np.mgrid[:28, :28]
    ring = 3.2 - np.abs(np.hypot(rows - 10, columns - 14) - 5)
    stroke = 2.6 - np.abs(columns - 17 + 0.25 * (rows - 14)) - 10 * ((rows < 10) | (rows > 23))
    return np.round(255 * np.clip(np.maximum(ring, stroke) / 2, 0, 1)).astype(np.uint8)


def figures(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Strength, and detail across and down: mean absolute differences in units of 1/255.

    Args:
        before: (N, H, W) or (N, H, W, C), from 0 to 255.
        after: the same, corrupted.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    strength = np.abs(after - before).mean()
    return strength, np.abs(np.diff(after, axis=2)).mean(), np.abs(np.diff(after, axis=1)).mean()


def relative(value: float, reference: float) -> float:
    """How far a figure is from another, as a share of it."""
    return abs(value - reference) / max(abs(reference), math.ulp(1.0))
