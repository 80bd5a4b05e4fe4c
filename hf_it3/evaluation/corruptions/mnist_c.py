"""The corruptions of MNIST-C (Mu and Gilmer, 2019), for small grey images.

MNIST-C was published at one severity per corruption, `Corruption.published_severity`. The other four are those that
the published code lists beside it. Where the published code has one setting only (stripe, dotted_line, zigzag,
canny_edges), or settings of which a later one changes the image less (spatter, fog), the other severities are of this
project. Lengths are for 28 px and scale with the image side.
"""

import math
from functools import partial

import torch

from .blur import glass_blur, motion_blur
from .corruption import MNIST_C, Corruption
from .noise import impulse_noise, shot_noise
from .operations import gaussian_blur, grainy_noise, per_image, pixel_grid, rotation_matrix, warp
from .randomness import ImageRandom
from .weather import brightness, fog, luminance


def shear(images: torch.Tensor, random: ImageRandom, angle: float) -> torch.Tensor:
    """Shears images (B, C, H, W) by `angle` radians to the left or right, about the centre; 0 from outside."""
    angles = angle * random.sign()
    ones, zeros = torch.ones_like(angles), torch.zeros_like(angles)
    rows = torch.stack([torch.cos(angles), zeros], -1)
    columns = torch.stack([-torch.sin(angles), ones], -1)
    return warp(images, torch.stack([rows, columns], -2))


def scale(images: torch.Tensor, random: ImageRandom, factor: float) -> torch.Tensor:
    """Shrinks the content of images (B, C, H, W) to `factor` of its size, about the centre; 0 from outside."""
    return warp(images, torch.eye(2, dtype=images.dtype, device=images.device)[None] / factor)


def rotate(images: torch.Tensor, random: ImageRandom, angle: float) -> torch.Tensor:
    """Turns images (B, C, H, W) by `angle` radians to the left or right, about the centre; 0 from outside."""
    return warp(images, rotation_matrix(angle * random.sign()))


def translate(images: torch.Tensor, random: ImageRandom, distance: float) -> torch.Tensor:
    """Moves images (B, C, H, W) by `distance` pixels up or down, and left or right; 0 from outside."""
    offsets = max(1, round(distance)) * random.sign((2,)).long()
    return torch.stack([_move(image, *offset) for image, offset in zip(images, offsets.tolist(), strict=True)])


def _move(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    down, right = max(-height, min(down, height)), max(-width, min(right, width))
    moved = torch.zeros_like(image)
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved


def stripe(images: torch.Tensor, random: ImageRandom, width: float) -> torch.Tensor:
    """Inverts the left and right `width` pixels of images (B, C, H, W)."""
    columns = max(1, round(width))
    inverted = images.clone()
    inverted[..., :columns] = 1 - images[..., :columns]
    inverted[..., -columns:] = 1 - images[..., -columns:]
    return inverted


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
    height, width = images.shape[-2:]
    liquid = gaussian_blur(mean + spread * grainy_noise(random, height, width, grain), drop)
    mud = gaussian_blur((liquid > threshold).to(images), edge)
    mud = torch.where(mud < 0.8, 0.0, mud)
    colour = images.new_tensor([63, 42, 20] if images.shape[1] == 3 else [63])[:, None, None] / 255
    return images * (1 - mud) + colour * mud


def _stroke(distance: torch.Tensor, thickness: float) -> torch.Tensor:
    """Brightness of a line at a distance from it, in units of 1/28 of the image: 1 on it, falling to 0."""
    return (torch.log(1 - distance.abs().clamp(max=thickness * 0.999) / thickness) + 1).clamp(0, 1)


def _grid_of_28(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, H, 1) and columns (1, 1, W) of images (B, C, H, W), from 0 to 27 whatever their size."""
    rows, columns = pixel_grid(images)
    return rows * (27 / max(rows.numel() - 1, 1)), columns * (27 / max(columns.numel() - 1, 1))


def dotted_line(images: torch.Tensor, random: ImageRandom, thickness: float) -> torch.Tensor:
    """Adds a white dashed line from a random point of the left edge to one of the right edge, to (B, C, H, W).

    Dashes and gaps are 2/28 of the image width; the line fades out within 0.63 * `thickness` / 28 of its height.
    """
    ends = random.integers(0, 27, (2,)).to(images)[:, :, None, None]
    rows, columns = _grid_of_28(images)
    line = _stroke(rows - ends[:, 0] - (ends[:, 1] - ends[:, 0]) * columns / 27, thickness)
    return images + (line * (columns % 4 >= 2))[:, None]


def zigzag(images: torch.Tensor, random: ImageRandom, thickness: float) -> torch.Tensor:
    """Adds a white zigzag line across images (B, C, H, W), its height and slope drawn at random.

    Its teeth are 2/28 of the image high and 4/28 wide; `thickness` is as for `dotted_line`.
    """
    first, last = 2, 25
    start = random.integers(0, 27).to(images)[:, None, None]
    angle = torch.atan(random.integers(-5, 5).to(images) / (last - first))[:, None, None]
    rows, columns = _grid_of_28(images)
    along = torch.cos(angle) * (columns - first) + torch.sin(angle) * (rows - start)
    across = torch.cos(angle) * (rows - start) - torch.sin(angle) * (columns - first)
    wave = 4 / math.pi * torch.asin(torch.sin(along * math.pi / 4))
    # Half a pixel beyond both ends, so that rounding does not decide about the last column.
    inside = (along > -0.5) & (along < (last - first) / torch.cos(angle) + 0.5)
    return images + (_stroke(across - wave, thickness) * inside)[:, None]


def canny_edges(images: torch.Tensor, random: ImageRandom, share: float) -> torch.Tensor:
    """Mixes images (B, C, H, W) with their edges: (1 - share) * image + share * edges.

    The edges (Canny, 1986; sigma 1, thresholds 0.1 and 0.2) are the same in all channels. MNIST-C is `share` = 1.

    Raises:
        ValueError: for images of less than 4 pixels in height or width, which have no room for the filters.
        ImportError: without kornia, which the extra `eval` installs.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 4:
        raise ValueError(f"canny_edges needs images of at least 4x4 pixels, got {height}x{width}")
    try:
        from kornia.filters import canny
    except ImportError as error:
        raise ImportError("canny_edges needs kornia; install it with `pip install hf-it3[eval]`") from error
    grey = luminance(images)
    edges = per_image(lambda image: canny(image[None], low_threshold=0.1, high_threshold=0.2)[1][0], grey)
    return (1 - share) * images + share * edges


_mnist_c = partial(Corruption, suite="mnist-c", source=MNIST_C)

CORRUPTIONS = (
    _mnist_c(
        name="shot_noise",
        function=shot_noise,
        tables={28: {"photons": (60, 25, 12, 5, 3)}},
        published_severity=5,
    ),
    _mnist_c(
        name="impulse_noise",
        function=impulse_noise,
        tables={28: {"amount": (0.03, 0.06, 0.09, 0.17, 0.27)}},
        published_severity=4,
    ),
    _mnist_c(
        name="glass_blur",
        function=glass_blur,
        tables={
            28: {
                "sigma": (0.7, 0.9, 1, 1.1, 1.5),
                "max_delta": (1, 2, 2, 3, 4),
                "iterations": (2,) * 5,
                "share": (0.5,) * 5,
            }
        },
        lengths=("sigma", "max_delta"),
        published_severity=1,
    ),
    _mnist_c(
        name="motion_blur",
        function=motion_blur,
        tables={28: {"radius": (10, 15, 15, 15, 20), "sigma": (3, 5, 8, 12, 15)}},
        lengths=("radius", "sigma"),
        published_severity=1,
    ),
    _mnist_c(name="shear", function=shear, tables={28: {"angle": (0.2, 0.4, 0.6, 0.8, 1.0)}}, published_severity=2),
    _mnist_c(name="scale", function=scale, tables={28: {"factor": (0.9, 0.8, 0.7, 0.6, 0.5)}}, published_severity=3),
    _mnist_c(name="rotate", function=rotate, tables={28: {"angle": (0.2, 0.4, 0.6, 0.8, 1.0)}}, published_severity=2),
    _mnist_c(
        name="brightness",
        function=brightness,
        tables={28: {"amount": (0.1, 0.2, 0.3, 0.4, 0.5)}},
        published_severity=5,
    ),
    _mnist_c(
        name="translate",
        function=translate,
        tables={28: {"distance": (1, 2, 3, 4, 5)}},
        lengths=("distance",),
        published_severity=3,
    ),
    _mnist_c(
        name="stripe",
        function=stripe,
        tables={28: {"width": (3, 5, 7, 9, 11)}},
        lengths=("width",),
        published_severity=3,
    ),
    _mnist_c(
        name="fog",
        function=fog,
        tables={28: {"amount": (1, 1.5, 2, 2.5, 3), "decay": (1.4,) * 5, "side": (256,) * 5}},
        lengths=("side",),
        published_severity=5,
    ),
    _mnist_c(
        name="spatter",
        function=spatter,
        tables={
            28: {
                "mean": (0.65,) * 5,
                "spread": (0.3,) * 5,
                "grain": (1,) * 5,
                "drop": (1,) * 5,
                "threshold": (0.69, 0.67, 0.65, 0.63, 0.61),
                "edge": (1.5,) * 5,
            }
        },
        lengths=("grain", "drop", "edge"),
        published_severity=3,
    ),
    _mnist_c(
        name="dotted_line",
        function=dotted_line,
        tables={28: {"thickness": (1.3, 1.8, 2.3, 2.8, 3.3)}},
        published_severity=3,
    ),
    _mnist_c(
        name="zigzag",
        function=zigzag,
        tables={28: {"thickness": (1.3, 1.8, 2.3, 2.8, 3.3)}},
        published_severity=3,
    ),
    _mnist_c(
        name="canny_edges",
        function=canny_edges,
        tables={28: {"share": (0.2, 0.4, 0.6, 0.8, 1.0)}},
        published_severity=5,
    ),
)
