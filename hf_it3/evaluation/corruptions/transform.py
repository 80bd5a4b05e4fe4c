"""A corruption as a transform of PIL images, for data sets."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...it3.image_processing_it3 import to_mode
from .corruption import Corruption
from .registry import check_severity, corrupt, get_corruption


class CorruptionTransform:
    """Corrupts PIL images, one by one or in a batch of `datasets.Dataset.set_transform`.

    The randomness of an image is seeded from its pixels, so that it does not depend on where in a data set, or in
    which process, it is read.

    Args:
        name: see `get_corruption`.
        severity: 1 to 5, see `corrupt`.
        seed: any int.
        column: of the batch that holds the images.

    Raises:
        ValueError: for an unknown name or severity.

    Example:
        >>> dataset.set_transform(CorruptionTransform("imagenet-c/fog", severity=3))
    """

    def __init__(
        self,
        name: str | tuple[str, str] | Corruption,
        severity: int | None = None,
        seed: int = 0,
        column: str = "image",
    ):
        corruption = get_corruption(name)
        self.name = corruption.qualified_name
        self.severity = check_severity(severity, corruption)
        self.seed = seed
        self.column = column

    def __call__(self, images: Image.Image | dict[str, Any]) -> Image.Image | dict[str, Any]:
        """Corrupts a PIL image, or the images in the column of a batch; the other columns stay.

        Grey images (mode "L") stay grey, other modes become RGB. The result has 8 bits per channel.

        Raises:
            ValueError: if the batch has no such column, or its entries are no PIL images.
        """
        if not isinstance(images, dict):
            return self._corrupt(images)
        if self.column not in images:
            raise ValueError(f"column={self.column!r} is not in the batch; it has {', '.join(images)}")
        return {**images, self.column: [self._corrupt(image) for image in images[self.column]]}

    def _corrupt(self, image: Image.Image) -> Image.Image:
        if not isinstance(image, Image.Image):
            raise ValueError(f"got a {type(image).__name__}, not a PIL image; for tensors use corrupt()")
        pixels = np.asarray(to_mode(image, "L" if image.mode == "L" else "RGB"))
        index = int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest(), "little")
        tensor = torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)[None].float() / 255
        corrupted = corrupt(tensor, self.name, self.severity, self.seed, [index])[0]
        result = (corrupted.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        return Image.fromarray(result.squeeze(2) if result.shape[2] == 1 else result)
