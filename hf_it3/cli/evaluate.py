"""Evaluates models under corruptions, without and with adaptation: does it help on your data, and when not?

Says how much it will do, and prints a table; with --output_dir it also writes results.json, results.csv and plots. By
default it measures 500 images at severity 3, to tell within minutes whether adaptation helps; --num_samples all
--severities 1-5 gives figures to report. Start it with torchrun or accelerate launch for several processes, which give
the same figures.
"""

import argparse
import sys

from .options import add_shared, check_task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options named as the arguments of [`~hf_it3.evaluation.evaluate_robustness`]."""
    parser.add_argument("models", nargs="+", metavar="MODEL", help="Hub names or paths; several give their mean")
    add_shared(
        parser,
        "revision",
        "trust_remote_code",
        "task",
        dataset={
            "required": True,
            "help": "Hub name or path, 'digits' or 'scenes' (bundled), or published files: CIFAR-10-C, ...",
        },
    )
    add_shared(parser, config_name={"help": "configuration of the data set; several, comma-separated, are compared"})
    add_shared(
        parser,
        split={
            "default": "test",
            "help": "or a range, test[2000:]; several, comma-separated, are compared (default: test)",
        },
    )
    add_shared(parser, "image_column", "label_column", "streaming", "batch_size")
    add_shared(parser, num_samples={"default": 500, "help": "number of images, or all (default: 500)"})
    add_shared(
        parser,
        corruptions={
            "default": "all",
            "help": "suites and names, comma-separated, none, or all: MNIST-C for grey, ImageNet-C for colour images "
            "(default: all)",
        },
    )
    parser.add_argument(
        "--exclude", metavar="NAMES", help="leave these out; calibrated: those that the settings were chosen on"
    )
    parser.add_argument(
        "--severities",
        default="one",
        help="1-5, or 1,3,5, or published: all of the benchmark (default: one, that of MNIST-C, else 3)",
    )
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        default="none,statistics,batch",
        help="what to compare, comma-separated: none, statistics, tent, torch-ttt, it3, or the model's own settings "
        "in scope batch, stream, average or image (default: none,statistics,batch)",
    )
    parser.add_argument(
        "--order", default="iid", help="of the images: iid, class-sorted, mixed or continual (default: iid)"
    )
    parser.add_argument("--seeds", default="0", help="of corruptions and order, comma-separated (default: 0)")
    parser.add_argument(
        "--reference",
        metavar="RESULTS",
        help="results.json of a reference model, for mCE relative to it; or alexnet, for ImageNet-C's published mCE",
    )
    add_shared(parser, output_dir={"help": "folder for results.json, results.csv and plots"})
    parser.add_argument("--resume", action="store_true", help="go on from what is in --output_dir")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output_dir")
    parser.add_argument("--no_plots", action="store_true", help="draw no plots")
    parser.add_argument("--report_to", default="none", help="trackio, tensorboard, wandb, ... as in Trainer")
    parser.add_argument("--run_name", help="name of the run for --report_to")
    parser.add_argument("--dtype", help="floating point type of the models, bfloat16 for example")
    parser.add_argument("--device_map", help="as in from_pretrained, auto for example")
    add_shared(parser, "no_progress")


def run(arguments: argparse.Namespace) -> None:
    """Prints the table in the main process; on Ctrl-C, that of what is finished."""
    from ..evaluation import EvaluationInterrupted, evaluate_robustness
    from ..evaluation.processes import process_state

    options = dict(vars(arguments))
    for model in arguments.models:
        check_task(options.pop("task", None), model, arguments.revision)
    for name in ("command", "run", "show_traceback", "models", "dataset", "no_plots", "no_progress"):
        options.pop(name, None)
    try:
        options["seeds"] = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {arguments.seeds!r} must be integers, comma-separated") from None
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
