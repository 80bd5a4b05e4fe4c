"""A tiny segmentation model with random weights for every family, and where its label signal belongs."""

import copy
import functools
from typing import Any

import torch
from families import FAMILIES, Family, as_if_trained
from torch import nn
from transformers import AutoModelForSemanticSegmentation, ConvNextConfig, PreTrainedConfig, SwinConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


NUM_LABELS = 4

_TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
_HEAD = {"hidden_dropout_prob": 0.0, "use_auxiliary_head": False, "pool_scales": [1, 2], "out_indices": [1, 2, 3, 4]}
_UPERNET = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False}
_PYRAMID = FAMILIES["segformer"].config

SEGMENTATION_FAMILIES = {
    "segformer": Family(
        "segformer.stages.0.patch_embeddings",
        "tuple of B N C",
        {
            **_PYRAMID,
            "decoder_hidden_size": 8,
            "attention_probs_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
        },
    ),
    "upernet convnext": Family(
        "backbone.embeddings",
        "B C H W",
        {
            **_UPERNET,
            "backbone_config": ConvNextConfig(
                hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
            ),
        },
    ),
    "upernet swin": Family(
        "backbone.swin.embeddings",
        "tuple of B N C",
        {
            **_UPERNET,
            "backbone_config": SwinConfig(
                **{**FAMILIES["swin"].config, "drop_path_rate": 0.0}, out_features=["stage1", "stage2"]
            ),
        },
    ),
    "beit": Family("beit.embeddings", "B N C", {**_TRANSFORMER, **_HEAD, "add_fpn": False}),
    "data2vec-vision": Family("data2vec_vision.embeddings", "tuple of B N C", {**_TRANSFORMER, **_HEAD}),
    "dpt": Family(
        "dpt.embeddings",
        "B N C",
        {
            **_TRANSFORMER,
            "is_hybrid": False,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "reassemble_factors": [4, 2, 1, 0.5],
            "use_auxiliary_head": False,
            "semantic_classifier_dropout": 0.0,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    "mobilenet_v2": Family("mobilenet_v2.conv_stem", "B C H W", FAMILIES["mobilenet_v2"].config, image_size=64),
    "mobilevit": Family(
        "mobilevit.conv_stem",
        "B C H W",
        {
            **FAMILIES["mobilevit"].config,
            "aspp_out_channels": 8,
            "atrous_rates": [1, 2, 3],
            "aspp_dropout_prob": 0.0,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        image_size=64,
    ),
    "plain module": Family("encoder", "B C H W"),
}


class PlainSegmenter(nn.Module):
    """As segmentation networks are written without transformers."""

    def __init__(self, num_labels: int = NUM_LABELS, channels: int = 8):
        super().__init__()
        self.encoder = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, num_labels, 1)

    def forward(self, pixel_values):
        features = self.encoder(pixel_values).relu()
        return self.head(self.middle(features).relu())


def family_config(name: str) -> PreTrainedConfig:
    """A new configuration of the family."""
    values: dict[str, Any] = copy.deepcopy(SEGMENTATION_FAMILIES[name].config)
    return CONFIG_MAPPING[name.split()[0]](**values, num_labels=NUM_LABELS)


@functools.cache
def segmenter(name: str) -> nn.Module:
    """The family's segmentation model in eval mode; shared, so not to be changed."""

    def build() -> nn.Module:
        if name == "plain module":
            return PlainSegmenter()
        return AutoModelForSemanticSegmentation.from_config(family_config(name))

    return as_if_trained(build, family_images(name, 8))


def family_images(name: str, count: int = 2) -> torch.Tensor:
    """Random images of the family's size."""
    size = SEGMENTATION_FAMILIES[name].image_size
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
