"""Lines and splashes drawn over images, and edges drawn instead of them, as in MNIST-C."""

import torch

from .edges import canny
from .operations import enlarge, gaussian_blur, luminance, pixel_grid
from .randomness import ImageRandom


_TOOTH_LENGTH = 4.0
_TOOTH_HEIGHT = 2.0


def spatter(
    images: torch.Tensor,
    random: ImageRandom,
    mean: float,
    spread: float,
    grain: float,
    drop: float,
    threshold: float,
    edge: float,
) -> torch.Tensor:
    """Splashes of mud on images (B, C, H, W): brown, or dark grey.

    Args:
        mean, spread: of the normal noise that becomes mud where, once smoothed, it exceeds `threshold`.
        grain: size of the grains of noise, in pixels.
        drop: sigma of that smoothing, in pixels.
        edge: sigma of the smoothing of the splashes, in pixels.
    """
    noise = enlarge(random.normal((1, *images.shape[-2:])), grain)
    liquid = gaussian_blur(mean + spread * noise, drop)
    mud = gaussian_blur((liquid > threshold).to(images), edge)
    mud = torch.where(mud < 0.8, 0.0, mud)
    colour = images.new_tensor([63, 42, 20] if images.shape[1] == 3 else [63])[:, None, None] / 255
    return images * (1 - mud) + colour * mud


def dotted_line(images: torch.Tensor, random: ImageRandom, thickness: float) -> torch.Tensor:
    """Adds a white dashed line from a random point of the left edge to one of the right edge, to (B, C, H, W).

    Dashes and gaps are 2/28 of the image width; the line fades out within 0.63 * `thickness` / 28 of its height.
    """
    first, last = random.integers(0, 27, (2,)).to(images)[:, :, None, None].unbind(1)
    rows, columns = _grid_of_28(images)
    line = _segment(rows, columns, (torch.zeros_like(first), first), (torch.full_like(last, 27), last), thickness)
    return images + (line * (columns % 4 >= 2))[:, None]


def zigzag(images: torch.Tensor, random: ImageRandom, thickness: float) -> torch.Tensor:
    """Adds a white zigzag line across images (B, C, H, W), its height and slope drawn at random.

    Its teeth are 2/28 of the image high and 4/28 wide; `thickness` is as for `dotted_line`.
    """
    left, right = 2, 25
    start = random.integers(0, 27).to(images)[:, None, None]
    angle = torch.atan(random.integers(-5, 5).to(images) / (right - left))[:, None, None]
    length = (right - left) / torch.cos(angle)
    # Teeth along the line and across it: up, down, ..., and a last one that ends close to the line.
    count = int((right - left - _TOOTH_HEIGHT) // _TOOTH_LENGTH) + 1
    teeth = [(torch.zeros_like(angle), torch.zeros_like(angle))]
    for number in range(count):
        along, across = (number + 0.5) * _TOOTH_LENGTH, (-1) ** number * _TOOTH_HEIGHT
        teeth.append((torch.full_like(angle, along), torch.full_like(angle, across)))
    teeth.append((length, teeth[-1][1] / (2 * (length % _TOOTH_LENGTH))))
    ends = [
        (
            left + torch.cos(angle) * along - torch.sin(angle) * across,
            start + torch.sin(angle) * along + torch.cos(angle) * across,
        )
        for along, across in teeth
    ]
    rows, columns = _grid_of_28(images)
    lines = torch.zeros_like(rows * columns * angle)
    for begin, end in zip(ends, ends[1:], strict=False):
        lines += _segment(rows, columns, begin, end, thickness)
    return images + lines[:, None]


def _grid_of_28(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, H, 1) and columns (1, 1, W) of images (B, C, H, W), from 0 to 27 whatever their size."""
    rows, columns = pixel_grid(images)
    return rows * (27 / max(rows.numel() - 1, 1)), columns * (27 / max(columns.numel() - 1, 1))


def _segment(
    rows: torch.Tensor,
    columns: torch.Tensor,
    begin: tuple[torch.Tensor, torch.Tensor],
    end: tuple[torch.Tensor, torch.Tensor],
    thickness: float,
) -> torch.Tensor:
    """A line (B, H, W) between two points (column, row), 1 on it and falling to 0 above and below.

    It covers the columns from the whole number at or below its beginning to the last one below its end.
    """
    slope = (end[1] - begin[1]) / (end[0] - begin[0])
    distance = (rows - begin[1] - slope * (columns - begin[0])).abs()
    brightness = (torch.log(1 - distance.clamp(max=thickness * 0.999) / thickness) + 1).clamp(0, 1)
    return brightness * ((columns >= begin[0].floor()) & (columns < end[0].ceil()))


def canny_edges(images: torch.Tensor, random: ImageRandom, share: float) -> torch.Tensor:
    """Mixes images (B, C, H, W) with their edges: (1 - share) * image + share * edges.

    The edges (see `canny`) are the same in all channels.
    """
    return (1 - share) * images + share * canny(luminance(images))
