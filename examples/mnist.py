# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""The MNIST tutorial of torch-ttt, told with transformers: train, save, load, and adapt to noise.

A network that was trained on clean digits reads noisy ones badly. Idempotent test-time training (Durasov et al., ICML
2025) lets it adapt to them while it reads them, without a single label. This script goes through the whole story from
top to bottom; its `# %%` cells can also be run one by one in an editor that knows them.

    python examples/mnist.py                          # scikit-learn's 1,797 bundled digits, no network: half a minute
    python examples/mnist.py --dataset ylecun/mnist   # all 70,000 images: 2 minutes on two cores

It prints the accuracy without and with adaptation and writes the model, digits.png and accuracy.png.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import pipeline, set_seed

from hf_it3 import (
    IT3CNNConfig,
    IT3Config,
    IT3ForImageClassification,
    IT3ImageProcessor,
    IT3Trainer,
    IT3TrainingArguments,
)
from hf_it3.data import load_images
from hf_it3.utils import plot_batch_accuracies, plot_images


# %% 1. Global settings
#
# The noise has a standard deviation of 2 in units of the normalised image, on which the digits themselves have 1: the
# signal is half as strong as the noise. A batch is what adapts together at test time.

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--dataset", default="digits", help="'digits' (bundled), 'ylecun/mnist', or a local copy of it")
parser.add_argument("--noise_std", type=float, default=2.0)
parser.add_argument("--num_epochs", type=int, help="default: 15 for digits, else 2")
parser.add_argument("--max_train_images", type=int, default=60_000)
parser.add_argument("--max_test_images", type=int, default=10_000)
parser.add_argument("--output_dir", type=Path, default="runs/mnist")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

is_small = options.dataset == "digits"
num_epochs = options.num_epochs or (15 if is_small else 2)
train_batch_size = 32 if is_small else 256
test_batch_size = 125 if is_small else 256
pixel_mean, pixel_std = (0.31, 0.38) if is_small else (0.1307, 0.3081)

set_seed(options.seed)

# %% 2. The network
#
# Two convolutions and four linear layers, as in the tutorial. `IT3ForImageClassification` adds the second input: a
# small embedder turns a guess at the label into a bias for each channel behind the first convolution. Without a guess
# it is an ordinary classifier. Any other backbone of transformers goes in the same way, see finetune_backbone.py.

names = [str(digit) for digit in range(10)]
network = IT3CNNConfig(image_size=28, num_channels=1, id2label=dict(enumerate(names)))
model = IT3ForImageClassification(IT3Config(backbone_config=network, injection_layer="conv1"))
print(
    f"{model.num_parameters():,} parameters, {sum(p.numel() for p in model.embedder.parameters()):,} in the embedder"
)

# %% 3. Data
#
# A data set has the columns "image" and "label". The image processor turns images into the network's input: grey,
# 28x28 pixels, with mean 0 and standard deviation 1. It is saved with the model, so nobody has to remember these.

try:
    splits = load_images(options.dataset)
    train, test = splits["train"], splits["test"]
except (OSError, ValueError, ImportError, KeyError) as error:
    sys.exit(f"mnist.py: cannot load {options.dataset!r} with the splits train and test: {error}")
train = train.select(range(min(options.max_train_images, len(train))))
test = test.select(range(min(options.max_test_images, len(test))))
processor = IT3ImageProcessor(
    num_channels=1, size={"height": 28, "width": 28}, image_mean=[pixel_mean], image_std=[pixel_std]
)
print(f"{len(train):,} training and {len(test):,} test images")

# %% 4. Clean and noisy digits
#
# Test images as pictures hold them, bytes of shape (N, 1, H, W), and the same with noise. The tutorial adds its noise
# to the floats that the network reads, unclipped: no picture holds such values, so that is a row of its own.

test_pixels = torch.stack([torch.from_numpy(np.array(row["image"].convert("L")))[None] / 255 for row in test])
test_labels = torch.tensor(test["label"])
float_noise = test_pixels + options.noise_std * pixel_std * torch.randn(test_pixels.shape)
pictures = {
    name: (255 * pixels.clamp(0, 1)).round().byte()
    for name, pixels in (("clean", test_pixels), ("noisy", float_noise))
}
options.output_dir.mkdir(parents=True, exist_ok=True)
picture = plot_images([(name, pixels[:10] / 255) for name, pixels in pictures.items()])
picture.savefig(options.output_dir / "digits.png", dpi=120)

# %% 5. Training
#
# `IT3Trainer` is transformers' Trainer. In every step the network classifies the images twice: without a guess, and
# given the true label. It learns to be right both times, so that f(x) = y and f(x, y) = y. The two losses are logged
# apart. At the end the trainer measures how far f(x, f(x)) is from f(x) on clean images: the idempotence distance.

arguments = IT3TrainingArguments(
    output_dir=str(options.output_dir),
    num_train_epochs=num_epochs,
    per_device_train_batch_size=train_batch_size,
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    logging_strategy="epoch",
    save_strategy="no",
    seed=options.seed,
)
trainer = IT3Trainer(model=model, args=arguments, train_dataset=train, processing_class=processor)
trainer.train()
reference = model.config.reference_distance
print(f"idempotence distance of clean images: {reference['mean']:.3f} +- {reference['std']:.3f}")

# %% 6. Save, and load through a pipeline
#
# Weights, embedder, image processor and the settings of adaptation travel together. `hf_it3` was imported above, which
# is all that makes `pipeline` know the task; `push_to_hub` would do for others what `save_model` does for us.

trainer.save_model()
classifier = pipeline("it3-image-classification", model=str(options.output_dir))
first = classifier(test[0]["image"], top_k=2)
print(f"the first test image is a {test_labels[0]}; the pipeline says {first[0]['label']} ({first[0]['score']:.0%})")

# %% 7. Evaluate, without and with adaptation
#
# The pipeline gets pictures, a batch at a time. With `adapt=True` (its default) it first asks whether the batch is
# shifted, its idempotence distance larger than that of clean images for example. If so, it takes a few optimizer steps
# that bring f(x, f(x)) and f(x) together, answers, and forgets them: the model itself never changes. Floats that no
# picture holds go to the pipeline's adapter, which is what adapts inside it and takes the network's input.


def classify_pictures(images: torch.Tensor, adapt: bool) -> torch.Tensor:
    """The classes of pictures `(N, 1, H, W)`."""
    answers = classifier(list(images.numpy()), adaptation_batch_size=len(images), top_k=1, adapt=adapt)
    return torch.tensor([names.index(answer[0]["label"]) for answer in answers])


def classify_floats(pixels: torch.Tensor, adapt: bool) -> torch.Tensor:
    """The classes of pixels `(N, 1, H, W)` of any value."""
    resized = F.interpolate(pixels, size=(28, 28), mode="bilinear")
    output = classifier.adapter()((resized - pixel_mean) / pixel_std)
    return (output.logits if adapt else output.initial_logits).argmax(-1)


def batch_accuracies(classify: Callable, images: torch.Tensor, adapt: bool) -> list[float]:
    """The accuracy of each batch."""
    batches = zip(images.split(test_batch_size), test_labels.split(test_batch_size), strict=True)
    return [(classify(batch, adapt) == labels).float().mean().item() for batch, labels in batches]


def mean_accuracy(accuracies: list[float]) -> float:
    """The accuracy over all images; the last batch may be smaller than the others."""
    sizes = [len(labels) for labels in test_labels.split(test_batch_size)]
    return sum(accuracy * size for accuracy, size in zip(accuracies, sizes, strict=True)) / sum(sizes)


results = []
print(f"\naccuracy on {'images':<12}{'without':>10}{'with adaptation':>18}")
for name, classify, images in (
    *((name, classify_pictures, images) for name, images in pictures.items()),
    ("float noise", classify_floats, float_noise),
):
    without, adapted = (batch_accuracies(classify, images, adapt) for adapt in (False, True))
    results.append((name, without, adapted))
    print(f"            {name:<12}{mean_accuracy(without):>10.1%}{mean_accuracy(adapted):>18.1%}")

# %% 8. A boxplot of the batches

plot_batch_accuracies(results).savefig(options.output_dir / "accuracy.png", dpi=120)
print(f"\nThe model, digits.png and accuracy.png are in {options.output_dir}")
