"""References for layers that correct their features in the first part of a network."""

import copy

import torch
from torch import nn

from hf_it3.it3.alignment_it3 import aligned_layers
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


def one_image_corrected(model, image, num_layers, prior_count) -> torch.Tensor:
    """Logits for one image `(C, H, W)`, whose own statistics weigh as much as one image beside `prior_count` clean
    ones in the first layers: those of BatchNorm, or others whose clean statistics were measured."""
    model = copy.deepcopy(model)
    if any(isinstance(module, SplitBatchNorm) for module in model.modules()):
        for layer in layers_in_order(model, image[None])[:num_layers]:
            _give_batch_norm_statistics(model, layer, image, prior_count)
        with torch.no_grad():
            return model(image[None]).logits[0]
    measured = {
        layer: model.feature_statistics[name.replace(".", "/")] for name, layer in aligned_layers(model.backbone)
    }
    order = layers_in_order(model, image[None], [layer for layer, clean in measured.items() if clean.is_measured])
    for layer in order[:num_layers]:
        layer.register_forward_hook(_alignment(measured[layer], prior_count))
    with torch.no_grad():
        return model(image[None]).logits[0]


def _give_batch_norm_statistics(model, layer, image, prior_count):
    seen = []
    hook = layer.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(image[None])
    hook.remove()
    own = {"running_mean": seen[0].mean((0, 2, 3)), "running_var": seen[0].var((0, 2, 3), correction=0)}
    for name, value in own.items():
        clean = getattr(layer, name)
        clean.copy_((value + prior_count * clean) / (1 + prior_count))


def _alignment(clean, prior_count):
    """A forward hook that gives features of one image the statistics of clean ones."""

    def align(layer, inputs, output):
        first = output.shape[1] == len(clean.mean) and output.ndim == 4
        values = output.movedim(1, -1) if first else output
        rows = values.reshape(-1, values.shape[-1])
        mean = (rows.mean(0) + prior_count * clean.mean) / (1 + prior_count)
        variance = (rows.var(0, correction=0) + prior_count * clean.std**2) / (1 + prior_count)
        values = (values - mean) / (variance + 1e-5).sqrt() * clean.std + clean.mean
        return values.movedim(-1, 1) if first else values

    return align
