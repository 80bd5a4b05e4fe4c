"""Corruptions of images under their public name; they live in `hf_it3.evaluation.corruptions`."""

from .evaluation.corruptions import (
    SEVERITIES,
    Corruption,
    CorruptionTransform,
    corrupt,
    corrupt_maps,
    corruption_gallery,
    get_corruption,
    list_corruptions,
    list_suites,
    missing_corruptions,
    register,
)


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
