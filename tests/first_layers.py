"""References for layers that correct their features in the first part of a network."""

import copy

import torch
from torch import nn

from hf_it3.it3.batchnorm_it3 import SplitBatchNorm


def layers_in_order(model, images, layers=None) -> list[nn.Module]:
    """Layers of a model, those of BatchNorm unless others are given, in the order in which features pass them."""
    order = []
    if layers is None:
        layers = [module for module in model.modules() if isinstance(module, SplitBatchNorm)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: order.append(layer)) for layer in layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return order


def first_layers_corrected(model, images, share) -> torch.Tensor:
    """Logits where torch's own BatchNorm takes the statistics of the batch, as in training, in the first layers."""
    model = copy.deepcopy(model)
    order = layers_in_order(model, images[:1])
    for layer in order[: int(len(order) * share)]:
        layer.train()
    with torch.no_grad():
        return model(images).logits
