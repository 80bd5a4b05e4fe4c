"""What `test_distributed.py` has two processes do, each job in a folder of its own.

    torchrun --nproc_per_node=2 tests/distributed_jobs.py MODEL FOLDER

does them all: processes take longer to start than to work. A process of its own may do single ones.
"""

import copy
import json
import os
import sys
from pathlib import Path

import torch
from families import NUM_LABELS, classifier, family_images
from transformers import set_seed

import hf_it3.evaluation.calibration.training as calibration
from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments
from hf_it3.cli import main as command_line
from hf_it3.data import load_digits
from hf_it3.evaluation import evaluate_robustness
from hf_it3.evaluation.calibration.report import Comparison
from hf_it3.evaluation.processes import process_state


# Trainings: of which family, by batches of how many images in each process, with which arguments.
TRAININGS = {
    # DINOv2 holds a mask token that its classifier never uses, and no BatchNorm, whose statistics would be those of
    # half the batch in each process.
    "training": ("dinov2", 4, {}),
    "frozen": (
        "resnet",
        4,
        {"freeze_backbone": True, "embedder_learning_rate": 0.1, "lr_scheduler_type": "constant"},
    ),
}
EVALUATIONS = {
    # 100 images in batches of 24 are five batches, so the two processes have different shares of them.
    "iid": {"order": "iid", "seeds": [0, 1]},
    "continual": {"order": "continual"},
    "streaming": {"streaming": True, "methods": "none,batch"},
}
COMMAND = ["--do_train", "--do_eval", "--use_cpu", "--max_steps=2", "--max_eval_samples=20", "--reference_images=10"]


def start(family: str) -> IT3ForImageClassification:
    """The model that a training starts from, whatever the process did before."""
    backbone = classifier(family)
    set_seed(0)  # of the embedder; the backbone may have been built long ago
    return IT3ForImageClassification.from_backbone(backbone).double()


def train(folder: Path, family: str, batch_size: int, arguments: dict) -> None:
    """Trains a tiny model and writes the weights of this process and the log."""
    folder.mkdir(parents=True, exist_ok=True)
    images = family_images(family, 32)
    rows = [{"pixel_values": image, "label": index % NUM_LABELS} for index, image in enumerate(images)]
    training = IT3TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        num_train_epochs=2,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    model = start(family)
    trainer = IT3Trainer(model, training, train_dataset=rows, data_collator=_stack)
    trainer.train()
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / f"weights-{_rank()}.pt")
    reference_distance = copy.deepcopy(model.config.reference_distance)
    # Two processes see some of the 21 images twice, so that their last batches are equally large.
    trainer.measure_reference_distance(rows[:21])
    clean = {name: value for name, value in model.state_dict().items() if name.startswith(("feature_", "shift_"))}
    torch.save(clean, folder / f"clean-{_rank()}.pt")
    result = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "reference_distance": reference_distance,
        "world_size": training.world_size,
        "learning_rates": sorted({group["lr"] for group in trainer.optimizer.param_groups}),
    }
    (folder / f"result-{_rank()}.json").write_text(json.dumps(result))


def _stack(rows):
    pixel_values = torch.stack([row["pixel_values"] for row in rows]).double()
    return {"pixel_values": pixel_values, "labels": torch.tensor([row["label"] for row in rows])}


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def evaluate(model: str, folder: Path) -> None:
    """All evaluations, each into a folder of its own."""
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


def calibrate(name: str, folder: Path) -> None:
    """Trains a saved model for a step, calibrates it, and writes down what each process has then."""
    calls = []
    original = calibration.calibrate

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **{**options, "num_samples": 16})

    calibration.calibrate = counted
    # Of so few images hardly any setting is better on those that did not choose, and only better ones are written.
    Comparison.is_better = True
    digits = load_digits()
    model = IT3ForImageClassification.from_pretrained(name)
    model.config.adaptation = model.config.adaptation.replace(num_steps=2, batch_size=8)
    arguments = IT3TrainingArguments(
        str(folder), max_steps=1, save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True
    )
    IT3Trainer(model, arguments, train_dataset=digits["train"], eval_dataset=digits["test"], calibrate=True).train()
    content = {"config": model.config.to_dict(), "calibrations": len(calls)}
    (folder / f"rank-{_rank()}.json").write_text(json.dumps(content))


def main(model: str, folder: Path) -> None:
    torch.set_num_threads(1)
    # In one piece, so that lines of two processes do not run into each other.
    sys.stdout.write(f"{process_state().process_index}/{process_state().num_processes}\n")
    for name, training in TRAININGS.items():
        train(folder / name, *training)
    evaluate(model, folder / "evaluation")
    command_line(["train", f"--output_dir={folder / 'command'}", *COMMAND])
    calibrate(model, folder / "calibration")
    process_state().destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
