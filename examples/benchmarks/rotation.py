# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""Regression: tells by how many degrees a digit is turned, without and with adaptation, clean and under shifts.

    python examples/benchmarks/rotation.py

Turns each digit by a random angle, trains the small network to tell the angle, and prints the mean absolute error in
degrees under the shifts of `digits-shift` but for rotation, which would change the answer. Takes about a minute per
seed on an idle core.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import set_seed

from hf_it3 import (
    IT3CNNConfig,
    IT3ForImageClassification,
    IT3ImageProcessor,
    IT3Trainer,
    IT3TrainingArguments,
    TestTimeAdapter,
)
from hf_it3.corruptions import corrupt, list_corruptions
from hf_it3.data import load_images


SIDE = 28
MEAN, STD = 0.2, 0.35
SHIFTS = [name for name in list_corruptions("digits-shift") if not name.endswith(("/clean", "/rotation"))]


def turned(rows, count: int, most: float, seed: int) -> tuple[Tensor, Tensor]:
    """Digits turned by random angles: pixels in [0, 1], shape (N, 1, 28, 28), and degrees, shape (N,)."""
    draw = np.random.default_rng(seed)
    rows = rows.select(range(min(count, len(rows))))
    angles = draw.uniform(-most, most, len(rows))
    pictures = []
    for picture, angle in zip(rows["image"], angles, strict=True):
        large = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(large.rotate(angle, Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(pictures))[:, None].float() / 255, torch.from_numpy(angles).float()


def train(seed: int, images: Tensor, angles: Tensor, args: argparse.Namespace) -> IT3ForImageClassification:
    set_seed(seed)
    config = IT3CNNConfig(num_labels=1, problem_type="regression")
    model = IT3ForImageClassification.from_backbone(config, problem_type="regression", injection_layer="conv1")
    pixel_values = (images - MEAN) / STD
    rows = [
        {"pixel_values": image, "label": angle} for image, angle in zip(pixel_values, angles.tolist(), strict=True)
    ]
    arguments = IT3TrainingArguments(
        str(Path(args.output_dir) / f"seed_{seed}"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        seed=seed,
        save_strategy="no",
        logging_strategy="epoch",
        disable_tqdm=True,
        use_cpu=True,
    )
    processor = IT3ImageProcessor(num_channels=1, image_mean=[MEAN], image_std=[STD])
    trainer = IT3Trainer(model, arguments, train_dataset=rows, processing_class=processor)
    trainer.train()
    trainer.save_model()
    return trainer.model.eval()


def errors(model, images: Tensor, angles: Tensor, batch_size: int, **settings) -> tuple[float, float]:
    """Mean absolute errors in degrees, without and with adaptation."""
    adapter = TestTimeAdapter(model, **settings)
    outputs = [adapter(batch) for batch in images.split(batch_size)]
    without, adapted = (
        torch.cat([getattr(output, name)[:, 0] for output in outputs]) for name in ("initial_logits", "logits")
    )
    return (without - angles).abs().mean().item(), (adapted - angles).abs().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", help="'digits' (bundled), a Hub name or a local data set")
    parser.add_argument("--output_dir", default="runs/rotation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--most", type=float, default=45, help="largest angle, in degrees")
    parser.add_argument("--train_images", type=int, default=6_000)
    parser.add_argument("--test_images", type=int, default=1_000)
    parser.add_argument("--batch_size", type=int, default=125, help="images that adapt together")
    args = parser.parse_args()
    splits = load_images(args.dataset)
    images, angles = turned(splits["train"], args.train_images, args.most, 0)
    test, truth = turned(splits["test"], args.test_images, args.most, 1)
    results: dict[str, list[tuple[float, float]]] = {}
    for seed in args.seeds:
        model = train(seed, images, angles, args)
        for name in ("clean", *SHIFTS):
            pixels = test if name == "clean" else corrupt(test, name, seed=0)
            figures = errors(model, (pixels - MEAN) / STD, truth, args.batch_size)
            results.setdefault(name.rpartition("/")[2], []).append(figures)
        print(f"seed {seed} is measured", flush=True)
    guess = (truth - angles.mean()).abs().mean().item()
    print(f"mean absolute error in degrees, mean of {len(args.seeds)} seeds; always the mean angle: {guess:.1f}")
    print(f"{'condition':20}{'no adaptation':>15}{'adapted':>10}    of each seed")
    for name, figures in results.items():
        without, adapted = np.mean(figures, axis=0)
        each = ", ".join(f"{before:.1f} -> {after:.1f}" for before, after in figures)
        print(f"{name:20}{without:15.1f}{adapted:10.1f}    {each}")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "rotation.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
