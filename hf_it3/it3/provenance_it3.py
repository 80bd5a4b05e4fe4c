"""Where an adapted model comes from, as its configuration says."""

import datetime
from typing import Any

from .adaptation_config_it3 import AdaptationConfig
from .configuration_it3 import IT3Config


def provenance(base: IT3Config, settings: AdaptationConfig, counts: dict[str, int]) -> dict[str, Any]:
    """What an adapted model's `config.base_model` holds.

    Args:
        base ([`IT3Config`]): of the model that was adapted.
        settings ([`AdaptationConfig`]): by which it was, nothing left open.
        counts: of the images adapted to and the steps taken.
    """
    name, before = base.name_or_path or None, base.base_model
    if before and before.get("name_or_path") == name:
        # Adapted from the same base in memory, and now once more.
        counts = {key: count + before.get(key, 0) for key, count in counts.items()}
    return {
        "name_or_path": name,
        "revision": getattr(base, "_commit_hash", None),
        "scope": settings.scope,
        **counts,
        "learning_rate": settings.learning_rate,
        "parameters": settings.parameters,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
