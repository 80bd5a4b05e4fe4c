"""Two processes give exactly the figures of one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alike import assert_alike

from hf_it3.evaluation import evaluate_robustness


EVALUATIONS = {
    # 100 images in batches of 24 are five batches, so the two processes have different shares of them.
    "iid": {"order": "iid", "seeds": [0, 1]},
    "continual": {"order": "continual"},
    "streaming": {"streaming": True, "methods": "none,batch"},
}


def evaluate(model: str, folder: Path) -> None:
    """All evaluations, each into a folder of its own."""
    from hf_it3.data import load_digits

    for name, options in EVALUATIONS.items():
        options = {"methods": "none,batch,stream,image", "corruptions": "digits-shift/contrast", **options}
        dataset = load_digits()["test"]
        if options.pop("streaming", False):
            dataset = dataset.to_iterable_dataset()
        evaluate_robustness(
            model,
            dataset,
            num_samples=100,
            batch_size=24,
            output_dir=folder / name,
            plots=False,
            show_progress=False,
            **options,
        )


@pytest.fixture(scope="module")
def folders(trained_directory, tmp_path_factory):
    """Results of one process, and of two that the launcher started on the CPU."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    evaluate(trained_directory, one)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*launcher, __file__, trained_directory, str(two)], env=environment, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return one, two, finished.stdout


@pytest.mark.parametrize("name", EVALUATIONS)
def test_two_processes_give_the_figures_of_one(folders, name):
    one, two, _ = folders
    ours, theirs = (json.loads((folder / name / "results.json").read_text()) for folder in (one, two))
    assert ours["complete"]
    assert_alike(ours, theirs)


def test_both_processes_took_part(folders):
    *_, printed = folders
    # torch 2.8 prints lines of its own about the connections.
    assert sorted(re.findall(r"^\d/\d$", printed, re.MULTILINE)) == ["0/2", "1/2"]


if __name__ == "__main__":
    from hf_it3.evaluation.processes import process_state

    evaluate(sys.argv[1], Path(sys.argv[2]))
    # In one piece, so that lines of two processes do not run into each other.
    sys.stdout.write(f"{process_state().process_index}/{process_state().num_processes}\n")
    process_state().destroy_process_group()
