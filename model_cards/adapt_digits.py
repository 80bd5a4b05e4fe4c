"""Adapts a digits model to noisy images and measures what that gives on other noisy images.

hf-it3 demo --output_dir runs/digits-it3
python model_cards/adapt_digits.py runs/digits-it3 runs/digits-it3-noisy
python model_cards/generate.py digits-it3=runs/digits-it3 digits-it3-noisy=runs/digits-it3-noisy
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, TestTimeAdapter
from hf_it3.adapting import save_adapted
from hf_it3.card_facts import installed_versions
from hf_it3.data import load_digits


# Standard deviations of the noise, in units of the normalised image: the first is what the model adapts to.
NOISE = (2.0, 1.0, 3.0)
BATCH_SIZE = 64


def measure(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy, and milliseconds per image, without any further adaptation."""
    with torch.no_grad():
        begin = time.perf_counter()
        predicted = model(images).logits.argmax(-1)
        milliseconds = 1000 * (time.perf_counter() - begin) / len(images)
    return (predicted == labels).double().mean().item(), milliseconds


def noisy_images(images: list[Image.Image], std: float, processor: IT3ImageProcessor) -> Tensor:
    """The images with noise in their own resolution, as the model takes them, `(N, 1, H, W)`."""
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])[:, None] / 255
    generator = torch.Generator().manual_seed(0)
    mean, scale = processor.image_mean[0], processor.image_std[0]
    pixels = pixels + std * scale * torch.randn(pixels.shape, generator=generator)
    size = (processor.size["height"], processor.size["width"])
    return (functional.interpolate(pixels, size, mode="bilinear", antialias=True) - mean) / scale


def main() -> None:
    """Adapts to the first half of the test images, measures on the second, saves model and results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("output_dir", metavar="DIR")
    arguments = parser.parse_args()

    model = IT3ForImageClassification.from_pretrained(arguments.model).eval()
    processor = IT3ImageProcessor.from_pretrained(arguments.model)
    test = load_digits()["test"]
    labels = torch.tensor(test["label"][:])
    half = len(labels) // 2
    images = noisy_images(test["image"][:], 0.0, processor)
    noisy = {std: noisy_images(test["image"][:], std, processor) for std in NOISE}

    adapter = TestTimeAdapter(model, scope="stream")
    for batch in noisy[NOISE[0]][:half].split(BATCH_SIZE):
        adapter(batch)
    adapted = adapter.adapted_model()
    adapted.config.base_model["data"] = f"{half} test images of the digits, Gaussian noise of sigma {NOISE[0]:g}"
    adapted._image_processor = processor
    save_adapted(adapted, arguments.output_dir)

    results = []
    for name, pixels in {"clean": images, **{f"Gaussian noise, sigma {std:g}": noisy[std] for std in NOISE}}.items():
        before, time_before = measure(model, pixels[half:], labels[half:])
        after, time_after = measure(adapted, pixels[half:], labels[half:])
        result = {"name": name, "accuracy_unadapted": before, "accuracy_adapted": after, "num_images": half}
        results.append({**result, "milliseconds_unadapted": time_before, "milliseconds_adapted": time_after})
        print(f"{name}: {100 * before:.1f} -> {100 * after:.1f}")
    document = {
        "dataset": "digits",
        "results": results,
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
    }
    Path(arguments.output_dir, "results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
