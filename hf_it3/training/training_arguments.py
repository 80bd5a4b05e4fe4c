"""Arguments of IT3Trainer."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from .own_arguments import TRAINED_PARTS, OwnArguments


# Where the embedder is trained alone: it starts from random weights, and nothing else moves.
_EMBEDDER_LEARNING_RATE = 3e-3


@dataclass
class IT3TrainingArguments(OwnArguments, TrainingArguments):
    """All of `TrainingArguments`, and what idempotent models need beyond them; on a CPU no memory is pinned.

    Example:

    ```python
    >>> from hf_it3 import IT3TrainingArguments
    >>> IT3TrainingArguments("runs/example", eval_adapted=True).reference_images
    5000

    ```
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device.type == "cpu":
            # There is nowhere to pin memory for, and torch would say so with every data loader.
            self.dataloader_pin_memory = False
        if self.eval_adapted and self.fsdp:
            raise ValueError(
                f"eval_adapted=True needs whole weights, which fsdp={self.fsdp!r} shards over processes; leave one "
                "of the two out"
            )
        if self.train not in TRAINED_PARTS:
            raise ValueError(f"train must be one of {', '.join(map(repr, TRAINED_PARTS))}, got {self.train!r}")
        if self.freeze_backbone:
            if self.train == "embedder":
                raise ValueError(
                    "freeze_backbone=True trains the normalisation layers, and train='embedder' does not; leave one "
                    "of the two out"
                )
            self.train = "norm"
        is_default_rate = self.learning_rate == TrainingArguments.learning_rate
        if self.train == "embedder" and self.embedder_learning_rate is None and is_default_rate:
            self.embedder_learning_rate = _EMBEDDER_LEARNING_RATE
        if self.reference_images < 0:
            raise ValueError(f"reference_images must be an integer >= 0, got {self.reference_images}")
        if self.embedder_learning_rate is not None and not self.embedder_learning_rate > 0:
            raise ValueError(f"embedder_learning_rate must be a number > 0, got {self.embedder_learning_rate}")

    def __getstate__(self) -> dict[str, Any]:
        # `Trainer` pickles the arguments into the output directory, where the token must not go.
        return {**vars(self), "hub_token": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "IT3TrainingArguments":
        # A copy in memory keeps the token.
        copied = memo[id(self)] = object.__new__(type(self))
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


@contextmanager
def replaced(args: TrainingArguments, **values: Any) -> Iterator[None]:
    """Inside the block, arguments have other values."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)
