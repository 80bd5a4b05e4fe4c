# /// script
# requires-python = ">=3.11"
# dependencies = ["matplotlib>=3.8"]
# ///
"""Draws how_it_works.png, the figure of the README: both passes in training and at test time. Takes a second.

python examples/figures/how_it_works.py [--output FILE]
"""

import argparse
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch


INK, GREY, ORANGE, PAPER = "#2d3540", "#e4e8ec", "#f7c98b", "#ffffff"


def box(axis: Axes, x: float, y: float, text: str, color: str, width: float = 1.7, height: float = 0.62) -> None:
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.04", fc=color, ec=INK)
    axis.add_patch(shape)
    axis.text(x, y, text, ha="center", va="center", fontsize=9, color=INK)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", style: str = "-") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "linestyle": style})
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.13)
        axis.text(*middle, text, ha="center", fontsize=8, color=INK)


def passes(axis: Axes, title: str, signal: str, outcome: str, below: str) -> None:
    """Two passes through one network: without a signal above, with a signal below."""
    axis.set_title(title, fontsize=11, color=INK, loc="left")
    for y, second in ((2.4, False), (0.9, True)):
        box(axis, 0.6, y, "images x", PAPER, 1.1)
        box(axis, 2.5, y, "stem", GREY, 1.0)
        box(axis, 4.7, y, "rest of the backbone", GREY, 2.0)
        box(axis, 6.9, y, "y1" if second else "y0", ORANGE, 0.7)
        arrow(axis, (1.2, y), (1.95, y))
        arrow(axis, (3.05, y), (3.65, y), "+" if second else "")
        arrow(axis, (5.75, y), (6.5, y))
    box(axis, 3.35, -0.25, "label embedder", ORANGE, 1.6, 0.5)
    arrow(axis, (3.35, 0.05), (3.35, 0.85))
    axis.text(2.45, -0.25, signal, ha="right", va="center", fontsize=9, color=INK)
    axis.text(7.45, 1.65, outcome, ha="left", va="center", fontsize=9, color=INK)
    axis.text(-0.1, -1.0, below, ha="left", va="center", fontsize=9, color=INK)
    axis.set_xlim(-0.2, 10.6)
    axis.set_ylim(-1.3, 2.9)
    axis.set_axis_off()


def draw() -> Figure:
    figure = Figure(figsize=(8.2, 6.2), layout="constrained", facecolor=PAPER)
    training, testing = figure.subplots(2, 1)
    passes(
        training,
        "Training: IT3Trainer",
        "true label, one-hot",
        "loss = CE(y0, label)\n+ w · CE(y1, label)",
        "The model learns to answer without a signal, and to agree with a signal that is right.",
    )
    passes(
        testing,
        "Test time: TestTimeAdapter, no labels",
        "its own y0",
        "D(y1, y0) is small on images\nlike the training images\nand large on shifted ones",
        "If D is large: a few optimizer steps on D (and diversity), on a copy of the weights; then answer with y0.",
    )
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("how_it_works.png"))
    draw().savefig(parser.parse_args().output, dpi=130)
