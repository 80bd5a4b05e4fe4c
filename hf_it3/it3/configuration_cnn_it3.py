"""Configuration of the small convolutional network of the MNIST tutorial."""

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig


# Wider layers than this would take gigabytes; the configuration may be a stranger's.
MAX_WIDTH = 1_000_000


class IT3CNNConfig(PreTrainedConfig):
    """Configuration of [`IT3CNNForImageClassification`].

    Args:
        num_channels (`int`, defaults to 1): channels of the input images.
        image_size (`int`, defaults to 28): height and width of the input images, in pixels.
        conv_channels (`list[int]`, defaults to `[10, 20]`): output channels of the two convolutions.
        kernel_size (`int`, defaults to 5): side of the convolution kernels, in pixels.
        hidden_size (`int`, defaults to 50): width of the three hidden linear layers.

    Raises:
        ValueError: if a size is not positive or the image is too small for two convolutions and poolings.

    Example:

    ```python
    >>> from hf_it3 import IT3CNNConfig
    >>> IT3CNNConfig(num_labels=10).flattened_size
    320

    ```
    """

    model_type = "it3_cnn"

    num_channels: int = 1
    image_size: int = 28
    conv_channels: list[int] | tuple[int, ...] = (10, 20)
    kernel_size: int = 5
    hidden_size: int = 50
    if TYPE_CHECKING:
        # A property, which checkers do not expect among the arguments, and think may be `None`.
        num_labels: int = 10

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("num_channels", "image_size", "kernel_size", "hidden_size"):
            value = getattr(self, name)
            if not _is_positive(value):
                raise ValueError(f"IT3CNNConfig.{name} must be a positive integer, got {value!r}")
        channels = self.conv_channels
        if not isinstance(channels, (list, tuple)) or len(channels) != 2 or not all(map(_is_positive, channels)):
            raise ValueError(f"IT3CNNConfig.conv_channels must be two positive integers, got {self.conv_channels!r}")
        if self.feature_map_size < 1:
            raise ValueError(
                f"IT3CNNConfig.image_size={self.image_size} is too small for two "
                f"{self.kernel_size}x{self.kernel_size} convolutions with 2x2 pooling; "
                "use at least 16 pixels with the default kernel"
            )
        if max(self.num_channels, *channels, self.hidden_size, self.flattened_size) > MAX_WIDTH:
            raise ValueError(
                f"IT3CNNConfig describes a layer of more than {MAX_WIDTH} values per image or pixel: num_channels="
                f"{self.num_channels}, conv_channels={channels!r}, hidden_size={self.hidden_size}, image_size="
                f"{self.image_size}; wrap another network for large images"
            )
        if self.id2label is None:
            kwargs.setdefault("num_labels", 10)
        super().__post_init__(**kwargs)

    @property
    def feature_map_size(self) -> int:
        """Side of the feature map after both convolutions and poolings, in pixels."""
        size = self.image_size
        for _ in range(2):
            size = (size - self.kernel_size + 1) // 2
        return size

    @property
    def flattened_size(self) -> int:
        """Number of features that the first linear layer sees."""
        return self.conv_channels[1] * self.feature_map_size**2


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
