"""Every image its own adapted weights: many small optimizations at once, with `torch.func`."""

import math

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from .adaptation_config_it3 import AdaptationConfig
from .augmentation_it3 import augment
from .objective_it3 import IdempotenceDistance, mean_prediction_logits, predict
from .shell_it3 import ModelShell
from .steps_it3 import Passes, forget_history, make_optimizer, test_statistics


# Above this many adapted values per image, one image after the other is faster on a CPU.
_MAX_VECTORIZED_VALUES = {"cpu": 300_000}
_MAX_VECTORIZED_VALUES_ELSEWHERE = 5_000_000
# Values of per-image weights, and of pixels, that a chunk may hold at once.
_CHUNK_VALUES = 4_000_000
_CHUNK_PIXELS = 2_000_000


class ImageAdaptation:
    """Adapts to each image of a batch alone, or to augmentations of it.

    Args:
        shell ([`ModelShell`]): the model, unadapted between calls.
        config ([`AdaptationConfig`]): the settings.
        distance ([`IdempotenceDistance`]): D(y1, y0).
        problem_type (`str`, *optional*): of the model.
    """

    def __init__(
        self,
        shell: ModelShell,
        config: AdaptationConfig,
        distance: IdempotenceDistance,
        problem_type: str | None,
    ):
        self.shell = shell
        self.config = config
        self.distance = distance
        self.problem_type = problem_type
        self.vectorize = self._choose_vectorize()
        self._copies: WeightCopies | None = None

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

    @property
    def num_steps(self) -> int:
        config = self.config
        if config.augmentations and config.augmentation_steps is not None:
            return config.augmentation_steps
        return config.num_steps

    def chunk_size(self, pixel_values: Tensor) -> int:
        """Images to adapt at once."""
        if self.config.chunk_size is not None:
            return self.config.chunk_size
        pixels = pixel_values[0].numel() * max(self.config.augmentations, 1)
        return max(1, min(_CHUNK_VALUES // self.shell.num_adapted, _CHUNK_PIXELS // pixels, 256))

    @property
    def can_look(self) -> bool:
        """Whether the first step computes both passes of the unadapted model anyway."""
        has_plain_first_step = not self.config.augmentations and self.config.norm_statistics == "source"
        return self.vectorize and self.num_steps > 0 and has_plain_first_step

    def look_and_run(self, pixel_values: Tensor) -> tuple[Passes, Tensor, Tensor]:
        """As `run`, for images that nobody has looked at; where it `can_look`, that saves a pass.

        Returns:
            Both passes of the unadapted model, logits `(B, num_labels)` and the loss history `(steps, B)`.
        """
        chunks = [self._run_vectorized(pixel_values[part, None], None) for part in self._parts(pixel_values)]
        logits, histories, looks = zip(*chunks, strict=True)
        return Passes.join([look[0] for look in looks]), torch.cat(logits), torch.cat(histories, 1)

    def run(self, pixel_values: Tensor, first: Passes) -> tuple[Tensor, Tensor]:
        """Adapts to each of the images `(B, C, H, W)`, given both passes of the unadapted model.

        Returns:
            Logits `(B, num_labels)` and the loss history `(steps, B)`.
        """
        chunks = [self._run_chunk(pixel_values[part], first[part]) for part in self._parts(pixel_values)]
        logits, histories = zip(*chunks, strict=True)
        return torch.cat(logits), torch.cat(histories, 1)

    def _parts(self, pixel_values: Tensor) -> list[slice]:
        """Chunks of about the same size."""
        count = math.ceil(len(pixel_values) / self.chunk_size(pixel_values))
        size = math.ceil(len(pixel_values) / count)
        return [slice(start, start + size) for start in range(0, len(pixel_values), size)]

    def _run_chunk(self, images: Tensor, first: Passes) -> tuple[Tensor, Tensor]:
        config = self.config
        views = augment(images, config.augmentations) if config.augmentations else images[:, None]
        if self.num_steps == 0 and config.norm_statistics == "source":
            return self._average(views), _new_history(0, views)
        is_looked_at = not config.augmentations and config.norm_statistics == "source"
        y1 = first.y1[:, None] if is_looked_at and config.effective_anchor == "frozen" else None
        return self._run_vectorized(views, y1)[:2] if self.vectorize else self._run_loop(views, y1)

    @torch.no_grad()
    def _average(self, views: Tensor) -> Tensor:
        return self._mean_over_views(self.shell(views.flatten(0, 1)).unflatten(0, views.shape[:2]))

    def _mean_over_views(self, logits: Tensor) -> Tensor:
        """Logits of the mean prediction: `(..., K, num_labels)` to `(..., num_labels)`."""
        if logits.shape[-2] == 1:
            return logits.squeeze(-2)
        return mean_prediction_logits(predict(logits, self.problem_type).mean(-2), self.problem_type)

    def _forward(self, parameters: dict[str, Tensor], views: Tensor, signal: Tensor | None = None) -> Tensor:
        arguments = {"label_signal": signal, "return_dict": False}
        with test_statistics(self.config):
            return functional_call(self.shell.module, parameters, (views,), arguments)[0]

    def _loss(
        self, parameters: dict[str, Tensor], views: Tensor, y1: Tensor | None, anchor: dict[str, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The objective for one image's views `(K, C, H, W)`, and the passes that it was computed from."""
        logits = self._forward(parameters, views)
        y0 = predict(logits, self.problem_type)
        if y1 is None and self.config.effective_anchor == "self":
            y1 = predict(self._forward(parameters, views, y0), self.problem_type)
        elif y1 is None:
            y1 = predict(self._forward(anchor, views, y0.detach()), self.problem_type).detach()
        distances = self.distance(y1, y0)
        return distances.mean(), tuple(value.detach() for value in (logits, y0, y1, distances))

    def _run_vectorized(self, views: Tensor, y1: Tensor | None) -> tuple[Tensor, Tensor, list[Passes]]:
        """Logits, loss history, and of each step the passes that it started from, for the first view."""
        source = dict(zip(self.shell.names, (value.detach() for value in self.shell.parameters), strict=True))
        copies = self._copies_for(len(views))
        has_own_anchor = self.config.effective_anchor == "ema"
        anchor_values = [value.detach().clone() for value in copies.values] if has_own_anchor else []
        losses, looks = [], []
        for step in range(self.num_steps):
            # All images start from the same weights: as long as those are shared, so is the work on them.
            parameters, axis = (source, None) if step == 0 else (copies.named(), 0)
            axes = (axis, 0, None if y1 is None else 0, 0 if has_own_anchor else None)
            gradient = vmap(grad_and_value(self._loss, has_aux=True), in_dims=axes, randomness="same")
            anchor = copies.named(anchor_values) if has_own_anchor else source
            gradients, (loss, passes) = gradient(parameters, views, y1, anchor)
            losses.append(loss.detach())
            looks.append(Passes(*(value[:, 0] for value in passes)))
            if self.config.effective_anchor == "frozen":
                y1 = passes[2]
            copies.step(gradients, self.config.max_grad_norm)
            if has_own_anchor:
                with torch.no_grad():
                    torch._foreach_lerp_(anchor_values, copies.values, 1 - self.config.ema_decay)
        with torch.no_grad():
            parameters, axis = (copies.named(), 0) if self.num_steps else (source, None)
            logits = vmap(self._forward, in_dims=(axis, 0), randomness="same")(parameters, views)
        history = torch.stack(losses) if losses else _new_history(0, views)
        return self._mean_over_views(logits), history, looks

    def _copies_for(self, count: int) -> "WeightCopies":
        """Fresh copies of the weights for so many images, in memory that is used again for the next chunk."""
        if self._copies is None or len(self._copies) != count:
            self._copies = None  # first free the old ones
            self._copies = WeightCopies(self.shell, count, self.config)
        self._copies.reset()
        return self._copies

    def _run_loop(self, views: Tensor, y1: Tensor | None) -> tuple[Tensor, Tensor]:
        shell = self.shell
        source = {name: value.detach().clone() for name, value in zip(shell.names, shell.parameters, strict=True)}
        parameters = dict(zip(shell.names, shell.parameters, strict=True))
        logits = []
        history = _new_history(self.num_steps, views)
        for index, image_views in enumerate(views):
            shell.reset()
            anchor = {name: value.clone() for name, value in source.items()}
            frozen_y1 = None if y1 is None else y1[index]
            optimizer = make_optimizer(self.config, shell.masters)
            for step in range(self.num_steps):
                loss, passes = self._loss(parameters, image_views, frozen_y1, anchor)
                history[step, index] = loss.detach()
                if self.config.effective_anchor == "frozen":
                    frozen_y1 = passes[2]
                shell.set_gradients(torch.autograd.grad(loss, shell.parameters, allow_unused=True))
                if self.config.max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(shell.masters, self.config.max_grad_norm)
                optimizer.step()
                shell.after_step()
                if self.config.effective_anchor == "ema":
                    with torch.no_grad():
                        torch._foreach_lerp_(list(anchor.values()), shell.parameters, 1 - self.config.ema_decay)
            with torch.no_grad():
                logits.append(self._forward({}, image_views))
        shell.reset()
        return self._mean_over_views(torch.stack(logits)), history


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
        self.optimizer = make_optimizer(config, self.values)

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
        casts = [gradients[name].to(value.dtype) for value, name in zip(self.values, self.shell.names, strict=True)]
        if max_norm is not None:
            norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in casts]).norm(dim=0)
            factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
            for gradient in casts:
                gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
        for value, gradient in zip(self.values, casts, strict=True):
            value.grad = gradient
        self.optimizer.step()
        for value in self.values:
            value.grad = None
