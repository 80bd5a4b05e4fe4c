"""Results as HTML and SVG in the colours of the page's theme, light or dark."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from .answers import Answer, Result


CSS = """
.it3 { color: var(--body-text-color); }
.it3 h3 { margin: 0 0 .4rem; font-size: 1rem; font-weight: 600; color: var(--body-text-color); }
.it3 p { margin: .3rem 0; }
.it3 .muted { color: var(--it3-muted); font-size: .875rem; }
.it3 .panel { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .9rem; margin-bottom: .8rem;
  background: var(--block-background-fill); }
.it3 .pair { display: flex; flex-wrap: wrap; gap: 1rem; }
.it3 .pair > .picture { flex: 0 0 11rem; max-width: 100%; }
.it3 .pair > .bars, .it3 .pair > .chart { flex: 1 1 16rem; min-width: 0; }
.it3 .picture img { width: 100%; border-radius: 6px; image-rendering: pixelated; margin: 0; background: #000; }
.it3 .picture img, .it3 .card img { box-shadow: 0 0 0 1px var(--border-color-primary); }
.it3 .scores { display: grid; grid-template-columns: fit-content(min(9rem, 36%)) 1fr 3rem; gap: .15rem .5rem; }
.it3 .bar { display: grid; grid-column: 1 / -1; grid-template-columns: subgrid;
  align-items: center; margin-bottom: .3rem; font-size: .8125rem; line-height: 1.1; }
.it3 .bar .name { grid-row: span 2; min-width: 1.4rem; overflow-wrap: anywhere; font-weight: 600; }
.it3 .track { height: .55rem; border-radius: 3px; background: var(--border-color-primary); overflow: hidden; }
.it3 .track > span { display: block; height: 100%; border-radius: 3px; }
.it3 .number { text-align: right; font-variant-numeric: tabular-nums; }
.it3 .before { background: var(--it3-before); } .it3 .after { background: var(--it3-after); }
.it3 .key { display: inline-block; width: .8rem; height: .55rem; border-radius: 3px; margin: 0 .3rem 0 0; }
.it3 svg { width: 100%; max-width: 30rem; height: auto; display: block; }
.it3 svg text { fill: var(--it3-muted); font-size: 12px; font-family: inherit; }
.it3 .cards { display: grid; gap: .6rem; }
.it3 .card { font-size: .8125rem; text-align: center; overflow-wrap: anywhere; }
.it3 .card img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 4px;
  background: #000; margin: 0 0 .2rem; }
.it3 .right { color: var(--it3-right); font-weight: 600; } .it3 .wrong { color: var(--it3-wrong); font-weight: 600; }
.it3 progress { width: 100%; height: .6rem; accent-color: var(--it3-after); }
.it3 h3:not(:first-child) { margin-top: .6rem; }
#result .html-container { padding: 0; }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(3.2rem, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; gap: .3rem; }
#samples .gallery-item { height: auto; min-height: 0; }
.it3 .entry { white-space: nowrap; }
#samples, #samples .grid-wrap { min-height: 0; max-height: none; height: auto; }
#samples .thumbnail-lg { aspect-ratio: 1; height: auto; min-height: 0; }
#samples img { image-rendering: pixelated; }
:root { --it3-muted: #56637a; --it3-before: #8a96a3; --it3-after: #e08a1e;
  --it3-right: #1a7f37; --it3-wrong: #c62828; }
.dark { --it3-muted: #a5b1c2; --it3-before: #9aa5b1; --it3-after: #f2a33a;
  --it3-right: #57c878; --it3-wrong: #ff8a80; }
"""

MAX_CLASSES = 10
_WIDTH, _HEIGHT = 320, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 12, 12, 22, 24


def render_result(result: Result, clean: Sequence[float]) -> str:
    """Everything that a visitor sees of a result.

    Args:
        result: of [`classify`].
        clean: idempotence distances of clean images, as many as are known.
    """
    first = result.answers[0]
    parts = [
        _panel(
            f'<div class="pair"><div class="picture"><h3>Input image</h3>{_image(first.pixels, 176)}'
            f"{_verdict(first)}</div>"
            f'<div class="bars"><h3>Class probabilities</h3>{_legend()}{_bars(first)}</div></div>'
        ),
        _panel(f"<h3>{_headline(result)}</h3>{_explanation(result)}<p class='muted'>{_timing(result)}</p>"),
        _panel(
            f'<div class="pair"><div class="chart">{_distances(result, clean)}</div>'
            f'<div class="chart">{_losses(result)}</div></div>'
        ),
    ]
    if len(result.answers) > 1:
        parts.append(_panel(_cards(result)))
    return f'<div class="it3" data-testid="result">{"".join(parts)}</div>'


def render_message(message: str) -> str:
    """A line instead of a result."""
    return f'<div class="it3"><p class="muted">{html.escape(message)}</p></div>'


def render_alert(message: str) -> str:
    """What went wrong, where the result would be."""
    return (
        '<div class="it3"><div class="panel" role="alert"><h3>That did not work</h3>'
        f"<p>{html.escape(message)}</p></div></div>"
    )


def render_progress(share: float) -> str:
    """How far the training at the first start is."""
    return (
        f'<div class="it3"><p class="muted">Training the model on 1,297 digits, once: {share:.0%}</p>'
        f'<progress value="{share:.3f}" max="1" aria-label="training"></progress></div>'
    )


def _panel(content: str) -> str:
    return f'<div class="panel">{content}</div>'


def _image(pixels: Tensor, side: int) -> str:
    array = (255 * pixels.clamp(0, 1)).round().byte().numpy()
    image = Image.fromarray(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1))
    image.thumbnail((2 * side, 2 * side))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _verdict(answer: Answer) -> str:
    if answer.truth is None:
        return ""
    return f'<p class="muted">It shows <b>{html.escape(_short(answer.truth))}</b></p>'


def _legend() -> str:
    return (
        '<p class="muted"><span class="key before"></span>before &nbsp; '
        '<span class="key after"></span>after adaptation</p>'
    )


def _bars(answer: Answer) -> str:
    bars = list(zip(answer.labels, answer.before, answer.after, strict=True))
    # By name where all fit, so that bars do not change places from one try to the next.
    is_short = len(bars) <= MAX_CLASSES
    bars.sort(key=lambda bar: bar[0].casefold() if is_short else -max(bar[1:]))
    rows = []
    for name, before, after in bars[:MAX_CLASSES]:
        rows.append(
            f'<div class="bar" data-label="{html.escape(name)}" data-before="{before:.4f}" data-after="{after:.4f}">'
            f'<span class="name">{html.escape(_short(name))}</span>'
            f'<span class="track"><span class="before" style="width:{100 * before:.1f}%"></span></span>'
            f'<span class="number">{before:.1%}</span>'
            f'<span class="track"><span class="after" style="width:{100 * after:.1f}%"></span></span>'
            f'<span class="number">{after:.1%}</span></div>'
        )
    return f'<div class="scores">{"".join(rows)}</div>'


def _short(name: str) -> str:
    return name.removeprefix("LABEL_").split(",")[0]


def _headline(result: Result) -> str:
    answers = result.answers
    count = len(answers)
    changed = sum(answer.changed for answer in answers)
    images = "The image was" if count == 1 else f"{changed} of {count} images were"
    if not changed:
        below = result.gate is not None and result.looked_at < result.gate
        reason = "the distance lies below the gate: no shift" if below else "no steps were asked for"
        return f"Not adapted: {reason}"
    how = "averaged over augmentations" if result.only_averaged else "adapted to"
    if answers[0].truth is None:
        return f"{images} {how}"
    before = sum(answer.top_before == answer.truth for answer in answers)
    after = sum(answer.top_after == answer.truth for answer in answers)
    return f"{images} {how}. Right before: {before} of {count}, after: {after} of {count}"


def _explanation(result: Result) -> str:
    if not result.only_averaged:
        return ""
    return '<p class="muted">That leaves the weights as they are, so it is done whatever the gate says.</p>'


def _timing(result: Result) -> str:
    milliseconds = 1000 * result.seconds
    count = len(result.answers)
    each = f", {milliseconds / count:.1f} ms per image" if count > 1 else ""
    return f"{milliseconds:.0f} ms in all, reading the image, both passes and adaptation included{each}"


def _cards(result: Result) -> str:
    cards = []
    for answer in result.answers:
        labels = []
        for label in dict.fromkeys((answer.top_before, answer.top_after)):
            kind = "" if answer.truth is None else "right" if label == answer.truth else "wrong"
            labels.append(f'<span class="{kind}">{html.escape(_short(label))}</span>')
        cards.append(f'<div class="card">{_image(answer.pixels, 84)}{" &rarr; ".join(labels)}</div>')
    # As wide as the longest word, so that none has to be broken.
    names = {_short(name) for answer in result.answers for name in (answer.top_before, answer.top_after)}
    longest = max(len(word) for word in " ".join(names).split(" "))
    width = min(max(3.8, 0.55 * longest), 8)
    return (
        "<h3>The whole batch, before &rarr; after where that differs</h3>"
        f'<div class="cards" style="grid-template-columns: repeat(auto-fill, minmax({width:.1f}rem, 1fr))">'
        f"{''.join(cards)}</div>"
    )


def _scale(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _text(x: float, y: float, content: str) -> str:
    anchor = "start" if x < _WIDTH / 3 else "end" if x > 2 * _WIDTH / 3 else "middle"
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{content}</text>'


def _svg(content: str, description: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{description}">{content}</svg>'


def _axis() -> str:
    y = _HEIGHT - _BOTTOM
    return f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="var(--it3-muted)"/>'


def _distances(result: Result, clean: Sequence[float]) -> str:
    """The distances of the images as ticks on an axis, over the histogram of clean ones, with the gate."""
    own = [answer.distance for answer in result.answers]
    marks = [*own, *clean, result.looked_at] + ([] if result.gate is None else [result.gate])
    low, high = min(marks), max(marks)
    margin = 0.03 * (high - low) or 0.01
    low, high = low - margin, high + margin
    floor = _HEIGHT - _BOTTOM
    parts = [_histogram(clean, low, high, floor), _axis()]
    for distance in own:
        x = _scale(distance, low, high)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{floor - 14}" y2="{floor}" stroke="var(--it3-after)" '
            'stroke-width="2" stroke-opacity=".7"/>'
        )
    x = _scale(result.looked_at, low, high)
    parts.append(f'<path d="M{x:.1f} {floor - 15} l-5 -9 h10 z" fill="var(--it3-after)"/>')
    if result.gate is not None:
        x = _scale(result.gate, low, high)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{floor}" stroke="var(--body-text-color)" '
            'stroke-dasharray="4 3"/>' + _text(x, _TOP - 10, f"gate {result.gate:.3f}")
        )
    parts.append(_text(_LEFT, _HEIGHT - 8, f"{low:.3f}") + _text(_WIDTH - _RIGHT, _HEIGHT - 8, f"{high:.3f}"))
    caption = (
        f'<span class="entry"><span class="key after"></span>{result.whose}: '
        f'<b data-testid="distance">{result.looked_at:.3f}</b></span>'
    )
    if clean:
        caption += f' &nbsp; <span class="entry"><span class="key before"></span>{len(clean)} clean test images</span>'
    return (
        f'<h3>Idempotence distance</h3>{_svg("".join(parts), "idempotence distances")}<p class="muted">{caption}</p>'
    )


def _histogram(values: Sequence[float], low: float, high: float, floor: float) -> str:
    if not values:
        return ""
    counts, edges = np.histogram(values, bins=40, range=(low, high))
    # Square roots, because nearly all clean images lie at the very left and the rest would not be seen.
    heights = np.sqrt(counts / counts.max()) * (floor - _TOP)
    width = (_WIDTH - _LEFT - _RIGHT) / 40
    return "".join(
        f'<rect x="{_scale(edge, low, high):.1f}" y="{floor - height:.1f}" width="{width - 1:.1f}" '
        f'height="{height:.1f}" fill="var(--it3-before)" fill-opacity=".6"/>'
        for edge, height in zip(edges, heights, strict=False)
        if height > 0
    )


def _losses(result: Result) -> str:
    losses = result.losses
    title = "<h3>Loss per step</h3>"
    if not losses:
        if not any(answer.changed for answer in result.answers):
            why = "The gate stayed closed, or no steps were asked for."
        else:
            why = (
                "An image that adapts alone is averaged over its augmentations, by default without optimizer steps."
                if result.only_averaged
                else "The statistics of the batch took the place of those of the training images."
            )
        return f'{title}<p class="muted">No optimizer steps were taken. {why}</p>'
    low, high = min(losses), max(losses)
    points = []
    for step, loss in enumerate(losses):
        x = _scale(step, 0, len(losses) - 1)
        share = (loss - low) / (high - low) if high > low else 0.5
        points.append((x, _HEIGHT - _BOTTOM - 6 - share * (_HEIGHT - _TOP - _BOTTOM - 6)))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    content = (
        f'{_axis()}<polyline points="{path}" fill="none" stroke="var(--it3-after)" stroke-width="2"/>'
        + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var(--it3-after)"/>' for x, y in points)
        + _text(_LEFT, _HEIGHT - 8, "step 1")
        + (_text(_WIDTH - _RIGHT, _HEIGHT - 8, f"step {len(losses)}") if len(losses) > 1 else "")
    )
    caption = f"from <b>{losses[0]:.3f}</b> before step 1 to <b>{losses[-1]:.3f}</b> before step {len(losses)}"
    return f'{title}{_svg(content, "loss per step")}<p class="muted" data-testid="losses">{caption}</p>'
