"""A segmentation network of a user of torch-ttt adapts here as in its engine, by the mapping of the README."""

import copy
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from untouched import untouched

from hf_it3 import IT3ForSemanticSegmentation


pytest.importorskip("torch_ttt", reason="the comparison needs torch-ttt")

EXAMPLE = Path(__file__).parent.parent / "examples" / "from_torch_ttt.py"
NUM_CLASSES = 5


class Network(nn.Module):
    """A convolutional segmentation network; the engine adds the embedded prediction to features of the same size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.down, self.up = nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.head = nn.Conv2d(12, NUM_CLASSES, 1)

    def forward(self, x):
        features = self.stem(x).relu()
        return self.head(features + self.up(self.down(features).relu()).relu())


class Probabilities(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).softmax(1)


def negative_dot_product(y1, y0):
    return -(y1 * y0).sum(1).mean()


@pytest.fixture(scope="module")
def engine_class():
    return runpy.run_path(str(EXAMPLE))["import_it3_engine"]()


@pytest.mark.parametrize(
    ("distance", "distance_fn", "num_steps", "lr"),
    [("mse", None, 3, 1e-2), ("neg_dot", negative_dot_product, 1, 1e-3)],  # its defaults, and its tutorial's recipe
)
def test_predictions_for_every_pixel_adapt_as_in_its_engine(engine_class, distance, distance_fn, num_steps, lr):
    network, images = Network(), torch.rand(4, 3, 16, 16)
    engine = engine_class(
        Probabilities(copy.deepcopy(network)),
        "network.stem",
        distance_fn=distance_fn,
        optimization_parameters={"lr": lr, "num_steps": num_steps, "optimizer_name": "adam", "copy_model": True},
    )
    engine.train()(images)  # builds its embedder
    engine.eval()
    model = IT3ForSemanticSegmentation.from_backbone(network, injection_layer="stem", distance=distance).eval()
    model.embedder.load_state_dict(engine.embeder.state_dict())  # the same two convolutions

    expected, loss = engine(images)
    settings = {"anchor": "self", "diversity_weight": 0.0, "parameters": "all", "gate": None}
    with untouched(model):
        output = model.adapt(images, num_steps=num_steps, learning_rate=lr, **settings)
    assert (expected - engine.model(images)).abs().max() > 1e-3, "the engine moved nothing"
    torch.testing.assert_close(output.logits.softmax(1), expected, atol=1e-5, rtol=0)
    assert output.loss_history[-1].item() == pytest.approx(loss.item(), abs=1e-5)
