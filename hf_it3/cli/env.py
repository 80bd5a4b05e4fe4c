"""Prints the versions of everything that matters, to paste into a bug report."""

import argparse
import platform

from ..utils import installed_versions


PACKAGES = (
    "hf-it3",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface-hub",
    "evaluate",
    "numpy",
    "pillow",
    "scikit-learn",
    "imagecorruptions",
    "timm",
    "gradio",
)


def versions() -> dict[str, str]:
    """The version of each package; `"not installed"` where it is missing."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    versions = installed_versions(PACKAGES)
    return {**found, **{name: version or "not installed" for name, version in versions.items()}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the command has no options."""


def run(arguments: argparse.Namespace) -> None:
    """Prints one line per package, and the devices that torch sees."""
    import torch

    for name, version in versions().items():
        print(f"{name}: {version}")
    print(f"cuda devices: {torch.cuda.device_count()}")
    print(f"threads: {torch.get_num_threads()}")
