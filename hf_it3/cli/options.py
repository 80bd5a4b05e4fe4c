"""Options that several subcommands have."""

import argparse


def positive(text: str) -> int:
    """An integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def add_order(parser: argparse.ArgumentParser) -> None:
    """The order in which images are adapted to; see [`~hf_it3.data.in_reading_order`]."""
    parser.add_argument(
        "--order",
        choices=("shuffled", "given"),
        default="shuffled",
        help="in which images are adapted to: shuffled, so that batches mix the classes (default), or given, as the "
        "images are listed, for frames of a video",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled order (default: 0)")
