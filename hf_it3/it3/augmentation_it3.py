"""Small changes that turn one image into a batch of itself, and back."""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


AUGMENTATIONS = ("warp", "crop", "flip", "color")
MAX_SHIFT = 0.03  # of the image side
MAX_ROTATION = 12.0  # degrees
MAX_SCALING = 0.05
MAX_CROP = 0.25  # of the image side
MAX_COLOR = 0.1  # factor, and offset in units of the model's input


class Augmentation:
    """Changed copies of each image; the first copy is the image itself.

    The same `count - 1` changes are used for every image, so results depend on neither batch size nor order.

    Args:
        count (`int`): copies per image.
        kinds (iterable of `str`, *optional*): how copies differ: `"warp"`, by small shifts, rotations and scalings;
            `"crop"`, by the part of the image that they show, at least 3/4 of each side; `"flip"`, every second one is
            mirrored from left to right; `"color"`, by brightness and contrast of each channel. By default crop
            for images of three channels, else warp.
        seed (`int`): seed of the changes.
        mirrors (`bool`): whether images of three channels are mirrored as well, where `kinds` is left open: that helps
            on most photos, and costs digits, letters and signs more than it gains there.
    """

    def __init__(self, count: int, kinds: Iterable[str] | None = None, seed: int = 0, mirrors: bool = False):
        self.count = count
        self.mirrors = mirrors
        self.kinds = None if kinds is None else frozenset(kinds)
        generator = torch.Generator().manual_seed(seed)
        # Of each copy: rotation, scaling, and shift along either axis, each between -1 and 1; the same for crops.
        self._draws = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 - 1
        self._crops = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 2 - 1
        self._seed = seed
        self._draws[:1] = 0
        self._crops[:1] = 0

    def apply(self, images: Tensor) -> Tensor:
        """Copies of images `(B, C, H, W)`, of shape `(B, count, C, H, W)`."""
        return self._copies(images, range(self.count))

    def each(self, images: Tensor) -> Iterator[Tensor]:
        """The same copies one after the other, `count` times `(B, C, H, W)`, for batches too large to hold all."""
        yield images
        for index in range(1, self.count):
            yield self._copies(images, range(index, index + 1))[:, 0]

    def _copies(self, images: Tensor, indices: range) -> Tensor:
        kinds = self.kinds_for(images.shape[1])
        height, width = images.shape[-2:]
        part = slice(indices.start, indices.stop)
        copies = images[:, None].expand(-1, len(indices), -1, -1, -1)
        copies = copies.clone() if kinds <= {"color"} else _warp(copies, self._matrices(height, width, kinds)[part])
        if "color" in kinds:
            factor, offset = self._colors(images)
            copies = copies * factor[part] + offset[part]
        if 0 in indices:
            copies[:, 0] = images
        return copies

    def undo(self, maps: Tensor) -> Tensor:
        """Moves what was predicted for every pixel of the copies, `(B, count, num_labels, h, w)`, back to where it
        belongs in the image; predictions without space, `(B, count, num_labels)`, stay as they are."""
        kinds = self.kinds_for(1)
        if maps.ndim < 5 or kinds <= {"color"}:
            return maps
        height, width = maps.shape[-2:]
        last_row = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(self.count, 1, 3)
        inverse = torch.linalg.inv(torch.cat([self._matrices(height, width, kinds), last_row], 1))
        moved = _warp(maps, inverse[:, :2])
        moved[:, 0] = maps[:, 0]
        return moved

    def kinds_for(self, channels: int) -> frozenset[str]:
        """How copies of images of this many channels differ."""
        if self.kinds is not None:
            return self.kinds
        of_photos = ("crop", "flip") if self.mirrors else ("crop",)
        return frozenset(of_photos if channels == 3 else ("warp",))

    def _matrices(self, height: int, width: int, kinds: frozenset[str]) -> Tensor:
        """Affine matrices `(count, 2, 3)`, in the coordinates of `F.affine_grid`."""
        draws = self._draws if "warp" in kinds else torch.zeros_like(self._draws)
        angle = draws[:, 0] * math.radians(MAX_ROTATION)
        scale = 1 + draws[:, 1] * MAX_SCALING
        aspect = width / height
        cos, sin = angle.cos() / scale, angle.sin() / scale
        shift = draws[:, 2:] * 2 * MAX_SHIFT
        rows = [torch.stack([cos, -sin / aspect, shift[:, 0]], -1), torch.stack([sin * aspect, cos, shift[:, 1]], -1)]
        matrices = torch.stack(rows, 1)
        if "crop" in kinds:
            lost = self._crops[:, :1].abs() * MAX_CROP  # of each side
            matrices[:, :, :2] *= (1 - lost)[..., None]
            matrices[:, :, 2] += lost * self._crops[:, 2:]
        if "flip" in kinds:
            matrices[1::2, :, 0] *= -1
        return matrices

    def _colors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Factors and offsets `(count, C, 1, 1)`."""
        generator = torch.Generator().manual_seed(self._seed + 1)
        draws = torch.rand(2, self.count, images.shape[1], 1, 1, generator=generator, dtype=torch.float64) * 2 - 1
        factor, offset = (draws * MAX_COLOR).to(images.device, images.dtype)
        return 1 + factor, offset


def middle_of(images: Tensor, lost: float = MAX_CROP / 2) -> Tensor:
    """The middle of images `(B, C, H, W)`, without this part of each side, at the size of the whole."""
    matrix = torch.eye(2, 3, dtype=torch.float64) * (1 - lost)
    return _warp(images[:, None], matrix[None])[:, 0]


def _warp(copies: Tensor, matrices: Tensor) -> Tensor:
    """Copies `(B, count, C, H, W)`, each warped by its matrix; what comes in from outside repeats the border."""
    batch, count, channels, height, width = copies.shape
    grid = F.affine_grid(matrices.float().to(copies.device), [count, 1, height, width], align_corners=False)
    # One sampling call for all: copies along the batch axis, images along the channels.
    stacked = copies.transpose(0, 1).reshape(count, batch * channels, height, width)
    warped = F.grid_sample(stacked, grid.to(copies.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    return warped.reshape(count, batch, channels, height, width).transpose(0, 1).contiguous()
