"""Run by torchrun: trains a saved model for a step, calibrates it, and writes down what each process has then."""

import json
import os
import sys
from pathlib import Path

import hf_it3.evaluation.calibration.training as training
from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments
from hf_it3.data import load_digits
from hf_it3.evaluation.calibration.report import Comparison


def main(model_directory: str, output: str) -> None:
    calls = []
    original = training.calibrate

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **{**options, "num_samples": 16})

    training.calibrate = counted
    # Of so few images hardly any setting is better on those that did not choose, and only better ones are written.
    Comparison.is_better = True
    digits = load_digits()
    model = IT3ForImageClassification.from_pretrained(model_directory)
    model.config.adaptation = model.config.adaptation.replace(num_steps=2, batch_size=8)
    arguments = IT3TrainingArguments(
        output, max_steps=1, save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True
    )
    IT3Trainer(model, arguments, train_dataset=digits["train"], eval_dataset=digits["test"], calibrate=True).train()
    content = {"config": model.config.to_dict(), "calibrations": len(calls)}
    (Path(output) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
