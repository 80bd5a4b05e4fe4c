"""Edge detection."""

import torch
from torch.nn import functional

from .operations import gaussian_blur


_LOW, _HIGH = 0.1, 0.2


def canny(images: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """Edges of grey images (B, 1, H, W) in [0, 1]: 1 on an edge, 0 elsewhere.

    Canny, A Computational Approach to Edge Detection, 1986, with the conventions of scikit-image: a Gaussian that
    ignores what is outside of the image, Sobel gradients (sum of the absolute weights 8), a pixel is a maximum if
    its gradient is no smaller than those interpolated one pixel on both sides, edges are maxima above 0.2 and those
    above 0.1 that are connected to them. Pixels along the border are never edges.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 3:
        return torch.zeros_like(images)
    inside = gaussian_blur(torch.ones_like(images[:1]), sigma, boundary="zeros")
    smooth = gaussian_blur(images, sigma, boundary="zeros") / inside
    around = functional.pad(smooth, [1] * 4, mode="replicate")
    down, right = _sobel(around), _sobel(around.mT).mT
    size = torch.sqrt(down**2 + right**2)
    maxima = torch.zeros_like(size)
    middle = (..., slice(1, -1), slice(1, -1))
    maxima[middle] = _is_maximum(size, down[middle], right[middle]).to(size)
    maxima *= size
    edges = (maxima >= _HIGH).to(images)
    candidates = (maxima >= _LOW).to(images)
    while not torch.equal(edges, grown := functional.max_pool2d(edges, 3, 1, 1) * candidates):
        edges = grown
    return edges


def _sobel(around: torch.Tensor) -> torch.Tensor:
    """Downward gradients (B, 1, H, W) of images with a border of one pixel (B, 1, H + 2, W + 2)."""
    difference = around[..., 2:, :] - around[..., :-2, :]
    return difference[..., :-2] + 2 * difference[..., 1:-1] + difference[..., 2:]


def _is_maximum(size: torch.Tensor, down: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Whether no gradient along the gradient is larger, for all pixels but those along the border."""
    height, width = size.shape[-2:]

    def beside(rows: int, columns: int) -> torch.Tensor:
        return size[..., 1 + rows : height - 1 + rows, 1 + columns : width - 1 + columns]

    steep = down.abs() >= right.abs()
    weight = torch.minimum(down.abs(), right.abs()) / torch.maximum(down.abs(), right.abs()).clamp(min=1e-12)
    same_sign = down * right >= 0
    largest = torch.zeros_like(down)
    for sign in (1, -1):
        straight = torch.where(steep, beside(sign, 0), beside(0, sign))
        rising = torch.where(steep, beside(sign, -sign), beside(-sign, sign))
        diagonal = torch.where(same_sign, beside(sign, sign), rising)
        largest = torch.maximum(largest, (1 - weight) * straight + weight * diagonal)
    return beside(0, 0) >= largest
