"""Compares clean images with changed ones, to find out how adaptation may change images of a model."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .adaptation_config_it3 import AdaptationConfig
from .agreement_it3 import DEPTHS, corrected_agreement, mirrored_agreement
from .augmentation_it3 import middle_of
from .backbone_defaults_it3 import DEFAULTS_OF_COPIES, corrects_copies
from .interface_it3 import IdempotentModel
from .steps_it3 import chosen_statistics, num_first_layers
from .task_it3 import Task


# So many images tell well enough how many keep their class, to a percent or so.
MAX_COMPARED = 2_000


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
    for name, share in DEPTHS.items() if corrects else ():
        settings = AdaptationConfig(**DEFAULTS_OF_COPIES)
        with chosen_statistics(settings, per_image=True, num_layers=num_first_layers(model, share)):
            found[name] = classes(pixel_values)
    return found


def store_agreement(model: IdempotentModel, parts: Iterable[dict[str, Tensor]]) -> None:
    """Adds to a model's `reference_distance` what changing clean images does to their classes.

    Args:
        model: the model.
        parts: as [`classes_of_copies`] returns them for batches of clean images, on the CPU.
    """
    parts = list(parts)
    reference = model.config.reference_distance
    classes = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
    if reference is None or not classes:
        return
    if "mirrored" in classes:
        reference["mirrored"] = mirrored_agreement(classes)
    if DEPTHS.keys() <= classes.keys():
        reference["corrected"] = corrected_agreement(classes)
