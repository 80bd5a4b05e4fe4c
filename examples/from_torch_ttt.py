# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "torch-ttt==0.0.2", "einops"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""From torch-ttt to hf_it3: one model in both, side by side, and where each parameter of `IT3Engine` went.

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

Not in the engine: its second prediction comes from the model that is being adapted (anchor="self" here); the default
here is the frozen anchor, a diversity term and a gate, `AdaptationConfig.preset("torch-ttt")` has the engine's way.

    python examples/from_torch_ttt.py              # a minute: trains once, adapts the same weights in both

It prints the accuracy of both on clean and bright digits and the largest difference between their probabilities.
"""

import argparse
import copy
import importlib.util
import sys
import types

import torch
from torch import nn
from torch.nn import functional as F
from transformers import set_seed

from hf_it3 import AdaptationConfig, IT3ForImageClassification, TestTimeAdapter
from hf_it3.corruptions import corrupt
from hf_it3.data import load_digits
from hf_it3.evaluation.images import PixelCollator
from hf_it3.it3.image_processing_it3 import IT3ImageProcessor


class Network(nn.Module):
    """A classifier as one has it, with no base class of any library."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(F.max_pool2d(self.conv1(x), 2))
        x = F.leaky_relu(F.max_pool2d(self.conv2(x), 2))
        return self.head(x.flatten(1))


class Probabilities(nn.Module):
    """The engine compares whatever the model returns; hf_it3 compares probabilities, so the engine gets them too."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).softmax(-1)


def mean_squared_error(y1: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
    """The engine's default distance, written out so that both get the very same function."""
    return (y1 - y0).square().mean()


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


def train(model: IT3ForImageClassification, images: torch.Tensor, labels: torch.Tensor, num_epochs: int) -> None:
    """A plain loop, to show that the model needs no Trainer; both passes are inside the one loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(num_epochs):
        for rows in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            model(images[rows], labels=labels[rows]).loss.backward()
            optimizer.step()
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_epochs", type=int, default=15)
    parser.add_argument("--max_images", type=int, default=500)
    parser.add_argument("--num_steps", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    options = parser.parse_args()
    engine_class = import_it3_engine()

    set_seed(0)
    splits = load_digits()
    collate = PixelCollator(IT3ImageProcessor(num_channels=1, do_normalize=False))
    train_batch, test_batch = collate(list(splits["train"])), collate(list(splits["test"])[: options.max_images])

    # hf_it3: wrap, train. The engine's own way of adapting is the preset "torch-ttt".
    settings = AdaptationConfig.preset(
        "torch-ttt",
        num_steps=options.num_steps,
        learning_rate=options.learning_rate,
        optimizer="adam",
        distance=mean_squared_error,
    )
    model = IT3ForImageClassification.from_backbone(
        Network(), num_labels=10, injection_layer="conv1", distance=mean_squared_error, adaptation=settings
    )
    train(model, train_batch["pixel_values"], train_batch["labels"], options.num_epochs)

    # torch-ttt: the same trained network and the same trained embedder, handed to the engine.
    engine = engine_class(
        model=Probabilities(copy.deepcopy(model.backbone)),
        features_layer_name="network.conv1",
        embeder=copy.deepcopy(model.embedder),
        combine_fn=lambda features, embedding: features + embedding[:, :, None, None],
        distance_fn=mean_squared_error,
        optimization_parameters={
            "lr": options.learning_rate,
            "num_steps": options.num_steps,
            "optimizer_name": "adam",
            "copy_model": True,
        },
    ).eval()

    labels = test_batch["labels"]
    print(f"{'':<10}{'unadapted':>11}{'torch-ttt':>11}{'hf_it3':>9}{'difference':>13}{'hf_it3 defaults':>18}")
    for name, pixels in (
        ("clean", test_batch["pixel_values"]),
        ("bright", corrupt(test_batch["pixel_values"], "digits-shift/brightness")),
    ):
        theirs = engine(pixels)[0]
        output = model.adapt(pixels)
        ours = output.logits.softmax(-1)
        defaults = TestTimeAdapter(model, AdaptationConfig(gate=None, distance="neg_dot"))(pixels).logits
        accuracies = [
            (answer.argmax(-1) == labels).float().mean() for answer in (output.initial_logits, theirs, ours, defaults)
        ]
        print(
            f"{name:<10}{accuracies[0]:>11.1%}{accuracies[1]:>11.1%}{accuracies[2]:>9.1%}"
            f"{(theirs - ours).abs().max():>13.1e}{accuracies[3]:>18.1%}"
        )
    print("difference: the largest between any two probabilities of torch-ttt and hf_it3")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"from_torch_ttt.py: {' '.join(str(error).split())}")
