"""What a model is told of clean images, when training ends and by calibration, to know shifted ones by."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..it3.adaptation_config_it3 import AdaptationConfig
from ..it3.agreement_it3 import DEPTHS, corrected_agreement, mirrored_agreement
from ..it3.alignment_it3 import Sums, collected_statistics
from ..it3.augmentation_it3 import middle_of
from ..it3.backbone_defaults_it3 import DEFAULTS_OF_COPIES, corrects_copies
from ..it3.interface_it3 import IdempotentModel, idempotent_model
from ..it3.objective_it3 import IdempotenceDistance
from ..it3.shell_it3 import ModelShell, compiled_parts
from ..it3.shift_reference_it3 import Observation
from ..it3.shift_test_it3 import observe
from ..it3.steps_it3 import chosen_statistics, num_first_layers
from ..it3.task_it3 import Task


logger = logging.get_logger(__name__)

# So many images tell well enough how many keep their class, to a percent or so.
MAX_COMPARED = 2_000


def uncompiled(model: IdempotentModel) -> IdempotentModel:
    """The model itself, or where parts of it are compiled, a copy around its tensors as they are now, in eval mode:
    compiled code neither tells its features nor corrects them."""
    if not compiled_parts(model) and all(module._compiled_call_impl is None for module in model.modules()):
        return model
    return idempotent_model(ModelShell(model, None).module)


def look_at_clean(
    model: IdempotentModel,
    pixel_values: Tensor,
    sums: Sums,
    distance: IdempotenceDistance | None = None,
    num_new: int | None = None,
) -> Observation:
    """What a model in eval mode sees in clean images `(B, C, H, W)`, see [`observe`]; the features of the first
    `num_new` of them, by default of all, are added to `sums`."""
    new, others = pixel_values[:num_new], pixel_values[len(pixel_values[:num_new]) :]
    parts = []
    if len(new):
        with collected_statistics(sums):
            parts.append(observe(model, new, distance))
    if len(others):
        parts.append(observe(model, others, distance))
    return Observation.join(parts)


def store_reference(
    model: IdempotentModel,
    clean: Observation,
    sums: Iterable[Sums],
    distance: str | None = None,
) -> dict[str, Any] | None:
    """Stores what was seen in clean images in a model: `config.reference_distance`, `shift_reference` and
    `feature_statistics`.

    Args:
        model: the model.
        clean ([`Observation`]): of N images, N > 0.
        sums: of the features of plain passes and signal passes, as [`collected_statistics`] collects them.
        distance (*optional*): name of the distance; by default the model's.

    Returns:
        `reference_distance`; `None`, with a warning and nothing stored, where a distance is not finite.
    """
    model.config.reference_distance = None
    model.shift_reference.fit_to(Task.of(model.config).num_classes)
    model.shift_reference.forget()
    model.feature_statistics.forget()
    if infinite := int((~clean.distances.isfinite()).sum()):
        logger.warning(
            f"No reference_distance was stored: the idempotence distance of {infinite} of {len(clean)} images "
            "is not finite, and without it adaptation is not gated; check the model's weights and the images"
        )
        return None
    distances = clean.distances.double()
    model.shift_reference.measure(clean)
    model.feature_statistics.measure(sums)
    model.config.reference_distance = {
        "mean": distances.mean().item(),
        "std": distances.std().item() if len(distances) > 1 else 0.0,
        "num_images": len(distances),
        "distance": own if isinstance(own := distance or model.config.distance, str) else None,
    }
    return model.config.reference_distance


@torch.no_grad()
def classes_of_copies(model: IdempotentModel, pixel_values: Tensor) -> dict[str, Tensor]:
    """The classes `(B,)` that a model in eval mode predicts for images `(B, C, H, W)`, `"plain"`, and for changed
    ones: `"cropped"`, by as much as copies are on average; `"mirrored"`, where they have colours; and with corrected
    features, by the names of `DEPTHS`, where the model can. Empty where nothing is to be decided, as in other tasks
    than classification into one class."""
    task = Task.of(model.config)
    mirrors, corrects = pixel_values.shape[1] == 3, corrects_copies(model)
    if not (mirrors or corrects) or not task.takes_crops or task.num_classes < 2:
        return {}

    def classes(images: Tensor) -> Tensor:
        return task.image_classes(task.predict(model(images, return_dict=True).logits))

    found = {"plain": classes(pixel_values), "cropped": classes(middle_of(pixel_values))}
    if mirrors:
        found["mirrored"] = classes(pixel_values.flip(-1))
    settings = AdaptationConfig(**DEFAULTS_OF_COPIES)
    for name, share in DEPTHS.items() if corrects else ():
        with chosen_statistics(settings, per_image=True, num_layers=num_first_layers(model, share)):
            found[name] = classes(pixel_values)
    return found


def store_agreement(model: IdempotentModel, parts: Iterable[dict[str, Tensor]]) -> None:
    """Adds to a model's `reference_distance` what changing clean images does to their classes.

    Args:
        model: the model.
        parts: as [`classes_of_copies`] returns them for batches of clean images.
    """
    parts = list(parts)
    reference = model.config.reference_distance
    classes = {name: torch.cat([part[name] for part in parts]).cpu() for name in (parts[0] if parts else ())}
    if reference is None or not classes:
        return
    if "mirrored" in classes:
        reference["mirrored"] = mirrored_agreement(classes)
    if DEPTHS.keys() <= classes.keys():
        reference["corrected"] = corrected_agreement(classes)


@dataclass
class CleanReference:
    """All that a model knows of clean images.

    Args:
        distances (`dict`, *optional*): its `config.reference_distance`.
        buffers (`dict`): its `shift_reference` and `feature_statistics`.
    """

    distances: dict[str, Any] | None
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, model: IdempotentModel) -> "CleanReference":
        """A copy of what a model knows."""
        distances = model.config.reference_distance
        buffers = {name: buffer.detach().clone() for name, buffer in _clean_buffers(model)}
        return cls(None if distances is None else dict(distances), buffers)

    @torch.no_grad()
    def store_in(self, model: IdempotentModel) -> None:
        """Gives that to a model."""
        model.config.reference_distance = None if self.distances is None else dict(self.distances)
        model.shift_reference.fit_to(len(self.buffers["shift_reference.class_shares"]))
        for name, buffer in _clean_buffers(model):
            if not torch.equal(buffer, self.buffers[name].to(buffer.device)):
                buffer.copy_(self.buffers[name])


def _clean_buffers(model: IdempotentModel) -> list[tuple[str, Tensor]]:
    modules = {"shift_reference": model.shift_reference, "feature_statistics": model.feature_statistics}
    return [(f"{key}.{name}", value) for key, module in modules.items() for name, value in module.named_buffers()]
