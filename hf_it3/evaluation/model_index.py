"""Entries for the `model-index` of a model card."""

from typing import TYPE_CHECKING, Any

from .methods import UNADAPTED


if TYPE_CHECKING:
    from .results import RobustnessResults


def model_index_entries(results: "RobustnessResults", method: str | None = None) -> list[dict[str, Any]]:
    """The headline figure of each condition without and with adaptation, for a model card.

    Args:
        results ([`RobustnessResults`]): of an evaluation.
        method (`str`, *optional*): whose figure is the adapted one; by default `"batch"`, or else the last method.

    Returns:
        One dictionary per condition with `name`, `score_unadapted`, `score_adapted` (fractions, of the `metric`
        `"accuracy"` or `"mean_iou"`), `method`, `num_images` and the `dataset` and `split` that were given.

    Raises:
        ValueError: if there is no adapted method, or none of that name.
    """
    adapted = [name for name in results.methods if name != UNADAPTED]
    if not adapted:
        raise ValueError("these results have no method but the unadapted model; evaluate with methods='none,batch'")
    if method is None:
        method = "batch" if "batch" in adapted else adapted[-1]
    if method not in adapted:
        raise ValueError(f"method={method!r} is not among the results; choose from {', '.join(adapted)}")
    metric = results.kind.metric
    return [
        {
            "name": score["name"],
            "metric": metric,
            "score_unadapted": score["methods"][UNADAPTED][metric],
            "score_adapted": score["methods"][method][metric],
            "method": method,
            "num_images": score["num_images"],
            "dataset": results.settings["dataset"],
            "split": results.settings["split"],
        }
        for score in results.condition_scores
        if method in score["methods"]
    ]
