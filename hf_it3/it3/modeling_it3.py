"""Models that also take a label signal, around any backbone: what all have in common, and the image classifier."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .adaptation_it3 import TestTimeAdapter
from .adaptation_output_it3 import AdaptationOutput
from .alignment_it3 import FeatureStatistics
from .backbones_it3 import (
    LOADING_ARGUMENTS,
    backbone_logits,
    build_backbone,
    copy_module,
    drop_weight_caches,
    keep_weights,
    share_config,
    take_over,
)
from .batchnorm_it3 import SplitBatchNorm, split_batch_norms
from .clean_buffers_it3 import CleanBuffers
from .configuration_it3 import CLASSIFICATION, IT3Config
from .embedders_it3 import LabelEmbedder
from .hub_it3 import HubModel
from .injection_it3 import CheckpointInSamePass, ForwardPass, running_pass
from .injection_layer_it3 import connect_injection_layer, suggest_injection_layer
from .modeling_cnn_it3 import init_like_torch
from .plain_module_it3 import ModuleConfig, warn_of_probabilities
from .shell_it3 import freeze_in_training, unfreeze_in_training
from .shift_reference_it3 import ShiftReference
from .task_it3 import Task


__all__ = ["IT3ForImageClassification", "IT3ImageClassifierOutput", "IT3PreTrainedModel", "LabelEmbedder"]

_Model = TypeVar("_Model", bound="IT3PreTrainedModel")


@dataclass
class IT3ImageClassifierOutput(ModelOutput):
    """Output of [`IT3ForImageClassification`].

    Args:
        loss (`Tensor` of shape `()`, *optional*): classification loss + idempotence_weight x idempotence loss.
        logits (`Tensor` of shape `(B, num_labels)`): of the pass that was asked for; with labels, of the first pass.
        signal_logits (`Tensor` of shape `(B, num_labels)`, *optional*): of the signal pass, given the true labels.
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


def not_a_label(name: str) -> Callable[[Callable], Callable]:
    """Leaves an argument out of the signature that a method shows.

    `Trainer` takes every argument with "label" in its name for a label, and gives neither loss nor metrics for a batch
    that lacks one.
    """

    def hide(method: Callable) -> Callable:
        signature = inspect.signature(method)
        shown = [parameter for parameter in signature.parameters.values() if parameter.name != name]
        vars(method)["__signature__"] = signature.replace(parameters=shown)
        return method

    return hide


class IT3PreTrainedModel(HubModel, PreTrainedModel):
    """What idempotent models of every task have in common: a backbone, an embedder, and the passes through both.

    Args:
        config ([`IT3Config`]): the configuration.
        backbone (`nn.Module`, *optional*): the model to wrap; by default built from `config.backbone_config`. It keeps
            its weights and becomes part of the model; `from_backbone` copies it and fills in the configuration.
        embedder (`nn.Module`, *optional*): maps a label signal to an embedding for the injection layer and keeps its
            weights; by default a new one, as the task makes it.

    Raises:
        ValueError: if the injection layer does not exist or its channels cannot be told.
    """

    config_class = IT3Config
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_missing = [r"shift_reference\.", r"feature_statistics\."]
    _keep_in_fp32_modules_strict = {"shift_reference", "feature_statistics"}
    # The losses are means over the batch: Trainer has nothing to rescale.
    accepts_loss_kwargs = False
    # The backbone class decides; it is checked there.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    # The task of the class, as in `IT3Config.task`.
    task: str = CLASSIFICATION
    _classifier_is_frozen = False
    _logits_are_checked = False
    # What `forward` returns.
    output_class: type[ModelOutput] = IT3ImageClassifierOutput

    def __init__(self, config: IT3Config, backbone: nn.Module | None = None, embedder: nn.Module | None = None):
        if config.task not in (CLASSIFICATION, self.task):
            raise ValueError(
                f"{type(self).__name__} is for {self.task}, but the configuration is of a model for {config.task}"
            )
        config.task = self.task
        super().__init__(config)
        for given in (backbone, embedder):
            if given is not None:
                keep_weights(given)
        config.sync_backbone_labels()
        self.backbone = build_backbone(config) if backbone is None else backbone
        share_config(config, self.backbone)
        split_batch_norms(self.backbone)
        drop_weight_caches(self.backbone)
        # Before the injection layer's own hook: what is injected is not aligned there.
        self.feature_statistics = FeatureStatistics(self.backbone)
        channels = connect_injection_layer(self.backbone, config)
        if embedder is None and config.embedder_class is not None:
            raise ValueError(
                f"this model was saved with a label embedder of its own ({config.embedder_class}); pass embedder=..., "
                "an instance of that class"
            )
        if embedder is not None:
            config.embedder_class = f"{type(embedder).__module__}.{type(embedder).__qualname__}"
        task = Task.of(config)
        self.embedder = task.make_embedder(channels) if embedder is None else embedder
        self.shift_reference = ShiftReference(channels, task.num_classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, CleanBuffers):
            module.forget()  # a checkpoint from before there was one
        init_like_torch(module)

    def freeze_classifier(self) -> None:
        """Restricts training to the label embedder, and to the statistics of BatchNorm layers in signal passes.

        What the model answers without a label signal stays bit-identical from then on: parameters of the backbone no
        longer require gradients, and in training mode its layers work as in evaluation.
        """
        freeze_in_training(self, [f"backbone.{name}" for name, _ in self.backbone.named_parameters()])
        self._classifier_is_frozen = True
        self.train(self.training)

    def unfreeze_classifier(self) -> None:
        """Lets training change whatever it was kept from, by `freeze_classifier` or by the trainer."""
        unfreeze_in_training(self)
        self._classifier_is_frozen = False

    def train(self: _Model, mode: bool = True) -> _Model:
        """As in every module; a classifier that is frozen stays in evaluation mode."""
        super().train(mode)
        if self._classifier_is_frozen:
            self.backbone.eval()
            for module in self.backbone.modules():
                if isinstance(module, SplitBatchNorm):
                    module.collects_signal_statistics = mode
        return self

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, every_n_layers: int = 1
    ) -> None:
        super()._set_gradient_checkpointing(enable, CheckpointInSamePass(gradient_checkpointing_func), every_n_layers)

    @classmethod
    def from_backbone(
        cls: type[_Model],
        backbone: Any,
        *,
        embedder: nn.Module | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> _Model:
        """Wraps a classifier and keeps its weights, frozen parts and modes; the caller's objects are copied, not
        changed.

        Args:
            backbone: a Hub name or local path, a configuration (new weights), a `PreTrainedModel` (a headless one
                gets pooling and a linear head), or an `nn.Module` from pixels to logits.
            embedder (`nn.Module`, *optional*): as in the constructor; moved to the backbone's device and type.
            backbone_kwargs (`dict`, *optional*): for an `nn.Module`: JSON arguments from which its class builds an
                equal one, so that the model can be loaded without an instance. By default, and where the class cannot
                be imported, `from_pretrained` needs `backbone=module`.
            kwargs: arguments of [`IT3Config`], and of `from_pretrained` (`revision`, `token`, `dtype`, ...) where a
                name is given.

        Raises:
            TypeError: for any other kind of backbone.
            ValueError: for invalid configuration values.

        Example:

        ```python
        >>> from transformers import ResNetConfig
        >>> from hf_it3 import IT3ForImageClassification
        >>> backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
        >>> IT3ForImageClassification.from_backbone(backbone).config.injection_layer
        'resnet.embedder'

        ```
        """
        loading = {key: kwargs.pop(key) for key in LOADING_ARGUMENTS if key in kwargs}
        module, values = take_over(backbone, {**kwargs, "task": cls.task}, loading, backbone_kwargs)
        own = None if embedder is None else copy_module(embedder)
        model = cls(IT3Config(**values), backbone=module, embedder=own)
        first = next(module.parameters(), None)
        if first is not None:
            model.embedder.to(device=first.device, dtype=first.dtype)
        model.training = module.training
        for own in (model.feature_statistics, model.shift_reference):
            own.train(module.training)
        if embedder is None:
            model.embedder.train(module.training)
        return model

    @not_a_label("label_signal")
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        label_signal: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answers a batch of images.

        Args:
            pixel_values (`Tensor` of shape `(B, C, H, W)`): images as the image processor returns them; floats of
                another precision are cast to the model's.
            labels (`Tensor`, *optional*): of shape `(B,)`, class indices; `(B, num_labels)` for several labels or
                regression; `(B, H, W)`, class indices, for segmentation. With labels alone, both passes run and the
                output has a loss.
            label_signal (`Tensor`, *optional*): probabilities, or a one-hot label, given to the model, of shape `(B,
                num_labels)`, or `(B, num_labels, h, w)` for segmentation; one pass runs.
            return_dict (`bool`, *optional*): whether to return an output or a tuple.
            kwargs: passed to the backbone.

        Raises:
            ValueError: if labels do not fit or are out of range, the signal has the wrong shape, or the injection
                layer did not run.
        """
        is_float = isinstance(pixel_values, Tensor) and pixel_values.is_floating_point()
        if is_float and pixel_values.dtype != self.dtype:
            pixel_values = pixel_values.to(self.dtype)
        first = self._run(pixel_values, label_signal, **kwargs)  # f(x), or f(x, s) of a signal that is given
        if labels is None:
            return self._output(first, return_dict)
        if not self._logits_are_checked and not torch.compiler.is_compiling():
            self._check_logits(first[0])
        task = Task.of(self.config, labels)
        labels = task.fit_labels(labels, first[0])
        classification_loss = task.loss(first[0], labels)
        if self.config.problem_type is None and self.config.task == CLASSIFICATION:
            self.config.problem_type = task.name  # type: ignore[assignment]
            self.config.sync_backbone_labels()
        if label_signal is not None:
            return self._output(first, return_dict, loss=classification_loss)
        second = self._run(pixel_values, task.signal(labels, first[0]), **kwargs)  # f(x, y)
        idempotence_loss = task.loss(second[0], labels)
        return self._output(
            first,
            return_dict,
            loss=classification_loss + self.config.idempotence_weight * idempotence_loss,
            signal_logits=second[0],
            classification_loss=classification_loss.detach(),
            idempotence_loss=idempotence_loss.detach(),
        )

    def _check_logits(self, logits: Tensor) -> None:
        self._logits_are_checked = True
        if isinstance(self.config.backbone_config, ModuleConfig) and len(logits):
            warn_of_probabilities(logits, self.backbone)

    def _run(self, pixel_values: Tensor, label_signal: Tensor | None, **kwargs: Any) -> tuple[Tensor, Any]:
        """One pass through the backbone: its logits and its whole output."""
        if not isinstance(pixel_values, Tensor):
            raise ValueError(f"pixel_values must be a tensor of shape (B, C, H, W), got {type(pixel_values).__name__}")
        signal = self._neutral_signal(pixel_values) if label_signal is None else label_signal
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        forward_pass = ForwardPass(image_size=size, is_signal_pass=label_signal is not None)
        if signal is not None:
            forward_pass.embedding = self._embed(signal, len(pixel_values))
        with running_pass(forward_pass):
            output = self.backbone(pixel_values, **kwargs)
        if signal is not None and not forward_pass.injected:
            better = suggest_injection_layer(self.backbone)
            example = f", for example {better!r}" if better not in (None, self.config.injection_layer) else ""
            raise ValueError(
                f"injection_layer={self.config.injection_layer!r} did not run in the forward pass of "
                f"{type(self.backbone).__name__}; choose a layer that does{example}"
            )
        return backbone_logits(output, self.backbone, self.config), output

    def _neutral_signal(self, pixel_values: Tensor) -> Tensor | None:
        if self.config.neutral_signal == "none":
            return None
        value = 0.0 if self.config.neutral_signal == "zeros" else 1.0 / self.config.num_labels
        return Task.of(self.config).uniform_signal(len(pixel_values), value, pixel_values.device)

    def _embed(self, signal: Tensor, batch_size: int) -> Tensor:
        Task.of(self.config).check_signal(signal, batch_size)
        parameters = list(self.embedder.parameters())  # torch 2.8 compiles no next() with a default
        return self.embedder(signal.to(parameters[0].dtype) if parameters else signal)

    def _output(self, first: tuple[Tensor, Any], return_dict: bool | None, **fields: Any) -> Any:
        logits, backbone_output = first
        values = {
            "loss": None,
            "logits": logits,
            **fields,
            "hidden_states": getattr(backbone_output, "hidden_states", None),
            "attentions": getattr(backbone_output, "attentions", None),
        }
        if self.config.return_dict if return_dict is None else return_dict:
            return self.output_class(**values)
        return tuple(value for value in values.values() if value is not None)

    def adapt(self, pixel_values: Tensor, **overrides: Any) -> AdaptationOutput:
        """Adapts a copy of the model's weights to the images and classifies them with it; the model stays as it is.

        Args:
            pixel_values (`Tensor` of shape `(B, C, H, W)`): unlabelled images.
            overrides: fields of [`AdaptationConfig`] that differ from `config.adaptation` in this call.

        Raises:
            ValueError: for unknown fields, fields that cannot act beside the others, and scope `"stream"`, which needs
                a [`TestTimeAdapter`] to live in.
        """
        if "batch_size" in overrides:
            raise ValueError(
                f"batch_size={overrides['batch_size']!r} cannot act: the images of one call adapt together; split "
                "them yourself, or use a pipeline, which does"
            )
        adapter = TestTimeAdapter(self, **overrides)
        if adapter.config.scope == "stream":
            raise ValueError(
                "scope='stream' keeps weights between calls; create one TestTimeAdapter(model) and call it"
            )
        return adapter(pixel_values)


class IT3ForImageClassification(IT3PreTrainedModel):
    """An idempotent image classifier: `f(x)` classifies images, `f(x, s)` classifies them given a label signal.

    Trained so that `f(x) = y` and `f(x, y) = y`, it can adapt itself at test time by making its own prediction a fixed
    point (Durasov et al., IT3: Idempotent Test-Time Training, ICML 2025).

    Args:
        config ([`IT3Config`]): the configuration.
        backbone (`nn.Module`, *optional*): the classifier to wrap; by default built from `config.backbone_config`.
            It keeps its weights and becomes part of the model; [`~IT3ForImageClassification.from_backbone`] copies it
            and fills in the configuration.
        embedder (`nn.Module`, *optional*): maps a label signal `(B, num_labels)` to `(B, channels)` and keeps its
            weights; by default a new [`LabelEmbedder`].

    Raises:
        ValueError: if the injection layer does not exist or its channels cannot be told.

    Example:

    ```python
    >>> import torch
    >>> from hf_it3 import IT3Config, IT3ForImageClassification
    >>> model = IT3ForImageClassification(IT3Config(num_labels=10)).eval()
    >>> images = torch.rand(4, 1, 28, 28)
    >>> model(images).logits.shape
    torch.Size([4, 10])
    >>> model.adapt(images, gate=None).logits.shape
    torch.Size([4, 10])

    ```
    """
