"""Pushes a saved model with its image processor and card to the Hub, in one commit."""

import argparse

from .options import add_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options named as the arguments of [`~hf_it3.hub.push.push_directory`]."""
    parser.add_argument("directory", metavar="DIR", help="where save_pretrained or IT3Trainer saved the model")
    parser.add_argument("repo_id", metavar="user/name")
    add_shared(parser, "private", "include_code", revision={"help": "branch to push to; created if it does not exist"})
    parser.add_argument("--commit_message", default="Upload model", metavar="TEXT")


def run(arguments: argparse.Namespace) -> None:
    """Pushes, and prints where the commit is."""
    from ..hub.push import push_directory

    commit = push_directory(
        arguments.directory,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        include_code=arguments.include_code,
        commit_message=arguments.commit_message,
    )
    print(commit.commit_url)
