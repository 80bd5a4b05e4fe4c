"""Checks the settings that a caller names: each one acts, is refused or is warned of; none is ignored silently."""

from collections.abc import Iterable
from typing import Any

from transformers.utils import logging

from .adaptation_config_it3 import AdaptationConfig


logger = logging.get_logger(__name__)


def check_named(settings: AdaptationConfig, resolved: AdaptationConfig, named: Iterable[str]) -> None:
    """Checks that fields which a caller named can act beside the others.

    A number of 0, of steps for instance, rules out nothing: a search over it may hold the others fixed. So may one
    over anchors or statistics, which is why those that another setting or the model rules out are a warning.

    Args:
        settings ([`AdaptationConfig`]): with the named values.
        resolved ([`AdaptationConfig`]): the same with nothing left open for the model.
        named (iterable of `str`): names of fields.

    Raises:
        ValueError: for a named field that asks for something which the scope rules out.
    """
    named = list(named)
    uses = _uses(settings, resolved, "augmentation_steps" in named)
    idle = _idle(settings, resolved)
    for name in named:
        asked, acts, where = uses.get(name, (False, True, ""))
        if asked and not acts:
            raise ValueError(
                f"{name}={getattr(settings, name)!r} cannot act in scope {settings.scope!r}: it acts {where}; leave "
                "it out, or choose another scope"
            )
        if name in idle:
            logger.warning_once(f"{name}={getattr(settings, name)!r} does nothing here: it acts {idle[name]}.")


def _uses(
    settings: AdaptationConfig, resolved: AdaptationConfig, names_steps: bool
) -> dict[str, tuple[Any, bool, str]]:
    """Of settings that do nothing in some scopes: whether they ask for something, whether they can act, and where."""
    scope = settings.scope
    shares = scope in ("batch", "stream")
    averages_alone = scope == "average" or (scope == "batch" and settings.single_image == "average")
    averages = averages_alone or (shares and resolved.average_answers != "never")
    takes_steps = scope != "average" or names_steps or settings.augmentation_steps > 0
    is_alone = scope in ("image", "average") or (
        scope == "batch" and (settings.single_image == "image" or settings.augmentation_steps > 0)
    )
    of_steps = (takes_steps, "where steps are taken, see augmentation_steps")
    uses: dict[str, tuple[Any, bool, str]] = {
        "num_steps": (settings.num_steps, scope != "average", "elsewhere, see augmentation_steps"),
        "diversity_weight": (settings.diversity_weight, shares, "where images share weights"),
        "max_class_share": (settings.max_class_share < 1, shares, "where images share weights"),
        "class_balance": (settings.class_balance, shares, "where images share weights"),
        "average_answers": (settings.average_answers != "never", shares, "where images share weights"),
        "augmentations": (settings.augmentations > 1, averages, "where answers are averaged"),
        "augmentation_kinds": (True, averages, "where answers are averaged"),
        "augmentation_steps": (settings.augmentation_steps, averages_alone, "in scope 'average'"),
        "single_image": (True, scope == "batch", "in scope 'batch'"),
        "gate_window": (True, scope == "stream", "in scope 'stream'"),
        "collapse_guard": (settings.collapse_guard, scope == "stream", "in scope 'stream'"),
        "chunk_size": (settings.chunk_size, is_alone, "in scopes 'image' and 'average'"),
        "vectorize": (settings.vectorize is not None, is_alone, "in scopes 'image' and 'average'"),
        "gate": (settings.gate not in (None, float("inf")), *of_steps),
    }
    for name in ("learning_rate", "parameters", "max_grad_norm"):
        uses[name] = (getattr(settings, name) is not None, *of_steps)
    return uses


def _idle(settings: AdaptationConfig, resolved: AdaptationConfig) -> dict[str, str]:
    """Where those fields act that another setting or the model rules out."""
    idle = {}
    if callable(settings.optimizer):
        idle["learning_rate"] = "on optimizers given by name, and a callable brings its own"
    if resolved.anchor != "ema":
        idle["ema_decay"] = "with anchor='ema'"
    if resolved.norm_statistics not in ("mixed", "shrunk"):
        idle["prior_count"] = "with norm_statistics='mixed' or 'shrunk', where clean images were measured"
        idle["class_balance"] = idle["prior_count"]
    if resolved.norm_statistics == "source":
        idle["norm_depth"] = "with other norm_statistics than 'source', where clean images were measured"
    if settings.norm_statistics not in ("auto", "source", resolved.norm_statistics):
        idle["norm_statistics"] = "on layers of BatchNorm, which the model does not have"
    return idle
