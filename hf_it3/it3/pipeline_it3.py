"""Image classification with test-time adaptation in every call."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor, bfloat16
from torch.utils.data import Dataset
from transformers.image_utils import load_image
from transformers.pipelines import ImageClassificationPipeline

from .adaptation_config_it3 import AdaptationConfig
from .adaptation_it3 import TestTimeAdapter
from .image_processing_it3 import match_channels, to_bytes, to_mode
from .interface_it3 import IdempotentModel, idempotent_model
from .remote_code_it3 import is_remote_code
from .shell_it3 import ModelShell


# Adapters that a pipeline keeps, of streams and of others; each holds a copy of the parameters that it may change.
_MAX_ADAPTERS = 4
_OWN_STATE = ("_adapters", "_adapters_lock", "_shell")
_NOT_GIVEN = object()


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


class IT3Pipeline(ImageClassificationPipeline):
    """Classifies images with a model that adapts itself to them, without labels.

    Takes what the stock image classification pipeline takes, and adapts by default: the images of one call, in groups
    of `adaptation_batch_size`, share adapted weights (or not, as the model's settings say). The model itself is never
    changed, and answers as in eval mode whatever mode it is in.

    Streams live on from call to call, one for each setting of scope `"stream"`; of more than four, those that were
    used least recently are dropped and start again. A copy of a pipeline has streams of its own.

    Args:
        adapt (`bool`, defaults to `True`): whether to adapt; without, the plain model answers.
        adaptation_batch_size (`int`, *optional*): images that adapt together; by default
            `model.config.adaptation.batch_size`. Answers of a generator come when so many images have been read.
        batch_size (`int`, *optional*): images that are computed at once where none adapt together, with `adapt=False`
            for example. It is for speed alone, and changes no answer beyond rounding.
        return_idempotence (`bool`, defaults to `False`): add to every class the `idempotence` distance of its image
            and whether that was `adapted` to, or `averaged` over augmentations; not with `adapt=False`, which never
            measures it.
        return_unadapted (`bool`, defaults to `False`): add to every class its `unadapted_score`.
        return_loss_history (`bool`, defaults to `False`): add to every class the `loss_history` of its image: the
            objective before each optimizer step, the same for images that adapted together; an empty list where no
            step was taken.
        overrides: any field of [`AdaptationConfig`], for this pipeline or for one call.

    All of these can be given when the pipeline is made and for a single call.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import pipeline
    >>> from hf_it3 import IT3Config, IT3ForImageClassification, IT3ImageProcessor
    >>> processor = IT3ImageProcessor(num_channels=1)
    >>> model = IT3ForImageClassification(IT3Config())
    >>> classifier = pipeline("it3-image-classification", model=model, image_processor=processor)
    >>> len(classifier([Image.new("L", (28, 28))] * 3, top_k=2, gate=None))
    3

    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_feature_extractor = False
    _load_tokenizer = False
    # Otherwise the code of a repository is taken for a video processor's, and has to be trusted.
    _load_video_processor: Any = False

    model: IdempotentModel

    def __init__(self, *args: Any, **kwargs: Any):
        self._forget_adapters()
        super().__init__(*args, **kwargs)

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
        """Refuses models that take no label signal."""
        try:
            idempotent_model(self.model)
        except TypeError as error:
            raise ValueError(f"{error}, or use the stock 'image-classification' pipeline") from None

    def _sanitize_parameters(
        self,
        top_k: Any = _NOT_GIVEN,
        function_to_apply: Any = None,
        timeout: float | None = None,
        adapt: bool | None = None,
        return_idempotence: bool | None = None,
        return_unadapted: bool | None = None,
        return_loss_history: bool | None = None,
        **overrides: Any,
    ) -> tuple[dict, dict, dict]:
        overrides = _as_fields(overrides)
        preprocess, _, postprocess = super()._sanitize_parameters(None, function_to_apply, timeout)
        if top_k is not _NOT_GIVEN:
            postprocess["top_k"] = top_k
        forward: dict[str, Any] = {}
        if adapt is not None:
            forward["adapt"] = adapt
        if overrides:
            # Also checks the names and values, before any image is read.
            merged = {**getattr(self, "_forward_params", {}).get("overrides", {}), **overrides}
            self.model.config.adaptation.replace(**merged).check_named(overrides)
            forward["overrides"] = merged
        additions = {
            "return_idempotence": return_idempotence,
            "return_unadapted": return_unadapted,
            "return_loss_history": return_loss_history,
        }
        postprocess.update({name: value for name, value in additions.items() if value is not None})
        return preprocess, forward, postprocess

    # The hints of `Pipeline` ask for more than its image pipeline takes; the methods here follow the latter.
    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Classifies images.

        Args:
            inputs: an image (path, URL, base64 string, `PIL.Image`, array or tensor), a list of images, a data set
                (torch or `datasets`, with a column of images), or a generator. Arrays and tensors hold integers from 0
                to 255, floats in [0, 1] as torchvision's `ToTensor` makes them, or floats up to 255; an image
                processor with `do_rescale=False` gets them as they are.
            top_k (`int` or `None`, defaults to 5): how many classes to return; `None` returns all.
            function_to_apply, timeout: as in the stock pipeline.
            kwargs: see the class.

        Returns:
            For an image a list of `{"label", "score"}` dictionaries, best first; for several a list (for generators
            and data sets an iterator) of such lists, in the order of the inputs.

        Raises:
            ValueError: for an empty list or an input that is not an image; with several, the message gives its
                position.
        """
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("the pipeline needs images: a path, URL, PIL image, array, or a list or data set of them")
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

    @staticmethod
    def _number(inputs: Any) -> tuple[Any, bool]:
        """Attaches positions to the images of a collection, and tells collections from single images."""
        is_sequence = isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes))
        if is_sequence or (isinstance(inputs, (np.ndarray, Tensor)) and inputs.ndim == 4):
            if len(inputs) == 0:
                raise ValueError("the list of images is empty: there is nothing to classify")
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
            raise ValueError(f"{where} ({given}) cannot be classified: {reason}") from error
        return {"pixel_values": inputs["pixel_values"].to(self.dtype)}

    def _load(self, image: Any, timeout: float | None) -> Any:
        channels = getattr(self.model.config.backbone_config, "num_channels", 3)
        if isinstance(image, (np.ndarray, Tensor)):
            if isinstance(image, Tensor):
                image = image.detach().cpu()
                image = image.float() if image.dtype == bfloat16 else image
            array = np.asarray(image)
            if getattr(self.image_processor, "do_rescale", True):
                array = to_bytes(array)
            return match_channels(array[None] if array.ndim == 2 else array, channels)
        if isinstance(image, (str, os.PathLike)):
            path = os.fspath(image)
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
            return {"logits": self._plain_logits(pixel_values)}
        output = self._adapter(overrides or {})(pixel_values)
        # Of each image, since the outputs of a batch are taken apart; images that share weights share their history.
        history = output.loss_history
        history = history.T if history.ndim == 2 else history.expand(len(pixel_values), -1)
        names = ("logits", "initial_logits", "idempotence", "adapted", "averaged")
        return {**{name: output[name] for name in names}, "loss_history": history}

    def _plain_logits(self, pixel_values: Tensor) -> Tensor:
        """Of the unadapted model in eval mode, without a change to the modes or buffers of a model in training."""
        if not any(module.training for module in self.model.modules()):
            return self.model(pixel_values, return_dict=True).logits
        with self._adapters_lock:
            if self._shell is None or self._shell.is_stale():
                self._shell = ModelShell(idempotent_model(self.model), None)
            shell = self._shell
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
        if self.image_processor is not None:
            self.image_processor.save_pretrained(save_directory)
        self.model.save_pretrained(save_directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """Pushes model, image processor and model card to the Hub, in one commit; see `push_to_hub` of the model."""
        if is_remote_code(self):
            return super().push_to_hub(repo_id, **kwargs)
        return self.model.push_to_hub(repo_id, image_processor=self.image_processor, **kwargs)

    def adapter(self, **overrides: Any) -> TestTimeAdapter:
        """The adapter behind the calls of this pipeline, to `reset()` a stream or take its `adapted_model()`."""
        return self._adapter({**self._forward_params.get("overrides", {}), **_as_fields(overrides)})

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Tensor],
        function_to_apply: Any = None,
        top_k: int | None = 5,
        return_idempotence: bool = False,
        return_unadapted: bool = False,
        return_loss_history: bool = False,
    ) -> list[dict[str, Any]]:
        """Turns one image's logits into labels and scores, best first."""
        num_labels = self.model.config.num_labels
        top_k = num_labels if top_k is None else top_k
        classes = super().postprocess(model_outputs, function_to_apply, top_k)
        if return_unadapted:
            logits = model_outputs["logits"]
            initial = model_outputs.get("initial_logits", logits)
            unadapted = super().postprocess({"logits": initial}, function_to_apply, num_labels)
            indices = self._class_indices(unadapted, initial[0])
            scores = {index: entry["score"] for index, entry in zip(indices, unadapted, strict=True)}
            indices = self._class_indices(classes, logits[0])
            classes = [
                {**entry, "unadapted_score": scores[index]} for index, entry in zip(indices, classes, strict=True)
            ]
        if return_idempotence and "idempotence" in model_outputs:
            shift = {
                "idempotence": model_outputs["idempotence"][0].item(),
                "adapted": bool(model_outputs["adapted"][0]),
                "averaged": bool(model_outputs["averaged"][0]),
            }
            classes = [{**entry, **shift} for entry in classes]
        if return_loss_history and "loss_history" in model_outputs:
            steps = model_outputs["loss_history"][0].tolist() if model_outputs["adapted"][0] else []
            classes = [{**entry, "loss_history": steps} for entry in classes]
        return classes

    def _class_indices(self, classes: list[dict[str, Any]], logits: Tensor) -> list[int]:
        """Which class each entry is of, given all logits `(num_labels,)`: several may have the same label."""
        by_label: dict[str, list[int]] = {}
        for index in logits.argsort(descending=True).tolist():
            by_label.setdefault(self.model.config.id2label[index], []).append(index)
        # The entries are sorted by score, and scores rise with logits.
        return [by_label[entry["label"]].pop(0) for entry in classes]


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


def _describe(image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        text = os.fspath(image)
        # The end of a path names the file; a base64 string is told by its beginning.
        return repr(text if len(text) <= 80 else f"{text[:20]}...{text[-57:]}")
    if isinstance(image, (np.ndarray, Tensor)):
        return f"{type(image).__name__} of shape {tuple(image.shape)}"
    if isinstance(image, Image.Image):
        return f"PIL image of mode {image.mode} and size {image.width}x{image.height}"
    return type(image).__name__
