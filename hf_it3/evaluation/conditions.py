"""Conditions: under which images a model is evaluated."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .corruptions import SEVERITIES, corrupt, get_corruption, list_corruptions, list_suites


CLEAN = "clean"
# Small grey images have a suite of their own.
_SUITE_BY_CHANNELS = {1: "mnist-c", 3: "imagenet-c"}


@dataclass(frozen=True)
class Condition:
    """One condition of an evaluation.

    Attributes:
        corruption: qualified name (`"mnist-c/fog"`), or `None` for images as they are.
        severity: 1 to 5, or `None` where the corruption has no severities.
        subset: name of the data set among several, or `None` where there is one only.
    """

    corruption: str | None = None
    severity: int | None = None
    subset: str | None = None

    @property
    def name(self) -> str:
        """`"mnist-c/fog:3"`, `"digits-shift/blur"`, `"clean"`, with `"subset: "` in front where there are several."""
        corruption = self.corruption
        if corruption is not None and self.severity is not None:
            corruption = f"{corruption}:{self.severity}"
        if self.subset is None:
            return corruption or CLEAN
        return self.subset if corruption is None else f"{self.subset}: {corruption}"

    @property
    def group(self) -> str:
        """The name without the severity: conditions of one group make a row of the table."""
        return Condition(self.corruption, None, self.subset).name

    @property
    def is_clean(self) -> bool:
        """Whether the images are as in training, as far as the names tell."""
        return self.corruption in (None, "digits-shift/clean") and self.subset in (None, CLEAN)

    def apply(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
        """Corrupts images `(B, C, H, W)` in [0, 1] that have these positions in the data set."""
        if self.corruption is None:
            return pixels
        with torch.no_grad():
            return corrupt(pixels, self.corruption, self.severity or 1, seed, indices)


def parse_severities(severities: str | int | Iterable[int]) -> tuple[int, ...]:
    """Severities from `"1-5"`, `"1,3,5"`, a number or a list, rising.

    Raises:
        ValueError: unless all are from 1 to 5.
    """
    given = severities
    if not isinstance(severities, Iterable):
        severities = [severities]
    if isinstance(severities, str):
        parts = [part.strip() for part in severities.split(",") if part.strip()]
        severities = []
        for part in parts:
            if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
                raise ValueError(f"severities={given!r} is not understood; write 1-5, or 1,3,5")
            first, last = int(match[1]), int(match[2] or match[1])
            severities.extend(range(first, last + 1))
    chosen = set(severities)
    if not chosen or not chosen <= set(SEVERITIES):
        raise ValueError(f"severities={given!r} must be one or more of 1, 2, 3, 4, 5")
    return tuple(sorted(map(int, chosen)))


def split_names(names: str | Iterable[str] | None) -> list[str]:
    """A list of names from a list, or from a string with commas."""
    if names is None:
        return []
    parts = names.split(",") if isinstance(names, str) else [part for name in names for part in str(name).split(",")]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def parse_corruptions(corruptions: str | Iterable[str] | None, num_channels: int) -> list[str]:
    """Qualified names of corruptions.

    Args:
        corruptions: `"all"` (MNIST-C for models of grey images, ImageNet-C for colour), `"none"`, names of suites or
            of corruptions, in a list or with commas.
        num_channels: of the model's images, 1 or 3.

    Raises:
        ValueError: for an unknown name.
    """
    chosen: list[str] = []
    for name in split_names(corruptions):
        if name == "none":
            continue
        if name == "all":
            chosen.extend(list_corruptions(_SUITE_BY_CHANNELS[1 if num_channels == 1 else 3]))
        elif name in list_suites():
            chosen.extend(list_corruptions(name))
        else:
            chosen.append(get_corruption(name).qualified_name)
    return list(dict.fromkeys(chosen))


def make_conditions(
    corruptions: Sequence[str], severities: Sequence[int], subsets: Sequence[str | None] = (None,)
) -> list[Condition]:
    """Every subset under every corruption at every severity, with the clean images first.

    Args:
        corruptions: qualified names.
        severities: used where a corruption has severities.
        subsets: names of data sets, `None` for the only one.
    """
    conditions = []
    for subset in subsets:
        corrupted = [
            Condition(name, severity, subset)
            for name in corruptions
            for severity in (severities if get_corruption(name).severities else (None,))
        ]
        if not any(condition.corruption == "digits-shift/clean" for condition in corrupted):
            conditions.append(Condition(subset=subset))
        conditions.extend(corrupted)
    return conditions


def check_corruptions(conditions: Sequence[Condition]) -> None:
    """Applies every corruption to a small image, so that a missing extra is found before hours of evaluation.

    Raises:
        ImportError: if a corruption needs a package that is not installed.
    """
    for condition in {condition.corruption: condition for condition in conditions}.values():
        condition.apply(torch.zeros(1, 1, 32, 32), 0, [0])
