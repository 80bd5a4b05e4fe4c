"""Calibration: adaptation settings chosen by measurement on held-out labelled images."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from ...it3.adaptation_config_it3 import SCOPES, AdaptationConfig
from ...it3.alignment_it3 import Sums
from ...it3.interface_it3 import IdempotentModel
from ...it3.objective_it3 import IdempotenceDistance
from ...it3.shell_it3 import frozen_modes
from ...it3.shift_reference_it3 import Observation
from ...it3.task_it3 import Task
from ...training.clean_images import (
    MAX_COMPARED,
    CleanReference,
    classes_of_copies,
    look_at_clean,
    store_agreement,
    store_reference,
    uncompiled,
)
from ..images import ImageSource
from ..inputs import load_model
from ..pixels import Normalization
from .grid import do_nothing, leave_open, resolve_for_search
from .images import HeldOutImages, calibration_conditions, split
from .report import CalibrationResult, Comparison
from .search import Search, measure


DEFAULT_NUM_SAMPLES = 2000
# Images for the clean reference, where they are not the held-out ones.
_REFERENCE_IMAGES = 5000


def calibrate(
    model: nn.Module,
    image_processor: Any,
    dataset: Any,
    *,
    scope: str | None = None,
    corruptions: str | Iterable[str] | None = None,
    severity: int = 3,
    num_samples: int | None = DEFAULT_NUM_SAMPLES,
    batch_size: int | None = None,
    max_clean_loss: float = 0.3,
    reference_dataset: Any = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    show_progress: bool = True,
) -> CalibrationResult:
    """Chooses adaptation settings on held-out labelled images and writes them into the model's config.

    Two thirds of the images choose, the others compare. The settings with the best mean accuracy over a few synthetic
    corruptions are chosen, among those that lose no more than `max_clean_loss` on clean images; if none of them beats
    doing nothing, that is chosen. They are written, with the gate's clean reference measured anew, if on the images
    not used to choose they beat the settings and the reference that the model had, by more than a standard error;
    else nothing changes.

    The search is staged, since the full grid would take hours. *Screening*, on a quarter of the images that choose:
    one property after the other is varied around the best settings so far, starting from the model's own and the
    defaults; [`~hf_it3.calibration.grid.make_stages`] lists the values. Clean images come first, and settings that
    lose twice `max_clean_loss` there are dropped before any corruption. *Final*: the model's own settings and, from
    the best downwards, screened ones are measured on all images that choose until four have kept to `max_clean_loss`.
    Some 25 settings are tried: about a minute for the tutorial's network and 2,000 images on two CPU cores. For the
    same seed, the result is the same.

    Args:
        model ([`IT3ForImageClassification`]): the model. Its `config.adaptation`, `config.reference_distance` and
            `config.calibration_corruptions` may change, and what it knows of clean images; its weights do not.
        image_processor: its image processor; `None` takes that of the checkpoint, or one made for its image size.
        dataset: held-out images with labels: a `datasets.Dataset`, a streamed one, or a sequence of dictionaries.
        scope (*optional*): `"batch"`, `"image"` or `"stream"`; by default the model's own.
        corruptions (*optional*): suites and names, a list or comma-separated, see
            [`~hf_it3.corruptions.list_corruptions`]; by default four fast ones for the model's channels. They are
            listed in the config, so that evaluations can leave them out.
        severity: 1 to 5, of corruptions that have severities.
        num_samples: number of images, drawn with a fixed seed (the first ones of a stream); `None` takes all.
        batch_size (*optional*): images that adapt together; by default the model's own setting. It is chosen for, so
            it is written into the config too.
        max_clean_loss: allowed loss of accuracy on clean images, in points (percent of all images).
        reference_dataset (*optional*): clean images for the gate's reference, up to 5,000; by default the held-out
            ones, whose distances are those of new images, while a model is a little too sure of its training images.
        image_column, label_column (*optional*): by default the usual names.
        seed: of corruptions and order.
        show_progress: whether to show a progress bar.

    Returns:
        [`~hf_it3.calibration.CalibrationResult`] with every setting that was tried.

    Raises:
        ValueError: for unknown names, values out of range, an unsuitable model, data without images or labels, and
            fewer than two batches of images.
        TypeError: for a model that takes no label signal.

    Example:

    ```python
    >>> from hf_it3 import IT3Config, IT3ForImageClassification
    >>> from hf_it3.calibration import calibrate
    >>> from hf_it3.data import load_digits
    >>> model = IT3ForImageClassification(IT3Config(id2label={i: str(i) for i in range(10)}))
    >>> held_out = load_digits()["test"]
    >>> options = {"corruptions": "shear", "num_samples": 32, "batch_size": 8, "show_progress": False}
    >>> result = calibrate(model, None, held_out, **options)
    >>> result.settings == model.config.adaptation
    True

    ```
    """
    if isinstance(model, str):
        raise TypeError(f"model={model!r} is a name; load it with IT3ForImageClassification.from_pretrained")
    loaded = load_model(model, image_processor)
    inner = loaded.model
    conditions = calibration_conditions(inner, corruptions, severity)
    asked = _own_settings(inner.config.adaptation, scope, batch_size)
    own = resolve_for_search(asked, inner)
    _check_numbers(num_samples, max_clean_loss)
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    source = ImageSource(dataset, loaded.image_processor, inner.config, **columns, num_samples=num_samples)
    normalization = Normalization(loaded.image_processor)
    first = next(inner.parameters())
    images = HeldOutImages(source, normalization, conditions, own.batch_size, seed, first)
    reference = images
    if reference_dataset is not None:
        # Labels are not needed, but a data set of labelled images is what there usually is.
        source = ImageSource(
            reference_dataset, loaded.image_processor, inner.config, **columns, num_samples=_REFERENCE_IMAGES
        )
        reference = HeldOutImages(source, normalization, conditions[:1], own.batch_size, seed, first)
    choosing, comparing = split(images)
    old_reference = CleanReference.of(inner)
    try:
        with frozen_modes(inner):
            # The gates of the search need the new reference, which an interrupted search takes back.
            new_reference = _measure_reference(inner, own, reference)
            search = Search(inner, own, choosing, max_clean_loss, show_progress)
            baseline, chosen = search.run()
            settings = leave_open(chosen.settings, asked, inner)
            everything = comparing.num_batches
            without = measure(inner, comparing, "comparison", do_nothing(own), everything)
            ours = measure(inner, comparing, "comparison", chosen.settings, everything)
            old_reference.store_in(inner)
            theirs = measure(inner, comparing, "comparison", own, everything)
    finally:
        old_reference.store_in(inner)
    result = CalibrationResult(
        own=own,
        previous=inner.config.adaptation.replace(),
        baseline=baseline,
        chosen=chosen,
        chosen_settings=settings,
        trials=search.trials,
        corruptions=[condition.corruption for condition in conditions if condition.corruption is not None],
        severity=severity,
        max_clean_loss=max_clean_loss,
        seed=seed,
        reference=new_reference,
        comparison=Comparison(without, theirs, ours, max_clean_loss),
    )
    result.apply(inner)
    return result


def _measure_reference(model: IdempotentModel, own: AdaptationConfig, images: HeldOutImages) -> CleanReference:
    """Measures clean images, with the distance of the settings if they have one, and stores that in the model.

    Raises:
        ValueError: if a distance is not finite.
    """
    distance = IdempotenceDistance(own.distance or model.config.distance, Task.of(model.config))
    clean = [Observation.empty(model.shift_reference)]
    sums: Sums = {}
    watched = uncompiled(model)
    for pixel_values, _ in images.batches(images.conditions[0], images.num_batches):
        clean.append(look_at_clean(watched, pixel_values, sums, distance).cpu())
    seen = Observation.join(clean)
    if store_reference(model, seen, [sums], distance.name) is None:
        raise ValueError(
            f"the idempotence distance of {(~seen.distances.isfinite()).sum().item()} of {len(seen)} clean images is "
            "not finite; check the model's weights and the images"
        )
    # With the statistics of clean features in place, which correct those of copies.
    num_batches = min(images.num_batches, math.ceil(MAX_COMPARED / own.batch_size))
    compared = images.batches(images.conditions[0], num_batches)
    watched = uncompiled(model)
    store_agreement(model, [classes_of_copies(watched, pixel_values) for pixel_values, _ in compared])
    return CleanReference.of(model)


def _own_settings(own: AdaptationConfig, scope: str | None, batch_size: int | None) -> AdaptationConfig:
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"scope={scope!r} must be one of {', '.join(map(repr, SCOPES))}")
    own = own.replace(scope=scope or own.scope)
    return own if batch_size is None else own.replace(batch_size=batch_size)


def _check_numbers(num_samples: Any, max_clean_loss: Any) -> None:
    if num_samples is not None and (isinstance(num_samples, bool) or not isinstance(num_samples, int)):
        raise ValueError(f"num_samples={num_samples!r} must be an integer >= 2 or None")
    if num_samples is not None and num_samples < 2:
        raise ValueError(f"num_samples={num_samples!r} must be an integer >= 2 or None")
    if not isinstance(max_clean_loss, (int, float)) or not max_clean_loss >= 0:
        raise ValueError(f"max_clean_loss={max_clean_loss!r} must be a number of points >= 0")
