"""Data sets of images with labels: loading them, finding their columns, and turning rows into batches."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset
from transformers import AutoImageProcessor
from transformers.utils import IMAGE_PROCESSOR_NAME

from ..it3.configuration_it3 import IT3Config
from ..it3.image_processing_it3 import IT3ImageProcessor, match_channels, to_array, to_mode
from ..it3.task_it3 import check_label_range
from ..utils import noting


DIGITS = "digits"
SCENES = "scenes"
IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def load_digits(test_size: int = 500) -> Any:
    """Loads scikit-learn's bundled handwritten digits: 1,797 real grey images of 8x8 pixels; needs no network.

    Args:
        test_size (`int`): images of the test split, drawn with a fixed seed and balanced over the classes.

    Returns:
        A `datasets.DatasetDict` with the splits `train` and `test` and the columns `image` and `label`.
    """
    from datasets import ClassLabel, Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature
    from sklearn.datasets import load_digits as load_bundled
    from sklearn.model_selection import train_test_split

    bundled = load_bundled()
    pixels = (bundled.images * (255 / 16)).round().astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=test_size, stratify=bundled.target, random_state=0
    )
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    splits = {}
    for name, rows in (("train", train), ("test", test)):
        columns = {
            "image": [Image.fromarray(pixels[row]) for row in rows],
            "label": bundled.target[rows].tolist(),
        }
        splits[name] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def load_images(name_or_path: str, config_name: str | None = None, streaming: bool = False) -> Any:
    """A data set of images by name: `"digits"` or `"scenes"` (made of them, with maps of classes), a Hub name, a local
    data set, or a folder of images.

    Raises:
        ValueError: if the path exists but holds no data set, and for a `config_name` of a data set that has none.
        OSError: if there is no such path, and no such data set on the Hub or no way to it.
    """
    import datasets

    saved = os.path.isdir(name_or_path) and os.path.isfile(os.path.join(name_or_path, "dataset_dict.json"))
    if config_name is not None and (saved or name_or_path in (DIGITS, SCENES)):
        raise ValueError(f"the data set {name_or_path} has no configurations, got config_name={config_name!r}")
    if name_or_path == DIGITS:
        return load_digits()
    if name_or_path == SCENES:
        from .scenes import load_digit_scenes

        return load_digit_scenes()
    if saved:
        return datasets.load_from_disk(name_or_path)
    try:
        return datasets.load_dataset(name_or_path, config_name, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        if os.path.exists(name_or_path):
            raise
        raise OSError(f"there is no file or folder {name_or_path}, and as a name on the Hub: {error}") from error


def select_split(splits: Any, wanted: str) -> Any:
    """A split of a data set, streamed or not, or a range of its rows: `"test"`, `"test[:2000]"`, `"train[50000:]"`.

    Raises:
        ValueError: for a split that does not exist, and for an empty range.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d*):(\d*)\])?", wanted)
    if match is None or match[1] not in splits:
        raise ValueError(
            f"the data set has no split {wanted!r}; its splits are {', '.join(map(str, splits))}, and a range is "
            "written 'test[:2000]'"
        )
    rows = splits[match[1]]
    if match[2] is None:
        return rows
    first, last = int(match[2] or 0), int(match[3]) if match[3] else None
    if last is not None and last <= first:
        raise ValueError(f"{wanted!r} has no rows")
    if not hasattr(rows, "__len__"):
        rows = rows.skip(first)
        return rows if last is None else rows.take(last - first)
    chosen = range(first, len(rows) if last is None else min(last, len(rows)))
    if not chosen:
        raise ValueError(f"{wanted!r} has no rows; {match[1]!r} has {len(rows)}")
    return rows.select(chosen)


def first_rows(dataset: Any, count: int | None) -> Any:
    """The first rows of a data set, streamed or not; all of them for `None`, and where there are no more."""
    if count is None:
        return dataset
    if isinstance(dataset, IterableDataset) and not hasattr(dataset, "take"):
        return _FirstOfStream(dataset, count)
    if not hasattr(dataset, "__len__"):
        return dataset.take(count)
    rows = range(min(count, len(dataset)))
    return dataset.select(rows) if hasattr(dataset, "select") else Subset(dataset, rows)


class _FirstOfStream(IterableDataset):
    """The first rows of an iterable data set of torch."""

    def __init__(self, dataset: IterableDataset, count: int):
        self.dataset = dataset
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return islice(self.dataset, self.count)


READING_ORDERS = ("shuffled", "given")


def in_reading_order(rows: Any, order: str = "shuffled", seed: int = 0) -> Any:
    """Images in the order in which a model adapts to them.

    Images that adapt together should be a mix of classes, and folders are sorted by class; `"shuffled"` mixes them,
    the same way for the same seed. `"given"` leaves them as they are, for frames of a video for example.

    Args:
        rows: a list, or a data set of `datasets`, streamed or not.
        order (`"shuffled"` or `"given"`): see above.
        seed (`int`): of the shuffling.
    """
    if order not in READING_ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(map(repr, READING_ORDERS))}")
    if order == "given":
        return rows
    if not isinstance(rows, list):
        return rows.shuffle(seed=seed)
    return [rows[position] for position in np.random.default_rng(seed).permutation(len(rows))]


def find_column(columns: Iterable[str], candidates: tuple[str, ...], given: str | None, what: str) -> str:
    """The column that holds the images or the labels.

    Raises:
        ValueError: if the given column, or any of the usual ones, is missing.
    """
    columns = list(columns)
    if given is not None:
        if given not in columns:
            raise ValueError(f"the data set has no {what} column {given!r}; its columns are {', '.join(columns)}")
        return given
    for name in candidates:
        if name in columns:
            return name
    raise ValueError(
        f"the data set has no {what} column: looked for {', '.join(candidates)}; its columns are {', '.join(columns)}"
        f". Name it with {what}_column"
    )


def as_row(row: Any, image_column: str | None = None, label_column: str | None = None) -> Mapping[str, Any]:
    """A row of a data set by the names of its columns; pairs `(image, label)`, as data sets of torchvision hold them,
    get the given names or else `image` and `label`.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(row, Mapping):
        return row
    if isinstance(row, (tuple, list)) and len(row) == 2:
        return {image_column or "image": row[0], label_column or "label": row[1]}
    raise ValueError(
        f"the rows of a data set must be dictionaries, or pairs (image, label), got a {type(row).__name__}; name its "
        "parts, as in {'image': image, 'label': label}"
    )


def class_names(dataset: Any, label_column: str | None = None) -> list[str] | None:
    """The names of a data set's classes, in the order of its labels; None if it does not know them.

    Args:
        dataset: a `datasets.Dataset`, streamed or not, or a data set with `classes`, as those of torchvision have;
            anything else has no names.
        label_column (`str`, *optional*): by default the usual names.
    """
    from datasets import ClassLabel

    features = getattr(dataset, "features", None)
    if features is None:
        return _names_of_torchvision(dataset)
    candidates = LABEL_COLUMNS if label_column is None else (label_column,)
    feature = next((features[name] for name in candidates if name in features), None)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _names_of_torchvision(dataset: Any) -> list[str] | None:
    classes = getattr(dataset, "classes", None)
    is_names = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return list(classes) if is_names and classes else None


def mean_and_std(image_processor: Any) -> tuple[Any, Any]:
    """Mean and deviation that an image processor, also one of timm, normalises with; `None` where it has none."""
    data_config = getattr(image_processor, "data_config", None) or {}
    mean = getattr(image_processor, "image_mean", None) or data_config.get("mean")
    return mean, getattr(image_processor, "image_std", None) or data_config.get("std")


def as_bytes(pixels: Tensor) -> list[np.ndarray]:
    """Pixels `(N, C, H, W)` in [0, 1] as arrays `(C, H, W)` of bytes, as image files hold them; others are cut off."""
    return list((255 * pixels.clamp(0, 1)).round().byte().cpu().numpy())


class ImageCollator:
    """Turns rows with an image and a label, dictionaries or pairs, into a batch `{"pixel_values", "labels"}`.

    Rows that carry `pixel_values` already (tensors) are stacked as they are. Class indices of any integer type become
    int64.

    Args:
        image_processor: the model's image processor.
        image_column (`str`, *optional*), label_column (`str`, *optional*): by default the usual names.
        num_labels (`int`, *optional*): checks that labels lie in `0 .. num_labels - 1`.

    Raises:
        ValueError: for a missing column, an image that cannot be read, or a label that is not a class index or out of
            range; the message names it.
    """

    # Usual names of the column of the labels.
    label_columns: tuple[str, ...] = LABEL_COLUMNS

    def __init__(
        self,
        image_processor: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        num_labels: int | None = None,
    ):
        self.image_processor = image_processor
        self.image_column = image_column
        self.label_column = label_column
        self.num_labels = num_labels

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        rows = [as_row(row, self.image_column, self.label_column) for row in rows]
        image_column, label_column = self._columns(rows[0])
        batch = {"pixel_values": self._pixel_values([row[image_column] for row in rows])}
        if label_column is not None:
            batch["labels"] = self._labels(label_column, [row[label_column] for row in rows])
        return batch

    def _columns(self, row: Mapping[str, Any]) -> tuple[str, str | None]:
        """The column of the images and, if there is one, that of the labels."""
        image_column = find_column(row, IMAGE_COLUMNS, self.image_column, "image")
        if self.label_column is None and not any(name in row for name in self.label_columns):
            return image_column, None
        return image_column, find_column(row, self.label_columns, self.label_column, "label")

    def _pixel_values(self, images: list[Any]) -> Tensor:
        if all(isinstance(image, Tensor) and image.is_floating_point() for image in images):
            return torch.stack(images)
        images = [self._convert(image, position) for position, image in enumerate(images)]
        try:
            return self.image_processor(images=images, return_tensors="pt")["pixel_values"]
        except (OSError, TypeError, ValueError) as error:
            self._name_culprit(images)
            raise ValueError(f"the images of a batch cannot be processed: {error}") from error

    def _convert(self, image: Any, position: int) -> Any:
        """A picture or array with the channels and values that the model takes, the same as in the pipeline."""
        # Stock processors leave channels as they are and take floats for bytes.
        processor, is_ours = self.image_processor, isinstance(self.image_processor, IT3ImageProcessor)
        mean = mean_and_std(processor)[0]
        channels = processor.num_channels if is_ours else len(mean) if isinstance(mean, (list, tuple)) else None
        if isinstance(image, Image.Image):
            is_grey = channels == 1 or (channels is None and image.mode == "L")
            return image if is_ours else to_mode(image, "L" if is_grey else "RGB")
        if isinstance(image, (list, tuple)):
            raise ValueError(
                f"image {position} of a batch is a {type(image).__name__} of values; a data set of `datasets` returns "
                "tensors with .with_format('torch'), and arrays with .with_format('numpy')"
            )
        if not isinstance(image, (np.ndarray, Tensor)):
            return image
        try:
            array = to_array(image, getattr(processor, "do_rescale", True))
            return array if channels is None else match_channels(array, channels)
        except ValueError as error:
            raise ValueError(f"image {position} of a batch cannot be processed: {error}") from error

    def _name_culprit(self, images: list[Any]) -> None:
        for position, image in enumerate(images):
            try:
                self.image_processor(images=image, return_tensors="pt")
            except (OSError, TypeError, ValueError) as error:
                raise ValueError(f"image {position} of a batch cannot be processed: {error}") from error

    def _labels(self, column: str, labels: list[Any]) -> Tensor:
        try:
            # Through plain numbers, so that integers of any type become int64.
            tensor = torch.as_tensor([label.tolist() if hasattr(label, "tolist") else label for label in labels])
        except (TypeError, ValueError, RuntimeError) as error:
            culprit = next((label for label in labels if label is None or isinstance(label, str)), labels[0])
            raise ValueError(
                f"the label column {column!r} holds {culprit!r}, where a class index is needed; leave out rows "
                f"without a label, and turn names into indices with dataset.class_encode_column({column!r})"
            ) from error
        if self.num_labels is not None and not tensor.is_floating_point() and tensor.ndim == 1:
            check_label_range(tensor, self.num_labels)
        return tensor


def image_processor_for(config: IT3Config, trust_remote_code: bool = False) -> Any:
    """The image processor of the wrapped checkpoint, or one made from the backbone's image size and channels.

    Raises:
        ValueError: for an image processor that is code of the checkpoint's own, without `trust_remote_code=True`.
        OSError, httpx.HTTPError: if the Hub cannot be asked whether there is one, because another one might prepare
            images differently.
    """
    backbone = config.backbone_config
    for loaded in filter(lambda one: one.name_or_path, (config, backbone)):
        name, revision = str(loaded.name_or_path), getattr(loaded, "_commit_hash", None)  # the commit of the weights
        try:
            return AutoImageProcessor.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise ValueError(
                    f"the image processor of {name} is code of its own; if you trust it, load it with "
                    "AutoImageProcessor and trust_remote_code=True, and pass it along"
                ) from error
            if isinstance(error, OSError) and _has_processor(name, revision):
                raise
            # There is no processor.
    size = getattr(backbone, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    channels = config.image_channels
    return IT3ImageProcessor(
        num_channels=channels,
        size={"height": height, "width": width},
        image_mean=[0.5] * channels,
        image_std=[0.5] * channels,
    )


def _has_processor(name: str, revision: str | None) -> bool:
    """Whether a checkpoint has an image processor, whatever became of loading it, which takes every failure alike."""
    if os.path.isdir(name):
        return os.path.isfile(os.path.join(name, IMAGE_PROCESSOR_NAME))
    known = try_to_load_from_cache(name, IMAGE_PROCESSOR_NAME, revision=revision)
    if known is not None:
        return known is not _CACHED_NO_EXIST
    try:
        with noting(
            f"looking for the image processor of {name}; with another one, images might be prepared differently"
        ):
            hf_hub_download(name, IMAGE_PROCESSOR_NAME, revision=revision)
    except LocalEntryNotFoundError:  # no connection, and nothing in the cache
        raise
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        return False
    return True
