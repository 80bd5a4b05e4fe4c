"""The app with a model of photographs that has classes of its own."""

import os
import re
import socket

import datasets
import numpy as np
import pytest
import space_fixtures
from PIL import Image
from space_fixtures import adapt, soon, visit
from transformers import ResNetConfig, set_seed


pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor
from hf_it3.app import launch, sample_images
from hf_it3.app.answers import classify, corruption_menu
from hf_it3.app.interface import Page, build_app
from hf_it3.app.rendering import caption, distances_figure, headline, why_no_steps
from hf_it3.app.sample_images import SampleImages
from hf_it3.app.served_model import ServedModel
from hf_it3.app.visitor_images import MAX_PIXELS
from hf_it3.cli import main


browser = space_fixtures.browser
SHORT = {"tabby", "golden retriever", "<b>bold</b> & co", "African bush elephant"}
NAMES = ["tabby, tabby cat", "golden retriever", "<b>bold</b> & co", "African bush elephant, Loxodonta africana"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small ResNet for RGB images, untrained, with a reference distance as training leaves one."""
    set_seed(0)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], id2label=dict(enumerate(NAMES)))
    model = IT3ForImageClassification.from_backbone(resnet)
    model.config.reference_distance = {"mean": -0.9, "std": 0.1}
    directory = tmp_path_factory.mktemp("photographs")
    model.save_pretrained(directory)
    IT3ImageProcessor(size={"height": 48, "width": 48}).save_pretrained(directory)
    return str(directory)


@pytest.fixture
def served(directory):
    served = ServedModel(directory)
    served.prepare()
    return served


@pytest.fixture(scope="module")
def address(directory):
    app = launch(directory, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield app.local_url.rstrip("/")
    app.close()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder of photographs, sorted into the model's classes, whose names come in another order there."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name in ("golden retriever", "tabby, tabby cat"):
        (folder / "test" / name).mkdir(parents=True)
        for index in range(8):
            pixels = generator.integers(0, 256, (40, 60 + 60 * index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "test" / name / f"{index}.png")
    return str(folder)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Files of several modes, shapes and formats."""
    folder = tmp_path_factory.mktemp("uploads")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "beach.jpg")
    image.convert("L").save(folder / "fog.png")
    image.convert("RGBA").rotate(90, expand=True).save(folder / "tower.webp")
    return [str(folder / name) for name in ("beach.jpg", "fog.png", "tower.webp")]


def upload(page, *files):
    clear = page.get_by_label("Clear")
    if clear.count():
        clear.first.click()
    page.locator("#upload input[type=file]").set_input_files(files)
    page.get_by_text(os.path.basename(files[-1]).partition(".")[0]).first.wait_for()


def test_a_visitor_picks_from_a_data_set_of_the_models_own_kind(browser, directory, dataset):
    app = launch(directory, dataset=dataset, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        with visit(browser, app.local_url.rstrip("/")) as page:
            soon(page.get_by_role("tab", name="Draw")).to_be_hidden()
            soon(page.locator("#samples button img")).to_have_count(16)
            page.locator("#samples button").nth(2).click()
            assert adapt(page).keys() == SHORT
            soon(page.locator("#result")).to_contain_text("Right before: ")
            soon(page.locator("#result")).to_contain_text("of 16")
            soon(page.locator("#suite input").first).to_have_value("Nothing")
            soon(page.locator("#suite input").nth(1)).to_have_value("ImageNet-C")
    finally:
        app.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_are_told_by_their_names(directory, dataset, streaming):
    samples = ServedModel(directory, dataset=dataset, streaming=streaming).samples
    assert len(samples.images) == 16
    assert max(max(image.size) for image in samples.images) == 480
    assert sorted(samples.truths) == ["golden retriever"] * 8 + ["tabby, tabby cat"] * 8
    assert samples.truths != sorted(samples.truths)
    images, truths = samples.batch(3, 5)
    assert images == [samples.images[position] for position in (3, 0, 1, 2, 4)]
    assert truths == [samples.truths[position] for position in (3, 0, 1, 2, 4)]


def test_a_data_set_without_labels_has_images_to_pick_from(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    samples = SampleImages.load(str(tmp_path), labels=NAMES)
    assert len(samples.images) == 1
    assert samples.batch(0, 5) == (samples.images, None)


def test_a_split_without_labels_is_not_taken_for_one_with(digits, tmp_path):
    rows = digits["test"].select(range(3))
    unlabelled = (
        rows.remove_columns("label").add_column("label", [-1] * 3).cast_column("label", rows.features["label"])
    )
    datasets.DatasetDict(test=unlabelled).save_to_disk(tmp_path / "digits")
    assert SampleImages.load(str(tmp_path / "digits"), labels=list("0123456789")).truths is None


def test_large_images_are_fewer(tmp_path):
    rows = [{"image": Image.new("L", (sample_images.SMALL_SIDE + 1, 8))}] * 120
    features = datasets.Features({"image": datasets.Image()})
    datasets.DatasetDict(test=datasets.Dataset.from_list(rows, features=features)).save_to_disk(tmp_path / "large")
    assert len(SampleImages.load(str(tmp_path / "large")).images) == sample_images.NUM_LARGE_IMAGES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "holiday"], "has no split 'holiday'; its splits are test"),
        (["--dataset", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_test_images_that_cannot_be_read_are_an_error_of_one_line(capsys, directory, dataset, arguments, message):
    assert main(["app", directory, "--dataset", dataset, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-it3 app: error: ")
    assert message in error


@pytest.mark.parametrize("port", ["99999999", "taken"])
def test_a_port_that_cannot_be_used_is_an_error_of_one_line(capsys, directory, port):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1]) if port == "taken" else port
        assert main(["app", directory, "--port", port]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-it3 app: error: ")
    assert port in error


def test_no_steps_are_not_taken_for_a_closed_gate(served, photographs):
    served.model.config.reference_distance = {"mean": -2.0, "std": 0.01}
    pixels = served.read([Image.open(photographs[0]), Image.open(photographs[1])])
    for settings in ({"num_steps": 0}, {"scope": "average", "augmentations": 1}, {"scope": "image", "num_steps": 0}):
        shown = headline(classify(served.classifier(), pixels, norm_statistics="source", **settings))
        assert "Not adapted: no steps were asked for" in shown
    served.model.config.reference_distance = {"mean": 2.0, "std": 0.01}
    shown = headline(classify(served.classifier(), pixels, gate=3.0))
    assert "Not adapted: the gate sees no shift" in shown
    assert re.search(
        r"Standard errors from clean images: idempotence distance -\d.*\. The gate opens above 3\.", shown
    )


@pytest.mark.parametrize("rate", [None, -1, 5])
def test_a_learning_rate_out_of_range_is_named(served, photographs, rate):
    inputs = ("upload", 0, 1, None, photographs[:1], "Nothing", None, 3)
    with pytest.raises(ValueError, match=r"The learning rate must be a number from 0 to 1\."):
        Page(served).answer(None, *inputs, "batch", 1, rate, 0, 0, True)


def test_labels_that_the_model_does_not_have_are_named(digits, tmp_path):
    digits.save_to_disk(tmp_path / "digits")
    with pytest.raises(ValueError, match=r"label \d of image \d+ is none of the model's 2 classes"):
        SampleImages.load(str(tmp_path / "digits"), labels=["cat", "dog"])


@pytest.mark.parametrize("width", [1280, 390])
def test_a_visitor_uploads_photographs_and_sees_the_models_own_classes(browser, address, photographs, width):
    with visit(browser, address, width=width) as page:
        soon(page.get_by_role("tab")).to_have_text(["Upload"])
        soon(page.locator("h1 + p")).not_to_contain_text("draw")
        soon(page.locator("#suite input:checked")).to_have_value("Nothing")
        soon(page.locator("#corruption")).to_be_hidden()
        soon(page.locator("#message")).to_have_text("The answer appears here.")
        upload(page, photographs[0])
        assert adapt(page).keys() == SHORT
        soon(page.locator("#before b")).to_have_count(0)
        soon(page.locator("#batch")).to_be_hidden()
        upload(page, *photographs)
        adapt(page)
        soon(page.locator("#batch img")).to_have_count(3)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_files_that_cannot_be_used_are_named_and_the_next_ones_work(browser, address, photographs, tmp_path):
    text, huge = tmp_path / "notes.png", tmp_path / "huge.png"
    text.write_text("no image")
    side = int(MAX_PIXELS**0.5) + 1000
    Image.new("1", (side, side)).save(huge)
    with visit(browser, address) as page:
        adapt(page)
        soon(page.locator("[role=alert]")).to_contain_text("Upload an image first")
        for path, message in ((text, "notes.png is not an image"), (huge, f"huge.png has {side} x {side} pixels")):
            upload(page, photographs[0], str(path))
            adapt(page)
            soon(page.locator("[role=alert]")).to_contain_text(message)
        upload(page, photographs[1])
        assert adapt(page).keys() == SHORT


def test_settings_beyond_the_usual_ranges_are_the_ones_that_the_page_starts_with(served):
    own = {"num_steps": 50, "augmentations": 40, "augmentation_steps": 45, "gate": None}
    served.model.config.adaptation = served.model.config.adaptation.replace(**own)
    blocks = {block.label: block for block in build_app(served).blocks.values() if getattr(block, "label", None)}
    for label, value in (("Steps", 50), ("Augmentations", 40), ("Steps on augmentations", 45)):
        assert blocks[label].value == value <= blocks[label].maximum
    assert blocks["Adapt only where the distance exceeds the gate"].value is False


def test_the_gate_can_be_asked_for_where_the_model_has_none(served, photographs):
    served.model.config.adaptation = served.model.config.adaptation.replace(gate=None)
    served.model.config.reference_distance = {"mean": 1e6, "std": 0.1}

    def press(gated):
        settings = ("batch", 2, 1e-3, 0, 0, gated)
        inputs = ("upload", 0, 1, None, photographs, "Nothing", None, 3)
        return headline(Page(served).answer(None, *inputs, *settings)[1])

    assert "3 of 3 images were adapted to" in press(gated=False)
    assert "Not adapted: the gate sees no shift" in press(gated=True)


def test_what_is_said_of_the_gate_is_what_was_held_against_it(served, photographs):
    pixels = served.read([Image.open(path) for path in photographs])

    def told(count, **settings):
        result = classify(served.classifier(), pixels[:count], **settings)
        (axis,) = distances_figure(result, []).axes
        legend = [text.get_text() for text in axis.get_legend().get_texts()]
        return " | ".join([headline(result), why_no_steps(result), *legend])

    assert "The image was averaged over augmentations" in told(1)
    assert "whatever the gate says" in told(1)
    assert "| the image: " in told(1)
    assert "| the first image: " in told(3, scope="image")
    assert "| mean of the images: " in told(3)
    assert "| mean of the latest images: " in told(3, scope="stream")
    assert "whatever the gate says" not in told(3)
    assert "3 of 3 images were averaged over augmentations" in told(3, scope="average")
    assert "whatever the gate says" not in told(1, augmentation_steps=1, gate=None)
    statistics = told(3, num_steps=0, norm_statistics="batch")
    assert "3 of 3 images were adapted to" in statistics
    assert "statistics of the batch took the place" in statistics


def test_a_class_that_stays_is_named_once_and_one_that_changes_twice(served, photographs):
    pixels = served.read([Image.open(path) for path in photographs])
    result = classify(served.classifier(), pixels, gate=None)
    for answer in result.answers:
        answer.labels = ["cat", "dog"]
        answer.before = [0.6, 0.4]
        answer.after = [0.7, 0.3]
        answer.truth = "dog"
    result.answers[2].after = [0.2, 0.8]
    result.answers[1].truth = None
    captions = [caption(answer) for answer in result.answers]
    assert captions == ["\N{BALLOT X} cat", "cat", "\N{BALLOT X} cat \N{RIGHTWARDS ARROW} \N{CHECK MARK} dog"]


def test_the_models_own_domain_comes_first_with_readable_names():
    for channels, first in ((1, ["Digits", "MNIST-C"]), (3, ["ImageNet-C"])):
        menu = corruption_menu(channels)
        assert list(menu)[: len(first)] == first
        assert ("shot noise", "mnist-c/shot_noise") in menu["MNIST-C"]
        names = [qualified for choices in menu.values() for _, qualified in choices]
        assert not [name for name in names if name.endswith(("/clean", "/identity")) or "float" in name]
        assert len(names) == len(set(names)) > 30
