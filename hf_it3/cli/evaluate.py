"""Evaluates models under corruptions, without and with adaptation: does it help on your data, and when not?

Prints a table; with --output_dir also writes results.json, results.csv and plots. Start it with torchrun or accelerate
launch for several processes, which give the same figures.
"""

import argparse
import sys

from ..evaluation import DEFAULT_METHODS, EvaluationInterrupted, evaluate_robustness
from ..evaluation.images import ORDERS
from ..evaluation.processes import process_state


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options named as the arguments of [`~hf_it3.evaluation.evaluate_robustness`]."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub names or paths; several give their mean")
    parser.add_argument("--dataset", required=True, help="Hub name, path, or 'digits'")
    parser.add_argument("--config_name", help="configuration of the data set; several with commas are compared")
    parser.add_argument(
        "--split", default="test", help="or a range, test[2000:]; several with commas are compared (default: test)"
    )
    parser.add_argument("--image_column", help="default: image, img or pixel_values")
    parser.add_argument("--label_column", help="default: label, labels or fine_label")
    parser.add_argument("--streaming", action="store_true", help="stream the data set, for ones larger than memory")
    parser.add_argument("--num_samples", type=int, metavar="N", help="so many images (default: all)")
    parser.add_argument(
        "--corruptions",
        default="all",
        metavar="NAMES",
        help="all (MNIST-C for grey, ImageNet-C for colour images), none, or suites and names with commas",
    )
    parser.add_argument(
        "--exclude", metavar="NAMES", help="leave these out; calibrated: those that the settings were chosen on"
    )
    parser.add_argument("--severities", default="1-5", help="1-5, or 1,3,5 (default: 1-5)")
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        help="what to compare, with commas: none, statistics, tent, torch-ttt, it3, batch, stream, image (default: "
        f"{','.join(DEFAULT_METHODS)})",
    )
    parser.add_argument(
        "--scopes", metavar="NAMES", help="the same for the model's own settings: batch, image, stream, none"
    )
    parser.add_argument("--order", default="iid", choices=ORDERS, help="order of the images (default: iid)")
    parser.add_argument(
        "--batch_size", type=int, metavar="N", help="images that adapt together (default: the model's own)"
    )
    parser.add_argument("--seeds", default="0", help="of corruptions and order, several with commas (default: 0)")
    parser.add_argument("--reference", metavar="RESULTS", help="results.json of a reference model, for relative mCE")
    parser.add_argument("--output_dir", metavar="DIR", help="folder for results.json, results.csv and plots")
    parser.add_argument("--resume", action="store_true", help="go on from what is in --output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output_dir")
    parser.add_argument("--no_plots", action="store_true", help="draw no plots")
    parser.add_argument("--report_to", default="none", help="trackio, tensorboard, wandb, ... as in Trainer")
    parser.add_argument("--run_name", help="name of the run for --report_to")
    parser.add_argument("--revision", help="revision of the models on the Hub")
    parser.add_argument("--dtype", help="floating point type of the models, bfloat16 for example")
    parser.add_argument("--device_map", help="as in from_pretrained, auto for example")
    parser.add_argument("--no_progress", action="store_true", help="show no progress bar")


def run(arguments: argparse.Namespace) -> None:
    """Prints the table in the main process, on Ctrl-C that of what is finished."""
    options = dict(vars(arguments))
    for name in ("command", "run", "show_traceback", "models", "dataset", "scopes", "no_plots", "no_progress"):
        options.pop(name, None)
    try:
        options["seeds"] = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {arguments.seeds!r} must be integers with commas between them") from None
    names = [name for name in (arguments.methods, arguments.scopes) if name is not None]
    options["methods"] = ",".join(names) if names else None
    options["report_to"] = arguments.report_to.split(",")
    options.update(plots=not arguments.no_plots, show_progress=not arguments.no_progress)
    try:
        results = evaluate_robustness(arguments.models, arguments.dataset, **options)
    except EvaluationInterrupted as interruption:
        if process_state().is_main_process:
            print(interruption.results.table())
            if arguments.output_dir is None:
                print("Nothing was saved; with --output_dir, --resume goes on from there.", file=sys.stderr)
        raise
    if process_state().is_main_process:
        print(results.table())
        if arguments.output_dir is not None:
            print(f"Results and plots are in {arguments.output_dir}")
