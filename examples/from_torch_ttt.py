# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "torch-ttt==0.0.2", "einops"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""From torch-ttt to hf_it3: load a model that torch-ttt trained, adapt it in both, and compare both ways of training.

torch-ttt 0.0.2 imports einops and torchvision without declaring them: einops has to be installed, torchvision may be
missing, because nothing of it is used here. Its engine adds the label signal to a model of yours at the first call;
here the signal, its embedder included, is part of the model, so that it is trained, saved and pushed with it.

    IT3Engine(...)                          hf_it3
    model                                   IT3ForImageClassification.from_backbone(model), a name or config works too
    features_layer_name="conv1"             from_backbone(..., injection_layer="conv1"), found by itself if left out
    embeder=module                          from_backbone(..., embedder=module)
    combine_fn=function                     from_backbone(..., combine=function), "add" by default or "multiply"
    distance_fn=function                    from_backbone(..., distance=function); "mse" is the engine's own default
    optimization_parameters:                from_backbone(..., adaptation=AdaptationConfig(...)), or for one call
        lr, num_steps                       learning_rate, num_steps
        optimizer_name="adam"               optimizer="adam", "sgd" or a function
        copy_model=True                     scope="batch": every call starts from the model's weights
        copy_model=False                    scope="stream": the weights live on; the model itself never changes

    engine.train(); engine(x, target=y)     IT3Trainer, or model(x, labels=y).loss in a loop of yours
    engine.eval(); engine(x)                model.adapt(x), or TestTimeAdapter(model)(x), or the pipeline

    python examples/from_torch_ttt.py                                        # two minutes on the bundled digits
    python examples/from_torch_ttt.py --dataset ylecun/mnist --seeds 7,1,2   # the tutorial's data, half an hour

For each seed one network is trained as the MNIST tutorial of torch-ttt trains it, saved and loaded into hf_it3 by
`load_engine`, and another by the loss of hf_it3. Both are then tested without adaptation, with the tutorial's recipe
(one Adam step of 1e-3, gradients through both predictions; carried out by torch-ttt itself) and with the default
settings here, without the gate, which a model of torch-ttt has no clean distances for. Printed is a table of mean
accuracies, each with its range over seeds, and how far the two libraries differ where their settings agree.
"""

import argparse
import copy
import importlib.util
import io
import json
import statistics
import sys
import types
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from hf_it3 import AdaptationConfig, IT3ForImageClassification, TestTimeAdapter
from hf_it3.corruptions import corrupt, list_corruptions
from hf_it3.data import load_images
from hf_it3.evaluation.pixels import PixelCollator
from hf_it3.it3.image_processing_it3 import IT3ImageProcessor


MEAN, STD = 0.1307, 0.3081
RECIPE = {"lr": 1e-3, "num_steps": 1, "optimizer_name": "adam", "copy_model": True}
METHODS = ("no adaptation", "torch-ttt's recipe", "settings here")
TRAININGS = ("torch-ttt", "hf_it3")


class Network(nn.Module):
    """The tutorial's classifier as one has it, with no base class of any library; from images to logits."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            nn.Linear(*sizes) for sizes in ((320, 50), (50, 50), (50, 50), (50, 10))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(F.max_pool2d(self.conv1(x), 2))
        x = F.leaky_relu(F.max_pool2d(self.conv2(x), 2))
        x = F.leaky_relu(self.fc1(x.flatten(1)))
        x = x + F.leaky_relu(self.fc2(x))
        x = x + F.leaky_relu(self.fc3(x))
        return self.fc4(x)


class Probabilities(nn.Module):
    """The engine compares whatever the model returns; hf_it3 compares probabilities, so the engine gets them too."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).softmax(-1)


def import_it3_engine() -> type[nn.Module]:
    """torch-ttt's engine. Its other engines import torchvision: where that is missing, empty modules stand in."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    stand_ins = {} if importlib.util.find_spec("torchvision") else {name: types.ModuleType(name) for name in names}
    sys.modules.update(stand_ins)
    try:
        from torch_ttt.engine.it3_engine import IT3Engine
    except ImportError as error:
        raise ImportError(f"{error}; this example needs: pip install torch-ttt==0.0.2 einops") from error
    finally:
        # Left there, they would pass for an installed torchvision.
        for name in stand_ins:
            del sys.modules[name]
    return IT3Engine


def negative_dot_product(y1: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
    """The tutorial's distance, named "neg_dot" here."""
    return -(y1 * y0).sum(1).mean()


def add(features: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    return features + embedding[:, :, None, None]


def make_engine(network: nn.Module, embedder: nn.Module | None = None) -> nn.Module:
    """The tutorial's engine; without an embedder it makes one at its first call."""
    return import_it3_engine()(
        model=Probabilities(network),
        features_layer_name="network.conv1",
        embeder=embedder,
        combine_fn=None if embedder is None else add,
        distance_fn=negative_dot_product,
        optimization_parameters=dict(RECIPE),
    )


def load_engine(state: dict[str, torch.Tensor]) -> IT3ForImageClassification:
    """A model of hf_it3 from the state dictionary of an engine, its embedder included."""
    network = Network()
    network.load_state_dict(_part(state, "model.network."))
    model = IT3ForImageClassification.from_backbone(network, num_labels=10, injection_layer="conv1")
    # The same two layers as the engine's; an embedder of another shape is passed as from_backbone(..., embedder=).
    model.embedder.load_state_dict(_part(state, "embeder."))
    return model.eval()


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def train_as_torch_ttt(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> dict:
    """The state dictionary after the tutorial's training: cross-entropy of the first prediction, and the dot product
    of the label with the second. The optimizer is made before the embedder, which stays as it was drawn."""
    engine = make_engine(Network()).train()
    optimizer = torch.optim.Adam(engine.parameters(), lr=1e-3)
    for rows in batches_of(len(images), options):
        optimizer.zero_grad()
        probabilities, second = engine(images[rows], target=F.one_hot(labels[rows], 10).float())
        (F.nll_loss((probabilities + 1e-8).log(), labels[rows]) + second).backward()
        optimizer.step()
    return engine.state_dict()


def train_here(images: torch.Tensor, labels: torch.Tensor, options: argparse.Namespace) -> IT3ForImageClassification:
    """A plain loop, to show that the model needs no Trainer; both passes are inside the one loss."""
    model = IT3ForImageClassification.from_backbone(Network(), num_labels=10, injection_layer="conv1").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for rows in batches_of(len(images), options):
        optimizer.zero_grad()
        model(images[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
    return model.eval()


def batches_of(count: int, options: argparse.Namespace):
    for _ in range(options.num_epochs):
        yield from torch.randperm(count).split(options.train_batch_size)


def answers(model: IT3ForImageClassification, pixels: torch.Tensor, batch_size: int):
    """For each batch: probabilities of each of `METHODS`, and of the recipe as hf_it3 carries it out."""
    ours = TestTimeAdapter(model, AdaptationConfig(gate=None))
    recipe = TestTimeAdapter(model, AdaptationConfig.preset("torch-ttt"))
    engine = make_engine(copy.deepcopy(model.backbone), copy.deepcopy(model.embedder)).eval()
    for batch in ((pixels - MEAN) / STD).split(batch_size):
        adapted = ours(batch)
        probabilities = adapted.initial_logits.softmax(-1), engine(batch)[0].detach(), adapted.logits.softmax(-1)
        yield probabilities, recipe(batch).logits.softmax(-1)


def measure(
    model: IT3ForImageClassification, test: dict, condition: str, batch_size: int
) -> tuple[list[float], float]:
    """The accuracy of each method under a condition, and the largest difference between the two libraries."""
    pixels = corrupt(test["pixel_values"], condition)
    right, count, difference = [0] * len(METHODS), 0, 0.0
    for probabilities, same in answers(model, pixels, batch_size):
        labels = test["labels"][count : count + len(same)]
        right = [one + (p.argmax(-1) == labels).sum().item() for one, p in zip(right, probabilities, strict=True)]
        difference = max(difference, (probabilities[1] - same).abs().max().item())
        count += len(same)
    return [one / count for one in right], difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits", help="Hub name or path, or digits (bundled)")
    parser.add_argument("--seeds", default="7", help="of training, comma-separated")
    parser.add_argument("--num_epochs", type=int, help="default: 20 on digits, else 3, as the tutorial")
    parser.add_argument("--train_batch_size", type=int, help="default: 32 on digits, else 256, as the tutorial")
    parser.add_argument("--num_samples", type=int, default=2560, help="test images (default: 2560)")
    parser.add_argument("--batch_size", type=int, default=256, help="test images that adapt together")
    parser.add_argument("--output", metavar="FILE", help="write the table as JSON, too, for model_cards/generate.py")
    options = parser.parse_args()
    small = options.dataset == "digits"
    options.num_epochs = options.num_epochs or (20 if small else 3)
    options.train_batch_size = options.train_batch_size or (32 if small else 256)
    import_it3_engine()

    splits = load_images(options.dataset)
    collate = PixelCollator(IT3ImageProcessor(num_channels=1, do_normalize=False))
    train, test = (collate(list(splits[name])) for name in ("train", "test"))
    test = {name: values[: options.num_samples] for name, values in test.items()}
    images = (train["pixel_values"] - MEAN) / STD
    conditions = ["digits-shift/clean", "float-noise/sigma_2", *list_corruptions("digits-shift")[1:]]
    accuracies: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    largest = 0.0
    for seed in map(int, options.seeds.split(",")):
        set_seed(seed)
        file = io.BytesIO()
        torch.save(train_as_torch_ttt(images, train["labels"], options), file)
        file.seek(0)
        theirs = load_engine(torch.load(file))
        set_seed(seed)
        ours = train_here(images, train["labels"], options)
        for training, model in zip(TRAININGS, (theirs, ours), strict=True):
            for condition in conditions:
                measured, difference = measure(model, test, condition, options.batch_size)
                accuracies[condition, training].append(measured)
                largest = max(largest, difference)
    columns = ["condition", *(f"trained by {one}: {method}" for one in TRAININGS for method in METHODS)]
    rows = table(accuracies, conditions)
    print(f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), sep="\n")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")
    if options.output is not None:
        seeds = ", ".join(options.seeds.split(","))
        several = f"mean and range over the training seeds {seeds}"
        caption = (
            f"Accuracy in percent on {len(test['labels']):,} test images in batches of {options.batch_size}, "
            f"{several if ',' in options.seeds else f'training seed {seeds}'}"
        )
        document = {"caption": caption, "columns": columns, "rows": rows}
        Path(options.output).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"\nlargest difference between the recipe's probabilities of torch-ttt and hf_it3: {largest:.1e}")


def table(accuracies: dict[tuple[str, str], list[list[float]]], conditions: list[str]) -> list[list[str]]:
    """Rows of mean accuracies in percent with their range over seeds; gains are read along a row."""
    shifted = [condition for condition in conditions if condition.startswith("digits-shift")][1:]
    means = [
        [[statistics.fmean(c) for c in zip(*rows, strict=True)] for rows in zip(*by_condition, strict=True)]
        for by_condition in ([accuracies[condition, training] for condition in shifted] for training in TRAININGS)
    ]
    rows = [row(condition, [accuracies[condition, training] for training in TRAININGS]) for condition in conditions]
    return [*rows, row("mean of the seven of digits-shift", means)]


def row(name: str, by_training: list[list[list[float]]]) -> list[str]:
    cells = [name]
    for runs in by_training:
        for values in zip(*runs, strict=True):
            spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.fmean(values):.1f}{spread}")
    return cells


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"from_torch_ttt.py: {' '.join(str(error).split())}")
