"""What the demo measured: as `results.json`, as rows of the model card, and as a table."""

import statistics
from dataclasses import dataclass, field
from typing import Any


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
    train_seconds: float
    conditions: dict[str, tuple[Measurement, Measurement]] = field(default_factory=dict)


def describe_seed(result: SeedResult) -> dict[str, Any]:
    """A seed's part of `results.json`."""
    return {
        "seed": result.seed,
        "train_seconds": round(result.train_seconds, 1),
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


def condition_results(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The conditions of a `results.json` as a model card lists them."""
    listed = []
    for name in document["seeds"][0]["conditions"]:
        runs = {how: [seed["conditions"][name][how] for seed in document["seeds"]] for how in ("without", "with")}
        accuracies = {how: [run["accuracy"] for run in runs[how]] for how in runs}
        times = {how: statistics.fmean(run["ms_per_image"] for run in runs[how]) for how in runs}
        listed.append(
            {
                "name": name if name == "clean" else f"Gaussian noise, sigma {document['noise_std']:g}",
                "accuracy_unadapted": statistics.fmean(accuracies["without"]),
                "accuracy_adapted": statistics.fmean(accuracies["with"]),
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
    lines = [f"{'seed':>6}" + "".join(f"{name + ' without':>18}{name + ' with':>14}" for name in conditions)]
    for seed in document["seeds"]:
        pairs = [seed["conditions"][name] for name in conditions]
        lines.append(_row(str(seed["seed"]), [100 * pair[how]["accuracy"] for pair in pairs for how in pair]))
    means = condition_results(document)
    for title, kind, factor, digits in (("mean", "accuracy", 100, 1), ("ms", "milliseconds", 1, 2)):
        values = [factor * mean[f"{kind}_{how}"] for mean in means for how in ("unadapted", "adapted")]
        lines.append(_row(title, values, digits))
    lines.append(
        f"Accuracy in percent on {document['num_test_images']} test images in batches of {document['batch_size']}, "
        f"noise of sigma {document['noise_std']:g}; ms: milliseconds per image, reading and scaling it included."
    )
    return "\n".join(lines)


def _row(title: str, values: list[float], digits: int = 1) -> str:
    """A line of the table: pairs of values, without and with adaptation."""
    widths = (18, 14)
    return f"{title:>6}" + "".join(f"{value:>{widths[i % 2]}.{digits}f}" for i, value in enumerate(values))
