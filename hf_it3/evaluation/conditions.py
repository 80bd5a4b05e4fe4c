"""Conditions: under which images a model is evaluated."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .corruptions import (
    SEVERITIES,
    corrupt,
    corrupt_maps,
    get_corruption,
    list_corruptions,
    list_suites,
    missing_corruptions,
)
from .corruptions.registry import DEFAULT_SEVERITY, default_severity
from .published import PublishedImages


CLEAN = "clean"
# Severities of a benchmark: all that it was published at, or one (of MNIST-C the only one, else 3).
PUBLISHED, ONE = "published", "one"
Severities = tuple[int, ...] | str
# Small grey images have a suite of their own.
_UNCORRUPTED = (None, "digits-shift/clean", "mnist-c/identity")
_SUITE_BY_CHANNELS = {1: "mnist-c", 3: "imagenet-c"}


@dataclass(frozen=True)
class Condition:
    """One condition of an evaluation.

    Attributes:
        corruption: qualified name (`"mnist-c/fog"`), or `None` for images as they are.
        severity: 1 to 5, or `None` where the corruption has no severities.
        subset: name of the data set among several, or `None` where there is one only.
        is_published: whether the images are corrupted already, see [`~hf_it3.evaluation.published.find_published`].
        is_corrupted_too: whether the images are also evaluated corrupted, so that as they are, they count as clean.
    """

    corruption: str | None = None
    severity: int | None = None
    subset: str | None = None
    is_published: bool = False
    is_corrupted_too: bool = field(default=False, compare=False)

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
        """Whether the images are uncorrupted; a data set among several may hold any images, which its name tells."""
        return self.corruption in _UNCORRUPTED and (self.subset in (None, CLEAN) or self.is_corrupted_too)

    @property
    def source(self) -> str | None:
        """The name of the data set that the images are read from."""
        return self.name if self.is_published else self.subset

    def apply(self, pixels: Tensor, seed: int, indices: Sequence[int]) -> Tensor:
        """Corrupts images `(B, C, H, W)` in [0, 1] that have these positions in the data set."""
        if self.corruption is None or self.is_published:
            return pixels
        with torch.no_grad():
            return corrupt(pixels, self.corruption, self.severity or 1, seed, indices)

    def apply_to_maps(self, maps: Tensor, seed: int, indices: Sequence[int], ignore_index: int = 255) -> Tensor:
        """Moves maps of classes `(B, H, W)` as the images that have these positions in the data set.

        Args:
            maps: integers.
            seed: of the corruption.
            indices: positions in the data set.
            ignore_index: class of pixels that do not count, and of those that come in from outside of an image.
        """
        if self.corruption is None or self.is_published:
            return maps
        return corrupt_maps(maps, self.corruption, self.severity or 1, seed, indices, ignore_index)


def parse_severities(severities: str | int | Iterable[int]) -> Severities:
    """Severities from `"1-5"`, `"1,3,5"`, a number or a list, rising; `"published"` and `"one"` stay as they are.

    Raises:
        ValueError: unless all are from 1 to 5.
    """
    given = severities
    if isinstance(severities, str) and severities in (PUBLISHED, ONE):
        return severities
    if not isinstance(severities, Iterable):
        severities = [severities]
    if isinstance(severities, str):
        parts = [part.strip() for part in severities.split(",") if part.strip()]
        severities = []
        for part in parts:
            if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part)):
                raise ValueError(f"severities={given!r} is not understood; write 1-5, or 1,3,5, published, or one")
            first, last = int(match[1]), int(match[2] or match[1])
            severities.extend(range(first, last + 1))
    chosen = set(severities)
    if not chosen or not chosen <= set(SEVERITIES):
        raise ValueError(f"severities={given!r} must be one or more of 1, 2, 3, 4, 5")
    return tuple(sorted(map(int, chosen)))


def split_names(names: str | Iterable[str] | None) -> list[str]:
    """Names from a list or from a comma-separated string."""
    if names is None:
        return []
    parts = names.split(",") if isinstance(names, str) else [part for name in names for part in str(name).split(",")]
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def parse_corruptions(corruptions: str | Iterable[str] | None, num_channels: int) -> list[str]:
    """Qualified names of corruptions; of suites those that can be computed, see `left_out_corruptions`.

    Args:
        corruptions: `"all"` (MNIST-C for models of grey images, ImageNet-C for colour), `"none"`, names of suites or
            of corruptions, as a list or comma-separated.
        num_channels: of the model's images, 1 or 3.

    Raises:
        ValueError: for an unknown name.
    """
    chosen: list[str] = []
    for name in split_names(corruptions):
        if (suite := _suite(name, num_channels)) is not None:
            chosen.extend(list_corruptions(suite))
        elif name != "none":
            chosen.append(get_corruption(name).qualified_name)
    return list(dict.fromkeys(chosen))


def left_out_corruptions(corruptions: str | Iterable[str] | None, num_channels: int) -> dict[str, str]:
    """Qualified names of what the suites among `corruptions` (see `parse_corruptions`) lack here, and why."""
    suites = [_suite(name, num_channels) for name in split_names(corruptions)]
    return {name: why for suite in suites if suite is not None for name, why in missing_corruptions(suite).items()}


def _suite(name: str, num_channels: int) -> str | None:
    if name == "all":
        return _SUITE_BY_CHANNELS[1 if num_channels == 1 else 3]
    return name if name in list_suites() else None


def make_conditions(
    corruptions: Sequence[str], severities: Sequence[int] | str, subsets: Sequence[str | None] = (None,)
) -> list[Condition]:
    """Every subset under every corruption at every severity, with the clean images first.

    Args:
        corruptions: qualified names.
        severities: used where a corruption has severities; `"published"` for all of its benchmark, `"one"` for one.
        subsets: names of data sets, `None` for the only one.
    """
    conditions = []
    is_corrupted_too = any(name not in _UNCORRUPTED for name in corruptions)
    for subset in subsets:
        corrupted = [
            Condition(name, severity, subset, is_corrupted_too=is_corrupted_too)
            for name in corruptions
            for severity in _severities(name, severities)
        ]
        if not any(condition.corruption == "digits-shift/clean" for condition in corrupted):
            conditions.append(Condition(subset=subset, is_corrupted_too=is_corrupted_too))
        conditions.extend(corrupted)
    return conditions


def check_corruptions(conditions: Sequence[Condition]) -> None:
    """Applies every corruption to a small image, so that a missing extra is found before hours of evaluation.

    Raises:
        ImportError: if a corruption needs a package that is not installed.
    """
    for condition in {condition.corruption: condition for condition in conditions}.values():
        condition.apply(torch.zeros(1, 1, 32, 32), 0, [0])


def _severities(name: str, wanted: Sequence[int] | str) -> Sequence[int | None]:
    corruption = get_corruption(name)
    if not corruption.severities:
        return (None,)
    if wanted == PUBLISHED:
        return corruption.published_severities
    return (default_severity(corruption),) if isinstance(wanted, str) else wanted


def is_benchmark(conditions: Sequence[Condition]) -> bool:
    """Whether the corrupted conditions are the fifteen corruptions of a benchmark at five severities, no more or less.

    Only over these is a mean corruption error the one that others report. The benchmarks are ImageNet-C and, as
    published files, CIFAR-10-C and CIFAR-100-C.
    """
    corrupted = {(str(one.corruption), one.severity) for one in conditions if one.corruption is not None}
    suites = {name.partition("/")[0] for name, _ in corrupted}
    if len(suites) != 1 or not suites <= {"imagenet-c", "cifar-10-c", "cifar-100-c"}:
        return False
    counted = {name.rpartition("/")[2] for name in _of_suite("imagenet-c")}
    return corrupted == {(f"{suite}/{name}", one) for suite in suites for name in counted for one in SEVERITIES}


def _of_suite(suite: str) -> list[str]:
    """Qualified names of all corruptions of a suite, those that cannot be computed here included."""
    return [*list_corruptions(suite), *missing_corruptions(suite)]


def published_conditions(
    found: Sequence[PublishedImages],
    corruptions: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
    severities: Severities,
) -> dict[Condition, PublishedImages]:
    """The conditions to evaluate among published files, uncorrupted images (MNIST-C's identity) first.

    Args:
        found: what [`~hf_it3.evaluation.published.find_published`] returns.
        corruptions: `"all"` (those that the benchmark counts), the name of the data set, or names of corruptions.
        exclude: names of corruptions to leave out.
        severities: of those that have severities; `"published"` for all, `"one"` for 3.

    Raises:
        ValueError: for a name that the files do not have, or if nothing is left.
    """
    known = {one.corruption for one in found} | {f"{one.suite}/{one.corruption}" for one in found}
    suites = {"all", *(one.suite for one in found)}
    wanted, unwanted = split_names(corruptions), split_names(exclude)
    if unknown := [name for name in (*wanted, *unwanted) if name not in known | suites | {"none"}]:
        names = ", ".join(dict.fromkeys(one.corruption for one in found))
        raise ValueError(f"the published files have no corruption {unknown[0]!r}; they have {names}")

    numbers = severities
    if isinstance(severities, str):
        numbers = SEVERITIES if severities == PUBLISHED else (DEFAULT_SEVERITY,)

    def is_chosen(one: PublishedImages) -> bool:
        names = {one.corruption, f"{one.suite}/{one.corruption}"}
        counted = suites.intersection(wanted) and not one.is_extra
        at_severity = one.severity in (None, *numbers)
        return bool((names.intersection(wanted) or counted) and not names.intersection(unwanted) and at_severity)

    chosen = {
        Condition(f"{one.suite}/{one.corruption}", one.severity, is_published=True): one
        for one in found
        if is_chosen(one)
    }
    if not chosen:
        raise ValueError(
            f"corruptions={corruptions!r}, exclude={exclude!r} and severities={severities!r} leave none of the "
            f"{len(found)} conditions of the published files"
        )
    return dict(sorted(chosen.items(), key=lambda item: not item[0].is_clean))


def missing_published(
    found: Sequence[PublishedImages],
    corruptions: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
    severities: Severities,
) -> dict[str, str]:
    """Names of conditions that were asked for and that the files do not have, and what is missing.

    Args: as of `published_conditions`. A whole benchmark is asked for by `"all"` or the name of the data set.
    """
    suite = found[0].suite
    wanted, unwanted = set(split_names(corruptions)), set(split_names(exclude))
    there: dict[str, set[int | None]] = {}
    for one in found:
        there.setdefault(one.corruption, set()).add(one.severity)
    benchmark = [name.rpartition("/")[2] for name in _of_suite("mnist-c" if suite == "mnist-c" else "imagenet-c")]
    asked = [name for name in dict.fromkeys([*benchmark, *there]) if {name, f"{suite}/{name}"} & wanted]
    if {"all", suite} & wanted:
        asked = list(dict.fromkeys([*benchmark, *asked]))
    numbers = SEVERITIES if severities == PUBLISHED else (DEFAULT_SEVERITY,) if severities == ONE else severities
    missing: dict[str, str] = {}
    for name in asked:
        if {name, f"{suite}/{name}"} & unwanted:
            continue
        if name not in there:
            missing[f"{suite}/{name}"] = "the files have no such corruption"
        elif suite != "mnist-c":
            lacking = {int(one) for one in numbers if one not in there[name]}
            missing |= {f"{suite}/{name}:{one}": "the files have no such severity" for one in sorted(lacking)}
    return missing
