"""Lists the corruptions, or draws a picture of them on digits and photographs that come with scikit-learn."""

import argparse

from .options import add_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the picture."""
    parser.add_argument("--output", metavar="FILE", help="write a picture (png, jpg, ...) instead of a list")
    parser.add_argument("--suites", metavar="NAMES", help="comma-separated (default: all)")
    add_shared(parser, "seed")


def run(arguments: argparse.Namespace) -> None:
    """Prints names and severities, or writes the picture."""
    from ..evaluation.conditions import split_names
    from ..evaluation.corruptions import get_corruption, list_corruptions, list_suites, missing_corruptions

    suites = split_names(arguments.suites) or list_suites()
    if arguments.output is not None:
        from .drawing import draw_suites

        draw_suites(suites, arguments.seed).save(arguments.output, optimize=True)
        print(f"{arguments.output}: {', '.join(suites)}")
        return
    for suite in suites:
        for name in list_corruptions(suite):
            severities = get_corruption(name).severities
            print(f"{name} (severities {severities[0]} to {severities[-1]})" if severities else name)
        for name, reason in missing_corruptions(suite).items():
            print(f"{name}: missing: {reason}")
