"""The page, and what happens when a visitor arrives, chooses and presses the button."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from ..evaluation.corruptions import corrupt, corrupt_maps
from ..it3.adaptation_config_it3 import AdaptationConfig
from ..it3.backbone_defaults_it3 import resolve_defaults
from ..utils import import_figure
from .answer_view import AnswerView
from .answers import Result, classify
from .controls import (
    EXAMPLE_BATCH,
    NO_CORRUPTION,
    adaptation_controls,
    corruption_controls,
    default_corruption,
    image_controls,
)
from .rendering import CSS, progress, say
from .served_model import ServedModel
from .visitor_images import MAX_BYTES, UnreadableFilesError, is_blank, read_drawing, read_uploads


# Weights that a visitor's adaptation changed are forgotten after an hour without a visit.
_VISITOR_SECONDS = 3600
# System fonts: a page that fetches fonts from elsewhere tells somebody who visits it.
_FONTS = ("system-ui", "sans-serif")
_EXAMPLE_SEVERITY = 3
# What becomes a message to the visitor.
MESSAGES = (ValueError, TypeError, ImportError, OSError)
_INTRODUCTION = """# Idempotent test-time training
A model reads an image twice, the second time with its first answer as a hint; where an image is spoiled the two
answers differ, and a few training steps that bring them together make it right more often, without a label
([the paper](https://arxiv.org/abs/2410.04201)). {}
"""


class Page:
    """Handles the events of the page. Visitors share the model's weights, but never adapted ones."""

    def __init__(self, served: ServedModel):
        self.served = served
        self._example: tuple[Result, Tensor, int] | None = None
        self._example_lock = threading.Lock()

    @property
    def ways(self) -> str:
        """The ways to bring an image, in words."""
        if self.served.samples is None:
            return "Upload images and see."
        return "Pick, draw or upload your own." if self.served.reads_digits else "Pick or upload your own."

    def is_ready(self) -> bool:
        """Whether the model can be used."""
        return self.served.model is not None and self.served.finished.is_set() and not self.served.error

    def answer(
        self,
        classifier: Any,
        source: str,
        picked: int,
        batch: int,
        drawing: Any,
        files: list[str] | None,
        suite: str,
        corruption: str,
        severity: int,
        scope: str,
        num_steps: int,
        learning_rate: float,
        augmentations: int,
        augmentation_steps: int,
        gated: bool,
    ) -> tuple[Any, Result, Tensor]:
        """Corrupts the visitor's images and adapts to them.

        Returns:
            The visitor's pipeline, the result, and the images `(N, C, H, W)` before they were corrupted.

        Raises:
            ValueError, TypeError, ImportError, OSError: for what cannot be read or done, in words for the visitor.
        """
        model = self.served.model
        if model is None or not self.is_ready():
            raise ValueError("The model is not ready yet; wait a moment and try again.")
        if not isinstance(learning_rate, (int, float)) or not 0 <= learning_rate <= 1:
            raise ValueError("The learning rate must be a number from 0 to 1.")
        settings: dict[str, Any] = {"scope": scope, "learning_rate": learning_rate}
        if scope != "average":
            settings["num_steps"] = num_steps
        own = resolve_defaults(model.config.adaptation.replace(scope=scope), model)
        if scope == "average" or (scope == "batch" and own.single_image == "average"):
            settings.update(augmentations=augmentations, augmentation_steps=augmentation_steps)
        elif scope == "stream" and own.average_answers != "never":
            settings["augmentations"] = augmentations
        if not gated:
            settings["gate"] = None
        elif model.config.adaptation.gate is None:
            settings["gate"] = AdaptationConfig().gate
        images, truths = self._images(source, picked, batch, drawing, files)
        originals = self.served.read(images)
        classifier = classifier or self.served.classifier()
        spoil = None if suite == NO_CORRUPTION else (corruption, int(severity))
        known = self.served.read_truths(images, truths)
        return classifier, self._answer(classifier, originals, known, spoil, **settings), originals

    def _answer(
        self,
        classifier: Any,
        originals: Tensor,
        known: Any,
        spoil: tuple[str, int] | None,
        **settings: Any,
    ) -> Result:
        """Corrupts images and answers them; true maps of classes move with the pixels."""
        if isinstance(known, Tensor) and spoil is not None:
            known = corrupt_maps(known, *spoil)
        return classify(classifier, originals if spoil is None else corrupt(originals, *spoil), known, **settings)

    def example(self) -> tuple[Result, Tensor, int] | None:
        """Answers corrupted test images, as an example, with the model's own settings; the same for all visitors.

        Returns:
            The result, the images before they were spoiled, and the position of the first among the test images: one
            that adaptation put right, where there is one. `None` without test images.
        """
        samples = self.served.samples
        if samples is None or not self.is_ready():
            return None
        with self._example_lock:
            if self._example is None:
                picked = 0
                result, originals = self._work_example(picked)
                for position, answer in enumerate(result.answers):
                    if answer.maps is None and answer.top_before != answer.truth == answer.top_after:
                        picked = position
                        result, originals = self._work_example(picked)
                        break
                self._example = result, originals, picked
        return self._example

    def _work_example(self, picked: int) -> tuple[Result, Tensor]:
        images, truths = self._images("sample", picked, EXAMPLE_BATCH, None, None)
        originals = self.served.read(images)
        spoil = (default_corruption(self.served)[1], _EXAMPLE_SEVERITY)
        known = self.served.read_truths(images, truths)
        return self._answer(self.served.classifier(), originals, known, spoil), originals

    def _images(
        self, source: str, picked: int, batch: int, drawing: Any, files: list[str] | None
    ) -> tuple[list[Image.Image], list[Any] | None]:
        if source == "upload":
            return read_uploads(files), None
        samples = self.served.samples
        if samples is None:
            raise ValueError("There are no test images for this model; upload an image.")
        if source == "draw":
            return [read_drawing(drawing, samples.margin)], None
        return samples.batch(int(picked), int(batch))


def build_app(served: ServedModel) -> gr.Blocks:
    """Builds the page around a model, which may still be in preparation."""
    page = Page(served)
    with gr.Blocks(title="Idempotent test-time training", analytics_enabled=False) as app:
        gr.Markdown(_INTRODUCTION.format(page.ways))
        status = gr.HTML(say("Starting ..."), elem_id="status", padding=False)
        with gr.Row(equal_height=False):
            # On a telephone the columns stand below each other: the button comes last, and the answer right under it.
            with gr.Column(scale=2, min_width=300):
                images = image_controls(served)
                corruption = corruption_controls(served, images)
                settings, forget = adaptation_controls(served)
                button = gr.Button("Adapt", variant="primary", interactive=False, elem_id="adapt")
            with gr.Column(scale=3, min_width=320):
                view = AnswerView(served.labels if served.segments else None)
        classifier = gr.State(None, time_to_live=_VISITOR_SECONDS)

        def press(classifier: Any, *choices: Any) -> list[Any]:
            files = gr.skip()
            try:
                classifier, result, originals = page.answer(classifier, *choices)
            except MESSAGES as error:
                if isinstance(error, UnreadableFilesError):
                    files = _without(choices[images.inputs.index(images.files)], error.paths)
                return [classifier, files, *view.complain(" ".join(str(error).split()))]
            return [classifier, files, *view.show(result, originals, served.clean)]

        def arrive() -> Iterator[list[Any]]:
            """Shows the progress of the first start's training until the model is there, then the example."""
            rest = [gr.skip()] * (len(view.components) + 2)
            while not served.finished.wait(0.25):
                yield [progress(served.progress), gr.update(interactive=False), *rest]
            if served.error:
                yield [say(f"The model cannot be used: {served.error}"), gr.update(interactive=False), *rest]
                return
            ready = [say(f"Model: {served.title}"), gr.update(interactive=True)]
            example = page.example()
            if example is None:
                yield [*ready, *rest]
                return
            result, originals, picked = example
            yield [*ready, gr.update(selected_index=picked), picked, *view.show(result, originals, served.clean)]

        events: dict[str, Any] = {"api_visibility": "private"}
        button.click(
            press,
            [classifier, *images.inputs, *corruption, *settings],
            [classifier, images.files, *view.components],
            concurrency_limit=4,
            show_progress_on=[view.message, view.headline, view.after],
            scroll_to_output=True,
            **events,
        )
        forget.click(
            lambda: [None, *view.say("Forgotten: the next images meet the model as it was.")],
            outputs=[classifier, *view.components],
            **events,
        )
        # Neither an answer nor what was wrong with a file is said of what is chosen after it.
        quiet: dict[str, Any] = {"outputs": view.message, "show_progress": "hidden", **events}
        chosen = [*images.changes, *(component.input for component in (*corruption, *settings))]
        gr.on(chosen, view.outdate, **quiet)
        # The sketchpad reports a drawing as soon as it is on the screen, perhaps after the button was pressed.
        images.drawing.input(
            lambda drawing: gr.skip() if is_blank(drawing) else view.outdate(), images.drawing, **quiet
        )
        app.load(
            arrive,
            outputs=[status, button, images.gallery, images.picked, *view.components],
            show_progress="hidden",
            **events,
        )
    return app


def _without(files: list[str], paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """An update of the uploaded files that leaves some out."""
    left = [file for file in files if file not in paths]
    return gr.update(value=left or None)


def theme() -> gr.themes.Base:
    """Colours and fonts of the page."""
    default = gr.themes.Default(primary_hue="orange", neutral_hue="slate", font=_FONTS, font_mono=("monospace",))
    # Gradio's own is too pale to be read on white.
    return default.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def launch(
    model: str | None = None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | os.PathLike | None = None,
    num_epochs: int | None = None,
    **kwargs: Any,
) -> gr.Blocks:
    """Starts the app.

    Args:
        model (`str`, *optional*): Hub name or path; by default the tutorial's network, trained at the first start.
        dataset, split, streaming, config_name, revision, trust_remote_code, cache_dir, num_epochs (*optional*): see
            [`ServedModel`].
        kwargs: arguments of gradio's `launch`; by default it listens on this machine only, or where the environment
            variable `GRADIO_SERVER_NAME` says, as on a Space.

    Returns:
        The app, once it has ended, or at once with `prevent_thread_lock=True`.

    Raises:
        OSError, ValueError, TypeError: for a model that cannot be loaded, or test images that cannot be read.
        ImportError: without matplotlib.
    """
    import_figure("the app's plots need", "app")
    served = ServedModel(
        model or None,
        cache_dir,
        num_epochs,
        dataset or None,
        split,
        streaming,
        config_name,
        revision,
        trust_remote_code,
    )
    app = build_app(served)
    served.start()
    with contextlib.suppress(KeyboardInterrupt):
        app.queue(max_size=64).launch(
            theme=theme(),
            css=CSS,
            footer_links=[],
            ssr_mode=False,
            share=False,
            max_file_size=MAX_BYTES,
            **kwargs,
        )
    return app
