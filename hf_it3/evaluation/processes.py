"""The processes of an evaluation, one or several."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, str_to_bool


T = TypeVar("T")


def process_state() -> PartialState:
    """Rank and number of the processes that `torchrun` or `accelerate launch` started, and this one's device."""
    # Without being told of the CPU, accelerate takes processes without an accelerator for single ones.
    wants_cpu = bool(str_to_bool(os.environ.get("ACCELERATE_USE_CPU", "false")))
    return PartialState(cpu=wants_cpu or not torch.accelerator.is_available())


def gather(value: T) -> list[T]:
    """The value of every process, in the order of ranks, in every process."""
    return gather_object([value]) if process_state().num_processes > 1 else [value]


def on_main_process(function: Callable[[], T]) -> T:
    """What `function` returns in the main process, in every process; its errors are raised in every process."""
    state = process_state()
    box: list[Any] = [None, None]
    if state.is_main_process:
        try:
            box[0] = function()
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            box[1] = error
    if state.num_processes > 1:
        box = broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]
