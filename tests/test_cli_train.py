"""`hf-it3 train` and `hf-it3 inspect`, called as the shell calls them."""

import dataclasses
import json
import re
from pathlib import Path

import datasets
import pytest
import torch
from families import classifier
from PIL import Image

from hf_it3 import (
    AdaptationConfig,
    IT3ForImageClassification,
    IT3ForSemanticSegmentation,
    IT3ImageProcessor,
    IT3TrainingArguments,
)
from hf_it3.cli import build_parser, main, training
from hf_it3.cli.inspection import inspect_model
from hf_it3.cli.train import DataArguments, ModelArguments
from hf_it3.it3.backbone_defaults_it3 import BACKBONE_DEFAULTS
from hf_it3.training.own_arguments import OwnArguments
from hf_it3.training.small_segformer import small_segformer


QUICK = [
    "--use_cpu",
    "--disable_tqdm=true",
    "--save_strategy=no",
    "--max_steps=2",
    "--per_device_train_batch_size=8",
    "--max_eval_samples=20",
    "--reference_images=16",
]


def train(output_dir, *arguments: str) -> dict[str, float]:
    assert main(["train", "--output_dir", str(output_dir), *QUICK, *arguments]) == 0
    results = output_dir / "all_results.json"
    return json.loads(results.read_text()) if results.exists() else {}


def test_every_training_argument_is_an_option():
    options = vars(build_parser("train").parse_args(["train"]))
    fields = {field.name: field for field in dataclasses.fields(IT3TrainingArguments) if field.init}
    assert fields.keys() <= options.keys()
    parsed = build_parser("train").parse_args(["train", "--learning_rate", "0.5", "--freeze_backbone"])
    assert (parsed.learning_rate, parsed.freeze_backbone) == (0.5, True)


def actions_of(parser):
    (commands,) = [action for action in parser._actions if action.dest == "command"]
    return {action.dest: action for action in commands.choices["train"]._actions}


def test_the_quick_help_shows_options_as_they_are_parsed():
    shown, parsed = (actions_of(build_parser("train", only_explains)) for only_explains in (True, False))
    ours = [*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments), *dataclasses.fields(OwnArguments)]
    assert {field.name for field in ours} | {"output_dir", "learning_rate"} <= shown.keys() <= parsed.keys()
    for name, action in shown.items():
        same = [
            getattr(one, attribute) for one in (action, parsed[name]) for attribute in ("help", "nargs", "choices")
        ]
        assert same[:3] == same[3:], name


def test_the_whole_help_lists_every_training_argument(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help-all"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{field.name}" in text for field in dataclasses.fields(IT3TrainingArguments) if field.init)


def test_without_options_it_trains_with_a_rate_and_a_batch_that_suit_the_backbone(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train", lambda model, data, arguments: seen.append(arguments))
    monkeypatch.chdir(tmp_path)
    for options in (
        [],
        ["--backbone", "microsoft/resnet-18", "--dataset", "user/photos", "--embedder-learning-rate", "0.5"],
    ):
        assert main(["train", "--use_cpu", *options]) == 0
    small, wrapped = seen
    assert (small.output_dir, small.learning_rate, small.num_train_epochs) == ("runs/cnn-digits", 1e-3, 15)
    assert (small.per_device_train_batch_size, small.embedder_learning_rate) == (32, None)
    assert (wrapped.output_dir, wrapped.learning_rate, wrapped.num_train_epochs) == ("runs/resnet-18-photos", 1e-4, 3)
    assert (wrapped.per_device_train_batch_size, wrapped.embedder_learning_rate) == (32, 0.5)


def test_a_missing_column_is_told_before_the_progress_bar(tmp_path, capsys):
    assert main(["train", "--output_dir", str(tmp_path), "--max_steps=2", "--label_column=digit"]) == 2
    error = capsys.readouterr().err
    assert "the data set has no label column 'digit'; its columns are image, label" in error
    assert "0%|" not in error


def test_the_small_network_is_trained_evaluated_and_saved_with_its_processor(tmp_path, digits):
    metrics = train(tmp_path, "--eval_adapted")
    assert {"train_loss", "eval_loss", "eval_accuracy", "eval_adapted_accuracy"} <= metrics.keys()
    model = IT3ForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == {index: str(index) for index in range(10)}
    assert model.config.reference_distance["num_images"] == 16
    processor = IT3ImageProcessor.from_pretrained(tmp_path)
    images = processor(images=digits["test"]["image"][:2], return_tensors="pt").pixel_values
    assert model(images).logits.shape == (2, 10)


def test_evaluation_is_left_out_if_only_training_is_asked_for(tmp_path):
    metrics = train(tmp_path, "--do_train")
    assert "train_loss" in metrics
    assert "eval_accuracy" not in metrics


def test_evaluating_during_training_trains(tmp_path):
    metrics = train(tmp_path, "--eval_strategy=steps", "--eval_steps=1")
    assert {"train_loss", "eval_accuracy"} <= metrics.keys()


def test_a_trained_model_can_be_evaluated_alone(tmp_path, trained_directory):
    metrics = train(tmp_path, "--backbone", trained_directory, "--do_eval")
    assert metrics["eval_accuracy"] > 0.5
    assert "train_loss" not in metrics
    assert not (tmp_path / "model.safetensors").exists()


def test_evaluation_alone_needs_no_training_split(tmp_path, trained_directory, digits):
    datasets.DatasetDict({"test": digits["test"].select(range(20))}).save_to_disk(tmp_path / "data")
    arguments = ["--dataset", str(tmp_path / "data"), "--backbone", trained_directory]
    assert "eval_accuracy" in train(tmp_path / "out", *arguments, "--do_eval")


def test_options_change_a_trained_model_and_the_others_stay(tmp_path, model, processor):
    model.config.neutral_signal = "uniform"
    model.config.adaptation = model.config.adaptation.replace(learning_rate=0.25)
    model.config.id2label = {index: f"digit {index}" for index in range(10)}
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    arguments = ["--backbone", str(tmp_path / "model"), "--do_train"]
    options = ["--adaptation", '{"num_steps": 17}', "--idempotence_weight=0.25", "--distance=js"]
    train(tmp_path / "out", *arguments, *options)
    config = IT3ForImageClassification.from_pretrained(tmp_path / "out").config
    assert (config.adaptation.num_steps, config.adaptation.learning_rate) == (17, 0.25)
    assert (config.idempotence_weight, config.distance, config.neutral_signal) == (0.25, "js", "uniform")
    assert config.id2label == {index: str(index) for index in range(10)}
    assert config.label2id == {str(index): index for index in range(10)}
    train(tmp_path / "again", *arguments, "--neutral_signal=none", "--injection_layer=conv1")
    assert IT3ForImageClassification.from_pretrained(tmp_path / "again").config.neutral_signal == "none"


def test_what_does_not_fit_a_trained_model_is_refused(tmp_path, trained_directory, image_folder, capsys):
    arguments = ["train", "--output_dir", str(tmp_path / "out"), *QUICK, "--backbone", trained_directory]
    assert main([*arguments, "--injection_layer=conv2"]) == 2
    assert "--injection_layer conv2 does not fit" in capsys.readouterr().err
    assert main([*arguments, "--distance=far"]) == 2
    assert "IT3Config.distance must be one of" in capsys.readouterr().err
    assert main([*arguments, "--dataset", str(image_folder)]) == 2
    assert "the data set has 2 classes and" in capsys.readouterr().err


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder of colour images in two classes, as `datasets` reads them."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            directory = tmp_path / "images" / split / name
            directory.mkdir(parents=True)
            for index in range(4):
                pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(directory / f"{index}.png")
    return tmp_path / "images"


def test_a_checkpoint_is_wrapped_and_trained_on_a_folder_of_images(tmp_path, image_folder):
    classifier("vit").save_pretrained(tmp_path / "vit")
    arguments = ["--backbone", str(tmp_path / "vit"), "--dataset", str(image_folder)]
    adaptation = json.dumps({"num_steps": 2})
    train(tmp_path / "out", *arguments, "--freeze_backbone", "--adaptation", adaptation, "--idempotence_weight=0.5")
    model = IT3ForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.adaptation.num_steps == 2
    assert model.config.idempotence_weight == 0.5
    moved = {
        name
        for name, value in model.backbone.named_parameters()
        if "classifier" not in name and not torch.equal(value, classifier("vit").get_parameter(name))
    }
    assert moved
    assert all("norm" in name for name in moved)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train_split=training"], "no split 'training'; its splits are train, test"),
        (["--adaptation=steps"], "--adaptation must be JSON"),
        (["--adaptation=3"], "--adaptation must be a JSON object"),
        (['--adaptation={"num_step": 3}'], "did you mean 'num_steps'"),
        (["--injection_layer=conv"], "'conv' is not a module of IT3CNN.*did you mean"),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(tmp_path, capsys, arguments, message):
    assert main(["train", "--output_dir", str(tmp_path), *QUICK, *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-it3 train: error: ")
    assert re.search(message, error), error


def test_debug_shows_the_traceback_of_train_too(tmp_path):
    with pytest.raises(ValueError, match="no split 'training'"):
        main(["--debug", "train", "--output_dir", str(tmp_path), *QUICK, "--train_split=training"])


def inspect(capsys, *arguments: str) -> dict[str, str]:
    capsys.readouterr()
    assert main(["inspect", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines]
    return {name: "".join(value) for name, *value in cells}


def test_inspect_prints_layer_layout_channels_and_counts(tmp_path, capsys):
    backbone = classifier("resnet")
    backbone.config.save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path), "--image_size=32")
    assert printed["injection layer"] == "resnet.embedder"
    assert printed["layout"] == "B C H W, 2x8x8x8 for 2 images"
    assert printed["channels"] == "8"
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert printed["adapted by 'all'"] == f"{count:,} values"
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert printed["adapted by 'norm'"] == f"{sum(2 * norm.num_features for norm in norms):,} values"
    assert printed["BatchNorm"] == f"{len(norms)} layers, each with signal statistics"


def test_inspect_lists_the_layers_of_a_saved_model_and_names_a_better_one(trained_directory, tmp_path, capsys):
    printed = inspect(capsys, trained_directory, "--layers")
    assert printed["injection layer"] == "conv1"
    assert printed["BatchNorm"] == "none"
    assert {"conv2", "fc1", "fc4"} <= {key.split()[0] for key in printed if key}
    classifier("resnet").config.save_pretrained(tmp_path)
    layer = "resnet.embedder.embedder.convolution"
    printed = inspect(capsys, str(tmp_path), "--image_size=32", "--injection_layer", layer)
    assert printed["better layer"].startswith("resnet.embedder.embedder.normalization")


@pytest.mark.parametrize(
    ("family", "kind", "statistics"),
    [
        ("resnet", "batch_norm", "shrunk"),
        ("vit", "layer_norm", "mixed where clean images were measured, else source"),
    ],
)
def test_inspect_prints_what_settings_that_are_left_open_mean(tmp_path, capsys, family, kind, statistics):
    IT3ForImageClassification.from_backbone(classifier(family)).save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path), "--image_size=32")
    assert printed["kind of backbone"].startswith(f"{kind}, ")
    values = {name: printed[name] for name in BACKBONE_DEFAULTS[kind]}
    expected = {name: str(value) for name, value in BACKBONE_DEFAULTS[kind].items()}
    assert values == {**expected, "norm_statistics": statistics}


def test_inspect_prints_the_models_own_settings(trained_directory, tmp_path, capsys):
    model = IT3ForImageClassification.from_pretrained(trained_directory)
    model.config.adaptation = AdaptationConfig(num_steps=7, norm_statistics="source")
    model.save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path))
    assert (printed["num_steps"], printed["norm_statistics"]) == ("7", "source")
    assert printed["kind of backbone"].startswith("plain, ")
    assert printed["augmentation_kinds"] == "warp"


def test_inspect_prints_whether_copies_are_mirrored_and_why(tmp_path, capsys):
    model = IT3ForImageClassification.from_backbone(classifier("vit"))
    model.save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path), "--image_size=32")["augmentation_kinds"]
    assert printed == "crop (whether mirrored clean images keep their class was not measured)"
    model.config.reference_distance = {"mean": 0.0, "std": 1.0, "mirrored": {"all": 1.024, "least": 0.85}}
    model.save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path), "--image_size=32")["augmentation_kinds"]
    assert printed == (
        "crop, flip (mirrored clean images keep their class 1.02 times as often as cropped ones, 0.85 times in one "
        "class)"
    )


def test_inspect_prints_how_deep_copies_are_corrected_and_why(tmp_path, capsys):
    model = IT3ForImageClassification.from_backbone(classifier("resnet"))
    model.save_pretrained(tmp_path)
    printed = inspect(capsys, str(tmp_path), "--image_size=32")["norm_depth of copies"]
    assert printed == "0.17 (how many clean images keep their class then was not measured)"
    kept = {"cropped": 0.8, "quarter": 0.95, "half": 0.912, "all": 0.6}
    model.config.reference_distance = {"mean": 0.0, "std": 1.0, "corrected": kept}
    model.save_pretrained(tmp_path)
    assert inspect(capsys, str(tmp_path), "--image_size=32")["norm_depth of copies"] == (
        "0.5 (clean images that keep their class: 0.80 when cropped; corrected, 0.95 in a quarter of the layers, 0.91 "
        "in half, 0.60 in all)"
    )
    model.config.adaptation.norm_depth = 0.75
    model.save_pretrained(tmp_path)
    assert inspect(capsys, str(tmp_path), "--image_size=32")["norm_depth of copies"] == "0.75"


def test_inspect_refuses_a_layer_that_never_runs(trained_directory, capsys):
    assert main(["inspect", trained_directory, "--injection_layer=nothing"]) == 2
    assert "'nothing' is not a module" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, -1])
def test_inspect_refuses_images_without_pixels(trained_directory, random_model, size, capsys):
    with pytest.raises(SystemExit) as end:
        main(["inspect", trained_directory, "--image_size", str(size)])
    assert end.value.code == 2
    assert f"--image_size: must be at least 1, got {size}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"image_size must be at least 1, got {size}"):
        inspect_model(random_model, image_size=size)


def test_inspect_takes_segmentation_models(tmp_path, capsys):
    model = IT3ForSemanticSegmentation.from_backbone(small_segformer(), num_labels=11)
    model.save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert "SegformerForSemanticSegmentation, 11 labels" in capsys.readouterr().out


def test_a_model_that_will_be_replaced_is_named_before_training(tmp_path, capsys):
    command = ["train", "--output_dir", str(tmp_path), "--max_steps", "1", "--max_train_samples", "8", "--do_train"]
    told = []
    for more in ([], [], ["--resume_from_checkpoint", "true"]):
        main([*command, "--use_cpu", "--save_steps", "1", "--reference_images", "0", *more])
        told.append("holds a model, which will be replaced at the end" in capsys.readouterr().err)
    assert told == [False, True, False]
