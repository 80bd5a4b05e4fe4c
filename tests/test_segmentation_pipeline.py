"""The segmentation pipeline answers as the stock one does, and adapts by default."""

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_families import segmenter
from torch.nn import functional as F
from transformers import SegformerImageProcessor, pipeline
from untouched import untouched

from hf_it3 import IT3ForSemanticSegmentation, IT3SegmentationPipeline


TASK = "it3-image-segmentation"
SETTINGS = {"gate": None, "learning_rate": 0.05, "num_steps": 2}


@pytest.fixture
def processor():
    return SegformerImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def model():
    return IT3ForSemanticSegmentation.from_backbone(segmenter("segformer")).eval()


@pytest.fixture
def segment(model, processor):
    return pipeline(TASK, model=model, image_processor=processor)


@pytest.fixture(scope="module")
def pictures():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (size, 40, 3), dtype=np.uint8)) for size in (30, 40, 50)]


def masks(segments):
    return {segment["label"]: np.asarray(segment["mask"]) for segment in segments}


def test_without_adaptation_it_answers_as_the_stock_pipeline(segment, processor, pictures):
    stock = pipeline("image-segmentation", model=segmenter("segformer"), image_processor=processor)
    for picture in pictures:
        expected, actual = masks(stock(picture)), masks(segment(picture, adapt=False))
        assert expected.keys() == actual.keys()
        assert all(np.array_equal(actual[label], mask) for label, mask in expected.items())


def test_masks_cover_the_image_once_and_scores_are_mean_probabilities(segment, model, processor, pictures):
    picture = pictures[0]
    segments = segment(picture, adapt=False)
    assert {part["mask"].size for part in segments} == {picture.size}
    assert (sum(np.asarray(part["mask"]).astype(int) for part in segments) == 255).all()
    pixel_values = processor(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = F.interpolate(model(pixel_values).logits, (picture.height, picture.width), mode="bilinear")
    probabilities = logits.softmax(1)[0].numpy()
    for part in segments:
        index = model.config.label2id[part["label"]]
        assert part["score"] == pytest.approx(probabilities[index][np.asarray(part["mask"]) > 0].mean(), rel=1e-4)


def test_it_adapts_by_default_in_batches_and_leaves_the_model_alone(segment, model, processor, pictures):
    with untouched(model):
        answers = segment(pictures, return_idempotence=True, return_unadapted=True, **SETTINGS)
        plain = segment(pictures, adapt=False)
    pixel_values = processor(pictures, return_tensors="pt").pixel_values
    expected = model.adapt(pixel_values, **SETTINGS)
    for position, (segments, picture) in enumerate(zip(answers, pictures, strict=True)):
        logits = F.interpolate(
            expected.logits[position : position + 1], (picture.height, picture.width), mode="bilinear"
        )
        classes = logits[0].argmax(0).numpy()
        for label, mask in masks(segments).items():
            assert ((classes == model.config.label2id[label]) != (mask == 255)).mean() < 0.01
        assert all(part["adapted"] for part in segments)
        assert segments[0]["idempotence"] == pytest.approx(expected.idempotence[position].item(), rel=1e-4)
        unadapted = masks(plain[position])
        for part in segments:
            none = np.zeros((picture.height, picture.width), np.uint8)
            assert np.array_equal(np.asarray(part["unadapted_mask"]), unadapted.get(part["label"], none))


def test_a_saved_model_is_loaded_by_its_path(segment, pictures, tmp_path):
    segment.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    assert type(loaded) is IT3SegmentationPipeline
    assert type(loaded.model) is IT3ForSemanticSegmentation
    expected, actual = masks(segment(pictures[0], adapt=False)), masks(loaded(pictures[0], adapt=False))
    assert all(np.array_equal(actual[label], mask) for label, mask in expected.items())


def test_models_for_the_other_task_are_refused_with_the_name_of_theirs(model, random_model, processor):
    with pytest.raises(ValueError, match="for semantic-segmentation, .* use the task 'it3-image-segmentation'"):
        pipeline("it3-image-classification", model=model, image_processor=processor)
    with pytest.raises(ValueError, match="for image-classification, .* use the task 'it3-image-classification'"):
        pipeline(TASK, model=random_model, image_processor=processor)
    with pytest.raises(ValueError, match="takes no label signal; .* or use the stock 'image-segmentation' pipeline"):
        pipeline(TASK, model=segmenter("segformer"), image_processor=processor)


def test_errors_name_the_image_and_what_was_to_be_done(segment, pictures):
    with pytest.raises(ValueError, match=r"image 1 \('nowhere.png'\) cannot be segmented"):
        segment([pictures[0], "nowhere.png"])
    with pytest.raises(ValueError, match="nothing to segment"):
        segment([])
