# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-it3[demo]"]
#
# [tool.uv.sources]
# hf-it3 = { path = "..", editable = true }
# ///
"""Rejects the predictions that the model is not sure of, by their idempotence distance.

f(x) and f(x, f(x)) agree where the model knows what it sees. The further they are apart, the likelier the answer is
wrong: whoever can pass some images on to a person passes on those with the largest distance. The risk-coverage curve
tells what that buys: the error rate among the accepted images, for every share of images that is accepted.

    python examples/uncertainty.py                  # trains a small model on the bundled digits first: a minute
    python examples/uncertainty.py --model DIR --corruption mnist-c/fog

It prints the error rate at several coverages and the area under the curve, for the idempotence distance and for the
largest probability, which needs no second pass; and writes risk_coverage.png.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from transformers import pipeline

from hf_it3 import IT3ImageProcessor
from hf_it3.corruptions import corrupt
from hf_it3.data import DIGITS, load_digits
from hf_it3.demo import RECIPES, train_network
from hf_it3.evaluation.metrics import area_under_risk_coverage, auroc, risk_coverage
from hf_it3.evaluation.pixels import PixelCollator
from hf_it3.utils import new_figure


COVERAGES = (0.5, 0.7, 0.8, 0.9, 1.0)


def risk_at(coverage: float, curve) -> float:
    """The error rate where at least this share of images is accepted."""
    return curve.risk[np.searchsorted(curve.coverage, coverage - 1e-9)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a saved model of digits; by default one is trained")
    parser.add_argument("--num_epochs", type=int, default=10, help="of that training")
    parser.add_argument("--corruption", default="digits-shift/noise_2")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--max_images", type=int, default=500)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/uncertainty"))
    options = parser.parse_args()

    digits = load_digits()
    model = options.model or options.output_dir / "model"
    if options.model is None:
        recipe = RECIPES[DIGITS]
        processor = IT3ImageProcessor(num_channels=1, image_mean=[recipe.mean], image_std=[recipe.std])
        names = [str(digit) for digit in range(10)]
        train_network(digits["train"], processor, names, model, 0, recipe, options.num_epochs)

    # No steps: the model answers as it is, and the distance comes with the answer.
    classifier = pipeline("it3-image-classification", model=str(model), top_k=1, return_idempotence=True, num_steps=0)
    rows = digits["test"].select(range(min(options.max_images, len(digits["test"]))))
    batch = PixelCollator(classifier.image_processor)(list(rows))
    clean, labels = batch["pixel_values"], [classifier.model.config.id2label[label] for label in rows["label"]]
    figure, axes = new_figure(9, 3.6, 1, 2)
    for axis, (name, pixels) in zip(
        axes,
        (("clean", clean), (options.corruption, corrupt(clean, options.corruption, options.severity))),
        strict=True,
    ):
        answers = [best for (best,) in classifier(list((255 * pixels).numpy()))]
        correct = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
        uncertainties = {
            "idempotence distance": [answer["idempotence"] for answer in answers],
            "1 - probability": [1 - answer["score"] for answer in answers],
        }
        print(f"\n{name}: {np.mean(correct):.1%} right")
        print(
            f"{'errors at coverage':<22}" + "".join(f"{coverage:>8.0%}" for coverage in COVERAGES) + "    AURC   AUROC"
        )
        for kind, values in uncertainties.items():
            curve = risk_coverage(values, correct)
            wrong = [not right for right in correct]
            separation = f"{auroc(values, wrong):>8.3f}" if 0 < sum(wrong) < len(wrong) else f"{'-':>8}"
            print(
                f"{kind:<22}"
                + "".join(f"{risk_at(coverage, curve):>8.1%}" for coverage in COVERAGES)
                + f"{area_under_risk_coverage(values, correct):>8.4f}{separation}"
            )
            axis.plot(100 * curve.coverage, 100 * curve.risk, label=kind)
        axis.set(title=name, xlabel="accepted images (%)", ylabel="errors among them (%)")
        axis.grid(linestyle="--", alpha=0.5)
    axes[0].legend(frameon=False)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output_dir / "risk_coverage.png", dpi=120)

    # In service the threshold has to be known before the images are: the clean mean plus some standard deviations.
    reference = classifier.model.config.reference_distance
    threshold = reference["mean"] + 2 * reference["std"]
    accepted = [right for answer, right in zip(answers, correct, strict=True) if answer["idempotence"] <= threshold]
    risk = f"{1 - np.mean(accepted):.1%} errors among them" if accepted else "so all were rejected"
    print(
        f"\nAt a threshold of {threshold:.3f}, two standard deviations above the training images, "
        f"{len(accepted) / len(answers):.0%} of the corrupted images are accepted, {risk}"
    )
    print(f"The curves are in {options.output_dir / 'risk_coverage.png'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"uncertainty.py: {' '.join(str(error).split())}")
