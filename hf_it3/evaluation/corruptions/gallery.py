"""A contact sheet of corruptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...utils import import_figure
from .corruption import SEVERITIES
from .registry import corrupt, get_corruption, list_corruptions


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def corruption_gallery(
    images: torch.Tensor,
    suite: str,
    names: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    cell_inches: float = 0.9,
) -> Figure:
    """Draws a figure with a row per corruption and a column per severity, the original image first.

    Rows take turns through `images`. A suite without severities (`digits-shift`) has one row per image and a column
    per condition instead.

    Args:
        images: float tensor (B, C, H, W) in [0, 1], C = 1 or 3.
        suite: a name from `list_suites()`.
        names: corruptions of the suite, all by default.
        severities: columns, 1 to 5.
        seed: passed to `corrupt`.
        cell_inches: width of a picture in the figure.

    Returns:
        A matplotlib Figure that belongs to no window: `figure.savefig(path)` writes it.

    Raises:
        ValueError: if images or names is empty, or suite, names, images or severities are not as `corrupt` takes them.
        ImportError: without matplotlib, which the extra `eval` installs.
    """
    figure_class = import_figure("corruption_gallery needs", "eval")
    known = list_corruptions(suite)
    if len(images) == 0:
        raise ValueError("images is empty; pass at least one image to draw")
    if names is not None and not names:
        raise ValueError(f"names is empty; leave it out to draw all of {suite}, or pass at least one corruption")
    chosen = known if names is None else [name if "/" in name else f"{suite}/{name}" for name in names]
    corruptions = [get_corruption(name) for name in chosen]
    if any(corruption.severities for corruption in corruptions):
        headings = ["clean", *(f"severity {severity}" for severity in severities)]
        rows = [
            (corruption.name, [image, *(corrupt(image, corruption, severity, seed, [row]) for severity in severities)])
            for row, corruption in enumerate(corruptions)
            for image in [images[row % len(images)][None]]
        ]
    else:
        headings = [corruption.name for corruption in corruptions]
        rows = [
            ("", [corrupt(image[None], corruption, 1, seed, [row]) for corruption in corruptions])
            for row, image in enumerate(images)
        ]
    return _contact_sheet(figure_class, headings, rows, cell_inches)


def _contact_sheet(
    figure_class: type[Figure], headings: list[str], rows: list[tuple[str, list[torch.Tensor]]], cell_inches: float
) -> Figure:
    height, width = rows[0][1][0].shape[-2:]
    label = 1.5 if any(title for title, _ in rows) else 0.1
    cell_height = cell_inches * height / width
    figure = figure_class(figsize=(label + cell_inches * len(headings), 0.3 + cell_height * len(rows)), dpi=100)
    axes = figure.subplots(len(rows), len(headings), squeeze=False)
    figure.subplots_adjust(
        left=label / figure.get_figwidth(),
        right=1,
        bottom=0,
        top=1 - 0.3 / figure.get_figheight(),
        wspace=0.03,
        hspace=0.03,
    )
    for line, (title, pictures) in zip(axes, rows, strict=True):
        line[0].text(-0.06, 0.5, title.replace("_", " "), transform=line[0].transAxes, ha="right", va="center")
        for axis, picture in zip(line, pictures, strict=True):
            pixels = picture[0].clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
            axis.imshow(pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels)
            axis.set_axis_off()
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading.replace("_", " "), fontsize=8, pad=3)
    return figure
