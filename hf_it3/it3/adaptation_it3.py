"""Test-time training: a few unlabelled optimizer steps on the idempotence distance, on a shell of the model."""

import copy
import math
import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .adaptation_config_it3 import AdaptationConfig, resolve_adaptation
from .adaptation_output_it3 import AdaptationOutput
from .backbone_defaults_it3 import measured_of, resolve_defaults, settings_of_copies
from .interface_it3 import IdempotentModel, idempotent_model
from .named_settings_it3 import check_named
from .objective_it3 import IdempotenceDistance, Objective
from .per_image_it3 import ImageAdaptation
from .provenance_it3 import provenance
from .shell_it3 import ModelShell, gradients_allowed, unchanged_context
from .shift_reference_it3 import Observation
from .shift_test_it3 import ShiftTest
from .steps_it3 import Passes, SharedAdaptation
from .stream_it3 import Stream
from .task_it3 import Task


logger = logging.get_logger(__name__)


class TestTimeAdapter:
    """Classifies batches of unlabelled images with weights adapted to them. The model itself is never changed.

    Args:
        model ([`IT3ForImageClassification`]): the model, on any device, in any floating point type.
        config ([`AdaptationConfig`] or `dict`, *optional*): the settings; by default `model.config.adaptation`.
        overrides: single fields that differ from `config`.

    Raises:
        ValueError: for unknown or invalid settings, for overrides that cannot act beside the others, and for offloaded
            weights.

    One adapter may be called from several threads, which then take turns; several adapters of one model run side by
    side. A stream whose call raises or is interrupted keeps the steps taken until then; a saved
    [`~TestTimeAdapter.state_dict`] leads back.

    Example:

    ```python
    >>> import torch
    >>> from hf_it3 import IT3Config, IT3ForImageClassification, TestTimeAdapter
    >>> model = IT3ForImageClassification(IT3Config())
    >>> adapter = TestTimeAdapter(model, num_steps=2, gate=None)
    >>> output = adapter(torch.rand(8, 1, 28, 28))
    >>> output.logits.shape, output.adapted.all().item(), len(output.loss_history)
    (torch.Size([8, 10]), True, 2)

    ```
    """

    __test__ = False  # not a test class, whatever its name makes pytest believe

    def __init__(self, model: nn.Module, config: AdaptationConfig | dict[str, Any] | None = None, **overrides: Any):
        self.model = idempotent_model(model)
        config = self.model.config.adaptation if config is None else config
        settings = resolve_adaptation(config, "config").replace(**overrides)
        check_named(settings, resolve_defaults(settings, self.model), overrides)
        self._configure(settings)

    def _configure(self, settings: AdaptationConfig) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._build()

    def _build(self, config: AdaptationConfig | None = None, measured: tuple[Any, ...] | None = None) -> None:
        self._measured = copy.deepcopy(measured_of(self.model)) if measured is None else measured
        self.config = resolve_defaults(self._settings, self.model) if config is None else config
        model_config, config = self.model.config, self.config
        self.task = Task.of(model_config)
        name = model_config.distance if config.distance is None else config.distance
        self.distance = IdempotenceDistance(name, self.task)
        objective = Objective(self.task, self.distance, config.diversity_weight)
        self.shell = ModelShell(self.model, config.parameters, self._takes_steps)
        self.source_shell = ModelShell(self.model, None) if config.scope == "stream" else self.shell
        of_copies = settings_of_copies(self._settings, self.model) if config.average_answers == "always" else None
        self.shared = SharedAdaptation(self.shell, self.source_shell, config, objective, of_copies=of_copies)
        self.alone = {
            scope: ImageAdaptation.with_settings(self._settings.replace(scope=scope), self.shell, objective)
            for scope in {config.scope_of(1), config.scope_of(2)} & {"image", "average"}
        }
        self.stream = Stream(self.shared, config) if config.scope == "stream" else None
        # Shift comes in runs: where the last call adapted, the next will probably, and keeps its first passes' graph.
        self._adapted_last = config.gate is None
        self._is_broken = False
        self._forget_counts()

    @property
    def _takes_steps(self) -> bool:
        """Whether any number of images makes an optimizer step."""
        scopes = {self.config.scope_of(1), self.config.scope_of(2)}
        found = [resolve_defaults(self._settings.replace(scope=scope), self.model) for scope in scopes]
        return any(one.augmentation_steps if one.scope == "average" else one.num_steps for one in found)

    def __getstate__(self) -> dict[str, Any]:
        # Locks can be neither copied nor pickled, and a copy makes its own shells.
        stream = None if self.stream is None else self.stream.state_dict()
        # A running stream goes on as it began, whatever was measured since.
        began = (self.config, self._measured) if self._has_begun else None
        return {"model": self.model, "settings": self._settings, "stream": stream, "began": began}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.model = state["model"]
        self._configure(state["settings"])
        if state.get("began") is not None:
            self._build(*state["began"])
        if self.stream is not None:
            self.stream.load_state_dict(state["stream"])

    def _forget_counts(self) -> None:
        # Of the latest batch's weights; `None` if they are gone.
        self.latest_counts: dict[str, int] | None = {"num_images": 0, "num_steps": 0}

    @property
    def shift_test(self) -> ShiftTest:
        """The gate, for the clean images that the model holds measurements of now."""
        reference, distances = self.model.shift_reference, self.model.config.reference_distance
        return ShiftTest(self.config.gate, reference, distances, self.distance.name)

    def __call__(self, pixel_values: Tensor) -> AdaptationOutput:
        """Adapts to a batch of images and classifies it.

        Args:
            pixel_values (`Tensor` of shape `(B, C, H, W)`): images as the image processor returns them.

        Raises:
            ValueError: if the batch is empty or not four-dimensional, or of a type that the model cannot take.
        """
        if not isinstance(pixel_values, Tensor) or pixel_values.ndim != 4:
            given = tuple(pixel_values.shape) if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
            raise ValueError(f"pixel_values must be a tensor of shape (B, C, H, W), got {given}")
        if len(pixel_values) == 0:
            raise ValueError("pixel_values is an empty batch: there is nothing to adapt to")
        if not pixel_values.dtype.is_floating_point:
            raise ValueError(
                f"pixel_values are {pixel_values.dtype} but the model is {self.model.dtype}; pass them through the "
                f"image processor, or with .to({self.model.dtype}) if they have been"
            )
        with self._lock, unchanged_context() as run:
            return run(self._call, pixel_values)

    def _call(self, pixel_values: Tensor) -> AdaptationOutput:
        with gradients_allowed():
            if self._is_broken or self._is_outdated():
                self._rebuild()
            # Until the end is reached; an interrupted call may leave the shell's modules with other tensors.
            self._is_broken = self.stream is None
            pixel_values = pixel_values.clone() if pixel_values.is_inference() else pixel_values.detach()
            output = self._adapt(pixel_values.to(self.model.dtype))
            self._is_broken = False
            return output

    def _is_outdated(self) -> bool:
        """Whether the model has other tensors, or clean images were measured since; of the latter, a running stream
        takes no notice, and goes on as it began."""
        return self.shell.is_stale() or (not self._has_begun and self._measured != measured_of(self.model))

    @property
    def _has_begun(self) -> bool:
        """Whether there is a stream that has seen images."""
        return self.stream is not None and self.stream.window is not None

    def _rebuild(self) -> None:
        if self.stream is not None and self.stream.num_steps:
            logger.warning("The model's weights were replaced, so the stream starts again from the new ones.")
        self._build()

    # Reads from top to bottom: look at the images, test for shift, adapt, answer.
    def _adapt(self, images: Tensor) -> AdaptationOutput:
        self._start()
        scope = self.config.scope_of(len(images))
        if scope in self.alone and self.config.gate is None and self.alone[scope].can_look:
            first, logits, history = self.alone[scope].look_and_run(images)
            usable = self._usable(images, first)
            output = self._unadapted(first, usable, scope)
            if usable.any():
                self._take_over(output, usable, logits[usable], history[:, usable], scope)
            return output
        first = self._look(images, scope)
        usable = self._usable(images, first)
        output = self._unadapted(first, usable, scope)
        chosen = self._who_adapts(output, first, usable, scope)
        self._adapted_last = bool(chosen.any())
        if self._adapted_last:
            self._answer(output, images, first, chosen, scope)
        if scope in self.alone:
            self._average(output, images, usable & ~chosen, scope)
        elif self.config.average_answers == "always":
            self._average(output, images, usable & ~output.averaged, scope)
        return output

    def _averaging(self, scope: str) -> ImageAdaptation | SharedAdaptation:
        """Whoever averages the answers of a batch of this scope."""
        return self.alone.get(scope, self.shared)

    def _start(self) -> None:
        """Gives the shells the weights and buffers that a call starts from."""
        if self.stream is None:
            self.shared.reset()
            self._forget_counts()
        anchors = [shared.anchor_shell for shared in (self.shared, *(one.shared for one in self.alone.values()))]
        for shell in (self.shell, self.source_shell, *anchors):
            if shell is not None:
                shell.restore_buffers()

    def _usable(self, pixel_values: Tensor, first: Passes) -> Tensor:
        """Which images, shape `(B,)` of bool, have finite pixels and predictions."""
        if math.isfinite(pixel_values.sum().item()) and math.isfinite(first.distances.sum().item()):
            return torch.ones_like(first.distances, dtype=torch.bool)
        usable = pixel_values.isfinite().flatten(1).all(1) & first.distances.isfinite()
        if not usable.all():
            logger.warning(
                f"{(~usable).sum().item()} of {len(usable)} images have pixels or predictions that are not finite; "
                "they were not adapted to"
            )
        return usable

    @staticmethod
    def _unadapted(first: Passes, chosen: Tensor, scope: str) -> AdaptationOutput:
        logits = first.logits.detach()
        alone = scope in ("image", "average")
        return AdaptationOutput(
            logits=logits.clone(),
            initial_logits=logits,
            idempotence=first.distances.detach(),
            adapted=torch.zeros_like(chosen),
            averaged=torch.zeros_like(chosen),
            loss_history=first.distances.new_zeros((0, len(chosen)) if alone else 0),
            distance_shift=torch.full_like(first.distances, math.nan, requires_grad=False),
            feature_shift=torch.full_like(first.distances, math.nan, requires_grad=False),
        )

    def _look(self, images: Tensor, scope: str) -> Passes:
        """Both passes of the unadapted model; in parts where images have nothing to do with each other."""
        if scope not in self.alone:
            with_graph = self.shared.can_start_from_first and self._adapted_last
            return self.shared.first_passes(images, with_graph)
        parts = images.split(self.alone[scope].chunk_size(images))
        return Passes.join([self.shared.first_passes(part, with_graph=False) for part in parts])

    def _who_adapts(self, output: AdaptationOutput, first: Passes, usable: Tensor, scope: str) -> Tensor:
        """Which images, shape `(B,)` of bool, get an answer of other weights or statistics; `output` tells why."""
        config = self._config_of(scope)
        nobody = torch.zeros_like(usable)
        changes_nothing = not config.num_steps and config.norm_statistics == "source"
        if changes_nothing or (scope in self.alone and self.alone[scope].corrects_all):
            return nobody
        seen = self._observation(first)[usable]
        if self.stream is not None:
            seen = self.stream.observe(seen)
        if not len(seen):
            return nobody
        groups = seen.each() if scope in self.alone else seen.together()
        test = self.shift_test
        scores = test.scores(groups)
        output.distance_shift[usable] = scores.distance.to(output.distance_shift)
        output.feature_shift[usable] = scores.features.to(output.feature_shift)
        chosen = usable.clone()
        chosen[usable] = test.opens(groups, scores).to(usable.device)
        return chosen

    def _observation(self, first: Passes) -> Observation:
        """What the shift test asks about."""
        features = first.features
        if features is None:  # the layer that shows them did not run
            features = first.distances.new_zeros(
                len(first.distances), self.model.shift_reference.feature_mean.shape[1]
            )
        return Observation(features, self.task.image_classes(first.y0.detach()), first.distances.detach())

    def _config_of(self, scope: str) -> AdaptationConfig:
        """The settings of whatever a batch of this scope goes through."""
        return self.alone[scope].config if scope in self.alone else self.config

    def _average(self, output: AdaptationOutput, images: Tensor, chosen: Tensor, scope: str) -> None:
        """Answers with means over copies; it changes no weights and costs clean images nothing, so it has no gate."""
        if not (chosen.any() and self._averaging(scope).averages):
            return
        averages = self._averaging(scope).average(images[chosen], output.initial_logits[chosen])
        _, positions = self._put_logits(output, chosen, averages)
        output.averaged[positions] = True

    @staticmethod
    def _put_logits(output: AdaptationOutput, chosen: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the chosen images' finite logits into `output`; which of them those are, and where they stand."""
        good = logits.isfinite().flatten(1).all(1)
        positions = chosen.nonzero().squeeze(1)[good]
        output.logits[positions] = logits[good].to(output.logits.dtype)
        return good, positions

    def _answer(self, output: AdaptationOutput, images: Tensor, first: Passes, chosen: Tensor, scope: str) -> None:
        """Replaces the chosen images' logits in `output` by adapted ones, where those are finite."""
        if not chosen.all():
            images = images[chosen]
            # In a graph with broken images their zero gradients, times their pixels, would make all gradients NaN.
            first = self.shared.first_passes(images, with_graph=True) if first.has_graph else first[chosen]
        adaptation = self.alone.get(scope) or self.stream or self.shared
        logits, history = adaptation.run(images, first)
        self._take_over(output, chosen, logits, history, scope)

    def _take_over(
        self, output: AdaptationOutput, chosen: Tensor, logits: Tensor | None, history: Tensor, scope: str
    ) -> None:
        """Puts the chosen images' new logits, where they are finite, and their losses into `output`."""
        output.loss_history = history
        if scope in self.alone:
            output.loss_history = history.new_full((len(history), len(chosen)), float("nan"))
            output.loss_history[:, chosen] = history
        if logits is None:
            return
        good, positions = self._put_logits(output, chosen, logits)
        output.averaged[positions] = self._averaging(scope).averages
        output.adapted[positions] = len(history) > 0 or self._config_of(scope).norm_statistics != "source"
        if scope in self.alone:
            self.latest_counts = None if len(history) else self.latest_counts
        elif good.all():
            self.latest_counts = {"num_images": len(good), "num_steps": len(history)}
        if not good.all():
            self._recover(good, scope)

    def _recover(self, good: Tensor, scope: str) -> None:
        """Drops weights whose answers are not finite for all images, those that are `good`, and says so."""
        consequence = "they got their unadapted answer"
        if self.stream is not None:
            consequence += ", and the stream starts again from the source weights"
            self.stream.start_again()
        elif scope not in self.alone:
            self.shared.reset()
        logger.warning(
            f"adaptation gave values that are not finite for {(~good).sum().item()} of {len(good)} images; "
            f"{consequence}"
        )

    def reset(self) -> None:
        """Returns to the model's weights: a stream starts again, optimizer, anchor and counters included."""
        with self._lock, gradients_allowed():
            self.shared.reset()
            self._forget_counts()
            if self.stream is not None:
                self.stream.reset()

    def adapted_model(self) -> IdempotentModel:
        """A model of its own with the adapted weights: those of the stream, or of the latest batch.

        Statistics that features were corrected with become part of its weights, averaged over a stream's latest
        `gate_window` images, so that it classifies such images without adaptation as the adapter does with it, but
        for `average_answers`.

        Its `config.base_model` records where it came from; it can be saved, pushed and loaded as any other.

        Raises:
            ValueError: where no weights are left: for scopes `"image"` and `"average"`, and after a single image that
                adapted by itself.
        """
        if self.config.scope in self.alone:
            raise ValueError(
                f"scope={self.config.scope!r} leaves no adapted weights behind, each image had its own; use "
                "scope='stream'"
            )
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self.shell.is_stale():
                self._rebuild()
            counts = self.latest_counts if self.stream is None else self.stream.counts
            if counts is None:
                raise ValueError(
                    f"a single image adapted by itself, as single_image={self.config.single_image!r} asks for, which "
                    "leaves no adapted weights behind; call with more images, or set single_image='batch'"
                )
            adapted = copy.deepcopy(self.model)
            adapted.unfreeze_classifier()
            parameters = dict(adapted.named_parameters())
            for name, value in zip(self.shell.names, self.shell.parameters, strict=True):
                parameters[name].copy_(value)
            self.shared.seen.write_into(adapted)
            adapted.config.base_model = provenance(self.model.config, self.config, counts)
        return adapted

    def state_dict(self) -> dict[str, Any]:
        """Everything a running stream is made of: weights, anchor, optimizer, gate window, statistics and counters.

        Raises:
            ValueError: for other scopes, which keep nothing between calls.
        """
        with self._lock:
            return self._running_stream("state_dict").state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what [`~TestTimeAdapter.state_dict`] returned; the stream then goes on exactly as it would have.

        Raises:
            ValueError: for other scopes, and for a state of another model or other settings.
        """
        with self._lock, gradients_allowed():
            if self._is_outdated():
                self._rebuild()
            self._running_stream("load_state_dict").load_state_dict(state)

    def _running_stream(self, method: str) -> Stream:
        if self.stream is None:
            raise ValueError(
                f"{method} is for scope='stream'; scope={self.config.scope!r} keeps nothing between calls"
            )
        return self.stream
