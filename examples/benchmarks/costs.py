# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]", "torch-ttt==0.0.2", "einops"]
#
# [tool.uv.sources]
# hf-it3 = { path = "../..", editable = true }
# ///
"""What adaptation costs beside time: memory, imports, and what the pipeline around it takes.

    python examples/benchmarks/costs.py --output_dir runs/benchmark
    python examples/benchmarks/costs.py --only throughput,imports

Memory is the peak of what torch allocates on the CPU; imports and throughput are counted in CPU time, so that they
hold on a machine that does other things at the same time. Takes about 5 minutes on 2 cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from adaptation import STEPS, Timer, plain_forward, resnet18, torch_ttt_engine, tutorial_cnn, vit_tiny
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ViTImageProcessor, pipeline

import hf_it3  # noqa: F401 - for its pipeline task
from hf_it3 import IT3ForImageClassification, TestTimeAdapter


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


def memory_of_a_batch() -> dict[str, float]:
    """Peak extra memory of adapting a batch of 224 px, norm parameters, ResNet-50 size, against one training step."""
    config = ResNetConfig(num_labels=10)
    model = IT3ForImageClassification.from_backbone(config).eval()
    images = torch.randn(4, 3, 224, 224)
    adapter = TestTimeAdapter(model, parameters="norm", gate=None)
    names = set(adapter.shell.names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    optimizer = torch.optim.Adam([parameter for parameter in model.parameters() if parameter.requires_grad])

    def train() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images).logits, torch.zeros(len(images), dtype=torch.long)).backward()
        optimizer.step()

    train(), adapter(images)
    plain, ours = peak_memory(train), peak_memory(partial(adapter, images))
    print(
        f"peak extra memory, ResNet-50 size, {len(images)} images of 224 px, norm parameters: one training step "
        f"{plain / 2**20:.0f} MiB, adaptation {ours / 2**20:.0f} MiB ({ours / plain:.2f})"
    )
    return {"train_bytes": plain, "our_bytes": ours, "share": ours / plain}


def seconds_of(*arguments: str, repeats: int = 3) -> float:
    """Median CPU seconds of a new Python process."""
    taken = []
    for _ in range(repeats):
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(taken)


def imports() -> dict[str, float]:
    """CPU seconds that our import and our help take beyond importing transformers and what it needs for models."""
    base = seconds_of("-c", "import torch, transformers.modeling_utils")
    ours = {
        "import hf_it3": seconds_of("-c", "import hf_it3") - base,
        "hf-it3 --help": seconds_of("-m", "hf_it3.cli", "--help") - base,
    }
    print("CPU seconds beyond transformers': " + ", ".join(f"{name} {taken:.2f}" for name, taken in ours.items()))
    return ours


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


def throughput(num_images: int = 8) -> dict[str, float]:
    """Milliseconds of CPU time an image of 224 px JPEG files takes in the pipelines, and the parts of it."""
    model = resnet18().eval()
    processor = ViTImageProcessor(size={"height": 224, "width": 224})
    stock = pipeline("image-classification", model=model.backbone, image_processor=processor, device="cpu")
    ours = pipeline("it3-image-classification", model=model, image_processor=processor, device="cpu")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{index}.jpg") for index in range(num_images)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(path)
        pictures = [Image.open(path).convert("RGB") for path in paths]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        batches = {"batch_size": 8, "adaptation_batch_size": 8}
        steps = {"gate": None, "parameters": "norm", "num_steps": 1}
        calls = {
            "stock": lambda: stock(paths, batch_size=8),
            "adapt=False": lambda: ours(paths, batch_size=8, adapt=False),
            "adapting": lambda: ours(paths, **batches, **steps),
            "decoding": lambda: [Image.open(path).convert("RGB") for path in paths],
            "processor": lambda: [processor(picture, return_tensors="pt") for picture in pictures],
            "forward": lambda: [plain_forward(model, part) for part in pixels.split(8)],
        }
        times = {name: [] for name in calls}
        calls["adapt=False"](), calls["stock"]()
        for _ in range(3):
            for name, call in calls.items():
                start = time.process_time()
                call()
                times[name].append(1000 * (time.process_time() - start) / num_images)
    row = {name: statistics.median(taken) for name, taken in times.items()}
    pairs = zip(times["adapt=False"], times["stock"], strict=True)
    row["adapt=False / stock"] = statistics.median(a / b for a, b in pairs)
    print("CPU ms an image, files of 224 px: " + ", ".join(f"{name} {value:.2f}" for name, value in row.items()))
    return row


def averaging(num_images: int = 32) -> dict[str, float]:
    """What a batch of 64 px costs that is adapted to at the default settings, in plain forward passes: with answers
    that are averaged over copies, and without."""
    images, row = torch.randn(num_images, 3, 64, 64), {}
    timer = Timer("cpu", seconds=0, min_repeats=7)
    variants = {"no copies": {"average_answers": "never"}, "4 copies": {"augmentations": 4}, "8 copies": {}}
    for name, model in {"ResNet-18 size": resnet18().eval(), "ViT-Tiny size": vit_tiny().eval()}.items():
        adapters = [TestTimeAdapter(model, gate=None, **settings) for settings in variants.values()]
        plain, *times = timer(partial(plain_forward, model, images), *(partial(one, images) for one in adapters))
        costs_of_each = (statistics.median(taken) / statistics.median(plain) for taken in times)
        forwards = dict(zip(variants, costs_of_each, strict=True))
        row |= {f"{name}, {kind}": value for kind, value in forwards.items()}
        costs = ", ".join(f"{kind} {value:.1f}" for kind, value in forwards.items())
        print(f"adapting to {num_images} images of 64 px in plain forward passes, {name}: {costs}")
    return row


MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "memory": memory,
    "memory_of_a_batch": memory_of_a_batch,
    "scaling": scaling,
    "imports": imports,
    "throughput": throughput,
    "averaging": averaging,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--only", default=",".join(MEASUREMENTS), help="comma-separated, of " + ", ".join(MEASUREMENTS)
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = {name: MEASUREMENTS[name]() for name in arguments.only.split(",")}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "costs.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
