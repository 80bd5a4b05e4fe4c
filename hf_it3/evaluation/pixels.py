"""Images, and maps of their classes, as pixels in [0, 1]: corruptions come before the normalisation."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..data import ImageCollator, SegmentationCollator, collator_for, mean_and_std
from ..it3.configuration_it3 import IT3Config


class Normalization:
    """The normalisation of an image processor, `(pixels - mean) / std`, as a step of its own.

    EfficientNet's processors divide by `std` once more, with `include_top`.

    Args:
        image_processor: any image processor of transformers; one with `do_normalize=False` gives the identity.
    """

    def __init__(self, image_processor: Any):
        mean, std = mean_and_std(image_processor)
        normalizes = bool(getattr(image_processor, "do_normalize", True))
        divides_again = bool(getattr(image_processor, "include_top", False))
        self.is_identity = mean is None or std is None or not (normalizes or divides_again)
        if not self.is_identity:
            self.mean = torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1) * normalizes
            self.std = torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1) ** (normalizes + divides_again)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Turns pixels in [0, 1] into the model's input, both `(B, C, H, W)`."""
        return pixels if self.is_identity else (pixels - self.mean) / self.std

    def undo(self, pixel_values: Tensor) -> Tensor:
        """Turns the model's input into pixels in [0, 1]; rounding errors beyond the ends are cut off."""
        pixels = pixel_values if self.is_identity else pixel_values * self.std + self.mean
        return pixels.clamp(0, 1)


class PixelCollator(ImageCollator):
    """As [`~hf_it3.data.ImageCollator`], but with pixels in [0, 1] before normalisation, float32.

    Rows that carry tensors already are taken for the model's input, and their normalisation is undone.

    Raises:
        ValueError: also if pixels and [`Normalization`] do not give what the image processor gives, for the first
            image.
    """

    def __init__(self, image_processor: Any, **kwargs: Any):
        self.normalization = Normalization(image_processor)
        self.can_skip = hasattr(image_processor, "do_normalize")
        self._whole: ImageCollator | None = ImageCollator(image_processor)
        if self.can_skip:
            image_processor = copy.deepcopy(image_processor)
            image_processor.do_normalize = False
            image_processor.do_rescale = True
            if hasattr(image_processor, "include_top"):
                image_processor.include_top = False
        super().__init__(image_processor, **kwargs)

    def _pixel_values(self, images: list[Any]) -> Tensor:
        pixels = super()._pixel_values(images).float()
        if all(isinstance(image, Tensor) and image.is_floating_point() for image in images):
            return self.normalization.undo(pixels)
        pixels = pixels.clamp(0, 1) if self.can_skip else self.normalization.undo(pixels)
        if self._whole is not None:
            self._check(pixels[:1], self._whole._pixel_values(images[:1]).float())
            self._whole = None
        return pixels

    def _check(self, pixels: Tensor, pixel_values: Tensor) -> None:
        ours = self.normalization(pixels)
        if ours.shape != pixel_values.shape or not torch.allclose(ours, pixel_values, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"{type(self.image_processor).__name__} does not give (pixels - mean) / std of pixels in [0, 1], so "
                "its images cannot be corrupted before normalisation; use an image processor that does, with "
                "do_rescale=True and rescale_factor=1/255, such as IT3ImageProcessor"
            )


class PixelMapCollator(PixelCollator, SegmentationCollator):
    """As [`PixelCollator`], with the maps of classes of [`~hf_it3.data.SegmentationCollator`] as labels."""

    def _processed(self, pictures: list[Any], maps: list[Any]) -> tuple[Tensor, Tensor]:
        return self._pixel_values(pictures), super()._processed(pictures, maps)[1]


def pixel_collator(
    config: IT3Config, image_processor: Any, image_column: str | None = None, label_column: str | None = None
) -> ImageCollator:
    """The collator for the labels of a model's task, with pixels in [0, 1]."""
    return collator_for(
        config, image_processor, image_column, label_column, classes=PixelCollator, maps=PixelMapCollator
    )
