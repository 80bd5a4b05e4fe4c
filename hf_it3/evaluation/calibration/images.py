"""The conditions of a calibration and the held-out images under them."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from ...it3.interface_it3 import IdempotentModel
from ...it3.task_it3 import Task
from ..answers import answers_of
from ..conditions import Condition, make_conditions, parse_corruptions
from ..images import ImageBatch, ImageSource
from ..pixels import Normalization


# One of each kind: noise, blur, contrast or occlusion, geometry. All are fast to compute.
DEFAULT_CORRUPTIONS = {
    1: ("mnist-c/impulse_noise", "mnist-c/motion_blur", "mnist-c/stripe", "mnist-c/shear"),
    3: ("imagenet-c/shot_noise", "imagenet-c/motion_blur", "imagenet-c/contrast", "imagenet-c/pixelate"),
}
# Corrupted images are kept up to this size, and computed again beyond.
_CACHE_BYTES = 2**30


def calibration_conditions(model: IdempotentModel, corruptions: Any, severity: int) -> list[Condition]:
    """The clean images and the corruptions."""
    kind = answers_of(Task.of(model.config), type(model).__name__)
    if kind.metric != "accuracy":
        raise ValueError(
            f"calibration chooses settings by accuracy, for models of one class per image, and {type(model).__name__} "
            f"is measured by {kind.noun}; compare settings of your own with evaluate_robustness(methods={{...}})"
        )
    channels = model.config.image_channels
    if channels not in DEFAULT_CORRUPTIONS:
        raise ValueError(
            f"the model takes images of {channels} channels; corruptions, which calibration needs, are for 1 or 3"
        )
    names = parse_corruptions(DEFAULT_CORRUPTIONS[channels] if corruptions is None else corruptions, channels)
    if isinstance(severity, bool) or severity not in range(1, 6):
        raise ValueError(f"severity={severity!r} must be one of 1, 2, 3, 4, 5")
    conditions = make_conditions(names, [severity])
    corrupted = [condition for condition in conditions if not condition.is_clean]
    if not corrupted:
        raise ValueError(f"corruptions={corruptions!r} names none; calibration chooses by the accuracy under them")
    return [Condition(), *corrupted]


class HeldOutImages:
    """Held-out images under every condition, as the model takes them, batch by batch.

    Args:
        source ([`ImageSource`]): where they come from.
        normalization ([`Normalization`]): of the model's image processor.
        conditions: the conditions.
        batch_size: images in a batch.
        seed: of corruptions and order.
        like: tensor whose device and floating point type the images get.
    """

    def __init__(
        self,
        source: ImageSource,
        normalization: Normalization,
        conditions: list[Condition],
        batch_size: int,
        seed: int,
        like: Tensor,
    ):
        self.source = source
        self.normalization = normalization
        self.conditions = conditions
        self.batch_size = batch_size
        self.seed = seed
        self.like = like
        known = None if source.is_streaming else source.num_images
        self.num_images = sum(len(batch.labels) for batch in self._read()) if known is None else known
        if self.num_images < 2:
            raise ValueError(f"calibration needs held-out images, better some thousands, got {self.num_images}")
        self._cache: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._cached_bytes = 0

    @property
    def num_batches(self) -> int:
        return math.ceil(self.num_images / self.batch_size)

    def batches(self, condition: Condition, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` batches under a condition, pairs of images `(B, C, H, W)` and labels `(B,)`."""
        kept = self._cache.setdefault(condition.name, [])
        yield from kept[:count]
        if len(kept) >= count:
            return
        start = len(kept)
        for batch in self._read(start, count):
            pixels = condition.apply(batch.pixels, self.seed, batch.index.tolist())
            pixel_values = self.normalization(pixels).to(device=self.like.device, dtype=self.like.dtype)
            pair = (pixel_values, batch.labels.to(self.like.device))
            if self._cached_bytes + pixel_values.nbytes <= _CACHE_BYTES and len(kept) == batch.number:
                kept.append(pair)
                self._cached_bytes += pixel_values.nbytes
            yield pair

    def _read(self, start: int = 0, stop: float = math.inf) -> Iterator[ImageBatch]:
        return self.source.batches("iid", self.seed, self.batch_size, lambda number: start <= number < stop)


class ImagePart:
    """A part of the held-out images: some of their batches.

    Args:
        images ([`HeldOutImages`]): all of them.
        start, stop: numbers of the batches, `stop` not included.
    """

    def __init__(self, images: HeldOutImages, start: int, stop: int):
        self.images = images
        self.start = start
        self.num_batches = stop - start
        self.num_images = min(stop * images.batch_size, images.num_images) - start * images.batch_size

    @property
    def conditions(self) -> list[Condition]:
        return self.images.conditions

    def batches(self, condition: Condition, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` batches of the part under a condition."""
        return islice(self.images.batches(condition, self.start + count), self.start, None)


def check_batches(num_images: int, batch_size: int) -> int:
    """The number of batches that images make.

    Raises:
        ValueError: if it is one, which cannot both choose and compare.
    """
    count = math.ceil(num_images / batch_size)
    if count < 2:
        raise ValueError(
            f"calibration needs two batches, one that chooses and one that compares, and {num_images} images make one "
            f"batch of {batch_size}; pass more images, or a smaller batch_size (--batch_size)"
        )
    return count


def split(images: HeldOutImages) -> tuple[ImagePart, ImagePart]:
    """Splits the batches: about two thirds choose the settings, the others compare what was chosen."""
    count = check_batches(images.num_images, images.batch_size)
    first = min(max(1, round(2 * count / 3)), count - 1)
    return ImagePart(images, 0, first), ImagePart(images, first, count)
