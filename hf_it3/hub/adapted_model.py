"""Adapts a model to a collection of images and keeps the result as a model of its own."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from ..data import (
    IMAGE_COLUMNS,
    ImageCollator,
    find_column,
    image_processor_for,
    in_reading_order,
    load_images,
    select_split,
)
from ..it3.adaptation_it3 import TestTimeAdapter
from ..it3.interface_it3 import IdempotentModel
from ..it3.registration import load_model
from .model_card import write_model_card


def adapt_to_images(
    model: str,
    images: Sequence[str],
    *,
    revision: str | None = None,
    config_name: str | None = None,
    split: str = "test",
    order: str = "shuffled",
    seed: int = 0,
    description: str | None = None,
    trust_remote_code: bool = False,
    show_progress: bool = True,
    **overrides: Any,
) -> IdempotentModel:
    """Adapts a model to images as one stream, batch after batch.

    Args:
        model (`str`): Hub name or directory.
        images (`list[str]`): image files and folders of images, or the name of one data set.
        revision (`str`, *optional*): of the model.
        config_name (`str`, *optional*): configuration of the data set.
        split (`str`): of the data set, or a range of one such as `"test[:2000]"`.
        order, seed: in which images are adapted to, see [`~hf_it3.data.in_reading_order`].
        description (`str`, *optional*): of the images, for the model card; by default their number.
        trust_remote_code (`bool`): whether code that model and image processor bring along may run.
        show_progress (`bool`): whether to show a progress bar.
        overrides: fields of [`AdaptationConfig`] that differ from the model's settings.

    Returns:
        The adapted model, with `config.base_model` saying where it came from.

    Raises:
        ValueError: if there are no images, or one of them cannot be read.
    """
    loaded = load_model(model, revision=revision, trust_remote_code=trust_remote_code).eval()
    adapter = TestTimeAdapter(loaded, **{**overrides, "scope": "stream"})
    collator = ImageCollator(image_processor_for(loaded.config, trust_remote_code))
    source, rows = _open(images, config_name, split)
    rows = in_reading_order(rows, order, seed)
    batches = _batches(rows, adapter.config.batch_size, collator)
    for batch in tqdm(batches, "Adapting", unit="batch", disable=not show_progress):
        adapter(batch)
    adapted = adapter.adapted_model()
    adapted._image_processor = collator.image_processor
    adapted.config.base_model = {**(adapted.config.base_model or {}), "data": description or source}
    return adapted


def save_adapted(model: IdempotentModel, directory: Any, **kwargs: Any) -> Path:
    """Saves an adapted model with its image processor and card.

    Args:
        model ([`IT3ForImageClassification`]): the result of [`adapt_to_images`].
        directory (`str` or `PathLike`): where to save.
        kwargs: arguments of `save_pretrained`, `delta` for instance.
    """
    processor = getattr(model, "_image_processor", None) or image_processor_for(model.config)
    processor.save_pretrained(directory)
    model.save_pretrained(directory, **kwargs)
    write_model_card(directory, model)
    return Path(directory)


def _open(names: Sequence[str], config_name: str | None, split: str) -> tuple[str, Iterable[dict[str, Any]]]:
    """Opens the images as rows, and describes them in words without local paths."""
    paths = [Path(name) for name in names]
    is_dataset = len(names) == 1 and paths[0].is_dir() and not any(_images_in(paths[0]))
    if is_dataset or not all(path.exists() for path in paths):
        if len(names) != 1:
            missing = next(path for path in paths if not path.exists())
            raise ValueError(f"{missing} does not exist; give image files and folders, or one data set")
        rows = select_split(load_images(names[0], config_name), split)
        if rows.column_names is not None:
            find_column(rows.column_names, IMAGE_COLUMNS, None, "image")
        return f"{'data set' if paths[0].exists() else names[0]}, split {split}", rows
    files = find_images(names)
    return f"{len(files)} image files", [{"image": file} for file in files]


def _images_in(folder: Path) -> Iterator[Path]:
    """The image files in a folder and its subfolders."""
    known = Image.registered_extensions()
    return (file for file in folder.rglob("*") if file.suffix.lower() in known)


def find_images(names: Sequence[str]) -> list[Path]:
    """Lists image files, those inside folders in alphabetical order.

    Raises:
        ValueError: for a path that does not exist, and if there are none.
    """
    files: list[Path] = []
    for path in map(Path, names):
        if not path.exists():
            raise ValueError(f"{path} does not exist; give image files and folders of them")
        files += sorted(_images_in(path)) if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"there are no image files in {', '.join(map(str, names))}; data sets are for hf-it3 evaluate and adapt"
        )
    return files


def _batches(rows: Iterable[dict[str, Any]], size: int, collator: ImageCollator) -> Iterator[Tensor]:
    batch = []
    for row in rows:
        # The image alone: labels are not needed, so they may be anything.
        image = row[find_column(row, IMAGE_COLUMNS, None, "image")]
        batch.append({"image": _read(image) if isinstance(image, Path) else image})
        if len(batch) == size:
            yield collator(batch)["pixel_values"]
            batch = []
    if batch:
        yield collator(batch)["pixel_values"]


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a readable image: {error}") from error
