"""Images from visitors: read with limits, and with messages that a visitor understands."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..it3.image_processing_it3 import to_mode


MAX_IMAGES = 64
MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
# Of photographs and screens. Others are rare, and reading some of them (EPS) starts programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "MPO", "GIF", "BMP", "TIFF", "AVIF")
# Larger images are scaled down before anything else happens: no model here looks at more.
_WORKING_SIDE = 512
# In place of a drawing that is not an image.
UNREADABLE = object()
# Share of the drawing's longer side that is left free around it, at least.
_MARGIN = 0.08


class UnreadableFilesError(ValueError):
    """Some files of an upload cannot be used.

    Args:
        problems: what is wrong with each, by its path.
    """

    def __init__(self, problems: dict[str | os.PathLike, str]):
        super().__init__(" ".join(problems.values()))
        self.paths = list(problems)


def read_uploads(paths: Sequence[str | os.PathLike] | None) -> list[Image.Image]:
    """Opens the files of an upload.

    Raises:
        ValueError: if there are none or too many.
        UnreadableFilesError: if some are no images, broken or too large; the message names them.
    """
    if not paths:
        raise ValueError("Upload an image first, or several, which then adapt together.")
    if len(paths) > MAX_IMAGES:
        raise ValueError(f"These are {len(paths)} images; upload at most {MAX_IMAGES} at once.")
    images, problems = [], {}
    for path in paths:
        try:
            images.append(_read(Path(path)))
        except ValueError as error:
            problems[path] = str(error)
    if problems:
        raise UnreadableFilesError(problems)
    return images


def _read(path: Path) -> Image.Image:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _TooLargeError(f"{path.name} is larger than {MAX_BYTES // 2**20} MB.")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_known_formats()) as image:
                # The size is in the file's head: nothing has been decoded yet.
                if image.width * image.height > MAX_PIXELS:
                    raise _TooLargeError(
                        f"{path.name} has {image.width} x {image.height} pixels; at most "
                        f"{MAX_PIXELS // 1_000_000} million are accepted. Make it smaller and try again."
                    )
                image.draft("RGB", (_WORKING_SIDE, _WORKING_SIDE))
                return shrink(ImageOps.exif_transpose(image))
    except _TooLargeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path.name} has too many pixels. Make it smaller and try again.") from error
    except Exception as error:
        # Of many kinds: broken files make the readers of formats raise IndexError, RuntimeError, SyntaxError and more.
        raise ValueError(f"{path.name} is not an image that can be read; use PNG, JPEG or WebP.") from error


class _TooLargeError(ValueError):
    pass


def _known_formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def shrink(image: Image.Image) -> Image.Image:
    """Returns a grey or RGB copy of at most 512 pixels a side."""
    image = to_mode(image, "L" if image.mode in ("L", "1", "I", "I;16", "LA") else "RGB")
    image.thumbnail((_WORKING_SIDE, _WORKING_SIDE))
    return image


def readable_drawing(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps a sketchpad's reading of what the page sends: returns [`UNREADABLE`] where that is not an image.

    Whatever is pasted there, or sent by hand, arrives with every press of the button, in the other tabs too.
    """

    def read_or_not(payload: Any) -> Any:
        try:
            return read(payload)
        except Exception:  # of many kinds, as for files
            return UNREADABLE

    return read_or_not


def is_blank(drawing: Any) -> bool:
    """Whether nothing was drawn on what gradio's sketchpad gives."""
    return drawing is not UNREADABLE and _strokes(drawing) is None


def _strokes(drawing: Any) -> Image.Image | None:
    """What was drawn, in white on black and without the space around it; `None` where nothing was."""
    composite = drawing.get("composite") if isinstance(drawing, dict) else drawing
    if composite is None:
        return None
    strokes = ImageOps.invert(to_mode(composite, "L"))
    box = strokes.point(lambda value: 255 * (value > 64)).getbbox()
    return None if box is None else strokes.crop(box)


def read_drawing(drawing: Any, margin: float = _MARGIN) -> Image.Image:
    """Turns a drawing in black on white into white on black, cropped and centred like the digits of the test images.

    Args:
        drawing: what gradio's sketchpad gives.
        margin (`float`): free space around those digits, as a share of their longer side; at least 0.08.

    Raises:
        ValueError: if nothing was drawn, or it is no image.
    """
    if drawing is UNREADABLE:
        raise ValueError("The drawing is not an image that can be read; clear it and draw a digit.")
    digit = _strokes(drawing)
    if digit is None:
        raise ValueError("Draw a digit first.")
    side = round(max(digit.size) * (1 + 2 * max(margin, _MARGIN)))
    square = Image.new("L", (side, side))
    square.paste(digit, ((side - digit.width) // 2, (side - digit.height) // 2))
    return square.resize((64, 64), Image.Resampling.BILINEAR)
