"""Which layer of a backbone takes the label signal: found, checked, and given the hook that injects it."""

import difflib

from torch import nn
from transformers.utils import logging

from .configuration_it3 import IT3Config
from .injection_it3 import SignalInjection, batch_norm_behind, drop_hooks, last_channels, puts_channels_last


logger = logging.get_logger(__name__)


def connect_injection_layer(backbone: nn.Module, config: IT3Config) -> int:
    """Gives the injection layer the hook that injects the embedded label signal, and returns its channels.

    Fills in `config.injection_layer` and `config.injection_channels` where they are not set.

    Raises:
        ValueError: if the injection layer does not exist or its channels cannot be told.
    """
    if config.injection_layer is None:
        config.injection_layer = find_injection_layer(backbone)
    name = config.injection_layer
    layer = get_injection_layer(backbone, name)
    if config.injection_channels is None:
        config.injection_channels = count_channels(layer, name)
    if behind := batch_norm_behind(backbone, name):
        logger.warning(
            f"injection_layer={name!r} lies in front of the BatchNorm {behind!r}, which with batch statistics (in "
            "training, and with norm_statistics='batch' or 'mixed') erases what a batch's signals have in common; "
            f"injection_layer={behind!r} lies behind it"
        )
    better = suggest_injection_layer(backbone)
    drop_hooks(backbone, SignalInjection)  # of a model that the backbone comes out of
    channels = config.injection_channels
    layer.register_forward_hook(SignalInjection(name, config.combine, puts_channels_last(layer), better, channels))
    return channels


# Names that models of the ecosystem give to the part that turns pixels into the first features.
_STEM_NAMES = (
    "conv_stem",
    "embedder",
    "embedding",
    "embeddings",
    "patch_embed",
    "patch_embedding",
    "patch_embeddings",
    "patch_embeds",
    "stem",
)


def find_injection_layer(backbone: nn.Module) -> str:
    """Name of the backbone's stem: the outermost stem-named ancestor of its first convolution, or that convolution.

    Where a BatchNorm follows immediately, it is that BatchNorm. Reads the structure only, nothing runs.

    Raises:
        ValueError: if the backbone has no 2-d convolution.
    """
    name = _find_stem(backbone)
    return batch_norm_behind(backbone, name) or name


def suggest_injection_layer(backbone: nn.Module) -> str | None:
    """As [`find_injection_layer`], but `None` where there is nothing to suggest."""
    try:
        return find_injection_layer(backbone)
    except ValueError:
        return None


def _find_stem(backbone: nn.Module) -> str:
    modules = dict(backbone.named_modules())
    first = next((name for name, module in modules.items() if isinstance(module, nn.Conv2d)), None)
    if not first:
        raise ValueError(
            f"{type(backbone).__name__} has no 2-d convolution to start from; name the layer whose output shall "
            f"receive the label signal with injection_layer=..., for example {next(reversed(modules))!r}"
        )
    parts = first.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        in_stem_list = depth > 1 and parts[depth - 2] in _STEM_NAMES
        if isinstance(modules[name], nn.ModuleList):
            continue
        if parts[depth - 1] in _STEM_NAMES or in_stem_list:
            return name
    return first


def get_injection_layer(backbone: nn.Module, name: str) -> nn.Module:
    """The module of that name; a ValueError with the closest names if there is none."""
    modules = dict(backbone.named_modules())
    if name and name in modules:
        return modules[name]
    candidates = [candidate for candidate in modules if candidate]
    close = difflib.get_close_matches(name, candidates, n=1)
    close = close or [candidate for candidate in candidates if candidate.split(".")[-1] == name.split(".")[-1]][:1]
    hint = f"did you mean {close[0]!r}?" if close else f"its modules are {', '.join(candidates[:12])}, ..."
    raise ValueError(f"injection_layer={name!r} is not a module of {type(backbone).__name__}; {hint}")


def count_channels(layer: nn.Module, name: str) -> int:
    """Channels of a layer's output, read from the last convolution, linear or normalisation layer inside it.

    Raises:
        ValueError: if there is no such layer inside.
    """
    channels = last_channels(layer)
    if channels is None:
        raise ValueError(
            f"injection_layer={name!r} ({type(layer).__name__}) holds no convolution, linear or normalisation layer "
            "to read its channels from; set injection_channels, or choose another layer"
        )
    return channels
