"""Results as the values of Gradio's components: words, scores by class, pictures and plots."""

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from ..data import as_bytes
from ..utils import new_figure
from .answers import Answer, Result


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels of small images stay visible; lists are as tall as what is in them.
CSS = """
.it3 h3 { margin: 0 0 .3rem; font-size: 1.05rem; font-weight: 600; }
.it3 p { margin: .2rem 0; }
.it3 .muted { color: var(--body-text-color-subdued); font-size: .875rem; }
.it3 .alert { border: 1px solid var(--error-border-color, #c62828); border-radius: 8px; padding: .8rem; }
.it3 progress { width: 100%; height: .6rem; accent-color: var(--primary-500); }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(2.9rem, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; gap: .3rem; }
#samples .gallery-item { height: auto; min-height: 0; }
#samples, #samples .grid-wrap { min-height: 0; max-height: none; height: auto; }
#samples .thumbnail-lg { aspect-ratio: 1; height: auto; min-height: 0; }
#status .html-container, #result .html-container, #message .html-container { padding: 0; }
#samples img, #batch img, #original img, #spoiled img { image-rendering: pixelated; }
#batch .grid-container { grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; }
#batch .grid-wrap { max-height: none; }
#corruption label { padding: .2rem .6rem; }
/* Above the picture, which it would cover. */
#original [data-testid="block-label"], #spoiled [data-testid="block-label"] { position: static; }
input[type="range"]::-webkit-slider-thumb { border: 1px solid var(--neutral-400); }
input[type="range"]::-moz-range-thumb { border: 1px solid var(--neutral-400); }
"""

MAX_CLASSES = 5
# Sides of the pictures that are shown, of one image and of a batch's.
_SIDE, THUMBNAIL_SIDE = 224, 112
_BEFORE, _AFTER = "#8a96a3", "#e08a1e"
# Legible on the light page and on the dark one.
_INK = "#6e7a88"
_BINS = 40


def say(message: str) -> str:
    """Renders a line instead of a result."""
    return f'<div class="it3"><p class="muted">{html.escape(message)}</p></div>'


def complain(message: str) -> str:
    """Renders an error in place of the result."""
    return (
        '<div class="it3"><div class="alert" role="alert"><h3>That did not work</h3>'
        f"<p>{html.escape(message)}</p></div></div>"
    )


def progress(share: float) -> str:
    """Renders the progress of the training at the first start."""
    return (
        f'<div class="it3"><p class="muted">Training the model on 1,297 digits, once: {share:.0%}</p>'
        f'<progress value="{share:.3f}" max="1" aria-label="training"></progress></div>'
    )


def headline(result: Result) -> str:
    """Summarises the outcome of a call and the time it took."""
    milliseconds, count = 1000 * result.seconds, len(result.answers)
    each = f", {milliseconds / count:.1f} ms per image" if count > 1 else ""
    timing = f"{milliseconds:.0f} ms in all, reading, both passes and adaptation included{each}"
    return (
        f'<div class="it3" data-testid="result" data-seconds="{result.seconds}"><h3>{_what_happened(result)}</h3>'
        f'{_explanation(result)}<p class="muted">{timing}</p></div>'
    )


def _what_happened(result: Result) -> str:
    answers = result.answers
    count = len(answers)
    changed = sum(answer.changed for answer in answers)
    images = "The image was" if count == 1 else f"{changed} of {count} images were"
    if not changed:
        reason = "the gate sees no shift" if result.shifts else "no steps were asked for"
        return f"Not adapted: {reason}"
    how = "averaged over augmentations" if result.only_averaged else "adapted to"
    if counted := sum(answer.maps.counted for answer in answers if answer.maps):
        before, after = (
            sum(answer.maps.right(getattr(answer.maps, name)) for answer in answers if answer.maps) / counted
            for name in ("before", "after")
        )
        return f"{images} {how}. Pixels right before: {before:.0%}, after: {after:.0%}"
    if answers[0].truth is None:
        return f"{images} {how}"
    before = sum(answer.top_before == answer.truth for answer in answers)
    after = sum(answer.top_after == answer.truth for answer in answers)
    return f"{images} {how}. Right before: {before} of {count}, after: {after} of {count}"


def _explanation(result: Result) -> str:
    sentences = []
    if result.only_averaged:
        sentences.append("That leaves the weights as they are, so it is done whatever the gate says.")
    if result.shifts and result.limit is not None:
        shifts = ", ".join(f"{words} {value:.1f}" for words, value in result.shifts.items())
        sentences.append(f"Standard errors from clean images: {shifts}. The gate opens above {result.limit:g}.")
    return f'<p class="muted">{" ".join(sentences)}</p>' if sentences else ""


def short(name: str) -> str:
    """The first of the names of a class."""
    return name.removeprefix("LABEL_").split(",")[0]


def scores(answer: Answer, values: Sequence[float]) -> dict[str, float]:
    """The score of each class, for `gr.Label`; classes of one name are numbered."""
    shown: dict[str, float] = {}
    for name, value in zip(map(short, answer.labels), values, strict=True):
        same = 2
        label = name
        while label in shown:
            label, same = f"{name} ({same})", same + 1
        shown[label] = value
    return shown


def mark(answer: Answer, label: str) -> str:
    """Whether a label is the true one, where that is known."""
    return "" if answer.truth is None else "\N{CHECK MARK}" if label == answer.truth else "\N{BALLOT X}"


def titled(title: str, answer: Answer, label: str) -> str:
    """The title of the scores that a label leads: `"After ✓"`."""
    return f"{title} {mark(answer, label)}".strip()


def outlined(answer: Answer, classes: np.ndarray | None, names: Sequence[str]) -> tuple[Image.Image, list] | None:
    """An image and the area of each class, for `gr.AnnotatedImage`; class 0 is the background where it has that name.

    Args:
        answer: to the image.
        classes: class of each pixel `(H, W)`, or `None`.
        names: of all classes.
    """
    if classes is None:
        return None
    shown = picture(answer.pixels)
    # As large as what is shown.
    large = np.asarray(Image.fromarray(classes.astype(np.int32)).resize(shown.size, Image.Resampling.NEAREST))
    indices = [index for index in np.unique(large) if index < len(names) and names[index] != "background"]
    return shown.convert("RGB"), [(large == index, short(names[index])) for index in indices]


def caption(answer: Answer) -> str:
    """The answer before and, where it differs, after: `"✗ 1 → ✓ 9"`; of a map the share of pixels that are right."""
    if answer.maps is not None:
        maps = answer.maps
        rights = [f"{maps.right(found) / maps.counted:.0%}" for found in (maps.before, maps.after) if maps.counted]
        return " \N{RIGHTWARDS ARROW} ".join(dict.fromkeys(rights))
    labels = dict.fromkeys((answer.top_before, answer.top_after))
    return " \N{RIGHTWARDS ARROW} ".join(f"{mark(answer, label)} {short(label)}".strip() for label in labels)


def picture(pixels: Tensor, side: int = _SIDE) -> Image.Image:
    """An image `(C, H, W)` in [0, 1] at about `side` pixels; a small one is enlarged without smoothing."""
    (array,) = as_bytes(pixels[None])
    image = Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))
    if (factor := side // max(image.size)) > 1:
        return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    image.thumbnail((side, side))
    return image


def distances_figure(result: Result, clean: Sequence[float]) -> "Figure":
    """Draws the distances of the images as ticks, over the histogram of clean ones, with the gate."""
    figure, (axis,) = new_figure(4.2, 2.5)
    _plain(figure, axis, "Idempotence distance")
    own = [answer.distance for answer in result.answers]
    if clean:
        label = f"{len(clean)} clean test images"
        axis.hist(clean, bins=_BINS, color=_BEFORE, alpha=0.7, label=label)
        # Nearly all clean images lie at the very left, and the rest would not be seen.
        axis.set_yscale("function", functions=(lambda count: abs(count) ** 0.5, lambda root: root**2))
    axis.plot(own, [0.06] * len(own), "|", color=_AFTER, markersize=14, transform=axis.get_xaxis_transform())
    label = f"{result.whose}: {result.looked_at:.3f}"
    axis.plot([result.looked_at], [0.2], "v", color=_AFTER, label=label, transform=axis.get_xaxis_transform())
    if result.gate is not None:
        axis.axvline(result.gate, color=_INK, linestyle="--", label=f"gate: {result.gate:.3f}")
    axis.set_yticks([])
    _legend(axis)
    return figure


def losses_figure(result: Result) -> "Figure":
    """Draws the objective before each optimizer step."""
    figure, (axis,) = new_figure(4.2, 2.5)
    _plain(figure, axis, "Loss before each step")
    steps = range(1, len(result.losses) + 1)
    axis.plot(steps, result.losses, "o-", color=_AFTER)
    axis.set_xticks(steps if len(steps) <= 10 else [1, len(steps)])
    return figure


def why_no_steps(result: Result) -> str:
    """Explains why there are no losses to draw."""
    if result.losses:
        return ""
    if not any(answer.changed for answer in result.answers):
        why = "The gate stayed closed, or no steps were asked for."
    elif result.only_averaged:
        why = "An image that adapts alone is averaged over its augmentations, by default without optimizer steps."
    else:
        why = "The statistics of the batch took the place of those of the training images."
    return f"No optimizer steps were taken. {why}"


def _plain(figure: "Figure", axis: "Axes", title: str) -> None:
    """Removes the background of a figure, so that the page's shows, light or dark."""
    figure.patch.set_alpha(0)
    axis.patch.set_alpha(0)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    axis.tick_params(colors=_INK, labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color(_INK)


def _legend(axis: "Axes") -> None:
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9, labelcolor=_INK, ncols=1)
