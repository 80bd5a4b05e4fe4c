"""Where a class comes from: the installed package, or the code of a model repository."""

from typing import Any


def is_remote_code(thing: Any) -> bool:
    """Whether an object's class was loaded out of a model repository, not from the installed package."""
    return type(thing).__module__.startswith("transformers_modules.")
