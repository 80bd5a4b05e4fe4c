"""Trains a tiny model and writes the weights of this process and the log, for test_distributed.py to compare.

Run by torchrun, or by plain Python for one process:
distributed_training.py OUTPUT_DIR FAMILY BATCH_SIZE [ARGUMENT=VALUE ...]
"""

import json
import os
import sys
from pathlib import Path

import torch
from families import NUM_LABELS, classifier, family_images

from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments


def main() -> None:
    torch.set_num_threads(1)
    output_dir, family, batch_size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    extra = {name: json.loads(value) for name, value in (argument.split("=") for argument in sys.argv[4:])}
    rank = int(os.environ.get("RANK", 0))
    images = family_images(family, 32)
    rows = [{"pixel_values": image, "label": index % NUM_LABELS} for index, image in enumerate(images)]
    arguments = IT3TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=batch_size,
        num_train_epochs=2,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **extra,
    )
    model = IT3ForImageClassification.from_backbone(classifier(family)).double()
    trainer = IT3Trainer(model, arguments, train_dataset=rows, data_collator=_stack)
    trainer.train()
    torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), output_dir / f"weights-{rank}.pt")
    result = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "reference_distance": model.config.reference_distance,
        "world_size": arguments.world_size,
        "learning_rates": sorted({group["lr"] for group in trainer.optimizer.param_groups}),
    }
    (output_dir / f"result-{rank}.json").write_text(json.dumps(result))


def _stack(rows):
    pixel_values = torch.stack([row["pixel_values"] for row in rows]).double()
    return {"pixel_values": pixel_values, "labels": torch.tensor([row["label"] for row in rows])}


if __name__ == "__main__":
    main()
