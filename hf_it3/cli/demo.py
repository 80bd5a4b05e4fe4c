"""Trains the tutorial's network, loads it through the pipeline, and adapts it to noisy digits."""

import argparse
import os

from .options import add_shared, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the demo."""
    add_shared(parser, dataset={"default": "digits", "help": "'digits' (bundled), 'ylecun/mnist', or a copy of it"})
    parser.add_argument("--num_seeds", type=positive, default=3, metavar="N", help="train N models, seeds 0 to N-1")
    add_shared(parser, output_dir={"default": "runs/demo"})
    parser.add_argument("--noise_std", type=float, default=2.0, help="in units of the normalised image (default: 2)")
    parser.add_argument("--num_train_epochs", type=positive, metavar="N", help="passes over the training images")
    add_shared(parser, batch_size={"help": "images that adapt together (default: what suits the data set)"})
    parser.add_argument("--max_train_samples", type=positive, metavar="N", help="train on the first N images")
    parser.add_argument("--max_eval_samples", type=positive, metavar="N", help="measure on the first N images")


def run(arguments: argparse.Namespace) -> None:
    """Runs the demo and prints its table."""
    from ..demo import EXAMPLE, run_demo
    from ..evaluation.demo_report import format_table

    document = run_demo(
        dataset=arguments.dataset,
        seeds=arguments.num_seeds,
        output_dir=arguments.output_dir,
        noise_std=arguments.noise_std,
        num_epochs=arguments.num_train_epochs,
        batch_size=arguments.batch_size,
        max_train_images=arguments.max_train_samples,
        max_test_images=arguments.max_eval_samples,
    )
    print()
    print(format_table(document))
    print(f"\nModel, card, digits.png, accuracy.png and results.json are in {arguments.output_dir}")
    print(f"Try: hf-it3 predict {arguments.output_dir} {os.path.join(arguments.output_dir, EXAMPLE)}")
