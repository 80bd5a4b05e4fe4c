"""Batches of images with the class of every pixel."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ..it3.task_it3 import check_label_range
from .images import ImageCollator, as_row


MAP_COLUMNS = ("annotation", "label", "labels", "mask")


class SegmentationCollator(ImageCollator):
    """Turns rows with an image and a map of its classes into a batch `{"pixel_values", "labels"}`.

    Maps go through an image processor that takes `segmentation_maps`; others are resized to the processed images, each
    pixel to that of the nearest. Rows that carry tensors as `pixel_values` are stacked as they are, and so are their
    maps.

    Args:
        image_processor, image_column: as in [`ImageCollator`].
        label_column (`str`, *optional*): of the maps: pictures of mode `"L"`, `"P"` or `"I"`, or integer arrays `(H,
            W)`; by default `"annotation"`, `"label"`, `"labels"` or `"mask"`.
        num_labels (`int`, *optional*): checks that classes lie in `0 .. num_labels - 1`.
        ignore_index (`int`, defaults to 255): class of pixels that do not count.

    Raises:
        ValueError: for a missing column, an image that cannot be read, a map that is not of classes or of another
            shape than its image, or a class out of range; the message names it.
    """

    label_columns = MAP_COLUMNS

    def __init__(
        self,
        image_processor: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        num_labels: int | None = None,
        ignore_index: int = 255,
    ):
        super().__init__(image_processor, image_column, label_column, num_labels)
        self.ignore_index = ignore_index
        arguments = inspect.signature(getattr(image_processor, "preprocess", image_processor)).parameters
        self._processes_maps = "segmentation_maps" in arguments

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        rows = [as_row(row, self.image_column, self.label_column) for row in rows]
        image_column, label_column = self._columns(rows[0])
        images = [_upright(row[image_column]) for row in rows]
        if label_column is None:
            return {"pixel_values": self._pixel_values(images)}
        maps = [self._as_map(label_column, row[label_column]) for row in rows]
        for position, (image, classes) in enumerate(zip(images, maps, strict=True)):
            _check_shape(position, image, classes)
        if self._processes_maps and not isinstance(images[0], Tensor):
            pictures = [self._convert(image, position) for position, image in enumerate(images)]
            pixel_values, labels = self._processed(pictures, maps)
        else:
            pixel_values = self._pixel_values(images)
            labels = torch.stack([resized_map(classes, pixel_values.shape[-2:]) for classes in maps])
        if self.num_labels is not None:
            check_label_range(labels[labels != self.ignore_index], self.num_labels, "pixel")
        return {"pixel_values": pixel_values, "labels": labels}

    def _processed(self, pictures: list[Any], maps: list[Any]) -> tuple[Tensor, Tensor]:
        """Runs pictures and maps through an image processor that takes both."""
        batch = self.image_processor(images=pictures, segmentation_maps=maps, return_tensors="pt")
        return batch["pixel_values"], torch.as_tensor(batch["labels"]).long()

    def _as_map(self, column: str, value: Any) -> np.ndarray:
        classes = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if classes.ndim != 2 or classes.dtype.kind not in "uib":
            kind = f"a picture of mode {value.mode}" if isinstance(value, Image.Image) else f"{classes.dtype} values"
            raise ValueError(
                f"the column {column!r} holds {kind} of shape {classes.shape}, where a map of classes is needed: "
                "integers of shape (H, W), or a picture of mode L, P or I"
            )
        return classes.astype(np.int64)


def _upright(image: Any) -> Any:
    """A picture turned as its EXIF data say, as its map of classes is drawn."""
    return ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image


def _check_shape(position: int, image: Any, classes: np.ndarray) -> None:
    if isinstance(image, Image.Image):
        shape = (image.height, image.width)
    elif isinstance(image, Tensor):
        shape = (int(image.shape[-2]), int(image.shape[-1]))
    else:
        return
    if classes.shape != shape:
        raise ValueError(
            f"image {position} of a batch has {shape[0]} x {shape[1]} pixels, but its map of classes "
            f"{classes.shape[0]} x {classes.shape[1]}"
        )


def resized_map(classes: np.ndarray, size: Any) -> Tensor:
    """Resizes a map of classes `(H, W)` by nearest neighbours."""
    labels = torch.from_numpy(classes)
    if tuple(labels.shape) == tuple(size):
        return labels
    # In double precision, which holds every class exactly.
    return F.interpolate(labels[None, None].double(), tuple(size), mode="nearest-exact")[0, 0].long()
