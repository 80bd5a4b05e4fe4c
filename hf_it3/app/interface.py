"""The page: what visitors choose from, and where the answers appear."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from ..evaluation.corruptions import corrupt, get_corruption
from ..it3.adaptation_config_it3 import SCOPES, AdaptationConfig
from ..it3.backbone_defaults_it3 import resolve_defaults
from .answers import choose_corruptions, classify
from .rendering import CSS, render_alert, render_message, render_progress, render_result
from .sample_images import SMALL_SIDE
from .served_model import ServedModel
from .visitor_images import MAX_BYTES, MAX_IMAGES, read_drawing, read_uploads, readable_drawing


NO_CORRUPTION = "none"
# Of those that digits know, the one under which adaptation shows most; photographs start with the first of theirs.
DIGITS_CORRUPTION = "digits-shift/brightness"
_SHOWN_SAMPLES = 24
_CANVAS = 280
# Weights that a visitor's adaptation changed are forgotten after an hour without a visit.
_VISITOR_SECONDS = 3600
# System fonts: a page that fetches fonts from elsewhere tells somebody who visits it.
_FONTS = ("system-ui", "sans-serif")
_STEPS_INFO = "For images that adapt together, and for an image alone without augmentations"
_ALONE = (
    "An image alone is averaged over its augmentations. To see weights adapt, bring several, or set steps on them."
)
_INTRODUCTION = """# Idempotent test-time training
{} an image, spoil it, and see a model adapt itself to it without being told the answer.
"""


class Page:
    """What the page's events do. Visitors share the model's weights, and nothing that adaptation makes of them."""

    def __init__(self, served: ServedModel):
        self.served = served

    @property
    def ways(self) -> str:
        """How an image gets here, in words."""
        if self.served.samples is None:
            return "Upload"
        return "Pick, draw or upload" if self.served.reads_digits else "Pick or upload"

    @property
    def num_channels(self) -> int:
        model = self.served.model
        return 1 if model is None else getattr(model.config.backbone_config, "num_channels", 3)

    def wait(self) -> Iterator[tuple[str, Any]]:
        """Shows the progress of the first start's training until the model is there."""
        while not self.served.finished.wait(0.25):
            yield render_progress(self.served.progress), gr.update(interactive=False)
        if self.served.error:
            yield render_message(f"The model cannot be used: {self.served.error}"), gr.update(interactive=False)
        else:
            yield render_message(f"Model: {self.served.title}"), gr.update(interactive=True)

    def adapt(
        self,
        classifier: Any,
        source: str,
        picked: int,
        batch: int,
        drawing: Any,
        files: list[str] | None,
        corruption: str,
        severity: int,
        scope: str,
        num_steps: int,
        learning_rate: float,
        augmentations: int,
        augmentation_steps: int,
        gated: bool,
    ) -> tuple[Any, str]:
        """Corrupts the visitor's images, adapts to them, and renders what came of it."""
        model = self.served.model
        if model is None or not self.served.finished.is_set() or self.served.error:
            return classifier, render_alert("The model is not ready yet; wait a moment and try again.")
        classifier = classifier or self.served.classifier()
        if not isinstance(learning_rate, (int, float)) or not 0 <= learning_rate <= 1:
            return classifier, render_alert("The learning rate must be a number from 0 to 1.")
        settings: dict[str, Any] = {
            "scope": scope,
            "learning_rate": learning_rate,
        }
        if scope != "average":
            settings["num_steps"] = num_steps
        if scope == "average" or (scope == "batch" and model.config.adaptation.single_image == "average"):
            settings.update(augmentations=augmentations, augmentation_steps=augmentation_steps)
        if not gated:
            settings["gate"] = None
        elif model.config.adaptation.gate is None:
            settings["gate"] = AdaptationConfig().gate
        try:
            images, truths = self._images(source, picked, batch, drawing, files)
            pixels = self.served.read(images)
            if corruption != NO_CORRUPTION:
                pixels = corrupt(pixels, corruption, int(severity))
            result = classify(classifier, pixels, truths, **settings)
        except (ValueError, TypeError, ImportError, OSError) as error:
            return classifier, render_alert(" ".join(str(error).split()))
        return classifier, render_result(result, self.served.clean)

    def _images(
        self, source: str, picked: int, batch: int, drawing: Any, files: list[str] | None
    ) -> tuple[list[Image.Image], list[str] | None]:
        if source == "upload":
            return read_uploads(files), None
        samples = self.served.samples
        if samples is None:
            raise ValueError("There are no test images for this model; upload an image.")
        if source == "draw":
            return [read_drawing(drawing, samples.margin)], None
        return samples.batch(int(picked), int(batch))


def build_app(served: ServedModel) -> gr.Blocks:
    """The page around a model, which may still be in preparation."""
    page = Page(served)
    with gr.Blocks(title="Idempotent test-time training", analytics_enabled=False) as app:
        gr.Markdown(_INTRODUCTION.format(page.ways))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                inputs = _inputs(page)
                button = gr.Button("Adapt", variant="primary", interactive=False, elem_id="adapt")
                status = gr.HTML(render_message("Starting ..."), elem_id="status")
                settings = _settings(page)
            with gr.Column(scale=3, min_width=320):
                output = gr.HTML(render_message("The answer appears here."), elem_id="result")
        classifier = gr.State(None, time_to_live=_VISITOR_SECONDS)
        forget = settings.pop()
        button.click(
            page.adapt,
            [classifier, *inputs, *settings],
            [classifier, output],
            api_visibility="private",
            concurrency_limit=4,
            show_progress_on=output,
            scroll_to_output=True,
        )
        forget.click(
            lambda: (None, render_message("Forgotten: the next images meet the model as it was.")),
            outputs=[classifier, output],
            api_visibility="private",
        )
        app.load(page.wait, outputs=[status, button], show_progress="hidden", api_visibility="private")
    return app


def _inputs(page: Page) -> list[gr.components.Component | gr.State]:
    """Three ways to bring an image, and what to do to it."""
    samples = page.served.samples
    source, picked = gr.State("upload" if samples is None else "sample"), gr.State(0)
    # Named, because a page without test images would otherwise open at the first tab, which it hides.
    with gr.Tabs(selected=source.value):
        with gr.Tab("Test image", id="sample", visible=samples is not None) as sample_tab:
            gallery = gr.Gallery(
                [] if samples is None else [_thumbnail(image) for image in samples.images[:_SHOWN_SAMPLES]],
                columns=8,
                height="auto",
                show_label=False,
                allow_preview=False,
                selected_index=0,
                buttons=[],
                format="png",
                object_fit="contain",
                interactive=False,
                elem_id="samples",
            )
            batch = gr.Slider(
                1, MAX_IMAGES, 32, step=1, label="Images in the batch", info="The picked one and others adapt together"
            )
        with gr.Tab("Draw", id="draw", visible=page.served.reads_digits) as draw_tab:
            drawing = gr.Sketchpad(
                Image.new("RGB", (_CANVAS, _CANVAS), "white"),
                type="pil",
                image_mode="RGBA",
                canvas_size=(_CANVAS, _CANVAS),
                fixed_canvas=True,
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=20, colors=["#000000"], color_mode="fixed"),
                show_label=False,
                format="png",
                elem_id="drawing",
            )
            # Not by a subclass: gradio writes a file beside the source of each.
            drawing.preprocess = readable_drawing(drawing.preprocess)  # type: ignore[method-assign, assignment]
            gr.Markdown(_ALONE)
        with gr.Tab("Upload", id="upload") as upload_tab:
            files = gr.File(
                file_count="multiple",
                # Short, because on a telephone two buttons stand beside it.
                label=f"Up to {MAX_IMAGES} images, as one batch",
                height=180,
                elem_id="upload",
            )
            gr.Markdown(_ALONE)
    for tab, name in ((sample_tab, "sample"), (draw_tab, "draw"), (upload_tab, "upload")):
        tab.select(lambda name=name: name, outputs=source, api_visibility="private", show_progress="hidden")
    gallery.select(_picked, outputs=picked, api_visibility="private", show_progress="hidden")

    names = choose_corruptions(page.num_channels)
    default = DIGITS_CORRUPTION if page.served.reads_digits else names[0]
    with gr.Row():
        corruption = gr.Dropdown(
            [NO_CORRUPTION, *names], value=default, label="Corruption", scale=2, min_width=270, elem_id="corruption"
        )
        severity = gr.Slider(1, 5, 3, step=1, label="Severity", interactive=_has_severities(default), min_width=140)
    corruption.change(
        lambda name: gr.update(interactive=_has_severities(name)),
        corruption,
        severity,
        api_visibility="private",
        show_progress="hidden",
    )
    return [source, picked, batch, drawing, files, corruption, severity]


def _thumbnail(image: Image.Image) -> Image.Image:
    """A square for the gallery, with small images' pixels as they are."""
    if max(image.size) <= SMALL_SIDE:
        return image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.NEAREST)
    return ImageOps.fit(image, (2 * SMALL_SIDE, 2 * SMALL_SIDE))


def _picked(event: gr.SelectData) -> int:
    return event.index


def _has_severities(name: str) -> bool:
    return name != NO_CORRUPTION and bool(get_corruption(name).severities)


def _settings(page: Page) -> list[Any]:
    """The settings of adaptation that start with the model's own, and the button that forgets a stream."""
    model = page.served.model
    own = AdaptationConfig() if model is None else resolve_defaults(model.config.adaptation, model)
    own_steps = own.num_steps or 0
    with gr.Accordion("Settings of the adaptation", open=False, elem_id="settings"):
        scope = gr.Radio(list(SCOPES), value=own.scope, label="Scope", info="Who shares adapted weights")
        num_steps = gr.Slider(0, max(30, own_steps), own_steps, step=1, label="Steps", info=_STEPS_INFO)
        learning_rate = gr.Number(own.learning_rate, label="Learning rate", info="From 0 to 1", step=1e-4)
        augmentations = gr.Slider(
            0,
            max(32, own.augmentations),
            own.augmentations,
            step=1,
            label="Augmentations",
            info="Of an image that adapts alone",
        )
        augmentation_steps = gr.Slider(
            0,
            max(30, own.augmentation_steps),
            own.augmentation_steps,
            step=1,
            label="Steps on augmentations",
            info="0 only averages, and leaves the weights as they are",
        )
        gated = gr.Checkbox(own.gate is not None, label="Adapt only where the distance exceeds the gate")
        forget = gr.Button("Forget what the stream has learned", size="sm", visible=own.scope == "stream")
    scope.change(
        lambda chosen: gr.update(visible=chosen == "stream"),
        scope,
        forget,
        api_visibility="private",
        show_progress="hidden",
    )
    return [scope, num_steps, learning_rate, augmentations, augmentation_steps, gated, forget]


def theme() -> gr.themes.Base:
    """Colours and fonts of the page."""
    return gr.themes.Default(primary_hue="orange", neutral_hue="slate", font=_FONTS, font_mono=("monospace",))


def launch(
    model: str | None = None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    num_epochs: int | None = None,
    **kwargs: Any,
) -> gr.Blocks:
    """Starts the app.

    Args:
        model (`str`, *optional*): Hub name or path; by default the tutorial's network, trained at the first start.
        dataset, split, streaming, config_name, revision, cache_dir, num_epochs (*optional*): see [`ServedModel`].
        kwargs: arguments of gradio's `launch`; by default it listens on this machine only, or where the environment
            variable `GRADIO_SERVER_NAME` says, as on a Space.

    Returns:
        The app, once it has ended, or at once with `prevent_thread_lock=True`.

    Raises:
        OSError, ValueError, TypeError: for a model that cannot be loaded, or test images that cannot be read.
    """
    served = ServedModel(
        model or None, cache_dir, num_epochs, dataset or None, split, streaming, config_name, revision
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
