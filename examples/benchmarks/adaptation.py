# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "torch-ttt==0.0.2", "einops"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""Adaptation by hf_it3 and by torch-ttt 0.0.2, side by side in one process.

Both adapt the same weights with the same number of Adam steps; repeats are interleaved, so that whatever else the
machine does hits both, and the figure is the median over repeats of torch-ttt's time divided by ours. "same objective"
has gradients through both predictions, as torch-ttt does; "frozen anchor" is the default here and has no counterpart
there.

    pip install torch-ttt==0.0.2 einops
    python examples/benchmarks/adaptation.py --output_dir runs/benchmark

torch-ttt imports torchvision without needing it for this engine; where torchvision is missing, an empty module stands
in. Takes about 4 minutes on 2 cores.
"""

import argparse
import copy
import importlib.util
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ViTConfig

from hf_it3 import IT3CNNConfig, IT3ForImageClassification, TestTimeAdapter
from hf_it3.utils import new_figure


STEPS = {"num_steps": 1, "learning_rate": 1e-3, "gate": None, "diversity_weight": 0.0}


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


def vit_tiny() -> IT3ForImageClassification:
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=64,
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


def compare(theirs: Callable[[], object], ours: Callable[[], object], seconds: float) -> dict[str, float]:
    """Median ratio of two callables' times over interleaved repeats, with its quartiles."""
    theirs(), ours(), ours()
    ratios, their_times, our_times = [], [], []
    deadline = time.perf_counter() + seconds
    while len(ratios) < 7 or (time.perf_counter() < deadline and len(ratios) < 400):
        start = time.perf_counter()
        theirs()
        middle = time.perf_counter()
        ours()
        end = time.perf_counter()
        their_times.append(middle - start)
        our_times.append(end - middle)
        ratios.append((middle - start) / (end - middle))
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": ratio,
        "low": low,
        "high": high,
        "their_ms": 1000 * statistics.median(their_times),
        "our_ms": 1000 * statistics.median(our_times),
        "repeats": len(ratios),
    }


def peak_memory(function: Callable[[], object]) -> int:
    """Peak of the bytes that torch allocates on the CPU beyond what is held before, during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def one_after_the_other(engine, images: Tensor) -> None:
    for index in range(len(images)):
        engine(images[index : index + 1])


def speed(seconds: float) -> list[dict]:
    """All comparisons of time."""
    rows = []

    def add(name: str, batch: int, objective: str, theirs, ours):
        rows.append({"name": name, "batch": batch, "objective": objective, **compare(theirs, ours, seconds)})
        row = rows[-1]
        print(
            f"{name:<44}{batch:>6}  {objective:<15}{row['their_ms']:>10.2f}{row['our_ms']:>10.2f}{row['ratio']:>8.2f}"
            f"  [{row['low']:.2f}, {row['high']:.2f}]",
            flush=True,
        )

    for name, build, size, batches in (
        ("tutorial CNN, together, all parameters", tutorial_cnn, (1, 28, 28), (1, 16, 64, 256)),
        ("ResNet-18 size, together, all parameters", resnet18, (3, 64, 64), (1, 16)),
        ("ViT-Tiny size, together, all parameters", vit_tiny, (3, 64, 64), (1, 16)),
    ):
        model = build().eval()
        engine = torch_ttt_engine(model)
        for batch in batches:
            images = torch.randn(batch, *size)
            for objective, anchor in (("same objective", "self"), ("frozen anchor", "frozen")):
                adapter = TestTimeAdapter(model, anchor=anchor, single_image="batch", **STEPS)
                add(name, batch, objective, partial(engine, images), partial(adapter, images))

    for name, build, size, batch, parameters in (
        ("tutorial CNN, image by image, all parameters", tutorial_cnn, (1, 28, 28), 256, "all"),
        ("tutorial CNN, image by image, biases", tutorial_cnn, (1, 28, 28), 256, "bias"),
        ("ResNet-18 size, image by image, norm", resnet18, (3, 64, 64), 16, "norm"),
        ("ViT-Tiny size, image by image, norm", vit_tiny, (3, 64, 64), 16, "norm"),
    ):
        model = build().eval()
        engine = torch_ttt_engine(model, parameters)
        images = torch.randn(batch, *size)
        for objective, anchor in (("same objective", "self"), ("frozen anchor", "frozen")):
            adapter = TestTimeAdapter(model, anchor=anchor, scope="image", parameters=parameters, **STEPS)
            add(name, batch, objective, partial(one_after_the_other, engine, images), partial(adapter, images))
    return rows


def gated_cost(seconds: float) -> dict[str, float]:
    """A fully gated batch against two plain forward passes' worth of work: in plain forward passes."""
    model = tutorial_cnn().eval()
    model.config.reference_distance = {"mean": 1.0, "std": 1.0, "distance": "neg_dot"}
    adapter = TestTimeAdapter(model)
    images = torch.randn(256, 1, 28, 28)

    @torch.no_grad()
    def plain():
        for _ in range(4):
            model(images)

    def gated():
        for _ in range(4):
            adapter(images)

    assert not adapter(images).adapted.any()
    row = compare(gated, plain, seconds)
    print(f"a fully gated batch of 256 costs {row['ratio']:.2f} plain forward passes")
    return row


def memory() -> dict[str, float]:
    """Peak extra memory of one adaptation step on one image, norm parameters, ResNet-18 size."""
    model = resnet18().eval()
    engine = torch_ttt_engine(model, "norm")
    image = torch.randn(1, 3, 64, 64)
    engine(image)
    theirs = peak_memory(lambda: engine(image))
    ours = peak_memory(lambda: TestTimeAdapter(model, parameters="norm", single_image="batch", **STEPS)(image))
    print(
        f"peak extra memory: torch-ttt {theirs / 2**20:.1f} MiB, hf_it3 {ours / 2**20:.1f} MiB ({ours / theirs:.2f})"
    )
    return {"their_bytes": theirs, "our_bytes": ours, "share": ours / theirs}


def scaling() -> dict[str, float]:
    """Time per image and peak memory of 10,000 images against 1,000, each with weights of its own."""
    model = tutorial_cnn().eval()
    adapter = TestTimeAdapter(model, scope="image", **STEPS)
    few, many = torch.randn(1000, 1, 28, 28), torch.randn(10000, 1, 28, 28)
    adapter(few)
    times: dict[str, list[float]] = {"few": [], "many": []}
    for _ in range(5):
        for name, images in (("few", few), ("many", many)):
            start = time.perf_counter()
            adapter(images)
            times[name].append((time.perf_counter() - start) / len(images))
    ratio = statistics.median(times["many"]) / statistics.median(times["few"])

    def adapt_anew(images: Tensor) -> None:
        TestTimeAdapter(model, scope="image", **STEPS)(images)

    # With new adapters, because one that has been called needs less.
    peaks = [peak_memory(partial(adapt_anew, images)) for images in (few, many)]
    extra = peaks[1] / peaks[0]
    mebibytes = " and ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    print(f"10,000 images against 1,000: time per image x {ratio:.2f}, peak memory x {extra:.2f} ({mebibytes})")
    return {"time_ratio": ratio, "memory_ratio": extra, "ms_per_image": 1000 * statistics.median(times["few"])}


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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{'':<44}{'batch':>6}  {'':<15}{'theirs ms':>10}{'ours ms':>10}{'ratio':>8}  quartiles")
    rows = speed(arguments.seconds)
    results = {
        "threads": arguments.threads,
        "speed": rows,
        "gated": gated_cost(arguments.seconds),
        "memory": memory(),
        "scaling": scaling(),
    }
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "adaptation.json").write_text(json.dumps(results, indent=2) + "\n")
    plot(rows, arguments.output_dir / "adaptation.png")


if __name__ == "__main__":
    main()
