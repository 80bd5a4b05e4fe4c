"""Models and data sets of an evaluation, from names or objects."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor

from ..data import class_names, image_processor_for, load_images, select_split
from ..it3.interface_it3 import IdempotentModel, idempotent_model
from ..it3.registration import load_model as load_by_name
from ..it3.task_it3 import Task
from .answers import answers_of
from .conditions import split_names
from .processes import process_state


@dataclass
class LoadedModel:
    """A model in eval mode on its device, its image processor and the name it was given by."""

    name: str
    model: IdempotentModel
    image_processor: Any


def load_model(
    model: Any,
    image_processor: Any = None,
    revision: str | None = None,
    dtype: Any = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads a model by name, or takes one as it is; it is moved to the device of this process.

    Args:
        model: Hub name, path, or an idempotent model.
        image_processor (*optional*): by default that of the checkpoint.
        revision, dtype, device_map (*optional*): as in `from_pretrained`.
        trust_remote_code (`bool`): whether code that model and image processor bring along may run.

    Raises:
        TypeError: for a model that takes no label signal.
        ValueError: for a model of a task that robustness is not measured for.
    """
    if isinstance(model, str):
        name = model
        loading = {"revision": revision, "dtype": dtype, "device_map": device_map}
        loading = {key: value for key, value in loading.items() if value is not None}
        model = load_by_name(name, trust_remote_code=trust_remote_code, **loading)
        if image_processor is None:
            hub = {} if revision is None else {"revision": revision}
            image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code, **hub)
    else:
        model = idempotent_model(model)
        name = model.config.name_or_path or type(model).__name__
        if image_processor is None:
            image_processor = image_processor_for(model.config)
    answers_of(Task.of(model.config), name)
    if getattr(model, "hf_device_map", None) is None:
        model.to(process_state().device)
    return LoadedModel(name, model, image_processor)


def load_subsets(
    dataset: Any, split: str, config_name: str | Sequence[str] | None = None, streaming: bool = False
) -> dict[str | None, Any]:
    """The data sets to evaluate on by name, `None` for the only one.

    Args:
        dataset: a name as [`~hf_it3.data.load_images`] takes it, a data set, a `DatasetDict`, or a mapping from names
            of your own to data sets (published corrupted sets, for instance).
        split: the split of names and `DatasetDict`s, or a range of one such as `"test[2000:]"`; several,
            comma-separated, are evaluated one by one.
        config_name (*optional*): the configuration; several, comma-separated or in a list, are evaluated one by one.
        streaming: whether named data sets are streamed.

    Raises:
        ValueError: for a split that does not exist.
    """
    if not isinstance(dataset, (str, Mapping)):
        return {None: dataset}
    splits = split_names(split)
    configs: Sequence[str | None] = split_names(config_name) or [None]
    if isinstance(dataset, Mapping) and not _is_dataset_dict(dataset):
        return dict(dataset)
    subsets: dict[str | None, Any] = {}
    for config in configs:
        loaded = load_images(dataset, config, streaming) if isinstance(dataset, str) else dataset
        for one in splits:
            names = (config if len(configs) > 1 else None, one if len(splits) > 1 else None)
            subsets["/".join(filter(None, names)) or None] = select_split(loaded, one)
    return subsets


def check_classes(subsets: Mapping[str | None, Any], loaded: Sequence[LoadedModel]) -> None:
    """Checks that class folders are those of the models, by their names or by their number.

    Raises:
        ValueError: for folders that cannot be assigned to classes.
    """
    for name, dataset in subsets.items():
        classes = class_names(dataset)
        for one in loaded:
            config = one.model.config
            if classes and not set(classes) <= set(config.id2label.values()) and len(classes) != config.num_labels:
                raise ValueError(
                    f"{name} has {len(classes)} class folders ({', '.join(classes[:3])}, ...), but {one.name} has "
                    f"{config.num_labels} classes of other names; evaluate on folders with the names of "
                    "config.id2label, or on those of all classes, which are numbered in alphabetical order"
                )


def _is_dataset_dict(dataset: Any) -> bool:
    import datasets

    return isinstance(dataset, (datasets.DatasetDict, datasets.IterableDatasetDict))


def has_splits(dataset: Any) -> bool:
    """Whether a split is chosen of a data set: of names and `DatasetDict`s."""
    return isinstance(dataset, str) or _is_dataset_dict(dataset)


def describe_dataset(dataset: Any) -> str | None:
    """The name of a data set: as given, or as the data set knows it, or `None`."""
    if isinstance(dataset, str):
        return dataset
    if isinstance(dataset, Mapping) and not _is_dataset_dict(dataset):
        return ", ".join(map(str, dataset))
    one = next(iter(dataset.values())) if isinstance(dataset, Mapping) else dataset
    return getattr(getattr(one, "info", None), "dataset_name", None)


def describe_image_processor(image_processor: Any) -> dict[str, Any]:
    """The settings of an image processor, as plain values."""
    if not hasattr(image_processor, "to_json_string"):
        return {"image_processor_type": type(image_processor).__name__}
    return json.loads(image_processor.to_json_string())


@torch.no_grad()
def weights_checksum(model: nn.Module) -> str | None:
    """SHA-256 of all parameters and buffers, which tells whether two models are the same; `None` if offloaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
