"""Evaluates models under corruptions, without and with adaptation, and prints a table."""

import argparse

from accelerate import PartialState

from ..evaluation import DEFAULT_METHODS, evaluate_robustness
from ..evaluation.images import ORDERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options named as the arguments of [`~hf_it3.evaluation.evaluate_robustness`]."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub names or paths; several count as seeds")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--corruptions", default="all")
    parser.add_argument("--severities", default="1-5")
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS))
    parser.add_argument("--order", default="iid", choices=ORDERS)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_samples", type=int)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table in the main process."""
    results = evaluate_robustness(
        arguments.models,
        arguments.dataset,
        split=arguments.split,
        corruptions=arguments.corruptions,
        severities=arguments.severities,
        methods=arguments.methods,
        order=arguments.order,
        batch_size=arguments.batch_size,
        num_samples=arguments.num_samples,
    )
    if PartialState().is_main_process:
        print(results.table())
