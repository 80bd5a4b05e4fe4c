"""Loading, saving and pushing of idempotent models."""

import importlib
import os
from types import ModuleType
from typing import Any, TypeVar

from transformers.utils import IMAGE_PROCESSOR_NAME

from .backbones_it3 import check_rebuildable
from .interface_it3 import IdempotentModel
from .loading_it3 import load
from .origin_it3 import is_remote_code
from .plain_module_it3 import ModuleConfig
from .remote_code_it3 import write_code
from .shell_it3 import compiled_parts, plain_state
from .task_it3 import Task


_Model = TypeVar("_Model", bound="HubModel")


class HubModel(IdempotentModel):
    """What [`IT3ForImageClassification`] adds to loading, saving and pushing of `PreTrainedModel`."""

    @classmethod
    def from_pretrained(
        cls: type[_Model], pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> _Model:
        """Loads a saved model, whole or as a delta; see `PreTrainedModel.from_pretrained` for the arguments, and
        `embedder` for models with a label embedder of their own. A model that wraps a plain `nn.Module` takes
        `backbone`, an instance that the weights go into a copy of, unless its `backbone_class` and `backbone_kwargs`
        were saved and its class is imported; `trust_remote_code=True` imports it.

        Raises:
            ValueError: if weights are missing (those of the embedder for instance), corrupt, pickled, or do not fit,
                or a plain module is missing.
        """
        with_info = kwargs.pop("output_loading_info", False)
        model, info = load(cls, super().from_pretrained, pretrained_model_name_or_path, model_args, kwargs)
        is_plain = isinstance(model.config.backbone_config, ModuleConfig)
        if is_plain and (differing := sorted({*info["missing_keys"], *info["unexpected_keys"]})):
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} do not fit the {type(model.backbone).__name__} "
                f"or the embedder that they are loaded into: {_first(differing)}"
            )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{pretrained_model_name_or_path} lacks weights of {cls.__name__}: {_first(missing)}; wrap a plain "
                f"classifier with {cls.__name__}.from_backbone"
            )
        # A tuple if it is asked for, which the hint leaves out, as that of `PreTrainedModel` does.
        loaded: Any = (model, info) if with_info else model
        return loaded

    def check_saveable(self) -> None:
        """Raises a ValueError, with the way out, if the model could not be loaded again once it is saved."""
        check_rebuildable(self.config.backbone_config, self.backbone, self.config.task)
        self.config.check_saveable()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        *args: Any,
        delta: bool = False,
        include_code: bool = False,
        repo_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves weights, embedder and signal statistics included, and configuration; see `PreTrainedModel`. The image
        processor that the model was trained with goes along where there is none yet, so that a pipeline finds one.

        Args:
            save_directory (`str` or `PathLike`): where to save.
            delta (`bool`): for adapted models: save only what adaptation changed, and refer to the base model.
            include_code (`bool`): save the code as well, for those who load the model without this package. A model
                that was itself loaded as remote code always brings its code.
            push_to_hub (`bool`), repo_id (`str`, *optional*): push as well, see [`push_to_hub`].
            is_main_process, state_dict, args, kwargs: as in `PreTrainedModel`.

        Raises:
            ValueError: if the backbone could not be loaded again, or the configuration holds a callable.
        """
        self.check_saveable()
        self.shift_reference.fit_to(Task.of(self.config).num_classes)
        if delta:
            self._hub_room("delta").save_delta(self, save_directory)
        else:
            own = self.config.base_model
            self.config.base_model = _of_whole_model(own)
            try:
                if state_dict is None and compiled_parts(self):
                    state_dict = plain_state(self)
                # Not pushed by it, but below, with card and image processor.
                super().save_pretrained(save_directory, is_main_process, state_dict, False, *args, **kwargs)
            finally:
                self.config.base_model = own
        processor: Any = getattr(self, "_image_processor", None)
        has_one = os.path.isfile(os.path.join(save_directory, IMAGE_PROCESSOR_NAME))
        if is_main_process and hasattr(processor, "save_pretrained") and not has_one:
            processor.save_pretrained(save_directory)
        if is_main_process and (include_code or is_remote_code(self)):
            write_code(save_directory)
        if push_to_hub:
            repo_id = repo_id or os.path.basename(os.path.normpath(save_directory))
            names = ("token", "private", "revision", "create_pr", "commit_message")
            hub = {name: kwargs[name] for name in names if name in kwargs}
            self.push_to_hub(repo_id, delta=delta, include_code=include_code, **hub)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override] # see `IdempotentModel`
        """Pushes weights, configuration, image processor and model card to the Hub, in one commit.

        Args:
            repo_id (`str`): `"user/name"`.
            kwargs: those of `PreTrainedModel.push_to_hub`, and `delta`, `include_code`, `image_processor`,
                `data_description`, `card`: see [`~hf_it3.hub.push.push_model`].

        Raises:
            HfHubHTTPError: the client's own exceptions, for access and connection, with a note of what they stopped.
        """
        if is_remote_code(self):
            return super().push_to_hub(repo_id, **kwargs)
        return self._hub_room("push").push_model(self, repo_id, **kwargs)

    def _hub_room(self, name: str) -> ModuleType:
        """A module of `hf_it3.hub`, which does not travel with the weights."""
        if is_remote_code(self):
            raise ImportError(f"a model loaded as remote code has no {name!r}; pip install hf-it3, and import hf_it3")
        return importlib.import_module(f"hf_it3.hub.{name}")


def _first(names: list[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def _of_whole_model(base_model: dict | None) -> dict | None:
    """Where an adapted model came from, as it is written beside its whole weights: without any local path."""
    if not base_model:
        return base_model
    kept = {key: value for key, value in base_model.items() if key not in ("weights", "delta_of")}
    name = kept.get("name_or_path")
    if name and os.path.isdir(name):
        kept["name_or_path"] = os.path.basename(os.path.abspath(name))
    return kept
