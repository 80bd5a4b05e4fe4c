"""The folder of an evaluation: written piece by piece, so that it is valid at any time and can be resumed."""

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..utils import write_atomically
from .outcomes import Outcomes


if TYPE_CHECKING:
    from .results import RobustnessResults

RESULTS_FILE = "results.json"
TABLE_FILE = "results.csv"
_OUTCOMES_FOLDER = "outcomes"


class ResultsFolder:
    """The folder that an evaluation writes to, and resumes from.

    It holds `results.json`, `results.csv`, and in `outcomes/run-R/pass-P.npz` a few numbers for each image. Every file
    is written under another name first, so an interruption leaves the old one or the new one.

    Args:
        path: the folder; made if it is missing.
        settings: those of the evaluation that is to be written.
        resume: whether to go on from what is there.
        overwrite: whether to delete what is there.

    Raises:
        ValueError: if there are results already and neither `resume` nor `overwrite` is set, if they are of other
            settings than those to go on with, or if it is lost of which settings they are.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], resume: bool, overwrite: bool):
        self.path = Path(path)
        results, outcomes = self.path / RESULTS_FILE, self.path / _OUTCOMES_FOLDER
        if overwrite:
            if outcomes.exists():
                shutil.rmtree(outcomes)
            results.unlink(missing_ok=True)
        elif results.exists():
            if not resume:
                raise ValueError(
                    f"{results} exists; pass resume=True (--resume) to go on from it, overwrite=True (--overwrite) to "
                    "replace it, or another output_dir"
                )
            _check_same_settings(read_results(results)["settings"], settings, results)
        elif outcomes.exists():
            raise ValueError(
                f"{outcomes} exists without the {RESULTS_FILE} that says what it is of; pass overwrite=True "
                "(--overwrite) to replace it, or another output_dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def load(self, run: int) -> tuple[list[Outcomes], dict[str, Any] | None]:
        """The outcomes of the passes of a run that are done, and the state of its streams after them."""
        passes: list[Outcomes] = []
        while (path := self._pass_path(run, len(passes))).exists():
            with np.load(path, allow_pickle=False) as arrays:
                passes.append(Outcomes.from_arrays({name: arrays[name] for name in arrays.files}))
        state_path = self._state_path(run, len(passes) - 1)
        state = torch.load(state_path, weights_only=True) if passes and state_path.exists() else None
        return passes, state

    def add(self, run: int, number: int, outcomes: Outcomes, stream_state: dict[str, Any] | None) -> None:
        """Adds a finished pass of a run."""
        if stream_state is not None:
            # Before the outcomes: a pass counts as done from the moment that these are there.
            buffer = io.BytesIO()
            torch.save(stream_state, buffer)
            write_atomically(self._state_path(run, number), buffer.getvalue())
        buffer = io.BytesIO()
        arrays: dict[str, Any] = outcomes.to_arrays()
        np.savez_compressed(buffer, **arrays)
        write_atomically(self._pass_path(run, number), buffer.getvalue())
        self._state_path(run, number - 1).unlink(missing_ok=True)

    def write(self, results: "RobustnessResults", with_overall: bool = True) -> None:
        """Writes `results.json` and `results.csv` as they stand, with or without the figures over all conditions."""
        text = json.dumps(_without_nan(results.to_dict(with_overall)), indent=2, allow_nan=False)
        write_atomically(self.path / RESULTS_FILE, (text + "\n").encode())
        write_atomically(self.path / TABLE_FILE, as_csv(results).encode())

    def _pass_path(self, run: int, number: int) -> Path:
        return self.path / _OUTCOMES_FOLDER / f"run-{run}" / f"pass-{number:04d}.npz"

    def _state_path(self, run: int, number: int) -> Path:
        return self.path / _OUTCOMES_FOLDER / f"run-{run}" / f"streams-{number:04d}.pt"


def read_results(path: str | os.PathLike) -> dict[str, Any]:
    """A `results.json`, or the one in a folder.

    Raises:
        ValueError: if it is not one.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RESULTS_FILE
    try:
        results = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(results, dict) or not {"settings", "conditions"} <= set(results):
        raise ValueError(f"{path} is not a results.json of hf-it3 evaluate")
    return results


def _check_same_settings(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    new = json.loads(json.dumps(_without_nan(new)))
    for name in old:  # results of earlier versions say less, and what they do not say is not compared
        if old[name] != new.get(name):
            given, found = _first_difference(new.get(name), old[name])
            raise ValueError(
                f"cannot resume: {path} has {name}={_short(found)}, but {_short(given)} is asked for; use the same "
                "settings or another output_dir"
            )


def _first_difference(new: Any, old: Any) -> tuple[Any, Any]:
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return next(_first_difference(a, b) for a, b in zip(new, old, strict=True) if a != b)
    if isinstance(new, dict) and isinstance(old, dict) and new.keys() == old.keys():
        name = next(key for key in new if new[key] != old[key])
        a, b = _first_difference(new[name], old[name])
        return {name: a}, {name: b}
    return new, old


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _without_nan(value: Any) -> Any:
    """Plain JSON values: numbers that are not finite become `None`."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(results: "RobustnessResults") -> str:
    """A line per condition and method, figures as fractions."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    kind = results.kind
    runs = [f"{kind.metric}_run_{number}" for number in range(len(results.runs))]
    header = ["condition", "corruption", "severity", "subset", "num_images", "method", *kind.figures]
    writer.writerow([*header, "gain", "gain_lower", "gain_upper", *runs])
    for score in results.condition_scores:
        where = [score["name"], score["corruption"], score["severity"], score["subset"], score["num_images"]]
        for method, figures in score["methods"].items():
            gain = figures.get("gain", {})
            values = [figures[name] for name in kind.figures]
            values += [gain.get(name) for name in ("gain", "lower", "upper")]
            writer.writerow([*where, method, *values, *figures[f"{kind.metric}_by_run"]])
    return buffer.getvalue()
