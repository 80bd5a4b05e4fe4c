"""The `hf-it3` command: one subcommand per module."""

import argparse
import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from ..version import __version__
from .options import check_sources


# Name of the subcommand (its module is imported only when it is called) and what it does.
COMMANDS = {
    "demo": "train, save, load and adapt the tutorial's network, on digits or MNIST",
    "corruptions": "list the corruptions, or draw a picture of them",
    "evaluate": "evaluate models under corruptions, without and with adaptation",
    "calibrate": "choose a model's adaptation settings by measurement on held-out images",
    "train": "train a new or wrapped model on a data set of images",
    "inspect": "print where the label signal enters a model and what adaptation changes",
    "predict": "classify image files, adapting to them",
    "adapt": "adapt a model to unlabelled images and keep the result",
    "push": "push a saved model to the Hub",
    "app": "try a model in the browser",
    "env": "print versions, for bug reports",
}

# What a parsed command line holds beside options.
_NO_OPTIONS = {"command", "images", "model", "models", "run", "show_traceback"}


def build_parser(command: str | None = None, only_explains: bool = False) -> argparse.ArgumentParser:
    """Builds the parser, with the options of one subcommand (or of none, for the overview).

    Args:
        command: the subcommand.
        only_explains: whether the parser prints its help and nothing else, which should not wait for other packages;
            a subcommand whose options come from elsewhere has `add_overview` for it.
    """
    parser = argparse.ArgumentParser("hf-it3", description="Idempotent test-time training for image classifiers.")
    parser.add_argument("--version", action="version", version=f"hf-it3 {__version__}")
    # Under a name of its own, because TrainingArguments has a field `debug`, too.
    traceback = "show the whole traceback of an error"
    parser.add_argument("--debug", action="store_true", dest="show_traceback", help=traceback)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name == command:
            module = importlib.import_module(f".{name}", __package__)
            subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
            overview = getattr(module, "add_overview", None) if only_explains else None
            (overview or module.add_arguments)(subparser)
            subparser.set_defaults(run=module.run)
        else:
            subparsers.add_parser(name, help=summary)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; errors end in one line and exit status 2, with `--debug` in a traceback."""
    arguments = [_with_underscores(text) for text in (sys.argv[1:] if arguments is None else arguments)]
    command = next((argument for argument in arguments if argument in COMMANDS), None)
    only_explains = not {"-h", "--help"}.isdisjoint(arguments)
    parser = build_parser(command, only_explains)
    first = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is None and first is not None and (close := difflib.get_close_matches(first, COMMANDS, n=2)):
        parser.error(f"invalid choice: {first!r}; did you mean {' or '.join(close)}?")
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown_options(unknown, set(vars(parsed)) - _NO_OPTIONS))
    try:
        check_sources(parsed)
        with _without_bars() if getattr(parsed, "no_progress", False) else contextlib.nullcontext():
            status = parsed.run(parsed) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output, `head` for example, has enough of it. What is still to be flushed goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("hf-it3: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if parsed.show_traceback:
            raise
        message = _in_one_line(error)
        if "trust_remote_code=True" in message and hasattr(parsed, "trust_remote_code"):
            message += " (on the command line: --trust_remote_code)"
        print(f"hf-it3 {parsed.command}: error: {message}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Hides the progress bars of transformers and the Hub's client, those of weights and downloads."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    loads, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if loads:
            logging.enable_progress_bar()
        if downloads:
            enable_progress_bars()


def _with_underscores(argument: str) -> str:
    """Spells an option as the parsers know it: `--batch-size` becomes `--batch_size`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _unknown_options(unknown: Sequence[str], known: Iterable[str]) -> str:
    """The message for options that a subcommand does not have, with those that look like them."""
    name = unknown[0].removeprefix("--").partition("=")[0]
    close = difflib.get_close_matches(name, list(known), n=2) if unknown[0].startswith("--") else []
    hint = f"; did you mean {' or '.join(f'--{one}' for one in close)}?" if close else ""
    return f"unrecognized arguments: {' '.join(unknown)}{hint}"


def _in_one_line(error: Exception) -> str:
    """The message alone where it was written for users; otherwise with the error's type, and where to see more."""
    from huggingface_hub.errors import HfHubHTTPError

    message = " ".join(" ".join([str(error), *getattr(error, "__notes__", ())]).split())
    if isinstance(error, (ValueError, OSError, ImportError, TypeError, HfHubHTTPError)):
        return message
    return f"{type(error).__name__}: {message} (hf-it3 --debug shows the whole traceback)".replace(":  (", " (")
