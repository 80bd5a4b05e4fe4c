"""Tables in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils import aligned
from .conditions import Condition
from .methods import UNADAPTED


if TYPE_CHECKING:
    from .results import RobustnessResults


def format_results(results: "RobustnessResults") -> str:
    """The table of means, a table for each run where there are several, and what follows from them."""
    parts = [_headline(results), _scores(results, results.condition_scores)]
    if len(results.runs) > 1:
        for run, outcomes in zip(results.runs, results.outcomes, strict=False):
            if outcomes:
                title = f"{run['model']}, seed {run['seed']}:"
                parts += [title, _scores(results, results.scores_of([outcomes]))]
    parts += [f"{method}: n/a: {reason}" for method, reason in results.not_applicable.items()]
    reasons: dict[str, list[str]] = {}
    for name, reason in results.left_out.items():
        reasons.setdefault(reason, []).append(name)
    parts += [f"{', '.join(names)}: left out: {reason}" for reason, names in reasons.items()]
    parts += _conclusions(results)
    if not results.complete:
        parts.append("Not complete: the evaluation was interrupted; --resume goes on from here.")
    return "\n".join(parts)


def _headline(results: "RobustnessResults") -> str:
    settings = results.settings
    count = max((score["num_images"] for score in results.condition_scores), default=0)
    runs = f", mean of {len(results.runs)} runs" if len(results.runs) > 1 else ""
    noun = results.kind.noun
    return (
        f"{noun[0].upper()}{noun[1:]} in percent, {count} images in batches of {settings['batch_size']}, order "
        f"{settings['order']}{runs}"
    )


def _scores(results: "RobustnessResults", scores: Sequence[dict[str, Any]]) -> str:
    """A row per corruption (mean over severities) and a column per method, and two for the idempotence distance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for score in scores:
        groups.setdefault(Condition(score["corruption"], None, score["subset"]).name, []).append(score)
    names = short_names(list(groups))
    columns = results.settings["methods"]
    rows = [["", *columns, "AUROC shift", "AUROC error"]]
    for name, group in groups.items():
        rows.append([names[name], *(_mean(results, group, method) for method in columns), *_aurocs(group)])
    shifted = [score for score in scores if not score["is_clean"]]
    if shifted:
        rows.append(["mean of shifted", *(_mean(results, shifted, method) for method in columns), *_aurocs(shifted)])
    return "\n".join(ruled(rows, numbers=True))


def short_names(names: list[str]) -> dict[str, str]:
    """Names of corruptions without their suite, where there is one only."""
    suites = {name.rpartition("/")[0] for name in names if "/" in name}
    return {name: name.rpartition("/")[2] if len(suites) == 1 and ": " not in name else name for name in names}


def _mean(results: "RobustnessResults", scores: Sequence[dict[str, Any]], method: str) -> str:
    values = [score["methods"][method][results.kind.metric] for score in scores if method in score["methods"]]
    return f"{100 * np.mean(values):.1f}" if values else "n/a"


def _aurocs(scores: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    for name in ("shift_detection_auroc", "error_detection_auroc"):
        values = [score["idempotence_distance"][name] for score in scores]
        values = [value for value in values if value is not None]
        cells.append(f"{np.mean(values):.2f}" if values else "-")
    return cells


def ruled(rows: Sequence[Sequence[str]], numbers: bool = False, head: int = 1) -> list[str]:
    """Lines of a table, with a rule below its first `head` rows; see [`~hf_it3.utils.aligned`]."""
    lines = aligned(rows, numbers)
    lines.insert(head, "-" * max(map(len, lines)))
    return lines


def _conclusions(results: "RobustnessResults") -> list[str]:
    lines = []
    for method, summary in results.overall.items():
        if method == UNADAPTED:
            continue
        gains = ", ".join(
            f"{100 * gain['gain']:+.1f} [{100 * gain['lower']:+.1f}, {100 * gain['upper']:+.1f}] over {other}"
            for other, gain in summary["gain_over"].items()
        )
        lines.append(f"{method}: mean gain in points (95% interval over images) {gains}")
        if summary["does_not_help"]:
            lines.append(f"  does not help on {_grouped(results, summary['does_not_help'])}")
    if results.reference is not None:
        for method, summary in results.overall.items():
            if "mean_corruption_error" in summary:
                relative = summary.get("relative_mean_corruption_error")
                more = "" if relative is None else f", relative mCE {100 * relative:.1f}%"
                value = f"mCE {100 * summary['mean_corruption_error']:.1f}%{more}"
            elif "mean_error_ratio" in summary:
                value = f"mean error over these corruptions, not the mCE, {100 * summary['mean_error_ratio']:.1f}%"
            else:
                continue
            lines.append(f"{method}: {value}, with {results.reference.name} as 100%")
        if results.left_out:
            lines.append(f"no mCE, which would need {', '.join(results.left_out)}")
    return lines


def _grouped(results: "RobustnessResults", names: list[str]) -> str:
    """Conditions by corruption with their severities, `fog (1, 2), blur`; a corruption at all severities alone."""
    short = short_names([condition.group for condition in results.conditions])
    groups: dict[str, list[int | None]] = {}
    all_severities: dict[str, int] = {}
    for condition in results.conditions:
        severities = groups.setdefault(condition.group, [])
        all_severities[condition.group] = all_severities.get(condition.group, 0) + 1
        if condition.name in names:
            severities.append(condition.severity)
    parts = []
    for group, severities in groups.items():
        if len(severities) == all_severities[group]:
            parts.append(short[group])
        elif severities:
            parts.append(f"{short[group]} ({', '.join(map(str, severities))})")
    return ", ".join(parts)
