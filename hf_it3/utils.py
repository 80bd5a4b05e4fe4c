"""What several rooms share: access to rooms further on, notes on errors, versions, tables, files and figures.
Matplotlib is imported where it is used."""

import importlib
import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor


def load_room(name: str) -> ModuleType:
    """Imports a module of a room further on, such as `"hub.push"`, for methods that lead there.

    It is loaded when such a method is called, so that training, for example, neither loads nor needs evaluation.
    """
    return importlib.import_module(f"hf_it3.{name}")


@contextmanager
def noting(step: str) -> Iterator[None]:
    """Notes on whatever stops a step which one it was; of a broken connection, the client's message does not say."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This happened while {step}.")
        raise


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The version of each package; `None` where it is not installed."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def aligned(rows: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """Lines of a table for the terminal, whose columns are as wide as their widest cell.

    Args:
        rows: cells of each row, the same number in all.
        numbers (`bool`): whether all columns but the first are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is either there as a whole or not at all, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def import_figure(who: str, extra: str) -> "type[Figure]":
    """Matplotlib's `Figure`.

    Args:
        who (`str`): the beginning of the error, such as `"plots need"`.
        extra (`str`): of this package, that brings matplotlib.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'{who} matplotlib: pip install "hf-it3[{extra}]"') from error
    return Figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", list]:
    """Makes a figure of the given size in inches, without a display; returns it and its axes as a flat list.

    Raises:
        ImportError: if matplotlib is missing.
    """
    figure = import_figure("pictures need", "demo")(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def plot_images(rows: Sequence[tuple[str, "Tensor"]]) -> "Figure":
    """Images in rows, each row with its title.

    Args:
        rows: pairs of a title and images `(N, C, H, W)` with values in [0, 1] (others are clipped), the same N in all.
    """
    count = len(rows[0][1])
    figure, axes = new_figure(1.1 * count, 1.35 * len(rows), len(rows), count)
    for row, (title, images) in enumerate(rows):
        for column, image in enumerate(images):
            axis = axes[row * count + column]
            axis.imshow(image.clamp(0, 1).movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        axes[row * count].set_title(title, loc="left", fontsize=10)
    return figure


def plot_batch_accuracies(groups: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> "Figure":
    """A boxplot of the accuracy of single batches, without and with adaptation side by side for each condition.

    Args:
        groups: condition, accuracies of its batches without, and with adaptation, between 0 and 1.
    """
    figure, axes = new_figure(1.5 + 2.2 * len(groups), 3.8)
    axis = axes[0]
    handles, labels = [], []
    for side, (label, color) in enumerate((("without adaptation", "#9aa5b1"), ("with adaptation", "#f2a33a"))):
        values = [[100 * accuracy for accuracy in group[1 + side]] for group in groups]
        positions = [index + 0.36 * side - 0.18 for index in range(len(groups))]
        boxes = axis.boxplot(values, positions=positions, widths=0.3, patch_artist=True, showmeans=True, meanline=True)
        for box in boxes["boxes"]:
            box.set(facecolor=color, edgecolor="#39424e")
        for line in (*boxes["medians"], *boxes["means"]):
            line.set_color("#39424e")
        handles.append(boxes["boxes"][0])
        labels.append(label)
    axis.set_xticks(range(len(groups)), [group[0] for group in groups])
    axis.set_ylabel("accuracy of a batch (%)")
    axis.grid(axis="y", linestyle="--", alpha=0.5)
    axis.legend(handles, labels, loc="lower left", frameon=False)
    return figure
