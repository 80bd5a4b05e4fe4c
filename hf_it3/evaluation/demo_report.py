"""What the demo measured: as `results.json`, as rows of the model card, and as a table."""

import statistics
from dataclasses import dataclass, field
from typing import Any

from .table import ruled


@dataclass
class Measurement:
    """Accuracies between 0 and 1 of the batches of one condition, and milliseconds per image."""

    batch_accuracies: list[float]
    batch_sizes: list[int]
    ms_per_image: float

    @property
    def accuracy(self) -> float:
        """Accuracy over all images."""
        correct = sum(accuracy * size for accuracy, size in zip(self.batch_accuracies, self.batch_sizes, strict=True))
        return correct / sum(self.batch_sizes)


@dataclass
class SeedResult:
    """What one seed gave: a pair of measurements, without and with adaptation, per condition."""

    seed: int
    conditions: dict[str, tuple[Measurement, Measurement]] = field(default_factory=dict)


def describe_seed(result: SeedResult) -> dict[str, Any]:
    """A seed's part of `results.json`."""
    return {
        "seed": result.seed,
        "conditions": {
            name: {
                how: {
                    "accuracy": measurement.accuracy,
                    "ms_per_image": round(measurement.ms_per_image, 3),
                    "batch_accuracies": measurement.batch_accuracies,
                }
                for how, measurement in zip(("without", "with"), pair, strict=True)
            }
            for name, pair in result.conditions.items()
        },
    }


def heading(condition: str) -> str:
    """The name of a condition in tables and pictures."""
    return condition.replace("_", " ")


def _title(condition: str, document: dict[str, Any]) -> str:
    """The name of a condition on the model card."""
    noise = f"Gaussian noise, sigma {document['noise_std']:g}"
    return {"noisy": f"{noise}, 8-bit pictures", "float_noise": f"{noise}, unclipped floats"}.get(condition, condition)


def condition_results(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions of a `results.json` as a model card lists them."""
    listed = []
    for name in document["seeds"][0]["conditions"]:
        runs = {how: [seed["conditions"][name][how] for seed in document["seeds"]] for how in ("without", "with")}
        accuracies = {how: [run["accuracy"] for run in runs[how]] for how in runs}
        times = {how: statistics.fmean(run["ms_per_image"] for run in runs[how]) for how in runs}
        listed.append(
            {
                "name": _title(name, document),
                "score_unadapted": statistics.fmean(accuracies["without"]),
                "score_adapted": statistics.fmean(accuracies["with"]),
                "unadapted_per_seed": accuracies["without"],
                "adapted_per_seed": accuracies["with"],
                "milliseconds_unadapted": times["without"],
                "milliseconds_adapted": times["with"],
                "num_images": document["num_test_images"],
            }
        )
    return listed


def format_table(document: dict[str, Any]) -> str:
    """The measured accuracies as a table: a line per seed and one for the mean, in percent, and ms per image."""
    conditions = list(document["seeds"][0]["conditions"])
    headings = [cell for name in conditions for cell in ("", heading(name))]
    rows = [["", *headings], ["seed", *("without", "with") * len(conditions)]]
    for seed in document["seeds"]:
        pairs = [seed["conditions"][name] for name in conditions]
        rows.append([str(seed["seed"]), *(f"{100 * pair[how]['accuracy']:.1f}" for pair in pairs for how in pair)])
    means = [(mean, how) for mean in condition_results(document) for how in ("unadapted", "adapted")]
    rows.append(["mean", *(f"{100 * mean[f'score_{how}']:.1f}" for mean, how in means)])
    rows.append(["ms", *(f"{mean[f'milliseconds_{how}']:.2f}" for mean, how in means)])
    lines = [
        *ruled(rows, numbers=True, head=2),
        f"Accuracy in percent on {document['num_test_images']} test images in batches of {document['batch_size']}, "
        "without and with adaptation.",
        f"clean, noisy: 8-bit pictures through the pipeline, noise of sigma {document['noise_std']:g} in units of "
        "normalised images.",
        "float noise: the same noise as the tutorial adds it to the model's input, unclipped; no picture holds it.",
        "ms: milliseconds per image, of pictures with reading and scaling.",
    ]
    return "\n".join(lines)
