"""A tiny classifier with random weights for every family of vision models, and where its label signal belongs."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForImageClassification, PreTrainedModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


NUM_LABELS = 4

_TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_DINO = {**{key: value for key, value in _TRANSFORMER.items() if key != "intermediate_size"}, "mlp_ratio": 2}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
}
_CONVOLUTIONAL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_WINDOWED = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
_PYRAMID = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [8, 16],
    "strides": [4, 2],
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}


@dataclass
class Family:
    """A family: its configuration, injection layer, layout of that layer's output, and sides of its images."""

    layer: str
    layout: str
    config: dict[str, Any] = field(default_factory=dict)
    image_size: int = 32


FAMILIES = {
    "resnet": Family("resnet.embedder", "B C H W", {**_CONVOLUTIONAL, "layer_type": "basic"}),
    "regnet": Family("regnet.embedder", "B C H W", {**_CONVOLUTIONAL, "groups_width": 8}),
    "bit": Family("bit.embedder", "B C H W", {**_CONVOLUTIONAL, "hidden_sizes": [32, 32], "num_groups": 4}),
    "hgnet_v2": Family(
        "embedder",
        "B C H W",
        {
            **_CONVOLUTIONAL,
            "stem_channels": [3, 8, 8],
            "stage_in_channels": [8, 8],
            "stage_mid_channels": [8, 8],
            "stage_out_channels": [8, 16],
            "stage_num_blocks": [1, 1],
            "stage_downsample": [False, True],
            "stage_light_block": [False, True],
            "stage_kernel_size": [3, 3],
            "stage_numb_of_layers": [2, 2],
        },
    ),
    "mobilenet_v1": Family(
        "mobilenet_v1.conv_stem", "B C H W", {"depth_multiplier": 0.02, "classifier_dropout_prob": 0.0}
    ),
    "mobilenet_v2": Family(
        "mobilenet_v2.conv_stem",
        "B C H W",
        {
            "depth_multiplier": 0.02,
            "depth_divisible_by": 4,
            "min_depth": 4,
            "expand_ratio": 2.0,
            "finegrained_output": False,
            "classifier_dropout_prob": 0.0,
        },
    ),
    "mobilevit": Family(
        "mobilevit.conv_stem",
        "B C H W",
        {
            "image_size": 32,
            "hidden_sizes": [8, 8, 8],
            "neck_hidden_sizes": [4, 4, 4, 8, 8, 8, 12],
            "num_attention_heads": 2,
            "expand_ratio": 1.0,
        },
    ),
    "mobilevitv2": Family(
        "mobilevitv2.conv_stem",
        "B C H W",
        {
            "image_size": 64,
            "width_multiplier": 0.05,
            "base_attn_unit_dims": [16, 16, 16],
            "n_attn_blocks": [1, 1, 1],
            "expand_ratio": 1.0,
        },
        image_size=64,
    ),
    "efficientnet": Family(
        "efficientnet.embeddings",
        "B C H W",
        {
            "image_size": 32,
            "width_coefficient": 0.0125,
            "depth_coefficient": 0.1,
            "depth_divisor": 4,
            "hidden_dim": 16,
            "kernel_sizes": [3],
            "in_channels": [32],
            "out_channels": [16],
            "strides": [1],
            "num_block_repeats": [1],
            "expand_ratios": [1],
        },
    ),
    "convnext": Family("convnext.embeddings", "B C H W", {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}),
    "convnextv2": Family(
        "convnextv2.embeddings", "B C H W", {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ),
    "poolformer": Family(
        "poolformer.encoder.patch_embeddings.0",
        "B C H W",
        {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    "swiftformer": Family(
        "swiftformer.patch_embed", "B C H W", {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]}
    ),
    "textnet": Family(
        "textnet.stem",
        "B C H W",
        {
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 8, 8, 8],
            "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
            "conv_layer_strides": [[2]] * 4,
        },
    ),
    "cvt": Family(
        "cvt.encoder.stages.0.embedding",
        "B C H W",
        {
            "embed_dim": [8, 8, 16],
            "num_heads": [1, 2, 2],
            "depth": [1, 2, 3],
            "mlp_ratio": [2.0] * 3,
            "drop_path_rate": [0.0] * 3,
        },
    ),
    "vit": Family("vit.embeddings", "B N C", _TRANSFORMER),
    "deit": Family("deit.embeddings", "B N C", _TRANSFORMER),
    "dinov2": Family("dinov2.embeddings", "B N C", _DINO),
    "dinov2_with_registers": Family("dinov2_with_registers.embeddings", "B N C", _DINO),
    "beit": Family("beit.embeddings", "B N C", _TRANSFORMER),
    "data2vec-vision": Family("data2vec_vision.embeddings", "tuple of B N C", _TRANSFORMER),
    "ijepa": Family("ijepa.embeddings", "B N C", _TRANSFORMER),
    "vit_msn": Family("vit.embeddings", "B N C", _TRANSFORMER),
    "clip": Family("vision_model.embeddings", "B N C", {"vision_config": _TRANSFORMER, "text_config": _TEXT}),
    "siglip": Family("vision_model.embeddings", "B N C", {"vision_config": _TRANSFORMER, "text_config": _TEXT}),
    "levit": Family(
        "levit.patch_embeddings",
        "B N C",
        {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
        },
        image_size=64,
    ),
    "swin": Family("swin.embeddings", "tuple of B N C", _WINDOWED),
    "swinv2": Family("swinv2.embeddings", "tuple of B N C", _WINDOWED),
    "focalnet": Family(
        "focalnet.embeddings",
        "tuple of B N C",
        {
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "hidden_sizes": [8, 16],
            "focal_levels": [1, 1],
            "focal_windows": [3, 3],
        },
    ),
    "hiera": Family(
        "hiera.embeddings",
        "tuple of B N C",
        {
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "num_query_pool": 1,
            "query_stride": [2, 2],
            "masked_unit_size": [2, 2],
            "masked_unit_attention": [True, False],
        },
    ),
    "pvt": Family(
        "pvt.encoder.patch_embeddings.0",
        "tuple of B N C",
        {**_PYRAMID, "image_size": 32, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2]},
    ),
    "pvt_v2": Family(
        "pvt_v2.encoder.layers.0.patch_embedding",
        "tuple of B N C",
        {**_PYRAMID, "image_size": 32, "sr_ratios": [2, 1], "patch_sizes": [7, 3]},
    ),
    "segformer": Family(
        "segformer.stages.0.patch_embeddings",
        "tuple of B N C",
        {**_PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "classifier_dropout_prob": 0.0},
    ),
}


def family_config(name: str):
    """A new configuration of the family, with the class name that some families cannot be built without."""
    config = CONFIG_MAPPING[name](**copy.deepcopy(FAMILIES[name].config), num_labels=NUM_LABELS)
    model_class = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    config.architectures = [model_class.__name__]
    return config


@functools.cache
def classifier(name: str) -> PreTrainedModel:
    """The family's classifier in eval mode; shared, so not to be changed."""
    return as_if_trained(
        lambda: AutoModelForImageClassification.from_config(family_config(name)), family_images(name, 8)
    )


def as_if_trained(build: Callable[[], Any], images: torch.Tensor) -> Any:
    """A new model in eval mode, whose weights are disturbed a little and whose statistics are those of the images.

    Many values of a new model are zero or one, and a wrong copy of those would not show.
    """
    set_seed(0)
    model = build()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def family_images(name: str, count: int = 4) -> torch.Tensor:
    """Random images of the family's size."""
    size = FAMILIES[name].image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
