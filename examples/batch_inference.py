# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""Classifies a folder of images with several processes, each of which adapts to the images that it reads.

`datasets` streams the folder, so no more than a batch is ever in memory, and `split_dataset_by_node` gives every
process files of its own. Adaptation needs nothing from the other processes: each batch adapts by itself.

    python examples/batch_inference.py --model DIR --images FOLDER --processes 4 --output predictions.jsonl
    python examples/batch_inference.py          # without a folder or model: makes both from digits, a minute

It writes one JSON line per image (file, label, score, idempotence, adapted) and prints how many there are.
"""

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path


def classify_share(rank: int, options: argparse.Namespace) -> tuple[Path, int]:
    """Classifies one process's files and writes their lines, batch by batch."""
    # Imported here, so that the process that only hands out the work does not spend seconds on them first.
    import torch
    from datasets import Image, load_dataset
    from datasets.distributed import split_dataset_by_node
    from transformers import pipeline

    import hf_it3  # noqa: F401 - registers the pipeline's task

    # Processes that each use every core only wait for one another.
    torch.set_num_threads(max(1, multiprocessing.cpu_count() // options.processes))
    classifier = pipeline("it3-image-classification", model=str(options.model), top_k=1, return_idempotence=True)
    dataset = load_dataset("imagefolder", data_dir=str(options.images), split="train", streaming=True)
    # Bytes and path, not decoded: the pipeline opens the files itself, and a broken one is then named.
    dataset = split_dataset_by_node(dataset.cast_column("image", Image(decode=False)), rank, options.processes)
    # Files come folder by folder, and where folders are classes that would make batches of one class: the worst case
    # for adaptation.
    dataset = dataset.shuffle(seed=0, buffer_size=4096)
    path = options.output.with_suffix(f".part{rank}")
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for rows in dataset.iter(batch_size=options.batch_size):
            files = [row["path"] for row in rows["image"]]
            for file, (best,) in zip(files, classifier(files, adaptation_batch_size=options.batch_size), strict=True):
                lines.write(json.dumps({"file": str(Path(file).relative_to(options.images)), **best}) + "\n")
                count += 1
    return path, count


def make_model_and_images(folder: Path, num_images: int, num_epochs: int) -> tuple[Path, Path]:
    """A model trained on the bundled digits, and noisy digits as files, for a try without any of your own."""
    from hf_it3 import IT3ImageProcessor
    from hf_it3.corruptions import CorruptionTransform
    from hf_it3.data import DIGITS, load_digits
    from hf_it3.demo import RECIPES, train_network

    digits, recipe = load_digits(), RECIPES[DIGITS]
    processor = IT3ImageProcessor(num_channels=1, image_mean=[recipe.mean], image_std=[recipe.std])
    model = folder / "model"
    train_network(digits["train"], processor, [str(digit) for digit in range(10)], model, 0, recipe, num_epochs)
    brighten = CorruptionTransform("digits-shift/brightness")
    for position, row in enumerate(digits["test"].select(range(num_images))):
        path = folder / "images" / str(row["label"]) / f"{position:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        brighten(row["image"]).save(path)
    return model, folder / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--images", type=Path, help="folder of images, in any depth of folders")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=64, help="images that adapt together")
    parser.add_argument("--output", type=Path, default=Path("runs/batch_inference/predictions.jsonl"))
    parser.add_argument("--num_images", type=int, default=256, help="without --images: digits to write")
    parser.add_argument("--num_epochs", type=int, default=10, help="without --model: of the training")
    options = parser.parse_args()
    if options.processes < 1 or options.batch_size < 1:
        raise ValueError("--processes and --batch_size must be at least 1")
    if (options.model is None) != (options.images is None):
        raise ValueError("give both --model and --images, or neither")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        made = make_model_and_images(options.output.parent, options.num_images, options.num_epochs)
        options.model, options.images = made
    options.images = options.images.resolve()

    start = time.perf_counter()
    # "spawn", because a forked process inherits torch's threads in whatever state they are.
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        parts = pool.starmap(classify_share, [(rank, options) for rank in range(options.processes)])
        pool.close()
        pool.join()
    seconds = time.perf_counter() - start
    with options.output.open("w", encoding="utf-8") as lines:
        for path, _ in parts:
            lines.write(path.read_text(encoding="utf-8"))
            path.unlink()
    counts = [count for _, count in parts]
    print(f"{sum(counts)} images in {seconds:.1f} s by {len(counts)} processes ({', '.join(map(str, counts))})")
    answers = [json.loads(line) for line in options.output.read_text(encoding="utf-8").splitlines()]
    print(f"{sum(answer['adapted'] for answer in answers)} of them adapted to; the answers are in {options.output}")
    right = sum(Path(answer["file"]).parent.name == answer["label"] for answer in answers)
    if right:
        print(f"{right / len(answers):.1%} have the label that their folder is named after")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"batch_inference.py: {' '.join(str(error).split())}")
