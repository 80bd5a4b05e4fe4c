"""The network that segments scenes of digits."""

from typing import Any

from transformers import SegformerConfig


def small_segformer(num_channels: int = 1, image_size: int = 32, **kwargs: Any) -> SegformerConfig:
    """The configuration of a SegFormer of 200,000 parameters, which trains on one core within minutes.

    Its strides are those of small images: logits have half the height and width of an image, where those of the
    published SegFormers have a quarter.

    Args:
        num_channels (`int`): of the images.
        image_size (`int`): their height and width.
        kwargs: other arguments of `SegformerConfig`, `num_labels` for example.

    Example:

    ```python
    >>> from hf_it3 import IT3ForSemanticSegmentation
    >>> from hf_it3.training.small_segformer import small_segformer
    >>> model = IT3ForSemanticSegmentation.from_backbone(small_segformer(num_labels=11))
    >>> model.config.injection_layer
    'segformer.stages.0.patch_embeddings'

    ```
    """
    defaults: dict[str, Any] = {
        "num_channels": num_channels,
        "image_size": image_size,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 32, 48, 64],
        "num_attention_heads": [1, 2, 3, 4],
        "strides": [2, 2, 1, 1],
        "sr_ratios": [4, 2, 1, 1],
        "decoder_hidden_size": 64,
        # A network of few layers learns from random weights only where these are not small.
        "initializer_range": 0.1,
    }
    return SegformerConfig(**{**defaults, **kwargs})
