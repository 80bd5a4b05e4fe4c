"""The part of the page that shows the answers, before adaptation and after it."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from torch import Tensor

from .answers import Answer, Result
from .rendering import (
    MAX_CLASSES,
    THUMBNAIL_SIDE,
    caption,
    complain,
    distances_figure,
    headline,
    losses_figure,
    outlined,
    picture,
    say,
    scores,
    short,
    titled,
    why_no_steps,
)


class AnswerView:
    """The components that show a result, made where they stand on the page; their values come from its methods.

    Each method returns one value for each of `components`.

    Args:
        names (*optional*): of the classes of a model that segments images, whose maps are then shown as well.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self.names = names
        self.message = gr.HTML(say("The answer appears here."), elem_id="message", padding=False)
        with gr.Column(visible=False) as self.panel:
            self.headline = gr.HTML(elem_id="result", padding=False)
            with gr.Row():
                image: dict[str, Any] = {"format": "png", "interactive": False, "buttons": [], "min_width": 120}
                self.original = gr.Image(label="Original", elem_id="original", height=230, **image)
                self.spoiled = gr.Image(label="Spoiled", elem_id="spoiled", height=230, **image)
            self.truth = gr.Markdown(elem_id="truth")
            with gr.Row():
                label: dict[str, Any] = {"num_top_classes": MAX_CLASSES, "min_width": 120}
                self.before = gr.Label(label="Before", elem_id="before", **label)
                self.after = gr.Label(label="After", elem_id="after", **label)
            with gr.Row(visible=names is not None):
                annotated: dict[str, Any] = {"format": "png", "min_width": 120, "height": 280}
                self.maps = [
                    gr.AnnotatedImage(label=label, elem_id=elem_id, **annotated)
                    for label, elem_id in (("True", "map-truth"), ("Before", "map-before"), ("After", "map-after"))
                ]
            with gr.Row():
                plot: dict[str, Any] = {"format": "png", "show_label": False, "min_width": 280, "buttons": []}
                self.distances = gr.Plot(elem_id="distances", **plot)
                with gr.Column(min_width=280):
                    self.losses = gr.Plot(elem_id="losses", **plot)
                    self.no_steps = gr.Markdown()
            self.batch_title = gr.Markdown("### The whole batch: the answer before, and after where that differs")
            self.batch = gr.Gallery(
                show_label=False,
                columns=6,
                height="auto",
                object_fit="contain",
                format="png",
                buttons=[],
                interactive=False,
                elem_id="batch",
            )

    @property
    def components(self) -> list[Any]:
        """The components that a call changes."""
        return [
            *(
                self.message,
                self.panel,
                self.headline,
                self.original,
                self.spoiled,
                self.truth,
                self.before,
                self.after,
            ),
            *self.maps,
            *(self.distances, self.losses, self.no_steps, self.batch_title, self.batch),
        ]

    def show(self, result: Result, originals: Tensor, clean: Sequence[float]) -> list[Any]:
        """Shows a result.

        Args:
            result: of [`classify`].
            originals: the images `(N, C, H, W)` in [0, 1] before they were spoiled.
            clean: idempotence distances of clean images, as many as are known.
        """
        first = result.answers[0]
        is_spoiled = not first.pixels.equal(originals[0])
        why = why_no_steps(result)
        several = len(result.answers) > 1
        return [
            gr.update(visible=False),
            gr.update(visible=True),
            headline(result),
            gr.update(value=picture(originals[0]), label="Original" if is_spoiled else "Image"),
            gr.update(value=picture(first.pixels) if is_spoiled else None, visible=is_spoiled),
            gr.update(
                value="" if first.truth is None else f"The right answer is **{short(first.truth)}**.",
                visible=first.truth is not None,
            ),
            gr.update(value=scores(first, first.before), label=titled("Before", first, first.top_before)),
            gr.update(value=scores(first, first.after), label=titled("After", first, first.top_after)),
            *self._maps(first),
            distances_figure(result, clean),
            gr.update(value=None if why else losses_figure(result), visible=not why),
            gr.update(value=why, visible=bool(why)),
            gr.update(visible=several),
            gr.update(
                value=[(picture(answer.pixels, THUMBNAIL_SIDE), caption(answer)) for answer in result.answers]
                if several
                else None,
                visible=several,
            ),
        ]

    def _maps(self, answer: Answer) -> list[Any]:
        if self.names is None or answer.maps is None:
            return [gr.skip()] * len(self.maps)
        maps = answer.maps
        truth = outlined(answer, maps.truth, self.names)
        return [
            gr.update(value=truth, visible=truth is not None),
            outlined(answer, maps.before, self.names),
            outlined(answer, maps.after, self.names),
        ]

    @staticmethod
    def outdate() -> dict[str, Any]:
        """An update of `message` for the time between a choice and its answer; the one before stands below it."""
        return gr.update(value=say("Press Adapt for the answer to what you chose."), visible=True)

    def complain(self, message: str) -> list[Any]:
        """Shows an error in place of a result."""
        return self._only(complain(message))

    def say(self, message: str) -> list[Any]:
        """Shows a line in place of a result."""
        return self._only(say(message))

    def _only(self, message: str) -> list[Any]:
        rest = [gr.skip()] * (len(self.components) - 2)
        return [gr.update(value=message, visible=True), gr.update(visible=False), *rest]
