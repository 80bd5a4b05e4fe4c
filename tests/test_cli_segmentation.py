"""`hf-it3 train`, `evaluate` and `predict` with `--task segmentation`, from end to end on scenes of digits."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_it3 import IT3ForSemanticSegmentation
from hf_it3.cli import main
from hf_it3.data import SCENE_CLASSES, load_digit_scenes


TASK = ("--task", "segmentation")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small SegFormer that the command trained for a few steps."""
    directory = tmp_path_factory.mktemp("segmenter")
    options = ("--max_steps=4", "--max_eval_samples=8", "--reference_images=16", "--per_device_train_batch_size=8")
    quiet = ("--use_cpu", "--disable_tqdm=true", "--save_strategy=no")
    assert main(["train", *TASK, "--output_dir", str(directory), "--eval_adapted", *options, *quiet]) == 0
    return directory


@pytest.fixture(scope="module")
def scenes():
    return load_digit_scenes(num_train=1, num_test=3)["test"]


@pytest.fixture
def pictures(scenes, tmp_path):
    for number, scene in enumerate(scenes["image"]):
        scene.save(tmp_path / f"{number}.png")
    return tmp_path


def test_training_saves_a_segmenter_of_the_scenes_classes_and_reports_mean_iou_plain_and_adapted(directory):
    config = IT3ForSemanticSegmentation.from_pretrained(directory).config
    assert list(config.id2label.values()) == list(SCENE_CLASSES)
    assert config.reference_distance["num_images"] == 16
    metrics = json.loads((directory / "all_results.json").read_text())
    for name in ("eval_mean_iou", "eval_pixel_accuracy", "eval_adapted_mean_iou", "eval_adapted_pixel_accuracy"):
        assert 0 <= metrics[name] <= 1


def test_evaluation_prints_and_writes_mean_iou(directory, tmp_path, capsys):
    options = ("--dataset", "scenes", "--num_samples", "12", "--batch_size", "6", "--corruptions", "digits-shift/blur")
    output = ("--output_dir", str(tmp_path), "--no_progress", "--no_plots")
    assert main(["evaluate", str(directory), *TASK, *options, "--methods", "none,batch", *output]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Mean IoU in percent, 12 images in batches of 6, order iid"
    assert [line.split()[0] for line in lines[3:5]] == ["clean", "blur"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metric"] == "mean_iou"
    for condition, line in zip(results["conditions"], lines[3:5], strict=True):
        figures = [condition["methods"][method] for method in ("none", "batch")]
        assert [f"{100 * one['mean_iou']:.1f}" for one in figures] == line.split()[1:3]
        # A score that is neither of accuracy nor of its error carries neither name.
        assert not any(name in one for one in figures for name in ("accuracy", "error_rate"))


def test_prediction_tells_the_share_of_each_class_that_is_found(directory, pictures, capsys):
    assert main(["predict", str(directory), str(pictures), *TASK]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [str(pictures / f"{number}.png") for number in range(3)]
    for _, *found in lines:
        labels, shares = zip(*(entry.rsplit(" ", 1) for entry in found), strict=True)
        assert set(labels) <= set(SCENE_CLASSES)
        assert sum(map(float, shares)) == pytest.approx(1, abs=0.001 * len(shares))


def test_prediction_writes_a_map_of_class_indices_for_each_image(directory, pictures, scenes, tmp_path):
    output = tmp_path / "maps"
    assert main(["predict", str(directory), str(pictures), *TASK, "--no_adapt", "--output", str(output)]) == 0
    assert sorted(path.name for path in output.iterdir()) == ["0.png", "1.png", "2.png"]
    for number, scene in enumerate(scenes["image"]):
        classes = np.asarray(Image.open(output / f"{number}.png"))
        assert classes.shape == (scene.height, scene.width)
        assert classes.max() < len(SCENE_CLASSES)


def test_a_task_that_is_not_the_models_is_refused(directory, pictures, capsys):
    assert main(["predict", str(directory), str(pictures), "--task", "classification"]) == 2
    assert f"--task classification does not fit {directory}, which is for segmentation" in capsys.readouterr().err
