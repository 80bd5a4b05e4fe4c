"""Common image corruptions: ImageNet-C, MNIST-C and the eight conditions of digits.

>>> from hf_it3.corruptions import corrupt, list_corruptions
>>> noisy = corrupt(images, "mnist-c/shot_noise", severity=3, seed=0, indices=range(len(images)))
"""

from . import noise, shifts
from .registry import SEVERITIES, Corruption, corrupt, get_corruption, list_corruptions, list_suites

__all__ = ["SEVERITIES", "Corruption", "corrupt", "get_corruption", "list_corruptions", "list_suites"]
