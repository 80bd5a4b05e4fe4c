"""Lists the settings that calibration tries: a few values of one property after another, from the best so far."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from ...it3.adaptation_config_it3 import AdaptationConfig
from ...it3.backbone_defaults_it3 import resolve_defaults
from ...it3.interface_it3 import IdempotentModel
from ...it3.shell_it3 import select_parameters


NUM_STEPS = (1, 3, 5, 10)
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
DIVERSITY_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
GATES = (None, 1.0, 5.0, 10.0)
AUGMENTATIONS = (4, 8, 16)
AUGMENTATION_KINDS = (("warp",), ("crop",), ("crop", "flip"))
# Of one image alone: steps and learning rate, with augmentations and without.
IMAGE_STEPS = ((1, 1e-4), (1, 1e-3), (3, 3e-4))
# Norm layers and biases are few values, which take larger steps.
FEW_PARAMETERS_RATE = 3.0

_START = "start"
_STATISTICS = ("norm_statistics", "prior_count", "norm_depth")
# What the grid chooses. Everything else stays as the model's own settings have it.
_CHOSEN_FIELDS = ("num_steps", "learning_rate", "parameters", "gate", *_STATISTICS)
_CHOSEN_FOR_IMAGES = ("scope", "augmentations", "augmentation_kinds", "augmentation_steps")
_CHOSEN_FOR_GROUPS = ("diversity_weight", "average_answers", "augmentation_kinds")


@dataclass(frozen=True)
class Stage:
    """A property, and the values to try for it given the best settings so far."""

    name: str
    candidates: Callable[[AdaptationConfig], list[AdaptationConfig]]


def do_nothing(settings: AdaptationConfig) -> AdaptationConfig:
    """The same settings without any adaptation: the first pass answers."""
    scope = "batch" if settings.scope == "average" else settings.scope
    return settings.replace(
        scope=scope, num_steps=0, single_image="batch", norm_statistics="source", average_answers="never"
    )


def adapts_image_by_image(settings: AdaptationConfig) -> bool:
    """Whether each image adapts by itself: in scopes `"image"` and `"average"`, and in batches of one."""
    return settings.scope_of(settings.batch_size) in ("image", "average")


def resolve_for_search(settings: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """The settings with nothing left open for a model but the statistics of images that adapt one by one: what these
    are by default differs between the scopes that are tried."""
    resolved = resolve_defaults(settings, model)
    if not adapts_image_by_image(settings):
        return resolved
    return resolved.replace(**{name: getattr(settings, name) for name in _STATISTICS})


def leave_open(settings: AdaptationConfig, previous: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """The settings, where they are what a model's defaults give left open as in the previous ones: other defaults hold
    where a batch has one image, and later for a better table of them."""
    resolved = resolve_defaults(settings, model)
    given = {name: getattr(previous, name) for name in vars(settings) if getattr(previous, name) in (None, "auto")}
    defaults = resolve_defaults(settings.replace(**given), model)
    given = {name: value for name, value in given.items() if getattr(defaults, name) == getattr(resolved, name)}
    reopened = settings.replace(**given)
    return reopened if resolve_defaults(reopened, model) == resolved else settings


def make_stages(model: IdempotentModel, own: AdaptationConfig) -> list[Stage]:
    """The stages of the search for a model, in order, without those that cannot change it.

    Scopes `"batch"` and `"stream"`: statistics (models with BatchNorm: mixed and of the batch, with and without
    steps), steps x learning rate, diversity weight, parameters (norm layers, biases), gate, and how copies of images
    differ where answers are averaged over them (or that they are not).
    Scope `"image"`, and batches of one: augmentations (averaged over, without steps), steps x learning rate (of an
    image's augmentations, and of the image alone), statistics, parameters, gate.

    Args:
        model: the model.
        own: the model's own settings, where the search starts.
    """
    own = resolve_for_search(own, model)
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    statistics = [Stage("statistics", _statistics)] if has_batch_norm else []
    parameters = [Stage("parameters", lambda best: list(_parameters(model, best))), Stage("gate", _gates)]
    start = Stage(_START, lambda best: [own, _with_defaults(own, model)])
    if adapts_image_by_image(own):
        augmentations = Stage("augmentations", _augmentations)
        return [start, augmentations, Stage("steps x rate", _image_steps), *statistics, *parameters]
    copies = [Stage("copies", _copies)] if own.average_answers != "never" else []
    return [start, *statistics, Stage("steps x rate", _steps), Stage("diversity", _diversity), *parameters, *copies]


def _with_defaults(own: AdaptationConfig, model: IdempotentModel) -> AdaptationConfig:
    """The model's own settings with the defaults of everything that the grid chooses."""
    one_by_one = adapts_image_by_image(own)
    scope = AdaptationConfig().scope_of(1 if one_by_one else 2)
    defaults = resolve_for_search(AdaptationConfig(scope=scope), model)
    fields = _CHOSEN_FIELDS + (_CHOSEN_FOR_IMAGES if one_by_one else _CHOSEN_FOR_GROUPS)
    return own.replace(**{name: getattr(defaults, name) for name in fields})


def _steps_of(settings: AdaptationConfig) -> int:
    """Number of optimizer steps that images take with these settings."""
    averages = settings.scope_of(settings.batch_size) == "average"
    return settings.augmentation_steps if averages else settings.num_steps or 0


def _statistics(best: AdaptationConfig) -> list[AdaptationConfig]:
    if adapts_image_by_image(best):
        # One image's own statistics are those of nothing else.
        return [best.replace(norm_statistics=name) for name in ("mixed", "source")]
    choices = [best.replace(norm_statistics=name) for name in ("mixed", "batch")]
    return [*choices, *(choice.replace(num_steps=0) for choice in choices)]


def _steps(best: AdaptationConfig) -> list[AdaptationConfig]:
    if callable(best.optimizer):
        return [best.replace(num_steps=steps) for steps in NUM_STEPS]  # it brings its own learning rate
    return [best.replace(num_steps=steps, learning_rate=rate) for rate in LEARNING_RATES for steps in NUM_STEPS]


def _diversity(best: AdaptationConfig) -> list[AdaptationConfig]:
    if not best.num_steps:
        return []
    return [best.replace(diversity_weight=weight) for weight in DIVERSITY_WEIGHTS]


def _augmentations(best: AdaptationConfig) -> list[AdaptationConfig]:
    averaged = best.replace(scope="average", augmentation_steps=0)
    counts = [averaged.replace(augmentations=count) for count in AUGMENTATIONS]
    return [*counts, *(averaged.replace(augmentation_kinds=kinds) for kinds in AUGMENTATION_KINDS)]


def _copies(best: AdaptationConfig) -> list[AdaptationConfig]:
    kinds = [best.replace(augmentation_kinds=kinds) for kinds in AUGMENTATION_KINDS]
    return [best.replace(average_answers="never"), *kinds]


def _image_steps(best: AdaptationConfig) -> list[AdaptationConfig]:
    averaged, alone = best.replace(scope="average"), best.replace(scope="image", augmentation_steps=0)
    return [
        *(averaged.replace(augmentation_steps=steps, learning_rate=rate) for steps, rate in IMAGE_STEPS),
        *(alone.replace(num_steps=steps, learning_rate=rate) for steps, rate in IMAGE_STEPS),
    ]


def _parameters(model: nn.Module, best: AdaptationConfig) -> Iterator[AdaptationConfig]:
    if not _steps_of(best):
        return
    for choice in ("norm", "bias", "all"):
        try:
            select_parameters(model, choice)
        except ValueError:
            continue  # the model has none
        few = choice != "all" and best.parameters == "all"
        for factor in (1.0, FEW_PARAMETERS_RATE) if few else (1.0,):
            yield best.replace(parameters=choice, learning_rate=(best.learning_rate or 0.0) * factor)


def _gates(best: AdaptationConfig) -> list[AdaptationConfig]:
    if adapts_image_by_image(best) and not _steps_of(best):
        return []  # averaging over augmentations is not gated
    return [best.replace(gate=gate) for gate in GATES]
