"""The app with a model that segments: maps beside the scores, in a real browser and its parts alone."""

import numpy as np
import pytest
import space_fixtures
import torch
from PIL import Image
from segmentation_families import PlainSegmenter
from space_fixtures import soon, visit
from transformers import MobileViTImageProcessor, SegformerImageProcessor


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from hf_it3 import IT3ForSemanticSegmentation, IT3ImageProcessor, IT3SegmentationPipeline
from hf_it3.app import launch
from hf_it3.app.answers import classify
from hf_it3.app.interface import Page
from hf_it3.app.rendering import caption, headline, outlined
from hf_it3.app.served_model import ServedModel
from hf_it3.corruptions import corrupt_maps
from hf_it3.data import SCENE_CLASSES, SegmentationCollator
from hf_it3.training.small_segformer import small_segformer


browser = space_fixtures.browser


@pytest.fixture(scope="module")
def scenes_model(tmp_path_factory):
    """A small SegFormer with random weights, saved with its processor."""
    folder = tmp_path_factory.mktemp("scenes")
    torch.manual_seed(0)
    model = IT3ForSemanticSegmentation.from_backbone(small_segformer(id2label=dict(enumerate(SCENE_CLASSES))))
    model.save_pretrained(folder)
    IT3ImageProcessor(num_channels=1, size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def served(scenes_model):
    served = ServedModel(scenes_model, dataset="scenes")
    served.samples.images, served.samples.truths = served.samples.images[:12], served.samples.truths[:12]
    served.prepare()
    assert not served.error
    return served


def test_maps_before_and_after_are_those_of_the_pipeline(served):
    pixels = served.read(served.samples.images[:4])
    truths = served.read_truths(served.samples.images[:4], served.samples.truths[:4])
    settings = {"gate": None, "num_steps": 2, "learning_rate": 0.01}
    result = classify(served.classifier(), pixels, truths, **settings)
    adapted = served.model.adapt((pixels - 0.5) / 0.5, **settings)
    for position, answer in enumerate(result.answers):
        maps = answer.maps
        assert maps.before.shape == maps.after.shape == maps.truth.shape == (32, 32)
        assert maps.counted == 32 * 32
        assert sum(answer.before) == pytest.approx(1)
        assert answer.adapted
        logits = torch.nn.functional.interpolate(adapted.logits[position : position + 1], (32, 32), mode="bilinear")
        # Through bytes, as a picture is.
        assert (logits[0].argmax(0).numpy() == maps.after).mean() > 0.95
        assert np.array_equal(maps.truth, np.asarray(served.samples.truths[position]))
    text = headline(result)
    counted = sum(answer.maps.counted for answer in result.answers)
    before = sum(int((answer.maps.before == answer.maps.truth).sum()) for answer in result.answers) / counted
    assert f"Pixels right before: {before:.0%}, after: " in text
    assert caption(result.answers[0]).endswith("%")


def test_true_maps_turn_with_their_images(served):
    page = Page(served)
    options = ("sample", 0, 2, None, None, "Digits", "digits-shift/rotation", 3, "batch", 1, 0.001, 4, 0, False)
    _, result, _ = page.answer(None, *options)
    expected = corrupt_maps(
        served.read_truths(served.samples.images[:1], served.samples.truths[:1]), "digits-shift/rotation"
    )
    assert np.array_equal(result.answers[0].maps.truth, expected[0].numpy())
    assert result.answers[0].maps.counted < 32 * 32


def test_areas_are_as_large_as_the_picture_and_leave_out_the_background(served):
    result = classify(served.classifier(), served.read(served.samples.images[:1]), gate=None)
    classes = np.zeros((32, 32), np.int64)
    classes[:8] = 4
    picture, areas = outlined(result.answers[0], classes, served.labels)
    assert [name for _, name in areas] == ["3"]
    assert areas[0][0].shape == (picture.height, picture.width)
    assert areas[0][0].mean() == pytest.approx(0.25)
    assert result.answers[0].maps.counted == 0


def test_plain_modules_are_shown_too():
    model = IT3ForSemanticSegmentation.from_backbone(PlainSegmenter(num_labels=3)).eval()
    segment = IT3SegmentationPipeline(model=model, image_processor=IT3ImageProcessor(size={"height": 16, "width": 16}))
    assert classify(segment, torch.rand(2, 3, 16, 16), gate=None).answers[1].maps.after.shape == (16, 16)


def test_a_visitor_sees_the_maps(browser, scenes_model):
    app = launch(scenes_model, dataset="scenes", server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        with visit(browser, app.local_url.rstrip("/")) as page:
            soon(page.locator("#result")).to_contain_text("Pixels right before: ")
            for name in ("truth", "before", "after"):
                soon(page.locator(f"#map-{name} img").first).to_be_visible()
    finally:
        app.close()


@pytest.mark.parametrize("processor", ["reduces labels", "crops"])
def test_true_maps_are_those_that_evaluations_read(tmp_path, processor):
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    image_processor = {
        "reduces labels": lambda: SegformerImageProcessor(size=size, do_reduce_labels=True),
        "crops": lambda: MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size=size),
    }[processor]()
    IT3ForSemanticSegmentation.from_backbone(small_segformer(num_labels=3, num_channels=3)).save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    served = ServedModel(str(tmp_path))
    served.prepare()
    rows = np.random.default_rng(0)
    images = [Image.fromarray(rows.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(2)]
    maps = [rows.integers(0, 3, (40, 48), dtype=np.uint8) for _ in images]
    known = served.read_truths(images, maps)
    collate = SegmentationCollator(image_processor, num_labels=3)
    expected = collate([{"image": image, "label": one} for image, one in zip(images, maps, strict=True)])
    assert torch.equal(known, expected["labels"])
    assert known.shape[1:] == served.read(images).shape[2:]
