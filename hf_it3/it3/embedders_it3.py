"""Embedders, which turn a label signal into channels of the injection layer."""

from torch import nn


class LabelEmbedder(nn.Sequential):
    """Turns a label signal `(B, num_labels)` into an embedding `(B, channels)` for the injection layer.

    Two linear layers with LeakyReLU behind each, as torch-ttt's `IT3Engine` builds them.

    Args:
        num_labels (`int`): width of the label signal.
        channels (`int`): channels of the injection layer.
    """

    def __init__(self, num_labels: int, channels: int):
        super().__init__(
            nn.Linear(num_labels, channels), nn.LeakyReLU(), nn.Linear(channels, channels), nn.LeakyReLU()
        )


class LabelMapEmbedder(nn.Sequential):
    """Turns a label signal for every pixel `(B, num_labels, h, w)` into an embedding `(B, channels, h, w)`.

    Two 1x1 convolutions with LeakyReLU behind each, as torch-ttt's `IT3Engine` builds them for dense predictions.

    Args:
        num_labels (`int`): channels of the label signal.
        channels (`int`): channels of the injection layer.
    """

    def __init__(self, num_labels: int, channels: int):
        super().__init__(
            nn.Conv2d(num_labels, channels, 1), nn.LeakyReLU(), nn.Conv2d(channels, channels, 1), nn.LeakyReLU()
        )
