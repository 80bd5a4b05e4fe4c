"""The small convolutional network of the MNIST tutorial as a transformers model."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from .configuration_cnn_it3 import IT3CNNConfig
from .pooling_it3 import max_pool_2x2


@torch.no_grad()
def init_like_torch(module: nn.Module) -> None:
    """Initialises linear and convolution layers as torch does by default, which small networks need to train well."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.bias, -bound, bound)


class IT3CNNForImageClassification(PreTrainedModel):
    """Two 5x5 convolutions and four linear layers, two of them residual, with LeakyReLU: the network of torch-ttt's
    MNIST tutorial, with logits instead of probabilities as output.

    Args:
        config ([`IT3CNNConfig`]): the sizes.

    Example:

    ```python
    >>> import torch
    >>> from hf_it3 import IT3CNNConfig, IT3CNNForImageClassification
    >>> IT3CNNForImageClassification(IT3CNNConfig())(torch.rand(2, 1, 28, 28)).logits.shape
    torch.Size([2, 10])

    ```
    """

    config_class = IT3CNNConfig
    base_model_prefix = "it3_cnn"
    main_input_name = "pixel_values"
    input_modalities = "image"
    accepts_loss_kwargs = False

    def __init__(self, config: IT3CNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        first, second = config.conv_channels
        self.conv1 = nn.Conv2d(config.num_channels, first, config.kernel_size)
        self.conv2 = nn.Conv2d(first, second, config.kernel_size)
        self.fc1 = nn.Linear(config.flattened_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc3 = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc4 = nn.Linear(config.hidden_size, config.num_labels)
        self.activation = nn.LeakyReLU()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_like_torch(module)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """Classifies a batch of images.

        Args:
            pixel_values (`Tensor` of shape `(B, num_channels, image_size, image_size)`): normalised images.
            labels (`Tensor` of shape `(B,)`, *optional*): class indices; with them the output has a loss.
            output_hidden_states (`bool`, *optional*): whether to return the features behind each of the first five
                layers; by default as the configuration says.
            return_dict (`bool`, *optional*): whether to return a model output or a tuple.

        Raises:
            ValueError: if the images do not have the configured shape.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must have shape (batch, {', '.join(map(str, expected))}), "
                f"got {tuple(pixel_values.shape)}; does the image processor belong to this model?"
            )
        first = self.activation(max_pool_2x2(self.conv1(pixel_values)))
        second = self.activation(max_pool_2x2(self.conv2(first)))
        third = self.activation(self.fc1(second.flatten(1)))
        fourth = third + self.activation(self.fc2(third))
        fifth = fourth + self.activation(self.fc3(fourth))
        logits = self.fc4(fifth)
        loss = self.loss_function(labels, logits, self.config) if labels is not None else None
        keeps = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden_states: Any = (first, second, third, fourth, fifth) if keeps else None
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=hidden_states)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()
