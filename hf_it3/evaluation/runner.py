"""Runs one model with one seed over all conditions, in one process or several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..it3.adaptation_it3 import TestTimeAdapter
from ..it3.interface_it3 import IdempotentModel
from ..it3.objective_it3 import IdempotenceDistance
from ..it3.task_it3 import Task
from .answers import answers_of
from .conditions import Condition
from .images import ImageBatch, ImageSource
from .methods import UNADAPTED, Method
from .outcomes import Collector, Outcomes
from .pixels import Normalization
from .processes import gather, process_state


@dataclass(frozen=True)
class Pass:
    """One sweep over all images: under one condition, or for mixed order (`condition` None) under several at once."""

    number: int
    name: str
    condition: int | None
    source: str | None


class Runner:
    """Evaluates one model with one seed.

    Batches are formed as if there were one process. Each batch goes to one process, and each stream to one process
    as a whole, so that all figures are those of one process.

    Args:
        model: the model, in eval mode, on its device.
        image_processor: the model's.
        sources: data sets by the source that conditions name.
        conditions: all conditions.
        methods: all methods that can be used with the model.
        order: one of `ORDERS`.
        batch_size: images that adapt together.
        seed: of corruptions and order.
        show_progress: whether the main process shows a progress bar.
    """

    def __init__(
        self,
        model: IdempotentModel,
        image_processor: Any,
        sources: dict[str | None, ImageSource],
        conditions: Sequence[Condition],
        methods: Sequence[Method],
        order: str,
        batch_size: int,
        seed: int,
        show_progress: bool = True,
    ):
        self.model = model
        self.normalization = Normalization(image_processor)
        self.sources = sources
        self.conditions = conditions
        self.methods = methods
        self.order = order
        self.batch_size = batch_size
        self.seed = seed
        self.show_progress = show_progress
        self.state = process_state()
        self.task = Task.of(model.config)
        self.kind = answers_of(self.task, type(model).__name__)
        self.distance = IdempotenceDistance(model.config.distance, self.task)
        self.adapters = {
            method.name: TestTimeAdapter(model, method.config) for method in methods if method.config is not None
        }

    @property
    def keeps_streams(self) -> bool:
        """Whether streams go on from one pass to the next."""
        return self.order in ("mixed", "continual")

    def passes(self) -> list[Pass]:
        """All passes, in order. Mixed order has as many as conditions, and each image is under another in each."""
        sweeps = []
        for number, condition in enumerate(self.conditions):
            is_mixed = self.order == "mixed"
            name = f"{number + 1}/{len(self.conditions)} {'mixed' if is_mixed else condition.name}"
            sweeps.append(Pass(number, name, None if is_mixed else number, condition.source))
        return sweeps

    def run(self, sweep: Pass) -> Outcomes:
        """Runs one pass; every process gets the outcomes of all."""
        if not self.keeps_streams:
            self.reset_streams()
        config = self.model.config
        collector = Collector(self.kind, config.num_labels, config.semantic_loss_ignore_index)
        source = self.sources[sweep.source]
        total = None if source.num_images is None else -(-source.num_images // self.batch_size)
        batches = source.batches(self.order, self.seed, self.batch_size, lambda n: bool(self._mine(n, sweep)))
        is_shown = self.show_progress and self.state.is_main_process
        # The other processes take their share of the batches at the same pace.
        with tqdm(total=total, desc=sweep.name, disable=not is_shown, leave=False, unit="batch") as bar:
            for batch in batches:
                self._run_batch(batch, sweep, collector)
                if is_shown:
                    running = collector.running_accuracy().items()
                    bar.set_postfix({name: f"{100 * value:.1f}" for name, value in running}, refresh=False)
                bar.update(batch.number + 1 - bar.n)
        outcomes = collector.join(gather(collector.to_parts()))
        outcomes.methods = {method.name: outcomes.methods[method.name] for method in self.methods}
        return outcomes

    def _mine(self, number: int, sweep: Pass) -> list[Method]:
        """The methods that this process applies to a batch."""
        rank, world = self.state.process_index, self.state.num_processes
        stream_owner = 0 if self.keeps_streams else sweep.number % world
        return [m for m in self.methods if (stream_owner if m.is_stream else number % world) == rank]

    def _run_batch(self, batch: ImageBatch, sweep: Pass, collector: Collector) -> None:
        methods = self._mine(batch.number, sweep)
        condition = self._conditions_of(batch, sweep)
        pixel_values, labels = self._corrupted(batch, condition)
        for method in methods:
            if method.name == UNADAPTED:
                logits, distance = self._unadapted(pixel_values)
                adapted = torch.zeros(len(logits), dtype=torch.bool)
                collector.add_images(batch.index, condition, labels, distance)
            else:
                output = self.adapters[method.name](pixel_values)
                logits, adapted = output.logits, output.adapted
            collector.add_answers(method.name, batch.index, logits, labels, adapted)

    def _conditions_of(self, batch: ImageBatch, sweep: Pass) -> np.ndarray:
        if sweep.condition is not None:
            return np.full(len(batch.index), sweep.condition)
        # Positions in a shuffled order: a random image under each, and every image under another in each pass.
        positions = batch.number * self.batch_size + np.arange(len(batch.index))
        return (positions + sweep.number) % len(self.conditions)

    def _corrupted(self, batch: ImageBatch, condition: np.ndarray) -> tuple[Tensor, Tensor]:
        """The model's input, corrupted in [0, 1], then normalised; and the labels, moved where pixels moved."""
        pixels, labels = torch.empty_like(batch.pixels), batch.labels.clone()
        for number in np.unique(condition):
            chosen = np.flatnonzero(condition == number)
            where = (self.seed, batch.index[chosen].tolist())
            pixels[chosen] = self.conditions[number].apply(batch.pixels[chosen], *where)
            if labels.ndim > 1:
                ignored = self.model.config.semantic_loss_ignore_index
                labels[chosen] = self.conditions[number].apply_to_maps(batch.labels[chosen], *where, ignored)
        pixel_values = self.normalization(pixels)
        first = next(self.model.parameters())
        return pixel_values.to(device=first.device, dtype=first.dtype), labels

    @torch.no_grad()
    def _unadapted(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(pixel_values).logits
        y0 = self.task.predict(logits)
        y1 = self.task.predict(self.model(pixel_values, label_signal=y0).logits)
        return logits, self.distance(y1, y0)

    def reset_streams(self) -> None:
        """Resets the streams to the model's own weights."""
        for adapter in self._streams().values():
            adapter.reset()

    def _streams(self) -> dict[str, TestTimeAdapter]:
        return {method.name: self.adapters[method.name] for method in self.methods if method.is_stream}

    def stream_state(self) -> dict[str, Any] | None:
        """What the streams of the main process have to remember from pass to pass, `None` if nothing."""
        if not self.keeps_streams or not self._streams():
            return None
        return {name: adapter.state_dict() for name, adapter in self._streams().items()}

    def load_stream_state(self, state: dict[str, Any]) -> None:
        """Restores what `stream_state` returned."""
        for name, adapter in self._streams().items():
            adapter.load_state_dict(state[name])


def by_condition(passes: Iterator[Outcomes] | Sequence[Outcomes], num_conditions: int) -> dict[int, Outcomes]:
    """The outcomes of each condition that is complete in these passes, images in the order of the data set."""
    passes = list(passes)
    if not passes:
        return {}
    mixed = any(len(np.unique(outcomes.condition)) > 1 for outcomes in passes)
    if not mixed:
        return {int(outcomes.condition[0]): outcomes for outcomes in passes}
    if len(passes) < num_conditions:
        return {}
    everything = Outcomes.concatenate(passes)
    split = {}
    for number in range(num_conditions):
        chosen = np.flatnonzero(everything.condition == number)
        split[number] = everything.where(chosen[np.argsort(everything.index[chosen], kind="stable")])
    return split
