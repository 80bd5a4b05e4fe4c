"""Trains the tutorial's network, loads it through the pipeline, and adapts it to noisy digits."""

import argparse

from ..data import DIGITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options named as the arguments of [`~hf_it3.demo.run_demo`]."""
    parser.add_argument("--dataset", default=DIGITS, help="'digits' (bundled), 'ylecun/mnist', or a local copy of it")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train N models, seeds 0 to N-1")
    parser.add_argument("--output_dir", default="runs/demo", metavar="DIR")
    parser.add_argument("--noise_std", type=float, default=2.0, help="in units of the normalised image")
    parser.add_argument("--num_epochs", type=int, help="passes over the training images")
    parser.add_argument("--batch_size", type=int, help="test images that adapt together")
    parser.add_argument("--max_train_images", type=int, metavar="N")
    parser.add_argument("--max_test_images", type=int, metavar="N")


def run(arguments: argparse.Namespace) -> None:
    """Runs the demo and prints its table."""
    from ..demo import run_demo
    from ..evaluation.demo_report import format_table

    document = run_demo(
        dataset=arguments.dataset,
        seeds=arguments.seeds,
        output_dir=arguments.output_dir,
        noise_std=arguments.noise_std,
        num_epochs=arguments.num_epochs,
        batch_size=arguments.batch_size,
        max_train_images=arguments.max_train_images,
        max_test_images=arguments.max_test_images,
    )
    print()
    print(format_table(document))
    print(f"\nModel, card, digits.png, accuracy.png and results.json are in {arguments.output_dir}")
    print(
        f'Try: python -c "import hf_it3; from transformers import pipeline; '
        f"print(pipeline('it3-image-classification', model='{arguments.output_dir}'))\""
    )
