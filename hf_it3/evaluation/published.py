"""Published corrupted files: CIFAR-10-C and CIFAR-100-C, ImageNet-C and Tiny ImageNet-C, MNIST-C, as downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel
from PIL import Image

from .corruptions import SEVERITIES


# In CIFAR-10-C and ImageNet-C beside the fifteen corruptions that the benchmark consists of; for validation.
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class PublishedImages:
    """The images of one condition of published files.

    Attributes:
        suite: `"cifar-10-c"`, `"cifar-100-c"`, `"imagenet-c"` or `"mnist-c"`.
        corruption: name of the file or folder, for example `"gaussian_noise"`.
        severity: 1 to 5, or `None` where the data set has one only (MNIST-C).
        images: rows `{"image": PIL image, "label": int}`, by position.
    """

    suite: str
    corruption: str
    severity: int | None
    images: "ArrayImages | FolderImages"

    @property
    def is_extra(self) -> bool:
        """Whether the benchmark does not count this corruption."""
        return self.suite != "mnist-c" and self.corruption in EXTRA_CORRUPTIONS


class ArrayImages:
    """Images of a NumPy array as rows with `image` (PIL) and `label` (int).

    Args:
        images: uint8, (N, H, W), (N, H, W, 1) or (N, H, W, 3); may be mapped from a file.
        labels: integers, (N,).
    """

    column_names = ("image", "label")

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> dict[str, Any]:
        pixels = np.asarray(self._images[position])
        return {
            "image": Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels),
            "label": int(self._labels[position]),
        }


class FolderImages:
    """Images in a folder per class as rows with `image` (PIL) and `label` (int); classes in alphabetical order.

    Args:
        folder: holds a folder per class.
    """

    column_names = ("image", "label")

    def __init__(self, folder: Path):
        classes = _folders(folder)
        self._files = [
            (path, label)
            for label, one in enumerate(classes)
            for path in sorted(one.iterdir())
            if path.suffix.lower() in _IMAGE_SUFFIXES
        ]
        self.features = {"label": ClassLabel(names=[one.name for one in classes])}

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> dict[str, Any]:
        path, label = self._files[position]
        with Image.open(path) as image:
            image.load()
        return {"image": image, "label": label}


def find_published(path: str | Path) -> list[PublishedImages]:
    """The conditions in a folder of published corrupted files; an empty list for anything else.

    Three layouts are known: `*.npy` with `labels.npy` (CIFAR-10-C, CIFAR-100-C: five severities one after the other),
    `corruption/severity/class/image` (ImageNet-C, Tiny ImageNet-C; the archives' folders `blur/`, `noise/`, ... may be
    around it), and `corruption/test_images.npy` with `test_labels.npy`, or `corruption.npz` with both (MNIST-C).

    Raises:
        ValueError: for a folder of one of these layouts whose files do not fit together or are not complete.
    """
    path = Path(path)
    if not path.is_dir():
        return []
    for layout in (_cifar_c, _mnist_c, _imagenet_c):
        if found := list(layout(path)):
            return found
    if arrays := sorted(one.name for one in path.iterdir() if one.suffix in (".npy", ".npz")):
        raise ValueError(
            f"{path} has arrays ({', '.join(arrays[:3])}{', ...' if len(arrays) > 3 else ''}), but not those of a "
            "published benchmark: CIFAR-10-C has labels.npy beside one .npy per corruption, MNIST-C test_images and "
            "test_labels in each .npz or, as .npy, in a folder per corruption"
        )
    return []


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def _cifar_c(path: Path) -> Iterator[PublishedImages]:
    if not (path / "labels.npy").is_file():
        return
    labels = _checked_labels(np.load(path / "labels.npy"), path / "labels.npy")
    suite = "cifar-10-c" if labels.max(initial=0) < 10 else "cifar-100-c"
    for file in sorted(path.glob("*.npy")):
        if file.stem == "labels":
            continue
        images = np.load(file, mmap_mode="r")
        count = len(images) // len(SEVERITIES)
        own = labels[:count] if len(labels) == len(images) else labels
        if len(images) != count * len(SEVERITIES) or len(own) != count:
            raise ValueError(
                f"{file} has {len(images)} images and labels.npy {len(labels)} labels; expected the same images at "
                "five severities, one after the other, and a label for each of them, once or five times"
            )
        if len(labels) == len(images) and not np.array_equal(labels, np.tile(own, len(SEVERITIES))):
            raise ValueError(
                f"{path / 'labels.npy'} does not repeat itself five times, so {file.name} does not hold the same "
                "images at five severities, one after the other"
            )
        for severity in SEVERITIES:
            rows = slice((severity - 1) * count, severity * count)
            yield PublishedImages(suite, file.stem, severity, ArrayImages(_checked(images, file)[rows], own))


def _mnist_c(path: Path) -> Iterator[PublishedImages]:
    for one in sorted(path.iterdir()):
        if one.suffix == ".npz":
            with np.load(one) as arrays:
                if not {"test_images", "test_labels"} <= set(arrays.files):
                    continue
                images, labels = arrays["test_images"], arrays["test_labels"]
        elif (one / "test_images.npy").is_file() and (one / "test_labels.npy").is_file():
            images = np.load(one / "test_images.npy", mmap_mode="r")
            labels = np.load(one / "test_labels.npy")
        else:
            continue
        labels = _checked_labels(labels, one)
        if len(images) != len(labels):
            raise ValueError(f"{one} has {len(images)} test images, but {len(labels)} labels")
        yield PublishedImages("mnist-c", one.stem, None, ArrayImages(_checked(images, one), labels))


def _imagenet_c(path: Path) -> Iterator[PublishedImages]:
    severities = {str(severity): severity for severity in SEVERITIES}
    groups = [path, *_folders(path)]
    for corruption in (one for group in groups for one in _folders(group)):
        for folder in _folders(corruption):
            if folder.name in severities and _folders(folder):
                images = FolderImages(folder)
                if not len(images):
                    raise ValueError(f"{folder} has no images ({', '.join(_IMAGE_SUFFIXES)}) in its class folders")
                yield PublishedImages("imagenet-c", corruption.name, severities[folder.name], images)


def _checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{path} holds labels {labels.dtype} {labels.shape}; expected integers (N,), one per image")
    return labels


def _checked(images: np.ndarray, path: Path) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise ValueError(
            f"{path} holds {images.dtype} {images.shape}; expected uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    return images
