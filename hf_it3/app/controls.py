"""What visitors choose from: images, corruptions, and settings of the adaptation."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from ..evaluation.corruptions import get_corruption
from ..it3.adaptation_config_it3 import SCOPES, AdaptationConfig
from ..it3.backbone_defaults_it3 import resolve_defaults
from .answers import corruption_menu
from .sample_images import SMALL_SIDE
from .served_model import ServedModel
from .visitor_images import MAX_IMAGES, readable_drawing


NO_CORRUPTION = "Nothing"
EXAMPLE_BATCH = 32
# Of those that digits know, the one under which adaptation shows most; photographs start with the first of theirs.
_DIGITS_CORRUPTION = "digits-shift/brightness"
_SHOWN_SAMPLES = 24
_CANVAS = 280
_STEPS_INFO = "For images that adapt together, and for an image alone without augmentations"
_ALONE = (
    "An image alone is averaged over its augmentations. To see weights adapt, bring several, or set steps on them."
)
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


@dataclass
class Images:
    """The components of the three ways to choose images: pick, draw and upload."""

    source: gr.State
    picked: gr.State
    gallery: gr.Gallery
    batch: gr.Slider
    drawing: gr.Sketchpad
    files: gr.File
    tabs: dict[str, gr.Tab]

    @property
    def changes(self) -> list[Any]:
        """The events by which a visitor chooses other images; those of the drawing come while it is blank, too."""
        files = (self.files.upload, self.files.delete, self.files.clear)
        return [self.gallery.select, self.batch.input, *files]

    @property
    def inputs(self) -> list[Any]:
        """The components whose values choose the images."""
        return [self.source, self.picked, self.batch, self.drawing, self.files]


def num_channels(served: ServedModel) -> int:
    """Number of channels of the images that a model takes."""
    return 1 if served.model is None else served.model.config.image_channels


def default_corruption(served: ServedModel) -> tuple[str, str]:
    """Title of the suite and qualified name of the corruption that test images start with."""
    title, choices = next(iter(corruption_menu(num_channels(served)).items()))
    return title, _DIGITS_CORRUPTION if served.reads_digits else choices[0][1]


def image_controls(served: ServedModel) -> Images:
    """Makes the tabs to pick, draw and upload."""
    samples = served.samples
    source, picked = gr.State("upload" if samples is None else "sample"), gr.State(0)
    tabs = {}
    # Named, because a page without test images would otherwise open at the first tab, which it hides.
    with gr.Tabs(selected=source.value):
        with gr.Tab("Test image", id="sample", visible=samples is not None) as tabs["sample"]:
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
                1,
                MAX_IMAGES,
                EXAMPLE_BATCH,
                step=1,
                label="Images in the batch",
                info="The picked one and others adapt together",
            )
        with gr.Tab("Draw", id="draw", visible=served.reads_digits) as tabs["draw"]:
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
        with gr.Tab("Upload", id="upload") as tabs["upload"]:
            files = gr.File(
                file_count="multiple",
                # Short, because on a telephone two buttons stand beside it.
                label=f"Up to {MAX_IMAGES} images, as one batch",
                height=180,
                elem_id="upload",
            )
            gr.Markdown(_ALONE)
    gallery.select(_picked, outputs=picked, **_QUIET)
    return Images(source, picked, gallery, batch, drawing, files, tabs)


def _thumbnail(image: Image.Image) -> Image.Image:
    """Makes a square for the gallery; pixels of small images are not smoothed."""
    if max(image.size) <= SMALL_SIDE:
        return image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.NEAREST)
    return ImageOps.fit(image, (2 * SMALL_SIDE, 2 * SMALL_SIDE))


def _picked(event: gr.SelectData) -> int:
    return event.index


def corruption_controls(served: ServedModel, images: Images) -> list[Any]:
    """Makes the choice of suite, corruption and severity. Test images start corrupted, drawings and uploads do not."""
    menu = corruption_menu(num_channels(served))
    suite_of_samples, name_of_samples = default_corruption(served)
    is_spoiled = served.samples is not None
    suite = gr.Radio(
        [NO_CORRUPTION, *menu],
        value=suite_of_samples if is_spoiled else NO_CORRUPTION,
        label="Spoil it with",
        elem_id="suite",
    )
    # Not a dropdown: that would open upwards and cover the titles above.
    name = gr.Radio(
        menu[suite_of_samples], value=name_of_samples, label="Corruption", visible=is_spoiled, elem_id="corruption"
    )
    severity = gr.Slider(
        1,
        5,
        3,
        step=1,
        label="Severity",
        visible=is_spoiled and _has_severities(name_of_samples),
        elem_id="severity",
    )

    def show(title: str) -> list[Any]:
        if title == NO_CORRUPTION:
            return [gr.update(visible=False), gr.update(visible=False)]
        chosen = name_of_samples if title == suite_of_samples else menu[title][0][1]
        shown = gr.update(choices=menu[title], value=chosen, visible=True)
        return [shown, gr.update(visible=_has_severities(chosen))]

    suite.input(show, suite, [name, severity], **_QUIET)
    name.input(lambda name: gr.update(visible=_has_severities(name)), name, severity, **_QUIET)
    for source, tab in images.tabs.items():
        title = suite_of_samples if source == "sample" else NO_CORRUPTION
        tab.select(
            lambda source=source, title=title: [source, title, *show(title)],
            outputs=[images.source, suite, name, severity],
            **_QUIET,
        )
    return [suite, name, severity]


def _has_severities(name: str) -> bool:
    return bool(get_corruption(name).severities)


def adaptation_controls(served: ServedModel) -> tuple[list[Any], gr.Button]:
    """Makes the settings of adaptation, which start with the model's own, and the button that resets a stream."""
    own = (
        AdaptationConfig() if served.model is None else resolve_defaults(served.model.config.adaptation, served.model)
    )
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
            info="Of an image whose answer is averaged",
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
    scope.change(lambda chosen: gr.update(visible=chosen == "stream"), scope, forget, **_QUIET)
    return [scope, num_steps, learning_rate, augmentations, augmentation_steps, gated], forget
