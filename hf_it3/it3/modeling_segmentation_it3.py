"""Semantic segmentation models that also take a label signal for every pixel, around any backbone."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_it3 import SEGMENTATION
from .modeling_it3 import IT3PreTrainedModel


@dataclass
class IT3SemanticSegmenterOutput(ModelOutput):
    """Output of [`IT3ForSemanticSegmentation`]; logits are at the size at which the backbone returns them.

    Args:
        loss (`Tensor` of shape `()`, *optional*): classification loss + idempotence_weight x idempotence loss.
        logits (`Tensor` of shape `(B, num_labels, h, w)`): of the pass that was asked for; with labels, of the first.
        signal_logits (`Tensor` of shape `(B, num_labels, h, w)`, *optional*): of the signal pass, given the true
            labels.
        classification_loss (`Tensor` of shape `()`, *optional*): loss of the first pass.
        idempotence_loss (`Tensor` of shape `()`, *optional*): loss of the signal pass.
        hidden_states, attentions (*optional*): of the backbone, if asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    signal_logits: Tensor | None = None
    classification_loss: Tensor | None = None
    idempotence_loss: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class IT3ForSemanticSegmentation(IT3PreTrainedModel):
    """An idempotent segmentation model: `f(x)` classifies every pixel, `f(x, s)` does so given a label signal.

    Everything is as in [`IT3ForImageClassification`], with `(B, num_labels, h, w)` in place of `(B, num_labels)`. The
    label signal is embedded place by place and resized to the grid of the injection layer; tokens that stand for no
    place, such as class tokens, get none. Where labels `(B, H, W)` are larger than the logits, the loss is of logits
    resized to them, and pixels labelled `config.semantic_loss_ignore_index` do not count.

    An auxiliary head of the backbone keeps its weights and takes no part in the loss.

    Args:
        config ([`IT3Config`]): the configuration.
        backbone (`nn.Module`, *optional*): the segmentation model to wrap, with logits `(B, num_labels, h, w)`; by
            default built from `config.backbone_config`. It keeps its weights and becomes part of the model;
            [`~IT3ForSemanticSegmentation.from_backbone`] copies it and fills in the configuration.
        embedder (`nn.Module`, *optional*): maps a label signal `(B, num_labels, h, w)` to `(B, channels, h, w)` and
            keeps its weights; by default a new [`LabelMapEmbedder`].

    Raises:
        ValueError: if the injection layer does not exist or its channels cannot be told, or for a single label.

    Example:

    ```python
    >>> import torch
    >>> from transformers import SegformerConfig
    >>> from hf_it3 import IT3ForSemanticSegmentation
    >>> backbone = SegformerConfig(
    ...     depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    ... )
    >>> model = IT3ForSemanticSegmentation.from_backbone(backbone).eval()
    >>> images = torch.rand(2, 3, 64, 64)
    >>> model(images).logits.shape
    torch.Size([2, 3, 16, 16])
    >>> model.adapt(images, gate=None).logits.shape
    torch.Size([2, 3, 16, 16])

    ```
    """

    task = SEGMENTATION
    output_class = IT3SemanticSegmenterOutput


__all__ = ["IT3ForSemanticSegmentation", "IT3SemanticSegmenterOutput"]
