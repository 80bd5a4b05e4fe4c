"""Every image its own adapted weights: many small optimizations at once, with `torch.func`."""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from .adaptation_config_it3 import AdaptationConfig
from .augmentation_it3 import Augmentation
from .backbone_defaults_it3 import resolve_defaults, settings_of_copies
from .interface_it3 import idempotent_model
from .objective_it3 import Objective, move_average
from .optimizers_it3 import forget_history, make_optimizer, take_step
from .shell_it3 import ModelShell, laid_out_as
from .steps_it3 import Passes, SharedAdaptation, chosen_statistics


# Above this many adapted values per image, one image after the other is faster on a CPU.
_MAX_VECTORIZED_VALUES = {"cpu": 300_000}
_MAX_VECTORIZED_VALUES_ELSEWHERE = 5_000_000
# Values of per-image weights, and of pixels, that a chunk may hold at once.
_CHUNK_VALUES = 4_000_000
_CHUNK_PIXELS = 2_000_000


class ImageAdaptation:
    """Adapts to each image of a batch alone, or averages over changed copies of it.

    Args:
        shared ([`SharedAdaptation`]): the steps for one image after the other, with their settings and objective.
        augmentation ([`Augmentation`], *optional*): makes the copies to average over.
    """

    def __init__(self, shared: SharedAdaptation, augmentation: Augmentation | None = None):
        self.shared = shared
        self.shell = shared.shell
        self.config = shared.config
        self.objective = shared.objective
        self.task = shared.task
        self.augmentation = augmentation
        self.num_steps: int = self.config.num_steps or 0
        self.vectorize = self._choose_vectorize()
        self._copies: WeightCopies | None = None

    @classmethod
    def with_settings(cls, settings: AdaptationConfig, shell: ModelShell, objective: Objective) -> "ImageAdaptation":
        """The one for scope `"image"` or `"average"`, whose defaults are others than those of a batch.

        Raises:
            ValueError: for crops in a task that needs the whole image.
        """
        model = idempotent_model(shell.model)
        config = resolve_defaults(settings, model)
        augmentation, of_copies = None, None
        if config.scope == "average":
            config = config.replace(num_steps=config.augmentation_steps)
            if config.augmentations > 1:
                augmentation = objective.task.make_augmentation(config.augmentations, config.augmentation_kinds)
            if not config.num_steps:
                of_copies = settings_of_copies(settings, model)
        return cls(SharedAdaptation(shell, shell, config, objective, alone=True, of_copies=of_copies), augmentation)

    def _choose_vectorize(self) -> bool:
        config = self.config
        elementwise = not callable(config.optimizer)
        if config.vectorize is not None:
            if config.vectorize and not elementwise:
                raise ValueError(
                    "vectorize=True needs a named optimizer: a callable's steps may mix images; use 'adam'"
                )
            return config.vectorize
        device = self.shell.parameters[0].device.type
        limit = _MAX_VECTORIZED_VALUES.get(device, _MAX_VECTORIZED_VALUES_ELSEWHERE)
        return elementwise and not self.shell.has_masters and self.shell.num_adapted <= limit

    def chunk_size(self, images: Tensor) -> int:
        """Images to adapt at once."""
        if self.config.chunk_size is not None:
            return self.config.chunk_size
        pixels = images[0].numel() * (1 if self.augmentation is None else self.augmentation.count)
        return max(1, min(_CHUNK_VALUES // self.shell.num_adapted, _CHUNK_PIXELS // pixels, 256))

    @property
    def can_look(self) -> bool:
        """Whether the first step computes both passes of the unadapted model anyway."""
        return self.vectorize and self.num_steps > 0 and self.augmentation is None and self.shared.sees_as_first

    def look_and_run(self, images: Tensor) -> tuple[Passes, Tensor, Tensor]:
        """As `run`, for images that nobody has looked at; where it `can_look`, that saves a pass.

        Returns:
            Both passes of the unadapted model, logits `(B, num_labels, ...)` and the loss history `(steps, B)`.
        """
        chunks = [self._run_vectorized(images[part, None], None) for part in self._parts(images)]
        logits, histories, looks = zip(*chunks, strict=True)
        return Passes.join(looks), torch.cat([part.squeeze(1) for part in logits]), torch.cat(histories, 1)

    @property
    def averages(self) -> bool:
        """Whether answers are means over copies."""
        return self.augmentation is not None and self.augmentation.count > 1

    @property
    def corrects_all(self) -> bool:
        """Whether copies of all images correct their features, whatever the gate says."""
        return self.shared.of_copies is not None

    def _statistics(self) -> AbstractContextManager:
        """The chosen statistics of each image by itself."""
        return chosen_statistics(self.config, per_image=True, num_layers=self.shared.num_layers())

    def average(self, images: Tensor, logits: Tensor) -> Tensor:
        """Logits of the unadapted model's mean prediction over copies of each image `(B, C, H, W)`, given those of the
        images themselves; both `(B, num_labels, ...)`."""
        answers = []
        for part in self._parts(images):
            with self.shared.corrected_copies():
                others = self._run_plain(self._views(images[part])[:, 1:])
            answers.append(self._answer(torch.cat([logits[part, None], others], 1)))
        return torch.cat(answers)

    def run(self, images: Tensor, first: Passes) -> tuple[Tensor, Tensor]:
        """Adapts to each of the images `(B, C, H, W)`, given both passes of the unadapted model.

        Returns:
            Logits `(B, num_labels, ...)` and the loss history `(steps, B)`.
        """
        chunks = [self._run_chunk(images[part], first[part]) for part in self._parts(images)]
        logits, histories = zip(*chunks, strict=True)
        return torch.cat(logits), torch.cat(histories, 1)

    def _parts(self, images: Tensor) -> list[slice]:
        """Chunks of about the same size."""
        count = math.ceil(len(images) / self.chunk_size(images))
        size = math.ceil(len(images) / count)
        return [slice(start, start + size) for start in range(0, len(images), size)]

    def _run_chunk(self, images: Tensor, first: Passes) -> tuple[Tensor, Tensor]:
        views = self._views(images)
        known = first if self.augmentation is None and self.shared.sees_as_first else None
        if self.num_steps == 0:
            with self._statistics():
                logits, history = self._run_plain(views), _new_history(0, views)
        elif self.vectorize:
            y1 = known.y1[:, None] if known is not None and self.config.anchor == "frozen" else None
            logits, history, _ = self._run_vectorized(views, y1)
        else:
            logits, history = self._run_loop(views, known)
        return self._answer(logits), history

    def _views(self, images: Tensor) -> Tensor:
        """Copies `(B, K, C, H, W)` of images."""
        return images[:, None] if self.augmentation is None else self.augmentation.apply(images)

    def _answer(self, logits: Tensor) -> Tensor:
        """One answer per image from those `(B, K, num_labels, ...)` to its copies."""
        return self.task.average(logits if self.augmentation is None else self.augmentation.undo(logits))

    @torch.no_grad()
    def _run_plain(self, views: Tensor) -> Tensor:
        """Logits `(B, K, num_labels, ...)` of the unadapted model for views `(B, K, C, H, W)`."""
        return self.shell(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def _run_loop(self, views: Tensor, first: Passes | None) -> tuple[Tensor, Tensor]:
        """As the images of a batch adapt, but one after the other, each from the source weights."""
        logits, losses = [], []
        for index, image_views in enumerate(views):
            self.shared.reset()
            passes = None if first is None else first[slice(index, index + 1)]
            answer, history = self.shared.run(image_views, passes)
            logits.append(answer)
            missing = self.num_steps - len(history)  # of an image whose objective was not finite
            losses.append(torch.cat([history, history.new_full((missing,), float("nan"))]))
        self.shell.reset()
        return torch.stack(logits), torch.stack(losses, 1)

    def _forward(self, parameters: dict[str, Tensor], views: Tensor, signal: Tensor | None = None) -> Tensor:
        arguments = {"label_signal": signal, "return_dict": False}
        with self._statistics():
            return functional_call(self.shell.module, parameters, (views,), arguments)[0]

    def _loss(
        self, parameters: dict[str, Tensor], views: Tensor, y1: Tensor | None, anchor: dict[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The objective for one image's views `(K, C, H, W)`, and the passes that it was computed from."""
        logits = self._forward(parameters, views)
        y0 = self.task.predict(logits)
        if y1 is None and self.config.anchor == "self":
            y1 = self.task.predict(self._forward(parameters, views, y0))
        elif y1 is None:
            y1 = self.task.predict(self._forward(anchor, views, y0.detach())).detach()
        distances = self.objective.distance(y1, y0)
        loss = self.objective(distances, y0, with_diversity=False)
        return loss, tuple(value.detach() for value in (logits, y0, y1, distances))

    def _run_vectorized(self, views: Tensor, y1: Tensor | None) -> tuple[Tensor, Tensor, Passes]:
        """Logits `(B, K, num_labels, ...)`, loss history, and the first view's passes before the first step."""
        source = dict(zip(self.shell.names, (value.detach() for value in self.shell.parameters), strict=True))
        copies = self._copies_for(len(views))
        has_own_anchor = self.config.anchor == "ema"
        anchor_values = [value.detach().clone() for value in copies.values] if has_own_anchor else []
        losses: list[Tensor] = []
        look = None
        for step in range(self.num_steps):
            # All images start from the same weights: as long as those are shared, so is the work on them.
            parameters, axis = (source, None) if step == 0 else (copies.named(), 0)
            axes = (axis, 0, None if y1 is None else 0, 0 if has_own_anchor else None)
            gradient = vmap(grad_and_value(self._loss, has_aux=True), in_dims=axes, randomness="same")
            anchor = copies.named(anchor_values) if has_own_anchor else source
            gradients, (loss, passes) = gradient(parameters, views, y1, anchor)
            losses.append(loss.detach())
            if look is None:
                look = Passes(*(value[:, 0] for value in passes))
            if self.config.anchor == "frozen":
                y1 = passes[2]
            copies.step(gradients, self.config.max_grad_norm)
            if has_own_anchor:
                move_average(anchor_values, copies.values, self.config.ema_decay)
        with torch.no_grad():
            logits = vmap(self._forward, in_dims=(0, 0), randomness="same")(copies.named(), views)
        return logits, torch.stack(losses), look  # type: ignore[return-value] # there is a first step

    def _copies_for(self, count: int) -> "WeightCopies":
        """Fresh copies of the weights for each image, in memory that is used again for the next chunk."""
        if self._copies is None or len(self._copies) != count:
            self._copies = None  # first free the old ones
            self._copies = WeightCopies(self.shell, count, self.config)
        self._copies.reset()
        return self._copies


def _new_history(num_steps: int, views: Tensor) -> Tensor:
    """An empty loss history `(steps, B)`, as losses in at least single precision."""
    return views.new_zeros((num_steps, len(views)), dtype=torch.promote_types(views.dtype, torch.float32))


class WeightCopies:
    """The adapted parameters of many images, stacked, with their optimizer: Adam and SGD act on each value alone.

    Half-precision parameters are kept in single precision, since small steps would be rounded away.

    Args:
        shell ([`ModelShell`]): whose present parameters every image starts from.
        count (`int`): number of images.
        config ([`AdaptationConfig`]): names the optimizer.
    """

    def __init__(self, shell: ModelShell, count: int, config: AdaptationConfig):
        self.shell = shell
        self.count = count
        self.values = [value.new_empty((count, *value.shape)).requires_grad_() for value in shell.masters]
        self.dtypes = [parameter.dtype for parameter in shell.parameters]
        self.optimizer = make_optimizer(config.optimizer, config.learning_rate or 0.0, self.values)

    def __len__(self) -> int:
        return self.count

    def named(self, values: list[Tensor] | None = None) -> dict[str, Tensor]:
        """The stacked values `(count, ...)`, or others like them, by parameter name in the model's precision."""
        values = self.values if values is None else values
        casts = (value.detach().to(dtype) for value, dtype in zip(values, self.dtypes, strict=True))
        return dict(zip(self.shell.names, casts, strict=True))

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the shell's parameters, with an optimizer without history."""
        for value, parameter in zip(self.values, self.shell.parameters, strict=True):
            value.copy_(parameter.expand_as(value))
        forget_history(self.optimizer)

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], max_norm: float | None) -> None:
        """An optimizer step, after clipping the norm of each image's gradient."""
        # `vmap` hands out gradients in layouts of its own, some of them views that must not be written to.
        named = zip(self.values, self.shell.names, strict=True)
        laid_out = [laid_out_as(gradients[name], value) for value, name in named]
        if max_norm is not None:
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in laid_out]).norm(dim=0)
            factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
            laid_out = [gradient * factors.view(-1, *[1] * (gradient.ndim - 1)) for gradient in laid_out]
        take_step(self.optimizer, self.values, laid_out)
