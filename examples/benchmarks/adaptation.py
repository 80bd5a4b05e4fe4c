# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "torch-ttt==0.0.2", "einops"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""Adaptation by hf_it3 and by torch-ttt 0.0.2, side by side in one process.

Both adapt the same weights with the same number of Adam steps and the BatchNorm statistics of training; repeats are
interleaved, so that whatever else the machine does hits both, and the figure is the median over repeats of torch-ttt's
time divided by ours. "same objective" has gradients through both predictions, as torch-ttt does; "frozen anchor" is
the default here and has no counterpart there. `costs.py` beside this script measures memory, imports and throughput.

"forwards" is our time in plain forward passes over the same images, and "limit" what the passes of the method alone
would cost, with a backward pass counted as two forward passes, or one where only norm parameters adapt. What lies
between is overhead.

    pip install torch-ttt==0.0.2 einops
    python examples/benchmarks/adaptation.py --output_dir runs/benchmark

On a machine that does other things at the same time, `--clock cpu --threads 1` counts CPU time instead of seconds.
torch-ttt imports torchvision without needing it for this engine; where torchvision is missing, an empty module stands
in. Takes about 10 minutes on 2 cores.
"""

import argparse
import copy
import cProfile
import importlib.util
import json
import math
import pstats
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ViTConfig

from hf_it3 import IT3CNNConfig, IT3ForImageClassification, TestTimeAdapter
from hf_it3.utils import new_figure


STEPS = {
    "num_steps": 1,
    "learning_rate": 1e-3,
    "gate": None,
    "diversity_weight": 0.0,
    "norm_statistics": "source",  # as torch-ttt has them
    "average_answers": "never",  # which it does not do
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def import_it3_engine():
    """torch-ttt's engine, with an empty torchvision where there is none."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    from torch_ttt.engine.it3_engine import IT3Engine

    return IT3Engine


class Probabilities(nn.Module):
    """A classifier as torch-ttt's tutorial has it: from images to probabilities."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.backbone(pixel_values).logits.softmax(-1)


def negative_dot_product(y1: Tensor, y0: Tensor) -> Tensor:
    return -(y1 * y0).sum(1).mean()


def tutorial_cnn() -> IT3ForImageClassification:
    return IT3ForImageClassification.from_backbone(IT3CNNConfig())


def resnet18() -> IT3ForImageClassification:
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    return IT3ForImageClassification.from_backbone(config)


def vit_tiny(image_size: int = 64) -> IT3ForImageClassification:
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=image_size,
        num_labels=10,
    )
    return IT3ForImageClassification.from_backbone(config, attn_implementation="eager")


def torch_ttt_engine(model: IT3ForImageClassification, parameters: str = "all"):
    """torch-ttt's engine around the same weights; parameters that do not adapt are frozen, as its users have to."""
    engine_class = import_it3_engine()
    model = copy.deepcopy(model)
    adapted = set(TestTimeAdapter(model, parameters=parameters).shell.names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted)
    engine = engine_class(
        Probabilities(model.backbone),
        f"backbone.{model.config.injection_layer}",
        embeder=model.embedder,
        combine_fn=_broadcast_add,
        distance_fn=negative_dot_product,
        optimization_parameters={"num_steps": 1, "lr": 1e-3},
    )
    return engine.eval()


def _broadcast_add(features: Tensor, embedding: Tensor) -> Tensor:
    if features.ndim == 3:
        return features + embedding[:, None]
    return features + embedding[:, :, None, None]


class Timer:
    """Times callables in turn, over and over.

    Args:
        clock (`str`): "wall" for seconds, "cpu" for CPU time of the process.
        seconds (`float`): how long to repeat.
        min_repeats (`int`): whatever that takes.
    """

    def __init__(self, clock: str, seconds: float, min_repeats: int):
        self.clock = CLOCKS[clock]
        self.seconds = seconds
        self.min_repeats = min_repeats

    def __call__(self, *functions: Callable[[], object]) -> list[list[float]]:
        """The times of each, by repeat."""
        for function in functions:
            function(), function()
        times: list[list[float]] = [[] for _ in functions]
        deadline = time.perf_counter() + self.seconds
        while len(times[0]) < self.min_repeats or (time.perf_counter() < deadline and len(times[0]) < 400):
            for function, taken in zip(functions, times, strict=True):
                start = self.clock()
                function()
                taken.append(self.clock() - start)
        return times


def median_ratio(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of ratios by repeat."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return low, ratio, high


@torch.no_grad()
def plain_forward(model: nn.Module, images: Tensor) -> None:
    model(images)


def limit_in_forwards(anchor: str, parameters: str) -> int:
    """What one step costs at least: y0, y1 and the answer, and the backward passes."""
    backward = 1 if parameters == "norm" else 2
    return 3 + backward * (2 if anchor == "self" else 1)


def one_after_the_other(engine, images: Tensor) -> None:
    for index in range(len(images)):
        engine(images[index : index + 1])


def speed(timer: Timer) -> list[dict]:
    """All comparisons of time."""
    rows = []

    def add(name: str, model: nn.Module, images: Tensor, engine: Callable, adapters: dict[str, TestTimeAdapter]):
        calls = [partial(engine, images), partial(plain_forward, model, images)]
        theirs, plain, *ours = timer(*calls, *(partial(adapter, images) for adapter in adapters.values()))
        for (objective, adapter), times in zip(adapters.items(), ours, strict=True):
            low, ratio, high = median_ratio(theirs, times)
            _, forwards, _ = median_ratio(times, plain)
            row = {
                "name": name,
                "batch": len(images),
                "objective": objective,
                "ratio": ratio,
                "low": low,
                "high": high,
            }
            row |= {"their_ms": 1000 * statistics.median(theirs), "our_ms": 1000 * statistics.median(times)}
            row |= {"forwards": forwards, "limit": limit_in_forwards(adapter.config.anchor, adapter.config.parameters)}
            rows.append(row | {"repeats": len(times)})
            print(
                f"{name:<51}{row['batch']:>5}  {objective:<14}{row['their_ms']:>10.2f}{row['our_ms']:>9.2f}"
                f"{ratio:>7.2f}  [{low:.2f}, {high:.2f}]{forwards:>8.1f}{row['limit']:>5}",
                flush=True,
            )

    def adapters_of(model: IT3ForImageClassification, **settings: Any) -> dict[str, TestTimeAdapter]:
        anchors = {"same objective": "self", "frozen anchor": "frozen"}
        return {name: TestTimeAdapter(model, anchor=anchor, **settings, **STEPS) for name, anchor in anchors.items()}

    for name, build, size, batches in (
        ("tutorial CNN, together, all parameters", tutorial_cnn, (1, 28, 28), (1, 16, 64, 256)),
        ("ResNet-18 size, together, all parameters", resnet18, (3, 64, 64), (1, 16)),
        ("ViT-Tiny size, together, all parameters", vit_tiny, (3, 64, 64), (1, 16)),
    ):
        model = build().eval()
        engine = torch_ttt_engine(model)
        for batch in batches:
            add(
                name,
                model,
                torch.randn(batch, *size),
                engine,
                adapters_of(model, single_image="batch", parameters="all"),
            )

    for name, build, size, batch, parameters in (
        ("tutorial CNN, image by image, all parameters", tutorial_cnn, (1, 28, 28), 256, "all"),
        ("tutorial CNN, image by image, biases", tutorial_cnn, (1, 28, 28), 256, "bias"),
        ("ResNet-18 size, image by image, norm", resnet18, (3, 64, 64), 16, "norm"),
        ("ViT-Tiny size, image by image, norm", vit_tiny, (3, 64, 64), 16, "norm"),
        ("ResNet-18 size, 224 px, image by image, norm", resnet18, (3, 224, 224), 8, "norm"),
        ("ViT-Tiny size, 224 px, image by image, norm", partial(vit_tiny, 224), (3, 224, 224), 8, "norm"),
    ):
        model = build().eval()
        engine = partial(one_after_the_other, torch_ttt_engine(model, parameters))
        adapters = adapters_of(model, scope="image", parameters=parameters)
        add(name, model, torch.randn(batch, *size), engine, adapters)
    return rows


def gated_cost(timer: Timer) -> dict[str, float]:
    """Batches of 256 at the default settings in plain forward passes: clean after clean, shifted after shifted, and
    always adapting beside that."""
    model = tutorial_cnn().eval()
    images = torch.randn(256, 1, 28, 28)
    clean, shifted = ({"mean": mean, "std": 0.0, "distance": "neg_dot"} for mean in (math.inf, -math.inf))
    gated, opened, always = TestTimeAdapter(model), TestTimeAdapter(model), TestTimeAdapter(model, gate=None)

    def call(adapter: TestTimeAdapter, reference: dict, is_open: bool) -> None:
        model.config.reference_distance = reference
        assert adapter(images).adapted.all() == is_open

    plain, *others = timer(
        partial(plain_forward, model, images),
        partial(call, gated, clean, False),
        partial(call, opened, shifted, True),
        partial(call, always, shifted, True),
    )
    row = dict(zip(("clean", "shifted", "always"), (median_ratio(times, plain)[1] for times in others), strict=True))
    print(
        f"a batch of 256 costs, in plain forward passes: clean after clean {row['clean']:.2f}, shifted after shifted "
        f"{row['shifted']:.2f} (5 steps), without a gate {row['always']:.2f}"
    )
    return row


def profile_one_image() -> dict[str, float]:
    """Where the time of one step on one image goes: the operators of the passes, and everything around them."""
    adapter = TestTimeAdapter(tutorial_cnn().eval(), single_image="batch", **STEPS)
    image = torch.randn(1, 1, 28, 28)
    for _ in range(5):
        adapter(image)
    profile = cProfile.Profile(time.process_time)
    profile.runcall(lambda: [adapter(image) for _ in range(100)])
    entries = {(Path(file).name, name): row for (file, _, name), row in pstats.Stats(profile).stats.items()}
    total = entries["adaptation_it3.py", "__call__"][3]
    parts = {
        "passes": ("shell_it3.py", "__call__"),
        "backward": ("__init__.py", "grad"),
        "optimizer": ("optimizers_it3.py", "take_step"),
    }
    shares = {part: entries[key][3] / total for part, key in parts.items()}
    shares["rest"] = 1 - sum(shares.values())
    print("one image, one step: " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items()))
    return shares


def plot(rows: list[dict], path: Path) -> None:
    """The ratios as bars with their quartiles."""
    figure, axes = new_figure(9, 0.32 * len(rows) + 1)
    axis = axes[0]
    labels = [f"{row['name']}, batch {row['batch']}, {row['objective']}" for row in rows]
    ratios = [row["ratio"] for row in rows]
    spread = [[row["ratio"] - row["low"] for row in rows], [row["high"] - row["ratio"] for row in rows]]
    colors = ["#9aa5b1" if row["objective"] == "same objective" else "#f2a33a" for row in rows]
    axis.barh(labels, ratios, xerr=spread, color=colors, ecolor="#39424e")
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="#39424e", linewidth=0.8)
    axis.set_xlabel("time of torch-ttt / time of hf_it3 (median, quartiles)")
    axis.tick_params(labelsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each comparison")
    parser.add_argument("--min_repeats", type=int, default=7, help="repeats for each, whatever they take")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    timer = Timer(arguments.clock, arguments.seconds, arguments.min_repeats)
    print(
        f"{'':<51}{'batch':>5}  {'':<14}{'theirs ms':>10}{'ours ms':>9}{'ratio':>7}  quartiles{'forwards':>11} limit"
    )
    rows = speed(timer)
    results = {
        "threads": arguments.threads,
        "clock": arguments.clock,
        "speed": rows,
        "profile": profile_one_image(),
        "gated": gated_cost(timer),
    }
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "adaptation.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(rows, arguments.output_dir / "adaptation.png")


if __name__ == "__main__":
    main()
