"""`--trust_remote_code`, for a model whose backbone and image processor are code of its own."""

import json
import sys
from unittest.mock import MagicMock

import datasets
import pytest
from transformers import dynamic_module_utils

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor
from hf_it3.cli import COMMANDS, build_parser, main


NETWORK = """
from torch import nn


class OwnNetwork(nn.Sequential):
    def __init__(self, width=4):
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        super().__init__(nn.Conv2d(1, width, 3), nn.ReLU(), *pooled)
"""
PROCESSOR = """
from hf_it3 import IT3ImageProcessor


class OwnProcessor(IT3ImageProcessor):
    pass
"""
REFUSAL = " (on the command line: --trust_remote_code)\n"


@pytest.fixture
def modules_apart(tmp_path, monkeypatch):
    """What is imported here is forgotten afterwards, and code of repositories is not kept in the user's cache."""
    before = set(sys.modules)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("own_network", "transformers_modules"):
            del sys.modules[name]


def save(folder, own_backbone, own_processor):
    """Saves a model, and forgets the code that it is made of."""
    (folder / "own_network.py").write_text(NETWORK)
    import own_network

    backbone = own_network.OwnNetwork()
    model = IT3ForImageClassification.from_backbone(backbone, backbone_kwargs={"width": 4}, num_labels=10)
    model.save_pretrained(folder / "model")
    processor = IT3ImageProcessor(num_channels=1, size={"height": 8, "width": 8}, image_mean=[0.3], image_std=[0.35])
    processor.save_pretrained(folder / "model")
    if own_backbone:
        del sys.modules["own_network"]
    if own_processor:
        (folder / "model" / "preprocessing.py").write_text(PROCESSOR)
        file = folder / "model" / "preprocessor_config.json"
        own = {
            "image_processor_type": "OwnProcessor",
            "auto_map": {"AutoImageProcessor": "preprocessing.OwnProcessor"},
        }
        file.write_text(json.dumps({**json.loads(file.read_text()), **own}))
    return str(folder / "model")


@pytest.fixture
def commands(tmp_path, digits):
    """For each command that loads a model by name, its shortest call; `MODEL` stands for the name."""
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(digits["test"].select(range(8))["image"]):
        image.save(images / f"{number}.png")
    few = {split: digits[split].select(range(16)) for split in ("train", "test")}
    datasets.DatasetDict(few).save_to_disk(tmp_path / "data")
    data = ("--dataset", str(tmp_path / "data"))
    out = ("--output_dir", str(tmp_path / "out"))
    quick = ("--use_cpu", "--disable_tqdm=true", "--max_steps=1", "--reference_images=8", "--save_strategy=no")
    return {
        "evaluate": ("evaluate", "MODEL", *data, "--corruptions", "none", "--methods", "none", "--no_progress"),
        "calibrate": (
            "calibrate",
            "MODEL",
            *data,
            *out,
            "--corruptions",
            "digits-shift/blur",
            "--no_progress",
            "--batch_size=4",
        ),
        "train": ("train", "--backbone", "MODEL", *data, *out, *quick),
        "inspect": ("inspect", "MODEL", "--image_size", "8"),
        "predict": ("predict", "MODEL", str(images)),
        "adapt": ("adapt", "MODEL", str(images), *out),
        "app": ("app", "MODEL", *data),
    }


LOADING = ("evaluate", "calibrate", "train", "inspect", "predict", "adapt", "app")


def test_all_commands_that_load_a_model_take_the_option():
    names = {name for name in COMMANDS if "--trust_remote_code" in _options(name)}
    assert names == set(LOADING)


def _options(command):
    (commands,) = [action for action in build_parser(command)._actions if action.dest == "command"]
    return {option for action in commands.choices[command]._actions for option in action.option_strings}


@pytest.mark.usefixtures("modules_apart")
@pytest.mark.parametrize(
    ("command", "own"),
    [*((name, "backbone") for name in LOADING), *((name, "processor") for name in LOADING if name != "inspect")],
)
def test_code_of_a_model_runs_where_it_is_trusted_and_nowhere_else(
    command, own, commands, tmp_path, monkeypatch, capsys
):
    if command == "app":
        pytest.importorskip("gradio")
        monkeypatch.setattr("hf_it3.app.interface.build_app", MagicMock())
        monkeypatch.setattr("hf_it3.app.served_model.ServedModel.start", MagicMock())
    model = save(tmp_path, own == "backbone", own == "processor")
    call = [model if word == "MODEL" else word for word in commands[command]]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert error.endswith(REFUSAL), error
    assert main([*call, "--trust-remote-code"]) == 0, capsys.readouterr().err
    assert "has no effect here" not in capsys.readouterr().err
