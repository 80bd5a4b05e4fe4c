"""Common image corruptions: ImageNet-C, MNIST-C and the eight conditions of digits.

>>> from hf_it3.corruptions import corrupt, list_corruptions
>>> noisy = corrupt(images, "mnist-c/shot_noise", severity=3, seed=0, indices=range(len(images)))
"""

from .corruption import SEVERITIES, Corruption
from .gallery import corruption_gallery
from .registry import corrupt, get_corruption, list_corruptions, list_suites, register
from .transform import CorruptionTransform


__all__ = [
    "SEVERITIES",
    "Corruption",
    "CorruptionTransform",
    "corrupt",
    "corruption_gallery",
    "get_corruption",
    "list_corruptions",
    "list_suites",
    "register",
]
