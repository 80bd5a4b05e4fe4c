"""A tiny untrained model, and quiet arguments for a few steps of training."""

import functools

import pytest
import torch
from transformers import set_seed

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification, IT3Trainer, IT3TrainingArguments


def tiny(**values) -> IT3ForImageClassification:
    set_seed(3)
    backbone = IT3CNNConfig(image_size=16, conv_channels=[4, 8], hidden_size=24)
    return IT3ForImageClassification(IT3Config(**{"backbone_config": backbone, **values}))


def quiet_arguments(folder, **values):
    """Arguments for a few steps on the CPU."""
    kind = values.pop("kind", IT3TrainingArguments)
    ours = {"reference_images": 0} if kind is IT3TrainingArguments else {}
    return kind(
        **{
            "output_dir": str(folder),
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 32,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **ours,
            **values,
        }
    )


def measured_by_trainer(model, images, folder) -> dict | None:
    """`reference_distance`, as a trainer measures it on images `(N, C, H, W)` and stores it in the model."""
    rows = [{"pixel_values": image, "label": 0} for image in images]
    return IT3Trainer(model, quiet_arguments(folder), train_dataset=rows).measure_reference_distance()


@pytest.fixture
def arguments(tmp_path):
    """Makes quiet arguments for a few steps on the CPU."""
    return functools.partial(quiet_arguments, tmp_path / "runs")


@pytest.fixture(scope="session")
def rows(train_rows):
    return train_rows[:64]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
