"""Scenes of real digits with a class for every pixel, made offline."""

from typing import Any

import numpy as np
from PIL import Image

from .images import load_digits


SCENE_CLASSES = ("background", *(str(digit) for digit in range(10)))
# A pixel that is at least this bright belongs to its digit.
_INK = 64


def load_digit_scenes(
    num_train: int = 2000,
    num_test: int = 500,
    size: int = 32,
    digit_size: int = 16,
    max_digits: int = 3,
    digits: Any = None,
    seed: int = 0,
) -> Any:
    """Scenes of one to three handwritten digits on a black canvas, with the class of every pixel, as in M2NIST.

    Digits are real ones, each of a split from that split of the digits alone; they are enlarged, and lie where they do
    not touch. The classes are those of `SCENE_CLASSES`: 0 is the background, and 1 to 10 are the digits 0 to 9.

    Args:
        num_train (`int`), num_test (`int`): number of scenes of the splits.
        size (`int`): height and width of a scene in pixels.
        digit_size (`int`): height and width of a digit.
        max_digits (`int`): most digits of a scene, where there is room; at least one.
        digits (*optional*): a `datasets.DatasetDict` with the splits `train` and `test` and the columns `image` (grey)
            and `label`, MNIST for example; by default scikit-learn's bundled digits.
        seed (`int`): scenes are the same for the same seed.

    Returns:
        A `datasets.DatasetDict` with the splits `train` and `test` and the columns `image` and `annotation`, both grey
        images of `size` x `size` pixels.

    Raises:
        ValueError: for sizes or numbers below 1, and for digits that are larger than the scene.

    Example:

    ```python
    >>> from hf_it3.data import load_digit_scenes
    >>> scenes = load_digit_scenes(num_train=4, num_test=2)
    >>> scenes["train"][0]["image"].size, scenes["train"][0]["annotation"].getextrema()[0]
    ((32, 32), 0)

    ```
    """
    from datasets import Dataset, DatasetDict, Features
    from datasets import Image as ImageFeature

    given = {"num_train": num_train, "num_test": num_test, "size": size, "digit_size": digit_size}
    for name, value in {**given, "max_digits": max_digits}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if digit_size > size:
        raise ValueError(f"digit_size={digit_size} is larger than the scene, size={size}")
    source = load_digits() if digits is None else digits
    features = Features({"image": ImageFeature(), "annotation": ImageFeature()})
    splits = {}
    for position, (name, count) in enumerate((("train", num_train), ("test", num_test))):
        pictures = [_enlarged(image, digit_size) for image in source[name]["image"]]
        labels = source[name]["label"][:]
        draw = np.random.default_rng((seed, position))
        scenes = [_scene(pictures, labels, size, max_digits, draw) for _ in range(count)]
        columns = {
            column: [Image.fromarray(scene[index]) for scene in scenes] for index, column in enumerate(features)
        }
        splits[name] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


def _enlarged(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.convert("L").resize((size, size), Image.Resampling.BICUBIC))


def _scene(
    pictures: list[np.ndarray], labels: list[int], size: int, max_digits: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A canvas and the class of each of its pixels, both of shape `(size, size)`, as bytes."""
    canvas = np.zeros((size, size), np.uint8)
    classes = np.zeros((size, size), np.uint8)
    side = len(pictures[0])
    corners: list[np.ndarray] = []
    for _ in range(draw.integers(1, max_digits + 1)):
        # Where there is no room left, a few draws do not find any.
        for corner in draw.integers(0, size - side + 1, (20, 2)):
            if all(abs(corner - other).max() >= side for other in corners):
                corners.append(corner)
                break
    for row, column in corners:
        chosen = draw.integers(len(pictures))
        area = (slice(row, row + side), slice(column, column + side))
        canvas[area] = pictures[chosen]
        classes[area] = np.where(pictures[chosen] >= _INK, labels[chosen] + 1, 0)
    return canvas, classes
