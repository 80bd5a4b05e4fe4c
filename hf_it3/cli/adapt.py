"""Adapts a model to unlabelled images, and saves or pushes the adapted model.

The model takes one batch of images after the other, in a random order that is the same every time, because batches
should mix the classes and folders are sorted by class.
"""

import argparse
import os

from .options import add_shared, check_source, warn_of_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options named as the arguments of [`~hf_it3.hub.adapted_model.adapt_to_images`]."""
    parser.add_argument("model", metavar="MODEL", help="Hub name or directory of an idempotent model")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files, folders of them, or one data set")
    add_shared(parser, "revision", "trust_remote_code", "config_name", split={"default": "test"})
    add_shared(parser, "order", "seed", "batch_size", "no_gate")
    add_shared(parser, output_dir={"help": "where to save the adapted model"})
    parser.add_argument("--push", metavar="user/name", help="where to push the adapted model")
    parser.add_argument("--delta", action="store_true", help="only what adaptation changed; needs a MODEL on the Hub")
    parser.add_argument("--description", metavar="TEXT", help="of the images, for the model card")
    parser.add_argument(
        "--num_steps", type=int, metavar="N", help="optimizer steps per batch (default: the model's own)"
    )
    parser.add_argument("--learning_rate", type=float, help="default: the model's own")
    add_shared(parser, "private", "include_code", "no_progress")


def _check_output(model: str, output_dir: str) -> None:
    """Refuses to replace the model that is adapted, and says so of any other one."""
    if os.path.isdir(model) and os.path.realpath(model) == os.path.realpath(output_dir):
        raise ValueError(
            f"--output_dir {output_dir} is MODEL itself, which the adapted model would replace; name another folder"
        )
    warn_of_model(output_dir)


def run(arguments: argparse.Namespace) -> None:
    """Adapts, saves, pushes, and prints what was done."""
    from huggingface_hub.utils import validate_repo_id

    from ..hub.adapted_model import adapt_to_images, save_adapted
    from ..hub.card_facts import public_id
    from ..it3.backbone_defaults_it3 import resolve_defaults

    if arguments.output_dir is None and arguments.push is None:
        raise ValueError("say where the adapted model goes: --output_dir DIR, --push user/name, or both")
    if arguments.delta and public_id(arguments.model) is None:
        raise ValueError(
            f"--delta refers to the model by its name on the Hub, and {arguments.model} is here alone; push it first, "
            "or leave --delta out"
        )
    if arguments.output_dir is not None:
        _check_output(arguments.model, arguments.output_dir)
    if len(arguments.images) == 1:
        check_source("image file or data set", arguments.images[0])
    if arguments.push is not None:
        validate_repo_id(arguments.push)
    names = ("batch_size", "num_steps", "learning_rate")
    overrides = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.no_gate:
        overrides["gate"] = None
    model = adapt_to_images(
        arguments.model,
        arguments.images,
        revision=arguments.revision,
        trust_remote_code=arguments.trust_remote_code,
        config_name=arguments.config_name,
        split=arguments.split,
        order=arguments.order,
        seed=arguments.seed,
        description=arguments.description,
        show_progress=not arguments.no_progress,
        **overrides,
    )
    counts = model.config.base_model or {}
    print(f"adapted to {counts['num_images']} images in {counts['num_steps']} steps")
    settings = resolve_defaults(model.config.adaptation.replace(scope="stream", **overrides), model)
    if not settings.num_steps and settings.norm_statistics == "source":
        print("settings ask for no step and for the statistics of training, so nothing changed")
    elif not counts["num_images"] and not arguments.no_gate:
        print("the gate found the images like the training images, so nothing changed; --no_gate adapts anyway")
    elif counts["num_images"] and not counts["num_steps"]:
        print("the weights took over the statistics of the images; no optimizer step was taken")
    if arguments.output_dir is not None:
        path = save_adapted(model, arguments.output_dir, delta=arguments.delta, include_code=arguments.include_code)
        print(f"saved in {path}")
    if arguments.push is not None:
        commit = model.push_to_hub(
            arguments.push, private=arguments.private, delta=arguments.delta, include_code=arguments.include_code
        )
        print(f"pushed: {commit.commit_url}")
