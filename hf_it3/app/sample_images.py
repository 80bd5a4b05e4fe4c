"""Labelled test images that visitors pick from: of the bundled digits, or of any data set."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..data import IMAGE_COLUMNS, LABEL_COLUMNS, MAP_COLUMNS, class_names, find_column, load_images, select_split
from .visitor_images import shrink


# Enough to draw the distances of clean images; models of photographs take longer for each.
NUM_SMALL_IMAGES, NUM_LARGE_IMAGES = 500, 100
SMALL_SIDE = 64
SPLITS = ("test", "validation", "train")


class SampleImages:
    """The first images of a shuffled data set, at most 512 pixels a side.

    Args:
        images (list of `PIL.Image.Image`): grey or RGB.
        truths (list of `str`, *optional*): the model's name of each image's class; for segmentation the map of classes
            of each image, an array `(H, W)`.
    """

    def __init__(self, images: Sequence[Image.Image], truths: Sequence[Any] | None = None):
        self.images = list(images)
        self.truths = None if truths is None else list(truths)

    @classmethod
    def load(
        cls,
        dataset: str,
        split: str | None = None,
        labels: Sequence[str] = (),
        streaming: bool = False,
        config_name: str | None = None,
        maps: bool = False,
    ) -> "SampleImages":
        """Reads images of a data set.

        Args:
            dataset (`str`): `"digits"`, a Hub name, a local data set or a folder of images.
            split (`str`, *optional*): by default the first of `test`, `validation` and `train` that there is.
            labels (list of `str`): the model's class names. Where the data set has the same in another order, its
                labels are translated.
            streaming (`bool`): read no more of the data set than is needed.
            config_name (`str`, *optional*): configuration of the data set.
            maps (`bool`): whether the labels are maps of classes.

        Raises:
            ValueError: if the split or the images are missing, or a label is none of the model's.
        """
        splits = load_images(dataset, config_name, streaming)
        split = split or next((name for name in SPLITS if name in splits), SPLITS[0])
        rows = select_split(splits, split)
        images, found = [], []
        count = NUM_SMALL_IMAGES
        # Shuffled, because many data sets are sorted by class.
        for row in rows.shuffle(seed=0):
            image = row[find_column(row, IMAGE_COLUMNS, None, "image")]
            if not isinstance(image, Image.Image):
                raise ValueError(f"{dataset} has no images to show, but {type(image).__name__} in their column")
            images.append(shrink(image))
            found.append(next((row[name] for name in (MAP_COLUMNS if maps else LABEL_COLUMNS) if name in row), None))
            if max(images[-1].size) > SMALL_SIDE:
                count = NUM_LARGE_IMAGES
            if len(images) >= count:
                break
        if not images:
            raise ValueError(f"split {split!r} of {dataset} has no images")
        if maps:
            return cls(images, None if any(one is None for one in found) else [np.asarray(one) for one in found])
        # The Hub's test splits without labels have None or -1 in their place.
        if any(label in (None, -1) for label in found):
            return cls(images)
        return cls(images, _truths(found, class_names(rows), labels))

    def batch(self, picked: int, size: int) -> tuple[list[Image.Image], list[Any] | None]:
        """The picked image and as many others as make up a batch, the same ones every time, with their classes."""
        others = [position for position in range(len(self.images)) if position != picked]
        chosen = [picked, *others[: size - 1]]
        truths = None if self.truths is None else [self.truths[position] for position in chosen]
        return [self.images[position] for position in chosen], truths

    @functools.cached_property
    def margin(self) -> float:
        """Free space around what is bright, as a share of its longer side, in the median of the images."""
        shares = []
        for image in self.images:
            box = image.convert("L").point(lambda value: 255 * (value > 64)).getbbox()
            if box is not None:
                side = max(box[2] - box[0], box[3] - box[1])
                shares.append((max(image.size) - side) / 2 / side)
        return float(np.median(shares)) if shares else 0.0


def _truths(labels: Sequence[Any], names: list[str] | None, ours: Sequence[str]) -> list[str]:
    if names is not None and set(names) <= set(ours):
        return [names[label] for label in labels]
    for position, label in enumerate(labels):
        if label not in range(len(ours)):
            raise ValueError(f"label {label!r} of image {position} is none of the model's {len(ours)} classes")
    return [ours[label] for label in labels]
