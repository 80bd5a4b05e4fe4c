"""Two processes, started by torchrun, end where one ends: training, evaluation, calibration, and the command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import distributed_jobs
import pytest
import torch
from alike import assert_alike
from distributed_jobs import EVALUATIONS, TRAININGS
from families import NUM_LABELS, classifier, family_images

from hf_it3 import IT3ForImageClassification


TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


@pytest.fixture(scope="module")
def two(trained_directory, tmp_path_factory):
    """The folder of two processes that the launcher started on the CPU, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *TORCHRUN, distributed_jobs.__file__, trained_directory, str(folder)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished.stdout


def trained(folder: Path, rank: int) -> dict:
    """The result of a process."""
    weights = torch.load(folder / f"weights-{rank}.pt")
    return {**json.loads((folder / f"result-{rank}.json").read_text()), "weights": weights}


def test_both_processes_took_part(two):
    _, printed = two
    # torch 2.8 prints lines of its own about the connections.
    assert sorted(re.findall(r"^\d/\d$", printed, re.MULTILINE)) == ["0/2", "1/2"]


@pytest.fixture(scope="module")
def alone_folder(tmp_path_factory):
    """The folder of one process, this one, that trains with the same global batch."""
    folder = tmp_path_factory.mktemp("alone")
    family, batch_size, arguments = TRAININGS["training"]
    distributed_jobs.train(folder, family, 2 * batch_size, arguments)
    return folder


def test_training_ends_where_one_with_the_same_global_batch_ends(two, alone_folder):
    first, second = (trained(two[0] / "training", rank) for rank in (0, 1))
    alone = trained(alone_folder, 0)
    assert (first["world_size"], alone["world_size"]) == (2, 1)
    assert len(alone["losses"]) == 8
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value)
    assert {"mirrored", "corrected"} <= alone["reference_distance"].keys()
    assert_alike(first["reference_distance"], alone["reference_distance"])
    assert first["reference_distance"] == second["reference_distance"]


def test_clean_images_count_once_however_many_processes_see_them(two, alone_folder):
    alone = torch.load(alone_folder / "clean-0.pt")
    assert any(name.startswith("feature_statistics") and value.any() for name, value in alone.items())
    for rank in (0, 1):
        seen = torch.load(two[0] / "training" / f"clean-{rank}.pt")
        for name, value in alone.items():
            torch.testing.assert_close(seen[name], value, atol=1e-5, rtol=1e-4)


def test_both_processes_keep_the_same_split_statistics(two):
    first, second = (trained(two[0] / "frozen", rank) for rank in (0, 1))
    assert first["learning_rates"] == [0.01, 0.1]
    start = distributed_jobs.start("resnet").state_dict()
    moved = [name for name, value in first["weights"].items() if not torch.equal(value, start[name])]
    assert any("embedder.0" in name for name in moved)
    assert any("signal_running_mean" in name for name in moved)
    assert not any("convolution" in name or "classifier" in name for name in moved)
    for name, value in second["weights"].items():
        # DDP hands the buffers of the first process on before each pass, so only the last update of them differs.
        if "running" not in name:
            assert torch.equal(first["weights"][name], value), name


@pytest.fixture(scope="module")
def one(trained_directory, tmp_path_factory):
    """The evaluations of a single process."""
    folder = tmp_path_factory.mktemp("one")
    distributed_jobs.evaluate(trained_directory, folder)
    return folder


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_give_the_figures_of_one(one, two, name):
    ours, theirs = (
        json.loads((folder / name / "results.json").read_text()) for folder in (one, two[0] / "evaluation")
    )
    assert ours["complete"]
    assert_alike(ours, theirs)


def test_the_train_command_prints_once_and_saves_a_model(two):
    folder, printed = two
    assert printed.count("train_loss  ") == 1, "only the first process prints"
    assert json.loads((folder / "command/all_results.json").read_text())["eval_accuracy"] >= 0
    IT3ForImageClassification.from_pretrained(folder / "command")


def test_all_processes_are_calibrated_once_and_end_with_the_same_configuration(two):
    first, second = (json.loads((two[0] / f"calibration/rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["config"] == second["config"]
    assert first["config"]["calibration_corruptions"]
    assert (first["calibrations"], second["calibrations"]) == (1, 0)


def test_one_forward_holds_both_passes_and_reaches_every_parameter_of_the_module_tree():
    """What DDP, FSDP and DeepSpeed rely on."""
    model = IT3ForImageClassification.from_backbone(classifier("vit")).train()
    passes = []
    model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(module))
    model(family_images("vit"), labels=torch.arange(NUM_LABELS)).loss.backward()
    assert len(passes) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())
