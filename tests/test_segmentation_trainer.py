"""Segmentation models are trained and evaluated by IT3Trainer, on data sets with maps of classes."""

import numpy as np
import pytest
import torch
import trainer_fixtures
from PIL import Image, ImageOps
from segmentation_families import PlainSegmenter
from transformers import SegformerImageProcessor
from transformers.trainer_utils import EvalPrediction

from hf_it3 import IT3ForSemanticSegmentation, IT3ImageProcessor, IT3Trainer, TestTimeAdapter
from hf_it3.data import SCENE_CLASSES, SegmentationCollator, load_digit_scenes
from hf_it3.evaluation.metrics import confusion_matrix, mean_iou, pixel_accuracy, segmentation_metrics


arguments = trainer_fixtures.arguments


@pytest.fixture(scope="module")
def scenes():
    return load_digit_scenes(num_train=12, num_test=6, size=32, digit_size=12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return IT3ForSemanticSegmentation.from_backbone(PlainSegmenter(num_labels=len(SCENE_CLASSES))).train()


@pytest.fixture
def processor():
    return IT3ImageProcessor(size={"height": 16, "width": 16})


# Scenes


def test_scenes_are_the_same_for_the_same_seed_and_differ_between_splits(scenes):
    again = load_digit_scenes(num_train=12, num_test=6, size=32, digit_size=12)
    other = load_digit_scenes(num_train=12, num_test=6, size=32, digit_size=12, seed=1)
    pixels = [np.asarray(row["image"]) for row in scenes["train"]]
    assert all(np.array_equal(image, row["image"]) for image, row in zip(pixels, again["train"], strict=True))
    assert not all(np.array_equal(image, row["image"]) for image, row in zip(pixels, other["train"], strict=True))
    assert not np.array_equal(pixels[0], scenes["test"][0]["image"])


def test_the_bright_pixels_of_a_scene_are_those_with_a_class(scenes):
    for row in scenes["train"]:
        image, classes = np.asarray(row["image"]), np.asarray(row["annotation"])
        assert image.shape == classes.shape == (32, 32)
        assert np.array_equal(classes > 0, image >= 64)
        assert 1 <= len(np.unique(classes)) - 1 <= 3
        assert classes.max() < len(SCENE_CLASSES)


def test_digits_that_are_larger_than_the_scene_are_refused():
    with pytest.raises(ValueError, match="digit_size=40 is larger than the scene, size=32"):
        load_digit_scenes(num_train=1, num_test=1, size=32, digit_size=40)
    with pytest.raises(ValueError, match="num_train must be at least 1, got 0"):
        load_digit_scenes(num_train=0)


# Batches


@pytest.mark.parametrize("stock", [True, False])
def test_maps_follow_their_images_through_any_processor(scenes, stock, processor):
    if stock:
        processor = SegformerImageProcessor(size={"height": 16, "width": 16})
    batch = SegmentationCollator(processor, num_labels=11)([scenes["train"][0], scenes["train"][1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["labels"].shape == (2, 16, 16)
    assert batch["labels"].dtype == torch.int64
    full = np.asarray(scenes["train"][0]["annotation"])
    found = batch["labels"][0].numpy()
    # Every pixel has the class of one of those that it was made from.
    blocks = full.reshape(16, 2, 16, 2).swapaxes(1, 2).reshape(16, 16, 4)
    assert (blocks == found[..., None]).any(-1).all()


def test_tensors_are_stacked_as_they_are(processor):
    rows = [{"pixel_values": torch.rand(3, 8, 8), "label": torch.randint(0, 4, (8, 8))} for _ in range(2)]
    batch = SegmentationCollator(processor)(rows)
    assert torch.equal(batch["pixel_values"][1], rows[1]["pixel_values"])
    assert torch.equal(batch["labels"][1], rows[1]["label"])


def test_what_is_no_map_of_the_image_is_refused(scenes, processor):
    row, collate = scenes["train"][0], SegmentationCollator(processor, num_labels=11)
    with pytest.raises(ValueError, match=r"'annotation' holds a picture of mode RGB of shape \(32, 32, 3\)"):
        collate([{**row, "annotation": row["image"].convert("RGB")}])
    with pytest.raises(ValueError, match="image 1 of a batch has 32 x 32 pixels, but its map of classes 16 x 32"):
        collate([row, {**row, "annotation": row["annotation"].resize((32, 16))}])
    with pytest.raises(ValueError, match="label 77 of a pixel is out of range: the model has 11 labels"):
        collate([{**row, "annotation": np.full((32, 32), 77)}])
    ignored = collate([{**row, "annotation": np.full((32, 32), 255)}])
    assert (ignored["labels"] == 255).all()


# Metrics


def test_metrics_are_those_of_evaluate():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, (3, 8, 8))
    predictions = np.where(draw.random((3, 8, 8)) < 0.6, labels, draw.integers(0, 4, (3, 8, 8)))
    labels[0, :2] = 255
    metrics = segmentation_metrics(EvalPrediction(predictions, labels), num_labels=6)
    union, intersection = np.zeros(6), np.zeros(6)
    counted = labels != 255
    for index in range(6):
        of_label, of_prediction = (labels == index) & counted, (predictions == index) & counted
        intersection[index], union[index] = (of_label & of_prediction).sum(), (of_label | of_prediction).sum()
    with np.errstate(invalid="ignore"):
        assert metrics["mean_iou"] == pytest.approx(np.nanmean(intersection / union))
    assert metrics["pixel_accuracy"] == pytest.approx((predictions == labels)[counted].mean())


def test_maps_of_different_sizes_may_be_filled_up_as_trainer_does():
    labels = np.array([[[0, 1], [-100, -100]]])
    confusion = confusion_matrix(np.array([[[0, 1], [-100, -100]]]), labels, num_labels=2)
    assert (mean_iou(confusion), pixel_accuracy(confusion)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="predictions has classes from 0 to 7; expected 0 to 1"):
        confusion_matrix([[[0, 7]]], [[[0, 1]]], num_labels=2)


# Training


def test_training_moves_the_model_and_evaluation_tells_both_metrics_plain_and_adapted(
    model, scenes, processor, arguments
):
    before = trainer_fixtures.weights(model)
    trainer = IT3Trainer(
        model,
        arguments(eval_adapted=True, reference_images=4, per_device_eval_batch_size=4, max_steps=2),
        train_dataset=scenes["train"],
        eval_dataset=scenes["test"],
        processing_class=processor,
    )
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert model.config.reference_distance["num_images"] == 4
    model.config.adaptation = model.config.adaptation.replace(gate=None, learning_rate=0.1)
    metrics = trainer.evaluate()
    batches = [trainer.data_collator([scenes["test"][i] for i in part]) for part in (range(4), range(4, 6))]
    adapter = TestTimeAdapter(model.eval())
    for prefix in ("eval", "eval_adapted"):
        predictions, labels = [], []
        for batch in batches:
            output = adapter(batch["pixel_values"])
            logits = output.initial_logits if prefix == "eval" else output.logits
            logits = torch.nn.functional.interpolate(logits, (16, 16), mode="bilinear")
            predictions.append(logits.argmax(1).numpy())
            labels.append(batch["labels"].numpy())
        expected = segmentation_metrics(EvalPrediction(np.concatenate(predictions), np.concatenate(labels)), 11)
        for name, value in expected.items():
            assert metrics[f"{prefix}_{name}"] == pytest.approx(value, abs=0.01)


def test_metrics_of_the_caller_get_logits_as_from_every_trainer(model, scenes, processor, arguments):
    seen = {}

    def note(prediction):
        seen["shape"] = prediction.predictions.shape
        return {}

    trainer = IT3Trainer(
        model, arguments(), eval_dataset=scenes["test"], processing_class=processor, compute_metrics=note
    )
    trainer.evaluate()
    assert seen["shape"] == (6, 11, 8, 8)


def test_maps_are_of_pictures_as_their_exif_data_turn_them():
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:12] = 255
    picture = Image.fromarray(pixels)
    picture.getexif()[0x0112] = 6  # to be turned by 90 degrees
    upright = np.asarray(ImageOps.exif_transpose(picture))
    assert upright.shape == (32, 24, 3)
    collate = SegmentationCollator(SegformerImageProcessor(size={"height": 16, "width": 16}), num_labels=2)
    batch = collate([{"image": picture, "label": (upright[..., 0] > 0).astype(np.uint8)}])
    assert torch.equal((batch["pixel_values"][0].mean(0) > 0).long(), batch["labels"][0])
    with pytest.raises(ValueError, match="24 x 32|32 x 24"):
        collate([{"image": picture, "label": (pixels[..., 0] > 0).astype(np.uint8)}])
