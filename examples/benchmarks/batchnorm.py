# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo,eval]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""A small BatchNorm ResNet with and without IT3: accuracy, signal pass, statistics under contrast and fog.

    python examples/benchmarks/batchnorm.py --dataset ylecun/mnist --output_dir runs/batchnorm

Trains the same network twice per seed, by Trainer on images alone and by IT3Trainer, then classifies corrupted test
images in batches with training statistics, with the default ones, which follow the test batch, and with these and the
default step; and each image alone, answered with the mean over its copies, as they are and corrected. Images are grey,
28x28. Takes about two minutes per seed on an idle core.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments, set_seed

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.corruptions import corrupt
from hf_it3.data import load_images


CORRUPTIONS = {"imagenet-c/contrast": 5, "mnist-c/fog": 3}
STATISTICS = {"num_steps": 0, "average_answers": "never"}
# Each image by itself, whatever the others are.
ALONE = {
    "copies": {"scope": "average", "norm_statistics": "source"},
    "corrected copies": {"scope": "average"},
}


def resnet(num_labels: int) -> ResNetForImageClassification:
    """Some 80,000 parameters, a BatchNorm behind each of its convolutions."""
    config = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=num_labels,
    )
    return ResNetForImageClassification(config)


def load_split(split, count: int) -> tuple[Tensor, Tensor]:
    """The first images as tensors in [0, 1], shape (N, 1, 28, 28), and their labels, shape (N,)."""
    rows = split[:count]
    processor = IT3ImageProcessor(num_channels=1, do_normalize=False)
    return processor(images=rows["image"], return_tensors="pt").pixel_values, torch.tensor(rows["label"])


def normalize(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.5


def stack(rows: list[dict]) -> dict[str, Tensor]:
    labels = torch.stack([row["label"] for row in rows])
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (logits.argmax(-1) == labels).double().mean().item()


@torch.no_grad()
def predict(model, images: Tensor, signal: Tensor | None = None, batch_size: int = 500) -> Tensor:
    extra = [
        {} if signal is None else {"label_signal": part}
        for part in (images if signal is None else signal).split(batch_size)
    ]
    batches = zip(images.split(batch_size), extra, strict=True)
    return torch.cat([model(batch, **arguments).logits for batch, arguments in batches])


def adapt(model, images: Tensor, batch_size: int, **settings) -> Tensor:
    adapter = TestTimeAdapter(model, gate=None, **settings)
    return torch.cat([adapter(batch).logits for batch in images.split(batch_size)])


def run_seed(seed: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], args: argparse.Namespace) -> dict:
    """All figures of one seed, in percent."""
    settings = {
        "per_device_train_batch_size": 64,
        "num_train_epochs": args.epochs,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "seed": seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    rows = [
        {"pixel_values": image, "label": label} for image, label in zip(normalize(train[0]), train[1], strict=True)
    ]
    images, labels = test
    num_labels = int(train[1].max()) + 1
    set_seed(seed)
    plain = resnet(num_labels)
    Trainer(plain, TrainingArguments(args.output_dir, **settings), stack, rows).train()
    set_seed(seed)
    model = IT3ForImageClassification.from_backbone(resnet(num_labels))
    IT3Trainer(model, IT3TrainingArguments(args.output_dir, **settings), stack, rows).train()
    plain, model = plain.cpu().eval(), model.cpu().eval()
    clean = normalize(images)
    truth = torch.nn.functional.one_hot(labels, num_labels).float()
    figures = {
        "without IT3": accuracy(predict(plain, clean), labels),
        "with IT3": accuracy(predict(model, clean), labels),
        "signal pass given the true label": accuracy(predict(model, clean, truth), labels),
        "clean, test statistics": accuracy(adapt(model, clean, args.batch_size, **STATISTICS), labels),
    }
    for columns, settings in ALONE.items():
        figures[f"clean, {columns}"] = accuracy(adapt(model, clean, args.batch_size, **settings), labels)
    for name, severity in CORRUPTIONS.items():
        corrupted = normalize(corrupt(images, name, severity=severity, seed=0))
        short = f"{name.split('/')[1]} {severity}"
        figures[f"{short}, training statistics"] = accuracy(predict(model, corrupted), labels)
        figures[f"{short}, test statistics"] = accuracy(adapt(model, corrupted, args.batch_size, **STATISTICS), labels)
        for columns, settings in {"step": {"average_answers": "never"}, "step + averaged answers": {}}.items():
            adapted = adapt(model, corrupted, args.batch_size, **settings)
            figures[f"{short}, test statistics + {columns}"] = accuracy(adapted, labels)
        for columns, settings in ALONE.items():
            figures[f"{short}, {columns}"] = accuracy(adapt(model, corrupted, args.batch_size, **settings), labels)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ylecun/mnist", help="'digits', a Hub name or a local data set")
    parser.add_argument("--output_dir", default="runs/batchnorm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--train_images", type=int, default=6_000)
    parser.add_argument("--test_images", type=int, default=1_000)
    parser.add_argument("--batch_size", type=int, default=200, help="images that share statistics and adapted weights")
    args = parser.parse_args()
    splits = load_images(args.dataset)
    train, test = load_split(splits["train"], args.train_images), load_split(splits["test"], args.test_images)
    results = {}
    for seed in args.seeds:
        results[seed] = run_seed(seed, train, test, args)
        print(f"seed {seed} is measured", flush=True)
    print(f"{'accuracy in percent':34}  mean   {'  '.join(f'seed {seed}' for seed in args.seeds)}")
    for name in next(iter(results.values())):
        values = [figures[name] for figures in results.values()]
        print(f"{name:34} {sum(values) / len(values):5.1f}   {'  '.join(f'{value:6.1f}' for value in values)}")
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    Path(args.output_dir, "batchnorm.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
