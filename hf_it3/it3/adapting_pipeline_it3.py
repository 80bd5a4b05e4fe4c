"""What pipelines of every task share: reading images, adapting in every call, streams that live on between calls."""

import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, tensor
from torch.utils.data import Dataset
from transformers.image_utils import load_image
from transformers.pipelines import Pipeline

from .adaptation_config_it3 import AdaptationConfig
from .adaptation_it3 import TestTimeAdapter
from .backbone_defaults_it3 import resolve_defaults
from .configuration_it3 import CLASSIFICATION, SEGMENTATION
from .image_processing_it3 import match_channels, to_array, to_mode
from .interface_it3 import IdempotentModel, idempotent_model
from .named_settings_it3 import check_named
from .origin_it3 import is_remote_code
from .shell_it3 import ModelShell


# Adapters that a pipeline keeps, of streams and of others; each holds a copy of the parameters that it may change.
_MAX_ADAPTERS = 4
_STOCK_TASKS = {CLASSIFICATION: "image-classification", SEGMENTATION: "image-segmentation"}
_OWN_STATE = ("_adapters", "_adapters_lock", "_shell")


@dataclass
class _Numbered:
    """An input with its position among the inputs of a call, for error messages."""

    image: Any
    position: int


class _NumberedDataset(Dataset):
    """A data set whose items know their position."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Numbered:
        return _Numbered(self.dataset[index], index)


class AdaptingPipeline(Pipeline):
    """A pipeline whose model adapts itself to the images, without labels; the base of those for a task.

    Takes what the stock pipelines for images take, and adapts by default: the images of one call, in groups of
    `adaptation_batch_size`, share adapted weights (or not, as the model's settings say). The model itself is never
    changed, and answers as in eval mode whatever mode it is in.

    Streams live on from call to call, one for each setting of scope `"stream"`; of more than four, those that were
    used least recently are dropped and start again. A copy of a pipeline has streams of its own.
    """

    # `Pipeline` declares the first value of each, None, and no type.
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False
    # Otherwise the code of a repository is taken for a video processor's, and has to be trusted.
    _load_video_processor: Any = False

    model: IdempotentModel

    # The task of the models that a pipeline takes, and what it does to images, for error messages.
    task_of_models = CLASSIFICATION
    verb = "classify"
    participle = "classified"

    def __init__(self, *args: Any, **kwargs: Any):
        self._forget_adapters()
        check_count("batch_size", kwargs.get("batch_size"))
        super().__init__(*args, **kwargs)
        self.check_model_type(None)

    def _forget_adapters(self) -> None:
        self._adapters: list[tuple[AdaptationConfig, TestTimeAdapter]] = []
        self._shell: ModelShell | None = None
        self._adapters_lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # Locks can be neither copied nor pickled, and a copy makes its own adapters.
        return {name: value for name, value in vars(self).items() if name not in _OWN_STATE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget_adapters()

    def check_model_type(self, supported_models: Any) -> None:
        """Refuses models that take no label signal, and those for another task."""
        try:
            task = idempotent_model(self.model).config.task
        except TypeError as error:
            stock = _STOCK_TASKS[self.task_of_models]
            raise ValueError(f"{error}, or use the stock {stock!r} pipeline") from None
        if task != self.task_of_models:
            raise ValueError(
                f"the model is for {task}, and this pipeline for {self.task_of_models}; use the task "
                f"'it3-{_STOCK_TASKS[task]}'"
            )

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        adapt: bool | None = None,
        return_idempotence: bool | None = None,
        return_unadapted: bool | None = None,
        return_loss_history: bool | None = None,
        **overrides: Any,
    ) -> tuple[dict, dict, dict]:
        overrides = _as_fields(overrides)
        preprocess = {} if timeout is None else {"timeout": timeout}
        forward: dict[str, Any] = {}
        if adapt is not None:
            if not isinstance(adapt, bool):
                raise ValueError(f"adapt={adapt!r} must be True or False")
            forward["adapt"] = adapt
        if overrides:
            # Also checks the names and values, before any image is read.
            merged = {**getattr(self, "_forward_params", {}).get("overrides", {}), **overrides}
            settings = self.model.config.adaptation.replace(**merged)
            check_named(settings, resolve_defaults(settings, self.model), overrides)
            forward["overrides"] = merged
        additions = {
            "return_idempotence": return_idempotence,
            "return_unadapted": return_unadapted,
            "return_loss_history": return_loss_history,
        }
        return preprocess, forward, {name: value for name, value in additions.items() if value is not None}

    # The hints of `Pipeline` ask for more than its image pipeline takes; the methods here follow the latter.
    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Answers for images.

        Args:
            inputs: an image (path, URL, base64 string, `PIL.Image`, array or tensor), a list of images, a data set
                (torch or `datasets`, with a column of images), or a generator. Arrays and tensors hold integers from 0
                to 255, floats in [0, 1] as torchvision's `ToTensor` makes them, or floats up to 255; an image
                processor with `do_rescale=False` gets them as they are.
            timeout (`float`, *optional*): seconds to wait for an image from the web.
            kwargs: see the class.

        Returns:
            For an image a list of dictionaries; for several a list (for generators and data sets an iterator) of such
            lists, in the order of the inputs.

        Raises:
            ValueError: for an empty list or an input that is not an image; with several, the message gives its
                position.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("the pipeline needs images: a path, URL, PIL image, array, or a list or data set of them")
        check_count("batch_size", kwargs.get("batch_size"))
        inputs, is_many = self._number(inputs)
        if is_many and kwargs.get("batch_size") is None and self._batch_size is None:
            kwargs["batch_size"] = self.model.config.adaptation.batch_size
        return super().__call__(inputs, **kwargs)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Any:
        """The iterator of `Pipeline`, whose batches are the images that adapt together, whatever `batch_size` is."""
        config = self.model.config.adaptation.replace(**forward_params.get("overrides", {}))
        if forward_params.get("adapt", True) and config.scope in ("batch", "stream"):
            batch_size = config.batch_size
        return super().get_iterator(
            inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
        )

    def _number(self, inputs: Any) -> tuple[Any, bool]:
        """Attaches positions to the images of a collection, and tells collections from single images."""
        is_sequence = isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes))
        if is_sequence or (isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4):
            if len(inputs) == 0:
                raise ValueError(f"the list of images is empty: there is nothing to {self.verb}")
            return [_Numbered(image, position) for position, image in enumerate(inputs)], True
        if isinstance(inputs, dict) and hasattr(inputs, "column_names"):
            raise ValueError(f"the data set has the splits {', '.join(inputs)}; pass one of them")
        is_dataset = isinstance(inputs, Dataset) or hasattr(inputs, "column_names")
        if is_dataset and hasattr(inputs, "__len__"):
            return _NumberedDataset(inputs), True
        if is_dataset or isinstance(inputs, Iterator):
            return (_Numbered(image, position) for position, image in enumerate(inputs)), True
        return inputs, False

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Loads one image and runs the image processor; errors name the image and, in a collection, its position."""
        position = None
        if isinstance(image, _Numbered):
            image, position = image.image, image.position
        given = _describe(image)
        try:
            loaded = self._load(_image_of(image), timeout)
            if self.image_processor is None:
                raise ValueError("the pipeline has no image processor; pass image_processor=...")
            inputs = self.image_processor(images=loaded, return_tensors="pt")
        except Exception as error:
            # Of many kinds: PIL reports some broken files as SyntaxError, the HTTP client has errors of its own.
            where = "image" if position is None else f"image {position}"
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{where} ({given}) cannot be {self.participle}: {reason}") from error
        return {"pixel_values": inputs["pixel_values"].to(self.dtype), "image_size": _size_of(loaded)}

    def _load(self, image: Any, timeout: float | None) -> Any:
        channels = self.model.config.image_channels
        if isinstance(image, (np.ndarray, Tensor)):
            return match_channels(to_array(image, getattr(self.image_processor, "do_rescale", True)), channels)
        if isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
            if os.path.isdir(path):
                raise ValueError("it is a folder; give the files in it")
            is_file_name = os.path.splitext(path)[1].lower() in Image.registered_extensions()  # base64 has no dot
            if is_file_name and not os.path.isfile(path) and not path.startswith(("http://", "https://")):
                raise ValueError("there is no such file")
            # Opened here where possible: the stock loader turns everything to RGB, 16-bit images badly.
            image = Image.open(path) if os.path.isfile(path) else load_image(path, timeout=timeout)
        if not isinstance(image, Image.Image):
            raise TypeError("an image must be a path, a URL, a base64 string, a PIL image, an array or a tensor")
        return to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Tensor], adapt: bool = True, overrides: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        pixel_values = model_inputs["pixel_values"]
        if not adapt:
            return {"logits": self._plain_logits(pixel_values), "image_size": model_inputs["image_size"]}
        output = self._adapter(overrides or {})(pixel_values)
        # Of each image, since the outputs of a batch are taken apart; images that share weights share their history.
        history = output.loss_history
        history = history.T if history.ndim == 2 else history.expand(len(pixel_values), -1)
        names = (
            *("logits", "initial_logits", "idempotence", "adapted", "averaged"),
            *("distance_shift", "feature_shift"),
        )
        answers = {name: output[name] for name in names}
        return {**answers, "loss_history": history, "image_size": model_inputs["image_size"]}

    def _plain_logits(self, pixel_values: Tensor) -> Tensor:
        """Logits of the unadapted model in eval mode; modes and buffers of a model in training stay as they are."""
        if not any(module.training for module in self.model.modules()):
            return self.model(pixel_values, return_dict=True).logits
        with self._adapters_lock:
            if self._shell is None or self._shell.is_stale():
                self._shell = ModelShell(idempotent_model(self.model), None)
            shell = self._shell
            shell.restore_buffers()  # training goes on
        return shell(pixel_values)

    def _adapter(self, overrides: dict[str, Any]) -> TestTimeAdapter:
        """The adapter for these settings, kept so that streams live on from call to call."""
        # Whatever number of images it gets at once: a stream goes on.
        overrides = {name: value for name, value in overrides.items() if name != "batch_size"}
        config = self.model.config.adaptation.replace(**overrides)
        with self._adapters_lock:
            entry = next((entry for entry in self._adapters if entry[0] == config), None)
            entry = entry or (config, TestTimeAdapter(self.model, config))
            # Whichever comes first was used last.
            entries = [entry, *(other for other in self._adapters if other is not entry)]
            streams = [other for other in entries if other[0].scope == "stream"]
            others = [other for other in entries if other[0].scope != "stream"]
            self._adapters = [*streams[:_MAX_ADAPTERS], *others[:_MAX_ADAPTERS]]
            return entry[1]

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and image processor.

        Args:
            save_directory (`str` or `PathLike`): where to save.
            kwargs: as in `save_pretrained` of the model, `include_code` and `delta` for instance.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        if self.image_processor is not None:  # last, since a model may bring the one that it was trained with
            self.image_processor.save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Pushes model, image processor and model card to the Hub, in one commit; see `push_to_hub` of the model."""
        if is_remote_code(self):
            return super().push_to_hub(repo_id, **kwargs)
        return self.model.push_to_hub(repo_id, image_processor=self.image_processor, **kwargs)

    def adapter(self, **overrides: Any) -> TestTimeAdapter:
        """The adapter behind the calls of this pipeline, to `reset()` a stream or take its `adapted_model()`."""
        return self._adapter({**self._forward_params.get("overrides", {}), **_as_fields(overrides)})

    def _shift_of(
        self, model_outputs: dict[str, Tensor], return_idempotence: bool, return_loss_history: bool
    ) -> dict[str, Any]:
        """The fields about adaptation that were asked for, which each answer for an image gets."""
        shift: dict[str, Any] = {}
        if return_idempotence and "idempotence" in model_outputs:
            shift["idempotence"] = model_outputs["idempotence"][0].item()
            shift["adapted"] = bool(model_outputs["adapted"][0])
            shift["averaged"] = bool(model_outputs["averaged"][0])
            for name in ("distance_shift", "feature_shift"):
                value = model_outputs[name][0].item()
                shift[name] = None if math.isnan(value) else value
        if return_loss_history and "loss_history" in model_outputs:
            shift["loss_history"] = model_outputs["loss_history"][0].tolist() if model_outputs["adapted"][0] else []
        return shift


def _as_fields(overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides of a call by the names of the fields: `batch_size` has a meaning of its own in a call."""
    overrides = dict(overrides)
    if (size := overrides.pop("adaptation_batch_size", None)) is not None:
        overrides["batch_size"] = size
    return overrides


def _image_of(item: Any) -> Any:
    """The image of a data set's row, or the item itself."""
    if not isinstance(item, dict):
        return item
    for name in ("image", "img", "pixel_values"):
        if name in item:
            return item[name]
    for value in item.values():
        if isinstance(value, Image.Image):
            return value
    raise ValueError(f"the row has no image; its columns are {', '.join(map(str, item))}")


def check_count(name: str, value: int | None) -> None:
    """Raises a ValueError for a number below 1, `None` aside."""
    if value is not None and value < 1:
        raise ValueError(f"{name}={value!r} must be at least 1")


def _describe(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        text = os.fspath(image)
        # The end of a path names the file; a base64 string is recognised by its beginning.
        return repr(text if len(text) <= 80 else f"{text[:20]}...{text[-57:]}")
    if isinstance(image, (np.ndarray, Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    if isinstance(image, Image.Image):
        return f"PIL image of mode {image.mode} and size {image.width}x{image.height}"
    return type(image).__name__


def _size_of(loaded: Any) -> Tensor:
    """Height and width of a loaded image, an array `(C, H, W)` or a picture, of shape `(1, 2)`."""
    height, width = (loaded.height, loaded.width) if isinstance(loaded, Image.Image) else loaded.shape[-2:]
    return tensor([[height, width]])
