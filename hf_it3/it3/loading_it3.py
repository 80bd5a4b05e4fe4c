"""Loading of models: safetensors only, whole or as a delta, the tensors that differ from a base model."""

import copy
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import resolve_revision

from .config_checks_it3 import check_values
from .configuration_it3 import IT3Config
from .plain_module_it3 import ModuleConfig, build_module


DELTA_NAME = "delta.safetensors"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# These belong to the repository of the delta, not to that of its base.
_OWN_ARGUMENTS = ("config", "revision", "subfolder", "variant", "_commit_hash", "adapter_kwargs")


# Whether the model under construction gets its weights from files.
_weights_follow: ContextVar[bool] = ContextVar("it3_weights_follow", default=False)


def weights_follow() -> bool:
    """Whether a model is being loaded: what was handed over for it then has no weights of its own to keep."""
    return _weights_follow.get()


def is_delta(base_model: dict[str, Any] | None) -> bool:
    """Whether a saved configuration's `base_model` says that only changed weights are there."""
    return base_model is not None and base_model.get("weights") == "delta"


def load(model_class: type, load_whole: Callable, name: Any, args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Loads a whole or a delta repository.

    Args:
        model_class: the class to load.
        load_whole (callable): `from_pretrained` of `PreTrainedModel`.
        name (`str` or `PathLike`): repository or directory.
        args, kwargs: the other arguments of `from_pretrained`.

    Returns:
        The model and the loading info.

    Raises:
        ValueError: for weights that are corrupt, of another shape, or pickled.
        OSError: as transformers raises it, for files that are missing.
    """
    if kwargs.setdefault("use_safetensors", True) is False:
        raise ValueError(
            f"use_safetensors=False: the weights of {name} are read from safetensors files only, because loading a "
            "pickle file can run code"
        )
    keeps_mismatched = kwargs.get("ignore_mismatched_sizes", False)
    kwargs["ignore_mismatched_sizes"] = True
    saved: dict[str, Any] = {}
    commit = None
    if name is not None:
        commit = _resolve(name, kwargs)
        if commit is not None:
            # One commit for configuration and weights. It also keeps transformers from asking a conversion service
            # for safetensors where a repository has none.
            kwargs["revision"] = commit
        saved, _ = IT3Config.get_config_dict(name, **of_hub(kwargs))
        if not saved and kwargs.get("config") is None:
            raise OSError(f"{name} has no config.json, which says what model the weights belong to")
        check_kind(name, saved, model_class.__name__)
        _bring_backbone(name, saved, kwargs)
        kwargs.pop("trust_remote_code", None)  # nothing else here is code of a stranger's
    token = _weights_follow.set(True)
    try:
        if is_delta(saved.get("base_model")):
            model, info = _load_delta(model_class, load_whole, name, saved["base_model"], args, kwargs)
        else:
            model, info = load_whole(name, *args, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(_corrupt(name, error)) from error
    except OSError as error:
        if is_delta(saved.get("base_model")):
            raise
        if "use_safetensors" in str(error) or _has_pickle(name):
            raise OSError(
                f"{name} has no model.safetensors; weights are read from safetensors files only, a pickle file such "
                "as pytorch_model.bin is refused because loading one can run code"
            ) from error
        raise
    finally:
        _weights_follow.reset(token)
    # An adapted model refers to its base by it.
    model.config._commit_hash = commit
    # What was measured for another task than the configuration tells by now is nothing that the model needs.
    mismatched = sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith("shift_reference."))
    if mismatched and not keeps_mismatched:
        key, saved_shape, shape = mismatched[0]
        raise ValueError(
            f"{len(mismatched)} weights of {name} do not fit the configuration (num_labels="
            f"{model.config.num_labels}): {key} is saved as {tuple(saved_shape)}, expected {tuple(shape)}"
        )
    return model, info


def check_kind(name: Any, saved: dict[str, Any], model_class: str) -> None:
    """Refuses the checkpoint of another kind of model, with the way to wrap it."""
    kind = saved.get("model_type")
    if kind not in (None, IT3Config.model_type):
        raise ValueError(
            f"{name} holds a model of type {kind!r}, which takes no label signal; wrap it with "
            f"{model_class}.from_backbone({str(name)!r}), and train it with IT3Trainer"
        )


def _bring_backbone(name: Any, saved: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Adds to the arguments the plain module that the weights go into: a copy of the caller's, or a new one."""
    described = saved.get("backbone_config")
    if not isinstance(described, dict) or described.get("model_type") != ModuleConfig.model_type:
        return
    given = kwargs.get("backbone")
    if given is None:
        check_values(described, f"{name}/config.json: backbone_config.")
        config: Any = ModuleConfig.from_dict(described)
        kwargs["backbone"] = build_module(config, may_import=bool(kwargs.get("trust_remote_code")))
    elif isinstance(given, nn.Module):
        kwargs["backbone"] = copy.deepcopy(given)
    else:
        raise TypeError(f"backbone must be the nn.Module that the weights are loaded into, got {type(given).__name__}")


def of_hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say where and how to download."""
    return {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}


def _resolve(name: Any, kwargs: dict[str, Any]) -> str | None:
    """The commit that a repository's revision stands for; `None` for a directory, and for what cannot be reached."""
    names = ("revision", "token", "local_files_only", "cache_dir")
    revision = resolve_revision(name, **{key: kwargs[key] for key in names if key in kwargs})
    return getattr(revision, "resolved", None)


def _corrupt(name: Any, error: Exception) -> str:
    return f"the weights of {name} are corrupt or truncated ({error}); download or save them again"


def _has_pickle(name: Any) -> bool:
    return (
        name is not None
        and os.path.isdir(name)
        and any(file.startswith("pytorch_model") and ".bin" in file for file in os.listdir(name))
        and not any(file.endswith(".safetensors") for file in os.listdir(name))
    )


def _load_delta(
    model_class: Any, load_whole: Callable, name: Any, base_model: dict[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple:
    base: Any = base_model.get("delta_of")
    if not isinstance(base, dict) or not all(isinstance(base.get(key), str) for key in ("name_or_path", "revision")):
        raise ValueError(f"{name} holds changed weights only, but its config.json does not name base and revision")
    access = of_hub(kwargs)
    file = cached_file(name, DELTA_NAME, **access)
    if file is None:
        raise OSError(f"{name} has no {DELTA_NAME}")
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        config, kwargs = model_class.config_class.from_pretrained(name, return_unused_kwargs=True, **kwargs)
    base_config = copy.deepcopy(config)
    # Building the configuration uses up the token and the like, which the base model needs as well.
    own = {key: value for key, value in {**kwargs, **access}.items() if key not in _OWN_ARGUMENTS}
    model, info = load_whole(
        base["name_or_path"], *args, output_loading_info=True, **own, config=base_config, revision=base["revision"]
    )
    _apply(model, file, name)
    model.config.name_or_path = model.name_or_path = str(name)
    return model, info


def _apply(model: nn.Module, file: str, name: Any) -> None:
    """Writes the tensors of a delta file into the model."""
    state = model.state_dict()
    with safe_open(file, framework="pt") as delta, torch.no_grad():
        for key in delta.keys():  # noqa: SIM118 (it is no mapping)
            value = delta.get_tensor(key)
            if key not in state or state[key].shape != value.shape:
                expected = tuple(state[key].shape) if key in state else "no such weight"
                raise ValueError(
                    f"the changed weights of {name} do not fit the base model: {key} has shape {tuple(value.shape)}, "
                    f"expected {expected}"
                )
            if state[key].is_meta:
                raise ValueError(f"{name} holds changed weights only, which cannot be applied to offloaded weights")
            state[key].copy_(value)
