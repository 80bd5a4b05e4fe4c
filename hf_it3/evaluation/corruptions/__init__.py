"""Common image corruptions: ImageNet-C, MNIST-C, the eight conditions of digits, and a tutorial's float noise.

>>> from hf_it3.corruptions import corrupt, list_corruptions
>>> noisy = corrupt(images, "mnist-c/shot_noise", severity=3, seed=0, indices=range(len(images)))

Severity parameters are the published ones, but where a higher severity would change images less than a lower one; the
docstring of each function names what differs. At a few image sides (30 and 80 px) `imagenet-c/pixelate` alone remains
uneven, since its small grid happens to fall on the pixels.
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
