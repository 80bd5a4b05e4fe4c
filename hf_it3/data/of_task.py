"""Which labels the data of each task have."""

from typing import Any

from ..it3.configuration_it3 import IT3Config
from ..it3.task_it3 import Task
from .images import LABEL_COLUMNS, ImageCollator
from .maps import MAP_COLUMNS, SegmentationCollator


def label_columns_of(config: IT3Config) -> tuple[str, ...]:
    """Usual names of the column of the labels, in data for a model."""
    return MAP_COLUMNS if Task.of(config).index_dims == 3 else LABEL_COLUMNS


def collator_for(
    config: IT3Config,
    image_processor: Any,
    image_column: str | None = None,
    label_column: str | None = None,
    classes: type[ImageCollator] = ImageCollator,
    maps: type[SegmentationCollator] = SegmentationCollator,
) -> ImageCollator:
    """The collator for the labels of a model's task.

    Args:
        config ([`IT3Config`]): of the model.
        image_processor: the model's.
        image_column (`str`, *optional*), label_column (`str`, *optional*): by default the usual names.
        classes (`type`), maps (`type`): the collator of labels of images, and that of labels of pixels.
    """
    task = Task.of(config)
    given = {"image_column": image_column, "label_column": label_column}
    if task.index_dims == 3:
        ignored = config.semantic_loss_ignore_index
        return maps(image_processor, **given, num_labels=config.num_labels, ignore_index=ignored)
    # Of other tasks labels are no indices.
    num_labels = config.num_labels if task.index_dims else None
    return classes(image_processor, **given, num_labels=num_labels)
