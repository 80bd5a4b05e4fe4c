"""Segmentation models are evaluated under corruptions by mean IoU, and maps move with the pixels of their images."""

import json

import numpy as np
import pytest
import torch
from segmentation_families import PlainSegmenter, segmenter
from sklearn.metrics import jaccard_score
from torch.nn import functional as F

from hf_it3 import IT3ForSemanticSegmentation, IT3ImageProcessor, TestTimeAdapter
from hf_it3.corruptions import corrupt, corrupt_maps, get_corruption, list_corruptions
from hf_it3.data import SCENE_CLASSES, load_digit_scenes
from hf_it3.evaluation import evaluate_robustness, model_index_entries
from hf_it3.evaluation.calibration import calibrate
from hf_it3.evaluation.metrics import iou_of_counts, mean_iou_gain
from hf_it3.evaluation.model_index import model_index_entries as entries_of


NOISE, ROTATION = "digits-shift/noise_1", "digits-shift/rotation"
SETTINGS = {"gate": None, "num_steps": 1, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def scenes():
    return load_digit_scenes(num_train=1, num_test=10, size=16, digit_size=8)["test"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IT3ForSemanticSegmentation.from_backbone(PlainSegmenter(num_labels=len(SCENE_CLASSES))).eval()


@pytest.fixture(scope="module")
def processor():
    return IT3ImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.2] * 3, image_std=[0.4] * 3)


def evaluate(model, scenes, processor, **options):
    defaults = {
        "corruptions": [NOISE, ROTATION],
        "methods": {"own": SETTINGS},
        "image_processor": processor,
        "batch_size": 4,
        "show_progress": False,
    }
    return evaluate_robustness(model, scenes, **{**defaults, **options})


@pytest.fixture(scope="module")
def results(model, scenes, processor):
    return evaluate(model, scenes, processor)


def plain_mean_iou(predictions, labels):
    """Scikit-learn's, over the classes that are labelled or predicted somewhere."""
    counted = labels != 255
    truth, predicted = labels[counted], predictions[counted]
    classes = np.union1d(truth, predicted)
    return jaccard_score(truth, predicted, labels=classes, average="macro", zero_division=0)


def test_figures_are_those_of_the_plain_computation(model, scenes, processor, results):
    pixels = processor(images=list(scenes["image"]), return_tensors="pt", do_normalize=False).pixel_values
    labels = torch.from_numpy(np.stack([np.asarray(one) for one in scenes["annotation"]])).long()
    order = np.random.default_rng([0, 1]).permutation(len(scenes))
    for name in (None, NOISE, ROTATION):
        spoiled, truth = pixels, labels
        if name is not None:
            spoiled, truth = corrupt(pixels, name, seed=0), corrupt_maps(labels, name, seed=0)
        images = (spoiled - 0.2) / 0.4
        adapter = TestTimeAdapter(model, **SETTINGS)
        found = {"none": torch.empty(10, 16, 16).long(), "own": torch.empty(10, 16, 16).long()}
        for part in torch.from_numpy(order).split(4):
            output = adapter(images[part])
            for method, logits in (("none", output.initial_logits), ("own", output.logits)):
                found[method][part] = F.interpolate(logits, (16, 16), mode="bilinear").argmax(1)
        for method, predictions in found.items():
            expected = plain_mean_iou(predictions.numpy(), truth.numpy())
            assert results.score(name or "clean", method) == pytest.approx(expected, abs=1e-6)
            counted = truth != 255
            right = (predictions == truth)[counted].double().mean().item()
            assert results.score(name or "clean", method, "pixel_accuracy") == pytest.approx(right)
    assert results.score("clean", "own") != results.score("clean", "none")


def test_the_report_names_mean_iou(results, tmp_path, model, scenes, processor):
    assert results.table().startswith("Mean IoU in percent, 10 images")
    assert repr(results) == str(results) == results.table()
    assert [entry["metric"] for entry in model_index_entries(results, "own")] == ["mean_iou"] * 3
    saved = evaluate(model, scenes, processor, corruptions=NOISE, output_dir=tmp_path, plots=True)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["metric"] == "mean_iou"
    assert document["conditions"][1]["methods"]["own"]["mean_iou"] == saved.score(NOISE, "own")
    assert document["overall"]["own"]["mean_mean_iou"] == pytest.approx(saved.score(NOISE, "own"))
    assert (tmp_path / "results.csv").read_text().startswith("condition,corruption,severity,subset,num_images,method")
    resumed = evaluate(model, scenes, processor, corruptions=NOISE, output_dir=tmp_path, plots=False, resume=True)
    assert resumed.score(NOISE, "own") == saved.score(NOISE, "own")
    assert entries_of(saved)[0]["score_unadapted"] == saved.score("clean", "none")


def test_models_of_different_tasks_are_evaluated_one_by_one(model, random_model, scenes, processor):
    with pytest.raises(ValueError, match="is measured by accuracy, and .* by mean IoU; evaluate .* one by one"):
        evaluate([model, random_model], scenes, processor)


def test_settings_are_calibrated_for_classifiers_only(model, scenes, processor):
    with pytest.raises(ValueError, match="IT3ForSemanticSegmentation is measured by mean IoU"):
        calibrate(model, processor, scenes, num_samples=8, batch_size=4, show_progress=False)


def test_maps_cannot_be_sorted_by_class(model, scenes, processor):
    with pytest.raises(ValueError, match="order='class-sorted' sorts images by their one class"):
        evaluate(model, scenes, processor, order="class-sorted")


# Maps


MOVING = ["shear", "scale", "rotate", "translate", "elastic_transform", "rotation"]


def test_those_corruptions_move_maps_that_move_pixels():
    moving = {name.rpartition("/")[2] for name in list_corruptions() if get_corruption(name).moves}
    assert moving == set(MOVING)


@pytest.mark.parametrize("name", [name for name in list_corruptions() if get_corruption(name).moves])
def test_a_map_moves_as_its_image(name):
    """An image that shows its own map still shows it, but for pixels between two classes."""
    maps = torch.zeros(3, 32, 32, dtype=torch.long)
    maps[:, 6:26, 8:20] = 1
    moved = corrupt_maps(maps, name, 3, seed=1, indices=[4, 5, 6])
    pictures = corrupt(maps[:, None].float(), name, 3, seed=1, indices=[4, 5, 6])[:, 0]
    sure = (moved != 255) & ((pictures < 0.1) | (pictures > 0.9))
    assert sure.double().mean() > 0.4
    assert set(moved[sure].tolist()) == {0, 1}
    assert (moved[sure] == (pictures[sure] > 0.5)).all()
    assert not torch.equal(moved, maps)
    # No corruption depends on the other images.
    assert torch.equal(corrupt_maps(maps[1:2], name, 3, seed=1, indices=[5]), moved[1:2])


def test_what_comes_in_from_outside_does_not_count():
    maps = torch.ones(1, 20, 20, dtype=torch.uint8)
    moved = corrupt_maps(maps, "mnist-c/translate", 5)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {1, 255}
    assert (corrupt_maps(maps, "mnist-c/fog") == maps).all()


def test_maps_of_another_form_are_refused():
    with pytest.raises(ValueError, match="pass integers of shape"):
        corrupt_maps(torch.rand(1, 4, 4), ROTATION)


# The gain


def test_the_gain_is_that_of_the_sums_and_its_interval_is_over_images():
    draw = np.random.default_rng(0)
    truth = draw.integers(1, 20, (30, 3))
    worse, better = (np.minimum(truth, draw.integers(low, 20, (30, 3))) for low in (0, 12))
    gain = mean_iou_gain([(worse, truth)] * 2, [(better, truth)] * 2, [truth] * 2)
    expected = iou_of_counts(better.sum(0), truth.sum(0), truth.sum(0)) - iou_of_counts(
        worse.sum(0), truth.sum(0), truth.sum(0)
    )
    assert gain.gain == pytest.approx(expected)
    assert 0 < gain.lower < gain.gain < gain.upper
    resampled = []
    for _ in range(400):
        rows = draw.integers(0, 30, 30)
        sums = [counts[rows].sum(0) for counts in (better, worse, truth)]
        resampled.append(iou_of_counts(sums[0], sums[2], sums[2]) - iou_of_counts(sums[1], sums[2], sums[2]))
    assert np.quantile(resampled, [0.025, 0.975]) == pytest.approx([gain.lower, gain.upper], abs=0.02)


def test_a_stock_processor_of_maps_gives_the_same_labels(scenes):
    from transformers import SegformerImageProcessor

    stock = SegformerImageProcessor(size={"height": 16, "width": 16})
    wrapped = IT3ForSemanticSegmentation.from_backbone(segmenter("segformer")).eval()
    rows = [{"image": row["image"], "annotation": np.asarray(row["annotation"]) % 4} for row in scenes]
    figures = [
        evaluate(wrapped, rows, processor, corruptions="none", methods="none").score("clean", "none", "pixel_accuracy")
        for processor in (
            stock,
            IT3ImageProcessor(
                size={"height": 16, "width": 16}, image_mean=stock.image_mean, image_std=stock.image_std
            ),
        )
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.01)


def test_images_of_which_no_pixel_counts_are_refused_by_name(model, scenes, processor):
    row = scenes[0]
    rows = [{"image": row["image"], "annotation": np.full((16, 16), 255, np.uint8)}] * 2
    with pytest.raises(ValueError, match="mean_iou of 'clean' is undefined: no pixel of its images counts"):
        evaluate(model, rows, processor)
    # One image without any beside others is no such case.
    results = evaluate(model, [*rows, {"image": row["image"], "annotation": row["annotation"]}], processor)
    assert results.condition_scores[0]["methods"]["none"]["mean_iou"] is not None
