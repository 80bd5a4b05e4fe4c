"""Reads data sets as batches of pixels in [0, 1] at the model's input size."""

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers.utils import logging

from ..data import IMAGE_COLUMNS, as_row, class_names, find_column, label_columns_of
from ..it3.configuration_it3 import IT3Config
from ..it3.task_it3 import Task
from .pixels import pixel_collator


logger = logging.get_logger(__name__)


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
    """A batch of B images: its number in the pass, data-set positions `(B,)`, pixels `(B, C, H, W)`, and labels, of
    shape `(B,)`, or for segmentation `(B, H, W)`."""

    number: int
    index: np.ndarray
    pixels: Tensor
    labels: Tensor


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
        self.dataset = dataset = _with_names(dataset, image_column, label_column)
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
        self.columns = _columns(dataset, image_column, label_column)
        find_column(self.columns, IMAGE_COLUMNS, image_column, "image")
        self.label_column = find_column(self.columns, label_columns_of(config), label_column, "label")
        self.collator = pixel_collator(config, image_processor, image_column, self.label_column)
        self.label_dims = Task.of(config).index_dims
        self.label_map = _label_map(dataset, self.label_column, config) if self.label_dims == 1 else None
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
        rows = islice(self.dataset, self.num_samples)
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
            rows = [{**row, self.label_column: _mapped(row[self.label_column], self.label_map)} for row in rows]
        try:
            batch = self.collator(rows)
        except ValueError as error:
            raise ValueError(
                f"{error} (images {', '.join(map(str, list(index)[:3]))}, ... of the data set)"
            ) from error
        labels = batch["labels"]
        if labels.ndim != self.label_dims or labels.is_floating_point():
            what = "image" if self.label_dims == 1 else "pixel"
            raise ValueError(f"labels must be one class index per {what}, got {labels.dtype} {tuple(labels.shape)}")
        return batch["pixel_values"], labels.long()


class _Rows(TorchDataset):
    """Pairs of image and label as rows with names.

    Args:
        pairs: the data set.
        names: of its columns, `None` for the usual ones.
    """

    def __init__(self, pairs: Any, *names: str | None):
        self.pairs = pairs
        self.names = names
        self.classes = getattr(pairs, "classes", None)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        if position >= len(self):
            raise IndexError(position)
        return as_row(self.pairs[position], *self.names)


def _with_names(dataset: Any, *names: str | None) -> Any:
    """A data set of rows with names; one of pairs gets them."""
    has_rows = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and len(dataset) > 0
    if not has_rows or hasattr(dataset, "column_names") or isinstance(dataset, (Mapping, TorchIterableDataset)):
        return dataset
    return dataset if isinstance(dataset[0], Mapping) else _Rows(dataset, *names)


def _columns(dataset: Any, *names: str | None) -> list[str]:
    """The columns that a data set names, or those of its first row."""
    if columns := getattr(dataset, "column_names", None):
        return list(columns)
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(_EMPTY)
    return list(as_row(row, *names))


def _label_map(dataset: Any, label_column: str, config: IT3Config) -> list[int] | None:
    """The model's index of each class of the data set; `None` where they agree, and where they have other names, so
    that they are matched by position.

    Raises:
        ValueError: for another number of classes of other names, and for known names in another order beside others.
    """
    names = class_names(dataset, label_column)
    ours = [config.id2label[number] for number in range(config.num_labels)]
    if not names or names == ours or ours == [f"LABEL_{number}" for number in range(config.num_labels)]:
        return None
    if set(names) <= set(ours):
        return [ours.index(name) for name in names]
    unknown = next(name for name in names if name not in ours)
    if len(names) != len(ours):
        raise ValueError(
            f"the data set has {len(names)} classes ({', '.join(names[:3])}, ...), and the model {len(ours)} of other "
            f"names ({', '.join(ours[:3])}, ...); rename them as in config.id2label, or take another data set"
        )
    if any(name in ours and ours[position] != name for position, name in enumerate(names)):
        raise ValueError(
            f"classes of the data set have names of the model's in another order, but {unknown!r} is none of them; "
            "rename them as in config.id2label, or take another data set"
        )
    logger.warning_once(
        f"classes of the data set have other names than those of the model and are matched by position: {unknown!r} "
        f"as {ours[names.index(unknown)]!r}, for example"
    )
    return None


def _mapped(label: Any, label_map: list[int]) -> Any:
    """The model's index of a class of the data set; whatever is none stays, and is refused by the collator."""
    try:
        index = operator.index(label)
    except TypeError:
        return label
    return label_map[index] if 0 <= index < len(label_map) else label


def _shuffled(rows: Iterable[Any], seed: int) -> Iterator[tuple[int, Any]]:
    """Rows of a stream with their positions in it, shuffled through a buffer."""

    def numbered() -> Iterator[tuple[int, dict[str, Any]]]:
        for position, row in enumerate(rows):
            yield position, {"position": position, "row": row}

    # Not `from_generator`, which would pickle the whole stream to name a folder of the cache after it.
    stream = IterableDataset(ExamplesIterable(numbered, {}))
    shuffled = stream.shuffle(generator=np.random.default_rng([seed, 1]), buffer_size=_SHUFFLE_BUFFER)
    for example in shuffled:
        yield example["position"], example["row"]


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
