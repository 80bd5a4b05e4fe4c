"""Image data sets: loading and making them, finding their columns, and turning rows into batches."""

from .images import (
    DIGITS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    READING_ORDERS,
    SCENES,
    ImageCollator,
    as_bytes,
    as_row,
    class_names,
    find_column,
    first_rows,
    image_processor_for,
    in_reading_order,
    load_digits,
    load_images,
    mean_and_std,
    select_split,
)
from .maps import MAP_COLUMNS, SegmentationCollator, resized_map
from .of_task import collator_for, label_columns_of
from .scenes import SCENE_CLASSES, load_digit_scenes


__all__ = [
    "DIGITS",
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "MAP_COLUMNS",
    "READING_ORDERS",
    "SCENES",
    "SCENE_CLASSES",
    "ImageCollator",
    "SegmentationCollator",
    "as_bytes",
    "as_row",
    "class_names",
    "collator_for",
    "find_column",
    "first_rows",
    "image_processor_for",
    "in_reading_order",
    "label_columns_of",
    "load_digit_scenes",
    "load_digits",
    "load_images",
    "mean_and_std",
    "resized_map",
    "select_split",
]
