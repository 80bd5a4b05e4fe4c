"""An interrupt may come at any line: nothing of the call stays behind, and the next one answers as ever."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from untouched import untouched

import hf_it3.it3
from hf_it3 import TestTimeAdapter
from hf_it3.it3.batchnorm_it3 import _test_statistics
from hf_it3.it3.injection_it3 import current_pass


# The method, and what sets torch's modes for a while: an interrupt may come between setting and the end of it.
TRACED = (
    str(Path(hf_it3.it3.__file__).parent),
    str(Path(torch.__file__).parent / "_functorch" / "vmap.py"),
    str(Path(torch.__file__).parent / "_functorch" / "eager_transforms.py"),
    str(Path(torch.__file__).parent / "autograd" / "grad_mode.py"),
)


class InterruptAt:
    """Raises KeyboardInterrupt when a line of the package runs for the first time; without a line, lists them all."""

    def __init__(self, line=None):
        self.line = line
        self.seen: dict[tuple[str, int], None] = {}

    def __enter__(self):
        sys.settrace(self.enter_function)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def enter_function(self, frame, event, argument):
        return self.run_line if frame.f_code.co_filename.startswith(TRACED) else None

    def run_line(self, frame, event, argument):
        here = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            self.seen[here] = None
            if here == self.line:
                raise KeyboardInterrupt(f"{Path(here[0]).name}:{here[1]}")
        return self.run_line


def surroundings():
    """What a call must leave as it was, beside the model."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast's cache": torch.is_autocast_cache_enabled(),
        "current pass": current_pass(),
        "statistics": _test_statistics.get(),
        "torch.func": torch._C._functorch.get_dynamic_layer_stack_depth(),
    }


@pytest.mark.parametrize(
    ("settings", "caller"),
    [
        ({"scope": "batch", "max_grad_norm": 1.0}, torch.inference_mode),
        ({"scope": "stream"}, contextlib.nullcontext),
        ({"scope": "image", "vectorize": True}, contextlib.nullcontext),
    ],
    ids=["batch", "stream", "image"],
)
def test_after_an_interrupt_at_any_line_everything_is_as_before(model, shifted_images, settings, caller):
    images = shifted_images[:2]
    with untouched(model), caller():
        adapter = TestTimeAdapter(model, gate=None, num_steps=1, **settings)
        expected = adapter(images).logits
        adapter.reset()
        with InterruptAt() as lines:
            adapter(images)
        assert len(lines.seen) > 50
        before = surroundings()
        for line in lines.seen:
            adapter.reset()
            # Interrupted in the middle of setting a mode, torch stumbles over it and raises an error of its own.
            ours = line[0].startswith(TRACED[0])
            with InterruptAt(line), contextlib.suppress(KeyboardInterrupt if ours else BaseException):
                adapter(images)
            where = f"after an interrupt at {Path(line[0]).name}:{line[1]}"
            assert surroundings() == before, where
            adapter.reset()
            torch.testing.assert_close(adapter(images).logits, expected, msg=where)
