"""Which weights can be copied and stepped on, as adaptation does with them."""

from torch import nn


_QUANTISED = ("torch.ao.nn.quantized", "torch.nn.quantized", "bitsandbytes", "torchao")


def check_adaptable(model: nn.Module) -> None:
    """Refuses weights that are elsewhere, in parts or in integers.

    Raises:
        ValueError: if weights are offloaded, not loaded, sharded or quantised; the message names the first.
    """
    for name, module in model.named_modules():
        # By name, because importing these packages takes long, and some builds of torch lack them.
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind.startswith(_QUANTISED) or getattr(module, "is_quantized", False):
            raise ValueError(_quantised(name or "the model", kind))
        if kind.endswith(".FullyShardedDataParallel"):
            raise ValueError(_sharded(name or "the model", kind))
    for name, parameter in model.named_parameters():
        kind = f"{type(parameter).__module__}.{type(parameter).__qualname__}"
        if parameter.device.type == "meta":
            raise ValueError(
                f"{name} is on the meta device: the weights are offloaded or not loaded, and cannot be adapted; load "
                "the model without offloading (device_map=None or a map that keeps all of it in memory)"
            )
        if kind.startswith(_QUANTISED):
            raise ValueError(_quantised(name, kind))
        if kind.startswith("torch.distributed") or hasattr(parameter, "ds_id"):
            raise ValueError(_sharded(name, kind))


def _quantised(name: str, kind: str) -> str:
    return (
        f"{name} is quantised ({kind}), and no gradient goes through it, so it cannot be adapted; adapt the model "
        "before it is quantised, or use it without adaptation"
    )


def _sharded(name: str, kind: str) -> str:
    return (
        f"{name} is sharded over processes ({kind}), and adaptation needs whole weights; save the model and load it "
        "whole in each process, or train with DistributedDataParallel"
    )
