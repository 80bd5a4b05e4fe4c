"""The demo: the whole story with one call, and what it leaves behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

from hf_it3 import IT3Config
from hf_it3.cli import main
from hf_it3.data import as_bytes
from hf_it3.demo import RECIPES, FloatAnswers, add_noise, run_demo
from hf_it3.evaluation.demo_report import condition_results, format_table


MNIST = Path(__file__).parent.parent / ".." / "shared" / "data" / "mnist"
SMALL = {"num_epochs": 2, "max_train_images": 400, "max_test_images": 100, "batch_size": 50}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    return directory, run_demo(seeds=2, output_dir=directory, **SMALL)


@pytest.mark.parametrize("command", [["demo"], ["app"]])
def test_missing_matplotlib_is_said_before_anything_is_trained(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(command) == 2
    assert "matplotlib: pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_leaves_a_model_that_loads_a_card_and_pictures(finished):
    directory, _ = finished
    classifier = pipeline("it3-image-classification", model=str(directory))
    assert classifier.model.config.id2label[7] == "7"
    assert classifier.model.config.reference_distance["num_images"] == 400
    card = ModelCard.load(directory / "README.md")
    assert card.data.library_name == "hf_it3"
    assert "| training images | 400 |" in card.text
    assert classifier(str(directory / "example.png"), top_k=1)
    assert '"example.png"' in card.text
    for name in ("digits.png", "accuracy.png"):
        with Image.open(directory / name) as image:
            assert min(image.size) > 100
    assert (directory / "seed_1" / "model.safetensors").is_file()


def test_results_hold_every_seed_and_condition_and_survive_json(finished):
    directory, document = finished
    assert json.loads((directory / "results.json").read_text()) == document
    assert [seed["seed"] for seed in document["seeds"]] == [0, 1]
    for seed in document["seeds"]:
        for condition in ("clean", "noisy", "float_noise"):
            for how in ("without", "with"):
                measured = seed["conditions"][condition][how]
                assert len(measured["batch_accuracies"]) == 2
                assert measured["accuracy"] == pytest.approx(sum(measured["batch_accuracies"]) / 2)


def test_the_table_has_a_line_per_seed_the_mean_and_the_time(finished):
    _, document = finished
    lines = format_table(document).splitlines()
    assert lines[0].split() == ["clean", "noisy", "float", "noise"]
    assert [line.split()[0] for line in (lines[1], *lines[3:7])] == ["seed", "0", "1", "mean", "ms"]
    clean = condition_results(document)[0]
    assert lines[5].split()[1] == f"{100 * clean['score_unadapted']:.1f}"


def test_noisy_images_are_pictures_and_the_tutorials_floats_stand_beside_them(finished, digits):
    directory, document = finished
    classifier = pipeline("it3-image-classification", model=str(directory))
    rows = digits["test"].select(range(100))
    pixels = torch.stack([torch.tensor(np.asarray(row["image"]))[None] / 255 for row in rows])
    noisy = add_noise(pixels, 2 * RECIPES["digits"].std, seed=0)
    pictures = [Image.fromarray(array[0]) for array in as_bytes(noisy)]
    labels = [str(label) for label in rows["label"]]
    for how, adapt in (("without", False), ("with", True)):
        answers = [answer for i in (0, 50) for answer in classifier(pictures[i : i + 50], top_k=1, adapt=adapt)]
        right = [answer[0]["label"] == label for answer, label in zip(answers, labels, strict=True)]
        measured = {name: pair[how]["accuracy"] for name, pair in document["seeds"][0]["conditions"].items()}
        assert measured["noisy"] == pytest.approx(sum(right) / 100)
    floats = torch.nn.functional.interpolate(pixels, size=(28, 28), mode="bilinear")
    inputs = (floats - RECIPES["digits"].mean) / RECIPES["digits"].std
    assert torch.equal(FloatAnswers(classifier)(floats, False), classifier.model(inputs).logits.argmax(-1))
    names = [result["name"] for result in condition_results(document)]
    assert names == ["clean", "Gaussian noise, sigma 2, 8-bit pictures", "Gaussian noise, sigma 2, unclipped floats"]


def test_the_card_shows_the_measured_accuracies(finished):
    directory, document = finished
    text = (directory / "README.md").read_text()
    for result in condition_results(document):
        assert f"{100 * result['score_adapted']:.1f}" in text


def test_the_card_is_that_of_the_model_beside_it(finished):
    directory, _ = finished
    reference = IT3Config.from_pretrained(directory).reference_distance
    text = " ".join((directory / "README.md").read_text().split())
    assert f"mean {reference['mean']:.4g}, standard deviation {reference['std']:.4g}" in text


def test_seeds_repeat(finished, tmp_path):
    _, document = finished
    again = run_demo(seeds=1, output_dir=tmp_path, **SMALL)

    def accuracies(seed):
        return {name: [measured[how]["accuracy"] for how in measured] for name, measured in seed["conditions"].items()}

    assert accuracies(again["seeds"][0]) == accuracies(document["seeds"][0])


def test_noise_is_gaussian_not_clipped_and_repeats():
    pixels = torch.full((50, 1, 28, 28), 0.5)
    noisy = add_noise(pixels, 0.6, seed=3)
    assert (noisy - pixels).std().item() == pytest.approx(0.6, rel=0.02)
    assert noisy.min() < 0
    assert noisy.max() > 1
    assert torch.equal(noisy, add_noise(pixels, 0.6, seed=3))
    assert not torch.equal(noisy, add_noise(pixels, 0.6, seed=4))


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not at ../shared/data/mnist")
def test_a_local_copy_of_mnist_is_read(tmp_path, capsys):
    options = [
        "--num_train_epochs",
        "1",
        "--max_train_samples",
        "600",
        "--max_eval_samples",
        "100",
        "--num_seeds",
        "1",
    ]
    assert main(["demo", "--dataset", str(MNIST), "--output_dir", str(tmp_path), *options]) == 0
    assert "on 100 test images" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["dataset"] == "mnist"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise_std", "-1"], "noise_std must be a number >= 0, got -1.0"),
        (["--dataset", "no/such/folder/here"], "no/such/folder/here"),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["demo", "--output_dir", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num_seeds", "--batch_size", "--num_train_epochs", "--max_eval_samples"])
def test_counts_below_one_are_refused(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--output_dir", str(tmp_path), option, "0"])
    assert end.value.code == 2
    assert f"argument {option}: must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seeds", "num_epochs", "batch_size", "max_train_images", "max_test_images"])
def test_the_function_refuses_them_too(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got -5"):
        run_demo(output_dir=tmp_path, **{name: -5})


def test_a_missing_column_is_told_before_anything_is_read(digits, tmp_path, capsys):
    for split, rows in digits.items():
        rows.select(range(10)).rename_column("image", "picture").to_parquet(tmp_path / "data" / f"{split}.parquet")
    capsys.readouterr()
    assert main(["demo", "--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "the data set has no image column" in error
    assert "Reading test images" not in error
    assert not (tmp_path / "out").exists()
