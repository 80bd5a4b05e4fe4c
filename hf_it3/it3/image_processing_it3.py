"""An image processor for models with any number of input channels, one above all."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .origin_it3 import is_remote_code


logger = logging.get_logger(__name__)


class IT3ImageProcessorKwargs(ImagesKwargs, total=False):
    """Arguments of [`IT3ImageProcessor`] beyond the usual ones.

    num_channels (`int`): 1 turns every image to grey, 3 to RGB.
    """

    num_channels: int


class IT3ImageProcessor(PilBackend):
    """Resizes, rescales and normalises images for a model of one or three channels.

    The stock processors leave the number of channels as it is, and the stock pipeline turns every image to RGB first,
    so models for grey images need one that turns them back. Images of any PIL mode are accepted: transparent ones are
    laid on white, 16-bit ones scaled to 8 bits, rotated ones turned upright as their EXIF data say. Arrays and tensors
    are recognised by type and range, unless `do_rescale=False`: truth values, integers from 0 to 255, floats in [0, 1]
    as torchvision's `ToTensor` makes them, and floats up to 255.

    Args:
        num_channels (`int`, defaults to 3): 1 or 3.
        size (`dict`, defaults to `{"height": 28, "width": 28}`), resample, do_rescale, rescale_factor, do_normalize,
            image_mean, image_std: as in every image processor of transformers; one value holds for all channels.

    Raises:
        ValueError: for another number of channels, means or deviations that are not one per channel, or an array whose
            shape or values are not an image's.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_it3 import IT3ImageProcessor
    >>> processor = IT3ImageProcessor(num_channels=1, image_mean=[0.1307], image_std=[0.3081])
    >>> processor(Image.new("RGB", (32, 32)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 1, 28, 28])

    ```
    """

    valid_kwargs = IT3ImageProcessorKwargs
    model_input_names = ["pixel_values"]

    num_channels = 3
    resample = PILImageResampling.BILINEAR
    size: Any = {"height": 28, "width": 28}  # a `SizeDict` in instances
    image_mean = [0.5]
    image_std = [0.5]
    do_resize = True
    do_rescale = True
    do_normalize = True

    def __init__(self, **kwargs: Any):
        if not is_remote_code(self):
            kwargs.pop("auto_map", None)  # refers to code in a repository, which is not needed here
        super().__init__(**kwargs)

    def _standardize_kwargs(  # type: ignore[override] # the rest goes through
        self, num_channels: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Checks the number of channels and fits mean and deviation to it, in the constructor and in a call."""
        channels = self.num_channels if num_channels is None else num_channels
        if channels not in (1, 3):
            raise ValueError(f"IT3ImageProcessor.num_channels must be 1 or 3, got {channels!r}")
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("do_normalize") is not False:
            for name in ("image_mean", "image_std"):
                kwargs[name] = _per_channel(name, kwargs[name], channels)
        return {**kwargs, "num_channels": channels}

    def resize(self, image: np.ndarray, size: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Resizes an image `(C, H, W)`; one of the right size stays exactly as it is, whatever its range of values."""
        if image.shape[-2:] == (size.height, size.width):
            return image
        return super().resize(image, size, *args, **kwargs)

    def process_image(self, image: Any, *args: Any, num_channels: int | None = None, **kwargs: Any) -> np.ndarray:
        """One image as an array of shape `(num_channels, H, W)`, values as given."""
        channels = num_channels or self.num_channels
        if isinstance(image, Image.Image):
            array = np.asarray(to_mode(image, "L" if channels == 1 else "RGB"))
            return array[None] if channels == 1 else np.moveaxis(array, -1, 0)
        array = super().process_image(image, *args, **kwargs)
        return match_channels(to_bytes(array) if kwargs.get("do_rescale", True) else array, channels)


def _per_channel(name: str, values: Any, channels: int) -> list[float] | None:
    """One value per channel, from as many or from one for all of them."""
    if values is None:
        return None
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(set(values)) == 1:
        return values[:1] * channels
    if len(values) != channels:
        raise ValueError(f"{name}={values} has {len(values)} values for num_channels={channels}; give one per channel")
    return values


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts an image of any mode to `"L"` or `"RGB"`, turned upright as its EXIF data say."""
    image = ImageOps.exif_transpose(image)
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image, dtype=np.float64)
        # Integers of mode "I" may be of 8 or of 16 bits; the values tell.
        has_8_bits = image.mode == "I" and values.max() <= 255
        image = Image.fromarray((values / (1 if has_8_bits else 257)).clip(0, 255).astype(np.uint8))
    # PIL converts these to few modes, and not to grey.
    if between := {"LAB": "RGB", "La": "LA"}.get(image.mode):
        image = image.convert(between)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(mode)


# A picture of 8 bits that is nowhere brighter is nearly black: a float image like that is of another scale.
_DARKEST = 16


def to_bytes(array: np.ndarray) -> np.ndarray:
    """Converts the values of an image array to bytes, by their type and range.

    Truth values are black and white, integers go from 0 to 255, floats from 0 to 1 or, where one exceeds 16, from 0 to
    255. What computing leaves beyond the ends, up to a thousandth of the range, is cut off.

    Raises:
        ValueError: for values outside these ranges, those of normalised images for example, and for floats whose
            largest value lies between 1 and 16, which may be of any scale.
    """
    if not array.size:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = float(array.min()), float(array.max())
    if np.issubdtype(array.dtype, np.integer) and (low, high) == (0, 1):
        logger.warning_once(
            "An image array of integers holds nothing but 0 and 1, which is read as nearly black, of 0 to 255; where "
            "1 is white, pass booleans or floats."
        )
    if array.dtype == np.uint8:
        return array
    is_float = np.issubdtype(array.dtype, np.floating)
    scale, top = (255, 1) if is_float and high <= 1.001 else (1, 255)
    slack = 0.001 * top if is_float else 0
    if not (low >= -slack and high <= top + slack) or (is_float and 1.001 < high <= _DARKEST):
        wanted = "floats from 0 to 1, or bytes" if is_float else "0 to 255"
        raise ValueError(
            f"values from {low:.4g} to {high:.4g} of type {array.dtype} are not those of a picture; give {wanted}, "
            "before any normalisation"
        )
    return (scale * array).clip(0, 255).round().astype(np.uint8)


def to_array(image: np.ndarray | Tensor, rescales: bool) -> np.ndarray:
    """An image array or tensor as an array, of bytes for image processors that rescale those to [0, 1].

    Raises:
        ValueError: see `to_bytes`.
    """
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image
    array = np.asarray(image)
    return to_bytes(array) if rescales else array


def match_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """An image array as `(channels, H, W)`, with 1 or 3 channels."""
    if array.ndim == 2:
        array = array[None]
    if array.ndim == 3 and array.shape[0] not in (1, 3, 4) and array.shape[-1] in (1, 3, 4):
        array = np.moveaxis(array, -1, 0)
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"an image array must have shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, got {array.shape}"
        )
    array = array[:3]
    if array.shape[0] == channels:
        return array
    if channels == 3:
        return np.repeat(array, 3, axis=0)
    # Luma of ITU-R BT.601, as PIL uses it.
    grey = np.tensordot(np.array([0.299, 0.587, 0.114]), array.astype(np.float64), axes=1)[None]
    return (grey.round() if np.issubdtype(array.dtype, np.integer) else grey).astype(array.dtype)
