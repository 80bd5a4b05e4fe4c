"""The demo, after the MNIST tutorial: train, save, load in a pipeline, adapt to noisy pictures, over several seeds."""

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import TrainerCallback, pipeline, set_seed

from .data import (
    DIGITS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    as_bytes,
    class_names,
    find_column,
    first_rows,
    load_images,
    select_split,
)
from .evaluation.demo_report import Measurement, SeedResult, condition_results, describe_seed, heading
from .evaluation.pixels import Normalization, PixelCollator
from .hub.card_facts import training_facts, versions_for_card
from .hub.model_card import write_model_card
from .it3.configuration_cnn_it3 import IT3CNNConfig
from .it3.configuration_it3 import IT3Config
from .it3.image_processing_it3 import IT3ImageProcessor
from .it3.modeling_it3 import IT3ForImageClassification
from .it3.pipeline_it3 import IT3Pipeline
from .it3.registration import TASK
from .training.trainer import IT3Trainer
from .training.training_arguments import IT3TrainingArguments
from .utils import import_figure, plot_batch_accuracies, plot_images, write_atomically


@dataclass
class Recipe:
    """How the demo trains on a data set: pixel mean and standard deviation in [0, 1], and the usual settings."""

    mean: float
    std: float
    num_epochs: int
    train_batch_size: int
    eval_batch_size: int
    title: str


RECIPES = {
    DIGITS: Recipe(0.31, 0.38, 15, 32, 125, "scikit-learn's handwritten digits"),
    "mnist": Recipe(0.1307, 0.3081, 2, 256, 256, "MNIST"),
}
EXAMPLE = "example.png"  # a noisy test image, for the example of use in the model card


def run_demo(
    dataset: str = DIGITS,
    seeds: int = 3,
    output_dir: str | os.PathLike = "runs/demo",
    noise_std: float = 2.0,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    max_train_images: int | None = None,
    max_test_images: int | None = None,
) -> dict[str, Any]:
    """Trains the tutorial's network, loads it back through the pipeline, and measures it on clean and noisy images.

    Clean and noisy images are 8-bit pictures that go through the pipeline, as a user's do. `float_noise` is the noise
    of the tutorial, added to normalised floats and not clipped: it holds values that no picture has.

    Args:
        dataset (`str`): `"digits"`, a Hub name (`"ylecun/mnist"`) or a local path with the splits train and test.
        seeds (`int`): number of models to train, with the seeds 0, 1, ...
        output_dir (`str`): where the first model, its card, the pictures and `results.json` go; further models go into
            `seed_1`, ... inside.
        noise_std (`float`): standard deviation of the Gaussian noise, in units of the normalised image.
        num_epochs, batch_size (`int`, *optional*): passes over the training images, and images that adapt together; by
            default what suits the data set.
        max_train_images, max_test_images (`int`, *optional*): number of images to use, from the first on.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: for a number out of range, or a data set without the splits or columns.
        ImportError: without matplotlib.
    """
    counts = {
        "seeds": seeds,
        "num_epochs": num_epochs,
        "batch_size": batch_size,
        "max_train_images": max_train_images,
        "max_test_images": max_test_images,
    }
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= noise_std < float("inf"):
        raise ValueError(f"noise_std must be a number >= 0, got {noise_std}")
    import_figure("the demo's pictures need", "demo")
    recipe = RECIPES[DIGITS if dataset == DIGITS else "mnist"]
    batch_size = batch_size or recipe.eval_batch_size
    splits = load_images(dataset)
    train = first_rows(select_split(splits, "train"), max_train_images)
    test = first_rows(select_split(splits, "test"), max_test_images)
    processor = IT3ImageProcessor(num_channels=1, image_mean=[recipe.mean], image_std=[recipe.std])
    names = _label_names(train)
    for rows in (train, test):
        find_column(rows.column_names, IMAGE_COLUMNS, None, "image")
    pixels, labels = _read_pixels(test, processor)

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in range(seeds):
        directory = output_dir if seed == 0 else output_dir / f"seed_{seed}"
        trainer = train_network(train, processor, names, directory, seed, recipe, num_epochs)
        classifier = pipeline(TASK, model=str(directory))  # type: ignore[call-overload] # a task of ours
        noisy = add_noise(pixels, noise_std * recipe.std, seed)
        answers = PipelineAnswers(classifier)
        ways: dict[str, tuple[Callable[[Any, bool], Tensor], Any]] = {
            "clean": (answers, as_bytes(pixels)),
            "noisy": (answers, as_bytes(noisy)),
            "float_noise": (FloatAnswers(classifier), _resize(noisy, processor)),
        }
        result = SeedResult(seed)
        for condition, (answer, images) in ways.items():
            result.conditions[condition] = measure(answer, images, labels, batch_size, f"seed {seed}, {condition}")
        results.append(result)
        if seed == 0:
            training = training_facts(trainer)
            Image.fromarray(as_bytes(noisy[:1])[0][0]).save(output_dir / EXAMPLE)
            titles = {"clean": pixels, f"noise, sigma {noise_std:g}": noisy}
            picture = plot_images([(title, images[:10]) for title, images in titles.items()])
            picture.savefig(output_dir / "digits.png", dpi=120)
    return _finish(output_dir, results, recipe, dataset, noise_std, batch_size, training)


def _label_names(dataset: Any) -> list[str]:
    labels = dataset[find_column(dataset.column_names, LABEL_COLUMNS, None, "label")]
    return class_names(dataset) or [str(label) for label in sorted(set(labels))]


def _read_pixels(dataset: Any, processor: IT3ImageProcessor) -> tuple[Tensor, Tensor]:
    """All test images at their own size, `(N, 1, H, W)` in [0, 1], and their labels `(N,)`."""
    as_they_are = copy.deepcopy(processor)
    as_they_are.do_resize = False
    collate = PixelCollator(as_they_are)
    batches = [
        collate([dataset[row] for row in range(start, min(start + 256, len(dataset)))])
        for start in tqdm(range(0, len(dataset), 256), "Reading test images")
    ]
    return torch.cat([batch["pixel_values"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def _resize(pixels: Tensor, processor: IT3ImageProcessor) -> Tensor:
    """Resizes images to the model's size, after the noise, as a camera does. PIL, in the pipeline, needs bytes."""
    size = (processor.size.height, processor.size.width)
    return pixels if pixels.shape[-2:] == size else F.interpolate(pixels, size=size, mode="bilinear")


def train_network(
    dataset: Any,
    processor: IT3ImageProcessor,
    names: Sequence[str],
    directory: Path,
    seed: int,
    recipe: Recipe,
    num_epochs: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> IT3Trainer:
    """Trains the tutorial's network and saves it into a directory."""
    set_seed(seed)
    id2label = dict(enumerate(names))
    backbone = IT3CNNConfig(id2label=id2label, label2id={name: index for index, name in id2label.items()})
    model = IT3ForImageClassification(IT3Config(backbone_config=backbone, injection_layer="conv1"))
    arguments = IT3TrainingArguments(
        str(directory),
        num_train_epochs=num_epochs or recipe.num_epochs,
        per_device_train_batch_size=recipe.train_batch_size,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_strategy="epoch",
        save_strategy="no",
        seed=seed,
    )
    trainer = IT3Trainer(
        model, arguments, train_dataset=dataset, processing_class=processor, callbacks=list(callbacks)
    )
    trainer.train()
    trainer.save_model()
    return trainer


def add_noise(pixels: Tensor, std: float, seed: int) -> Tensor:
    """Adds Gaussian noise to pixels in [0, 1]; the result is not clipped, as in the tutorial."""
    generator = torch.Generator().manual_seed(seed)
    return pixels + std * torch.randn(pixels.shape, generator=generator)


class PipelineAnswers:
    """Classifies pictures, arrays `(1, H, W)` of bytes, through the pipeline."""

    def __init__(self, classifier: IT3Pipeline):
        self.classifier = classifier

    def __call__(self, images: Sequence[np.ndarray], adapt: bool) -> Tensor:
        """The class of each image, `(N,)`."""
        answers = self.classifier(list(images), adaptation_batch_size=len(images), top_k=1, adapt=adapt)
        label2id = self.classifier.model.config.label2id
        return torch.tensor([label2id[answer[0]["label"]] for answer in answers])


class FloatAnswers:
    """Classifies pixels `(N, 1, H, W)` of any value, 0 to 1 for what a picture holds, at the model's own size."""

    def __init__(self, classifier: IT3Pipeline):
        self.model = classifier.model
        self.adapter = classifier.adapter()
        self.normalize = Normalization(classifier.image_processor)

    def __call__(self, images: Tensor, adapt: bool) -> Tensor:
        """The class of each image, `(N,)`."""
        pixel_values = self.normalize(images)
        if adapt:
            return self.adapter(pixel_values).logits.argmax(-1)
        with torch.no_grad():
            return self.model(pixel_values).logits.argmax(-1)


def measure(
    answer: Callable[[Any, bool], Tensor], images: Any, labels: Tensor, batch_size: int, description: str
) -> tuple[Measurement, Measurement]:
    """Measures the accuracy of answers and the time per image, without and with adaptation."""
    measurements = []
    for adapt in (False, True):
        accuracies, sizes, seconds = [], [], 0.0
        how = "with adaptation" if adapt else "without adaptation"
        for start in tqdm(range(0, len(images), batch_size), f"{description}, {how}"):
            begin = time.perf_counter()
            predicted = answer(images[start : start + batch_size], adapt)
            seconds += time.perf_counter() - begin
            truth = labels[start : start + batch_size]
            accuracies.append((predicted == truth).double().mean().item())
            sizes.append(len(truth))
        measurements.append(Measurement(accuracies, sizes, 1000 * seconds / len(images)))
    return measurements[0], measurements[1]


def _finish(
    output_dir: Path,
    results: list[SeedResult],
    recipe: Recipe,
    dataset: str,
    noise_std: float,
    batch_size: int,
    training: dict[str, Any] | None,
) -> dict[str, Any]:
    """Writes pictures, `results.json` and the model card."""
    groups = [
        (
            heading(condition),
            [accuracy for result in results for accuracy in result.conditions[condition][0].batch_accuracies],
            [accuracy for result in results for accuracy in result.conditions[condition][1].batch_accuracies],
        )
        for condition in results[0].conditions
    ]
    plot_batch_accuracies(groups).savefig(output_dir / "accuracy.png", dpi=120)
    # Of the model in this directory, the first one.
    config = IT3Config.from_pretrained(output_dir)
    document = {
        "dataset": dataset if not os.path.exists(dataset) else Path(dataset).resolve().name,
        "noise_std": noise_std,
        "batch_size": batch_size,
        "num_test_images": sum(results[0].conditions["clean"][0].batch_sizes),
        "training": training,
        "adaptation": config.adaptation.to_dict(),
        "seeds": [describe_seed(result) for result in results],
        "versions": versions_for_card(),
        "threads": torch.get_num_threads(),
    }
    write_atomically(output_dir / "results.json", (json.dumps(document, indent=2) + "\n").encode())
    write_model_card(
        output_dir,
        config,
        results=condition_results(document),
        dataset=document["dataset"],
        dataset_name=recipe.title,
        training=training,
        example=output_dir / EXAMPLE,
        plots=[
            (output_dir / "digits.png", f"Clean test images, and with Gaussian noise of sigma {noise_std:g}"),
            (output_dir / "accuracy.png", "Accuracy of single batches, without and with adaptation"),
        ],
    )
    return document
