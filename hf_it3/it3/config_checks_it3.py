"""Checks of what a saved configuration holds, before anything is made of it: it may come from a stranger."""

from collections.abc import Callable, Mapping
from typing import Any

import torch


MAX_LABELS = 1_000_000
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def check_values(values: Any, prefix: str) -> None:
    """Checks the values that every configuration may have, and that transformers takes for granted.

    Args:
        values: what was read from JSON, or the arguments of a configuration.
        prefix (`str`): whose values they are, as messages begin: `"IT3Config."`, `"model/config.json: "`.

    Raises:
        ValueError: if it is no mapping, or a value has the wrong type or size; the message names field and value.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.: ')} must be a mapping (a JSON object), got {_short(values)}")
    for name, (holds, requirement) in _REQUIREMENTS.items():
        value = values.get(name)
        if value is not None and not holds(value):
            raise ValueError(f"{prefix}{name} must be {requirement}, got {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _is_number_of_labels(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LABELS


def _names_classes(value: Any) -> bool:
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        return False
    return all(isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) for key in value)


def _is_dtype(value: Any) -> bool:
    named = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    return isinstance(named, (torch.dtype, dict))


def _of_type(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_REQUIREMENTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "architectures": (
        lambda value: isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value),
        "a list of class names",
    ),
    "backbone_class": (_of_type(str), "the name of a class with its module"),
    "backbone_kwargs": (_of_type(Mapping), "a mapping"),
    "base_model": (_of_type(Mapping), "a mapping"),
    "dtype": (_is_dtype, "the name of a torch.dtype"),
    "id2label": (_names_classes, f"a mapping from class numbers to names, of at most {MAX_LABELS} classes"),
    "label2id": (_of_type(Mapping), "a mapping from names of classes to their numbers"),
    "model_type": (_of_type(str), "a string"),
    "num_labels": (_is_number_of_labels, f"an integer from 1 to {MAX_LABELS}"),
    "problem_type": (lambda value: value in PROBLEM_TYPES, f"one of {', '.join(map(repr, PROBLEM_TYPES))}"),
    "reference_distance": (_of_type(Mapping), "a mapping"),
}
