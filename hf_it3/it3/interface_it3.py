"""What the rest of the package may expect of an idempotent model, whichever copy of the code its class is from."""

from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from .alignment_it3 import FeatureStatistics
from .configuration_it3 import IT3Config
from .shell_it3 import unwrap
from .shift_reference_it3 import ShiftReference


class IdempotentModel(PreTrainedModel):
    """A classifier that takes a label signal: the base of [`IT3ForImageClassification`], for modules that it uses."""

    config: IT3Config
    backbone: nn.Module
    embedder: nn.Module
    shift_reference: ShiftReference
    feature_statistics: FeatureStatistics
    # Set where one is known, to go along when the model is pushed.
    _image_processor: Any

    if TYPE_CHECKING:

        def check_saveable(self) -> None: ...

        def freeze_classifier(self) -> None: ...

        def unfreeze_classifier(self) -> None: ...

        # transformers puts a copy of a function there, which the type checker takes for an object without `self`.
        def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any: ...  # type: ignore[override]


def takes_label_signal(model: nn.Module | None) -> TypeGuard[IdempotentModel]:
    """Whether a model is idempotent.

    Told by its parts, because remote code brings classes of its own; an `embedder` alone is not enough, ResNets for
    instance call their stem so.
    """
    has_settings = hasattr(getattr(model, "config", None), "adaptation")
    return has_settings and isinstance(getattr(model, "embedder", None), nn.Module)


def idempotent_model(model: nn.Module | None) -> IdempotentModel:
    """The idempotent model inside any wrappers.

    Raises:
        TypeError: for a model that takes no label signal.
    """
    inner = model if model is None else unwrap(model)
    if not takes_label_signal(inner):
        raise TypeError(
            f"{type(inner).__name__} takes no label signal; wrap it with IT3ForImageClassification.from_backbone and "
            "train it with IT3Trainer"
        )
    return inner
