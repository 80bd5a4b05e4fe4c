"""Common image corruptions: ImageNet-C and MNIST-C as published, a graded suite of our own, conditions of digits.

>>> from hf_it3.corruptions import corrupt, list_corruptions
>>> noisy = corrupt(images, "mnist-c/shot_noise", severity=3, seed=0, indices=range(len(images)))

`imagenet-c` and `mnist-c` have the published parameters at the published severities. `graded` changes images more at
each severity, with the same random numbers at all of them, at any image size. `digits-shift` is what this project
measures adaptation on digits under, `float-noise` the noise of a tutorial.
"""

from .corruption import SEVERITIES, Corruption
from .gallery import corruption_gallery
from .registry import (
    corrupt,
    corrupt_maps,
    get_corruption,
    list_corruptions,
    list_suites,
    missing_corruptions,
    register,
)
from .transform import CorruptionTransform


__all__ = [
    "SEVERITIES",
    "Corruption",
    "CorruptionTransform",
    "corrupt",
    "corrupt_maps",
    "corruption_gallery",
    "get_corruption",
    "list_corruptions",
    "list_suites",
    "missing_corruptions",
    "register",
]
