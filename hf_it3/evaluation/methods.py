"""Methods: the ways of adapting that are compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..it3.adaptation_config_it3 import PRESETS, SCOPES, AdaptationConfig
from ..it3.backbone_defaults_it3 import resolve_defaults
from ..it3.interface_it3 import IdempotentModel
from ..it3.shell_it3 import select_parameters
from .conditions import split_names


UNADAPTED = "none"
DEFAULT_METHODS = (UNADAPTED, "statistics", "tent", "torch-ttt", "batch", "stream", "image")


@dataclass(frozen=True)
class Method:
    """A name for a column of the table, and the settings behind it (`None` for the plain model)."""

    name: str
    config: AdaptationConfig | None

    @property
    def is_stream(self) -> bool:
        """Whether weights live on from batch to batch."""
        return self.config is not None and self.config.scope == "stream"


def make_methods(
    methods: str | Iterable[str] | Mapping[str, AdaptationConfig | Mapping[str, Any] | None] | None,
    own: AdaptationConfig,
) -> list[Method]:
    """The methods to compare, the plain model always among them and first.

    Args:
        methods: names, as a list or comma-separated: `"none"`; a preset of [`AdaptationConfig`] (`"statistics"`,
            `"tent"`, `"torch-ttt"`, `"it3"`); or a scope (`"batch"`, `"stream"`, `"image"`), which is the model's own
            settings in that scope. Or a mapping from names of your own to settings: an [`AdaptationConfig`], a mapping
            of its fields, or `None` for no adaptation.
        own: the model's own settings.

    Raises:
        ValueError: for an unknown name or field.
        TypeError: for settings of another type.
    """
    if isinstance(methods, Mapping):
        made = {name: Method(name, _config(name, settings)) for name, settings in methods.items()}
    else:
        names = split_names(DEFAULT_METHODS if methods is None else methods)
        made = {name: Method(name, _settings(name, own)) for name in names}
    plain = made.pop(UNADAPTED, Method(UNADAPTED, None))
    if plain.config is not None and plain.config != AdaptationConfig.preset(UNADAPTED):
        raise ValueError(f"methods has settings for {UNADAPTED!r}, which is the plain model; choose another name")
    return [Method(UNADAPTED, None), *made.values()]


def _config(name: str, settings: Any) -> AdaptationConfig:
    if settings is None:
        return AdaptationConfig.preset(UNADAPTED)
    if isinstance(settings, Mapping):
        return AdaptationConfig.from_dict(dict(settings))
    if not isinstance(settings, AdaptationConfig):
        raise TypeError(
            f"methods[{name!r}]={settings!r} must be an AdaptationConfig, a mapping of its fields, or None for no "
            "adaptation"
        )
    return settings


def _settings(name: str, own: AdaptationConfig) -> AdaptationConfig | None:
    if name == UNADAPTED:
        return None
    if name in SCOPES:
        return own.replace(scope=name)
    if name in PRESETS:
        return AdaptationConfig.preset(name)
    raise ValueError(f"methods has {name!r}; choose from {', '.join([*PRESETS, *SCOPES])}")


def why_not_applicable(method: Method, model: IdempotentModel) -> str | None:
    """Why a method cannot be used with a model, or `None` if it can."""
    config = method.config
    if config is None:
        return None
    resolved = resolve_defaults(config, model)
    if config.num_steps == 0 and config.norm_statistics != "source" and resolved.norm_statistics == "source":
        no_clean_images = "no statistics of clean images to correct features with"
        return "no batch normalisation layers" if config.norm_statistics == "batch" else no_clean_images
    if config.parameters == "norm":
        try:
            select_parameters(model, "norm")
        except ValueError:
            return "no normalisation layers"
    return None
