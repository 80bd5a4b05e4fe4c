"""Starts an app in which a model adapts itself to images that one picks, draws or uploads, in the browser."""

import argparse
import socket

from .options import add_shared


_HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the app."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hub name or path; by default the tutorial's network, trained on the bundled digits at the first start",
    )
    add_shared(parser, "revision", "trust_remote_code")
    add_shared(
        parser,
        dataset={
            "help": "Hub name or path of test images to pick from (default: bundled digits, if the model reads digits)"
        },
    )
    add_shared(
        parser, "config_name", "streaming", split={"help": "of the data set (default: test, validation or train)"}
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--cache_dir", metavar="DIR", help="where the trained network is kept for the next start")


def run(arguments: argparse.Namespace) -> None:
    """Serves the app on this machine until it is interrupted."""
    from ..app import launch

    if arguments.port is not None:
        _check_port(arguments.port)
    launch(
        arguments.model,
        dataset=arguments.dataset,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        config_name=arguments.config_name,
        split=arguments.split,
        streaming=arguments.streaming,
        cache_dir=arguments.cache_dir,
        server_name=_HOST,
        server_port=arguments.port,
        inbrowser=arguments.open,
    )


def _check_port(port: int) -> None:
    """Checks the port before a model is loaded for a page that nobody can open."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be a number from 1 to 65535, got {port}")
    try:
        socket.create_server((_HOST, port)).close()
    except OSError as error:
        raise ValueError(f"port {port} cannot be used ({error.strerror}); choose another with --port") from error
