"""Training in two processes, started by torchrun, is training in one with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import NUM_LABELS, classifier, family_images

from hf_it3 import IT3ForImageClassification


SCRIPT = Path(__file__).with_name("distributed_training.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]


def launch(*command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    completed = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    return completed


def train(directory: Path, processes: int, family: str, batch_size: int, **arguments) -> list[dict]:
    """The result of each process."""
    directory.mkdir()
    extra = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
    launch(*(TORCHRUN if processes > 1 else []), str(SCRIPT), str(directory), family, str(batch_size), *extra)
    return [
        {
            **json.loads((directory / f"result-{rank}.json").read_text()),
            "weights": torch.load(directory / f"weights-{rank}.pt"),
        }
        for rank in range(processes)
    ]


# DINOv2 holds a mask token that its classifier never uses, and no BatchNorm, whose statistics would be those of half
# the batch in each process.
def test_two_processes_end_where_one_with_the_same_global_batch_ends(tmp_path):
    first, second = train(tmp_path / "two", 2, "dinov2", 4)
    (alone,) = train(tmp_path / "one", 1, "dinov2", 8)
    assert (first["world_size"], alone["world_size"]) == (2, 1)
    assert len(alone["losses"]) == 8
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    for name, value in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value)
    assert first["reference_distance"] == pytest.approx(alone["reference_distance"])
    assert first["reference_distance"] == second["reference_distance"]


@pytest.mark.slow
def test_both_processes_keep_the_same_split_statistics(tmp_path):
    first, second = train(
        tmp_path / "two",
        2,
        "resnet",
        4,
        freeze_backbone=True,
        embedder_learning_rate=0.1,
        lr_scheduler_type="constant",
    )
    assert first["learning_rates"] == [0.01, 0.1]
    start = IT3ForImageClassification.from_backbone(classifier("resnet")).double().state_dict()
    moved = [name for name, value in first["weights"].items() if not torch.equal(value, start[name])]
    assert any("embedder.0" in name for name in moved)
    assert any("signal_running_mean" in name for name in moved)
    assert not any("convolution" in name or "classifier" in name for name in moved)
    for name, value in second["weights"].items():
        # DDP hands the buffers of the first process on before each pass, so only the last update of them differs.
        if "running" not in name:
            assert torch.equal(first["weights"][name], value), name


def test_the_train_command_runs_under_torchrun(tmp_path):
    options = [
        "--do_train",
        "--do_eval",
        "--use_cpu",
        "--max_steps=2",
        "--max_eval_samples=20",
        "--reference_images=10",
    ]
    completed = launch(*TORCHRUN, "-m", "hf_it3.cli", "train", f"--output_dir={tmp_path}", *options)
    assert completed.stdout.count("train_loss  ") == 1, "only the first process prints"
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_accuracy"] >= 0
    IT3ForImageClassification.from_pretrained(tmp_path)


def test_one_forward_holds_both_passes_and_reaches_every_parameter_of_the_module_tree():
    """What DDP, FSDP and DeepSpeed rely on."""
    model = IT3ForImageClassification.from_backbone(classifier("vit")).train()
    passes = []
    model.backbone.register_forward_hook(lambda module, inputs, output: passes.append(module))
    model(family_images("vit"), labels=torch.arange(NUM_LABELS)).loss.backward()
    assert len(passes) == 2
    assert all(parameter.grad is not None for parameter in model.parameters())
