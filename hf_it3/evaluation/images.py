"""Reads data sets as batches of pixels in [0, 1] at the model's input size."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import IMAGE_COLUMNS, LABEL_COLUMNS, ImageCollator, find_column, mean_and_std
from ..it3.configuration_it3 import IT3Config


ORDERS = ("iid", "class-sorted", "mixed", "continual")
# Which images are taken when not all are, whatever the seed of the evaluation.
_SAMPLE_SEED = 0
# Images of a stream that are shuffled together: all that is ever held of it.
_SHUFFLE_BUFFER = 1024
# Pixels of data sets in memory or on disk are kept up to this size in all, since every condition needs them again.
CACHE_BYTES = 256 * 2**20
_EMPTY = "the data set is empty: there is nothing to evaluate on"


@dataclass
class ImageBatch:
    """A batch of B images: its number in the pass, data-set positions `(B,)`, pixels `(B, C, H, W)`, labels `(B,)`."""

    number: int
    index: np.ndarray
    pixels: Tensor
    labels: Tensor


class Normalization:
    """The normalisation of an image processor, `(pixels - mean) / std`, as a step of its own.

    EfficientNet's processors divide by `std` once more, with `include_top`.

    Args:
        image_processor: any image processor of transformers; one with `do_normalize=False` gives the identity.
    """

    def __init__(self, image_processor: Any):
        mean, std = mean_and_std(image_processor)
        normalizes = bool(getattr(image_processor, "do_normalize", True))
        divides_again = bool(getattr(image_processor, "include_top", False))
        self.is_identity = mean is None or std is None or not (normalizes or divides_again)
        if not self.is_identity:
            self.mean = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1) * normalizes
            self.std = torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1) ** (normalizes + divides_again)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turns pixels in [0, 1] into the model's input, both `(B, C, H, W)`."""
        return pixels if self.is_identity else (pixels - self.mean) / self.std

    def undo(self, pixel_values: Tensor) -> Tensor:
        """Turns the model's input into pixels in [0, 1]; rounding errors beyond the ends are cut off."""
        pixels = pixel_values if self.is_identity else pixel_values * self.std + self.mean
        return pixels.clamp(0, 1)


class PixelCollator(ImageCollator):
    """As [`~hf_it3.data.ImageCollator`], but with pixels in [0, 1] before normalisation, float32.

    Rows that carry tensors already are taken for the model's input, and their normalisation is undone.

    Raises:
        ValueError: also if pixels and [`Normalization`] do not give what the image processor gives, for the first
            image.
    """

    def __init__(self, image_processor: Any, **kwargs: Any):
        self.normalization = Normalization(image_processor)
        self.can_skip = hasattr(image_processor, "do_normalize")
        self._whole: ImageCollator | None = ImageCollator(image_processor)
        if self.can_skip:
            image_processor = copy.deepcopy(image_processor)
            image_processor.do_normalize = False
            image_processor.do_rescale = True
            if hasattr(image_processor, "include_top"):
                image_processor.include_top = False
        super().__init__(image_processor, **kwargs)

    def _pixel_values(self, images: list[Any]) -> Tensor:
        pixels = super()._pixel_values(images).float()
        if all(isinstance(image, Tensor) and image.is_floating_point() for image in images):
            return self.normalization.undo(pixels)
        pixels = pixels.clamp(0, 1) if self.can_skip else self.normalization.undo(pixels)
        if self._whole is not None:
            self._check(pixels[:1], self._whole._pixel_values(images[:1]).float())
            self._whole = None
        return pixels

    def _check(self, pixels: Tensor, pixel_values: Tensor) -> None:
        ours = self.normalization(pixels)
        if ours.shape != pixel_values.shape or not torch.allclose(ours, pixel_values, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{type(self.image_processor).__name__} does not give (pixels - mean) / std of pixels in [0, 1], so "
                "its images cannot be corrupted before normalisation; use an image processor that does, with "
                "do_rescale=True and rescale_factor=1/255, such as IT3ImageProcessor"
            )


class ImageSource:
    """A labelled data set, read batch by batch.

    Args:
        dataset: rows with an image and a label: a `datasets.Dataset`, a streamed `IterableDataset`, or any sequence
            of dictionaries.
        image_processor: the model's.
        config: the model's configuration. Where the data set names the same classes in another order, its labels
            are translated.
        image_column, label_column (`str`, *optional*): by default the usual names.
        num_samples (`int`, *optional*): number of images, drawn with a fixed seed (of a stream, the first ones).
        cache_bytes: pixels of images are kept up to this size.

    Raises:
        ValueError: for a missing column, an empty data set, and an iterator, which can be read once only.
    """

    def __init__(
        self,
        dataset: Any,
        image_processor: Any,
        config: IT3Config,
        image_column: str | None = None,
        label_column: str | None = None,
        num_samples: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.dataset = dataset
        self.cache_bytes = cache_bytes
        self.num_samples = num_samples
        self.is_streaming = not hasattr(dataset, "__len__")
        if self.is_streaming and iter(dataset) is dataset:
            raise ValueError(
                f"the data set is a {type(dataset).__name__}, which can be read once only, but every condition reads "
                "all images; pass a list of its rows, or a datasets.IterableDataset"
            )
        if not self.is_streaming and len(dataset) == 0:
            raise ValueError(_EMPTY)
        self.columns = _columns(dataset)
        find_column(self.columns, IMAGE_COLUMNS, image_column, "image")
        self.label_column = find_column(self.columns, LABEL_COLUMNS, label_column, "label")
        self.label_map = _label_map(dataset, self.label_column, config)
        self.collator = PixelCollator(
            image_processor, image_column=image_column, label_column=self.label_column, num_labels=config.num_labels
        )
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}
        self._cached_bytes = 0

    @property
    def num_images(self) -> int | None:
        """Number of images in a pass; `None` for streams of unknown length."""
        if self.is_streaming:
            return self.num_samples
        return len(self.dataset) if self.num_samples is None else min(self.num_samples, len(self.dataset))

    def sample(self) -> np.ndarray:
        """Positions in the data set of the images that are used, rising."""
        positions = np.arange(len(self.dataset))
        if self.num_samples is not None and self.num_samples < len(positions):
            positions = np.sort(np.random.default_rng(_SAMPLE_SEED).permutation(positions)[: self.num_samples])
        return positions

    def order(self, order: str, seed: int) -> np.ndarray:
        """Positions in the data set of the images that are used, in their order."""
        positions = np.random.default_rng([seed, 1]).permutation(self.sample())
        if order == "class-sorted":
            labels = np.asarray([self._label(int(position)) for position in positions])
            positions = positions[np.argsort(labels, kind="stable")]
        return positions

    def _label(self, position: int) -> int:
        if hasattr(self.dataset, "select_columns"):
            if not hasattr(self, "_labels"):
                self._labels = list(self.dataset.select_columns(self.label_column)[self.label_column])
            return self._labels[position]
        return int(self.dataset[position][self.label_column])

    def batches(
        self, order: str, seed: int, batch_size: int, wanted: Callable[[int], bool] = lambda number: True
    ) -> Iterator[ImageBatch]:
        """Batches of `batch_size` images each (the last may be smaller), in the chosen order.

        Args:
            order: one of `ORDERS`; `"mixed"` and `"continual"` are i.i.d. as far as images go.
            seed: of the order.
            batch_size: images in a batch.
            wanted: takes the number of a batch; batches that are not wanted are not read where that can be avoided.

        Raises:
            ValueError: for a streamed data set that is to be sorted, or that is empty.
        """
        if self.is_streaming:
            yield from self._streamed_batches(order, seed, batch_size, wanted)
            return
        positions = self.order(order, seed)
        for number, start in enumerate(range(0, len(positions), batch_size)):
            if wanted(number):
                index = positions[start : start + batch_size]
                yield ImageBatch(number, index, *self._read(index))

    def _streamed_batches(
        self, order: str, seed: int, batch_size: int, wanted: Callable[[int], bool]
    ) -> Iterator[ImageBatch]:
        if order == "class-sorted":
            raise ValueError("order='class-sorted' needs a data set of known length; this one is streamed")
        rows = enumerate(islice(self.dataset, self.num_samples))
        chunk: list[tuple[int, Any]] = []
        number = -1
        for number, chunk in enumerate(_chunks(_shuffled(rows, seed), batch_size)):
            if wanted(number):
                index = np.asarray([position for position, _ in chunk])
                yield ImageBatch(number, index, *self._collate([row for _, row in chunk], index))
        if number < 0:
            raise ValueError(_EMPTY)

    def _read(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        missing = [int(position) for position in index if int(position) not in self._cache]
        fresh: dict[int, tuple[Tensor, Tensor]] = {}
        if missing:
            pixels, labels = self._collate([self.dataset[position] for position in missing], missing)
            fresh = {position: (pixels[i], labels[i]) for i, position in enumerate(missing)}
            if self._cached_bytes + pixels.nbytes <= self.cache_bytes:
                self._cache.update({position: (p.clone(), label) for position, (p, label) in fresh.items()})
                self._cached_bytes += pixels.nbytes
        read = [fresh.get(int(position)) or self._cache[int(position)] for position in index]
        return torch.stack([pixels for pixels, _ in read]), torch.stack([label for _, label in read])

    def _collate(self, rows: list[Any], index: Iterable[int]) -> tuple[Tensor, Tensor]:
        if self.label_map is not None:
            rows = [{**row, self.label_column: self.label_map[row[self.label_column]]} for row in rows]
        try:
            batch = self.collator(rows)
        except ValueError as error:
            raise ValueError(
                f"{error} (images {', '.join(map(str, list(index)[:3]))}, ... of the data set)"
            ) from error
        labels = batch["labels"]
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(f"labels must be one class index per image, got {labels.dtype} {tuple(labels.shape)}")
        return batch["pixel_values"], labels.long()


def _columns(dataset: Any) -> list[str]:
    """The columns that a data set names, or those of its first row."""
    if columns := getattr(dataset, "column_names", None):
        return list(columns)
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(_EMPTY)
    if not isinstance(row, Mapping):
        raise ValueError(
            f"the rows of a data set must be dictionaries, got a {type(row).__name__}; name its parts, as in "
            "{'image': image, 'label': label}"
        )
    return list(row)


def _label_map(dataset: Any, label_column: str, config: IT3Config) -> list[int] | None:
    """The model's index of each class of the data set; `None` where they agree or have other names."""
    features = getattr(dataset, "features", None) or {}
    names = getattr(features.get(label_column), "names", None)
    ours = [config.id2label[number] for number in range(config.num_labels)]
    if not names or list(names) == ours or not set(names) <= set(ours):
        return None
    return [ours.index(name) for name in names]


def _shuffled(rows: Iterable[Any], seed: int) -> Iterator[Any]:
    """Rows shuffled through a buffer: each goes out when a random newer one takes its place."""
    random = np.random.default_rng([seed, 1])
    buffer: list[Any] = []
    for row in rows:
        if len(buffer) < _SHUFFLE_BUFFER:
            buffer.append(row)
            continue
        place = int(random.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = row
    for place in random.permutation(len(buffer)):
        yield buffer[place]


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
