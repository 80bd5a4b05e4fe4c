"""Adapts an MNIST model to noisy images and measures what that gives on other images, noisy and not.

hf-it3 demo --dataset ylecun/mnist --output_dir runs/mnist-it3
python model_cards/adapt_mnist.py runs/mnist-it3 runs/mnist-it3-noisy
python model_cards/generate.py mnist-it3=runs/mnist-it3 mnist-it3-noisy=runs/mnist-it3-noisy
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, TestTimeAdapter
from hf_it3.corruptions import corrupt
from hf_it3.data import as_bytes, load_images
from hf_it3.demo import EXAMPLE
from hf_it3.evaluation.pixels import Normalization, PixelCollator
from hf_it3.hub.adapted_model import save_adapted
from hf_it3.hub.card_facts import versions_for_card


# The first is what the model adapts to; the others show what that does to images of other kinds.
CONDITIONS = {
    "Gaussian noise, sigma 2, 8-bit pictures": "digits-shift/noise_2",
    "Gaussian noise, sigma 1, 8-bit pictures": "digits-shift/noise_1",
    "blur, 2.5 px": "digits-shift/blur",
    "brightness + 0.5": "digits-shift/brightness",
    "clean": None,
}
BATCH_SIZE = 256


def accuracy(classify: Callable, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images that a model, or an adapter, gets right in batches."""
    with torch.no_grad():
        predicted = torch.cat([classify(batch).logits.argmax(-1) for batch in images.split(BATCH_SIZE)])
    return (predicted == labels).double().mean().item()


def main() -> None:
    """Adapts to the first half of the test images, measures on the second, saves model and results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("output_dir", metavar="DIR")
    parser.add_argument("--dataset", default="ylecun/mnist", help="or a local copy of it")
    arguments = parser.parse_args()

    model = IT3ForImageClassification.from_pretrained(arguments.model).eval()
    processor = IT3ImageProcessor.from_pretrained(arguments.model)
    test = PixelCollator(processor)(list(load_images(arguments.dataset)["test"]))
    pixels, labels, half = test["pixel_values"], test["labels"], len(test["labels"]) // 2
    normalize = Normalization(processor)
    images = {
        condition: normalize(pixels if name is None else corrupt(pixels, name, seed=0))
        for condition, name in CONDITIONS.items()
    }
    adapted_to = next(iter(CONDITIONS))

    adapter = TestTimeAdapter(model, scope="stream")
    for batch in tqdm(images[adapted_to][:half].split(BATCH_SIZE), "Adapting"):
        adapter(batch)
    adapted = adapter.adapted_model()
    adapted.config.base_model["data"] = f"{half:,} test images of MNIST, {adapted_to}"
    adapted._image_processor = processor
    save_adapted(adapted, arguments.output_dir)
    noisy = corrupt(pixels[:1], CONDITIONS[adapted_to], seed=0)
    Image.fromarray(as_bytes(noisy)[0][0]).save(Path(arguments.output_dir, EXAMPLE))

    results = []
    for condition, pixels in images.items():
        held_out = pixels[half:], labels[half:]
        result = {
            "name": condition,
            "score_base": accuracy(model, *held_out),
            "score_unadapted": accuracy(adapted, *held_out),
            "score_adapted": accuracy(TestTimeAdapter(adapted, scope="batch"), *held_out),
            "num_images": half,
        }
        results.append(result)
        figures = (f"{100 * result[f'score_{kind}']:.1f}" for kind in ("base", "unadapted", "adapted"))
        print(f"{condition}: {' -> '.join(figures)}")
    document = {
        "dataset": "ylecun/mnist",
        "results": results,
        "threads": torch.get_num_threads(),
        "versions": versions_for_card(),
    }
    Path(arguments.output_dir, "results.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
