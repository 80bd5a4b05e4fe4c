"""Generates model cards from what was measured, and merges them with what a person wrote."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..it3.loading_it3 import is_delta
from ..utils import write_atomically
from .card_facts import base_of, default_metric, hub_task_of, model_facts, public_id, versions_for_card
from .card_merging import CARD_NAME, load_card, merge_cards, short_name, sign, union
from .card_results import ConditionResult, eval_results, result_facts
from .card_text import link_target, literal, one_line, render


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
TAGS = ("it3", "test-time-training", "test-time-adaptation", "robustness")
ADAPTED_TAG = "adapted-at-test-time"


def write_model_card(directory: Any, model: Any, **kwargs: Any) -> Path:
    """Writes the card of a model into the directory where it is saved, or merges it into the card that is there.

    A card that a person edited keeps its text, and what the person set in its metadata; generated metadata is added.

    Args:
        directory (`str` or `PathLike`): where the model is saved.
        model ([`IT3ForImageClassification`] or [`IT3Config`]): the model, or its configuration.
        plots: image files to show, copied into the directory.
        example: an image file for the example of use, copied into the directory as well.
        kwargs: see [`build_model_card`].

    Returns:
        The path of the card.

    Raises:
        ValueError: if a card is there that cannot be read; it is left as it is.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    kwargs["plots"] = [_keep_plot(plot, directory) for plot in kwargs.get("plots", ())]
    if kwargs.get("example"):
        kwargs["example"] = _keep(kwargs["example"], directory)
    kwargs["model_id"] = kwargs.get("model_id") or directory.resolve().name
    kwargs.setdefault("delta", _holds_delta(directory))
    card = build_model_card(model, **kwargs)
    path = directory / CARD_NAME
    if path.exists():
        card = merge_cards(load_card(path), card)
    write_atomically(path, str(card).encode())
    return path


def build_model_card(
    model: Any,
    *,
    model_id: str,
    results: Any = (),
    dataset: str | None = None,
    dataset_name: str | None = None,
    base_model: str | None = None,
    license: str = "unknown",
    language: Any = None,
    tags: Iterable[str] = (),
    plots: Sequence[tuple[str, str]] = (),
    example: str | None = None,
    training: Mapping[str, Any] | None = None,
    comparison: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    hardware: str | None = None,
    delta: bool = False,
) -> ModelCard:
    """Generates the card of a model.

    Args:
        model ([`IT3ForImageClassification`] or [`IT3Config`]): the model, or its configuration.
        model_id (`str`): `"user/name"`, or the name of a local directory.
        results (list of [`ConditionResult`] or of dictionaries with its fields, or the return value of
            [`~hf_it3.evaluation.evaluate_robustness`]): what was measured, one per condition.
        dataset (`str`, *optional*): the training data; listed in the metadata if it is a repository `"user/name"`.
        dataset_name (`str`, *optional*): the same for readers; by default `dataset`.
        base_model (`str`, *optional*): by default the model that this one was adapted from, or the wrapped backbone.
        license (`str`): identifier of the licence of the weights.
        language (*optional*), tags: further metadata.
        plots (list of `(file, caption)`): image files in the repository.
        example (`str`, *optional*): an image file in the repository, which the example of use classifies.
        training (`dict`, *optional*): hyperparameters by name, as readers see them; see
            [`~hf_it3.hub.card_facts.training_facts`].
        comparison (`dict`, *optional*): a table beside that of the results, which compares this model's method with
            torch-ttt's, each on models trained with its own loss: its `caption` (`str`), `columns` (list of `str`) and
            `rows` (lists of as many `str`); `examples/from_torch_ttt.py --output` writes it.
        versions (`dict`, *optional*): of the packages; by default those installed.
        hardware (`str`, *optional*): what the cost of adaptation was measured on.
        delta (`bool`): of an adapted model, whether only the weights that changed lie beside the card.
    """
    config = getattr(model, "config", model)
    hub_task = hub_task_of(config)
    left_out = list(getattr(results, "left_out", ()))
    if hasattr(results, "model_index_entries"):
        results = results.model_index_entries()
    results = [ConditionResult.from_any(result) for result in results]
    adapted, name = getattr(config, "base_model", None), short_name(model_id)
    data = ModelCardData(
        license=one_line(license),
        language=[one_line(one) for one in language] if isinstance(language, (list, tuple)) else _text(language),
        library_name="hf_it3",
        pipeline_tag=hub_task,
        tags=union((*TAGS, hub_task), [ADAPTED_TAG] if adapted else [], map(one_line, tags)),
        base_model=public_id(base_model or base_of(config)),
        datasets=[dataset] if dataset is not None and public_id(dataset) else None,
        metrics=list(dict.fromkeys(result.metric for result in results)) or [default_metric(config)],
        model_name=name if results else None,
        eval_results=eval_results(results, dataset, dataset_name, hub_task) or None,
    )
    text = render(
        TEMPLATE,
        title=name,
        model_name=literal(model_id),
        dataset_name=dataset_name or dataset,
        hardware=hardware,
        left_out=left_out,
        plots=[{"file": link_target(file), "caption": caption} for file, caption in plots],
        example=None if example is None else literal(example),
        training=list((training or {}).items()),
        comparison=comparison,
        versions=list((versions_for_card() if versions is None else versions).items()),
        **model_facts(model, delta),
        **result_facts(results),
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    card.text = sign(text, model_id, card.data.to_dict())
    return card


def _holds_delta(directory: Path) -> bool:
    """Whether a model was saved in a directory as a delta, whatever it was loaded from or saved as elsewhere."""
    config = directory / "config.json"
    return config.is_file() and is_delta(json.loads(config.read_text(encoding="utf-8")).get("base_model"))


def _text(value: Any) -> str | None:
    return None if value is None else one_line(value)


def _keep_plot(plot: Any, directory: Path) -> tuple[str, str]:
    """Copies a plot into the directory; returns its name there and its caption."""
    path, caption = (plot, None) if isinstance(plot, (str, Path)) else plot
    return _keep(path, directory), caption or Path(path).stem.replace("_", " ")


def _keep(file: Any, directory: Path) -> str:
    """Copies a file into the directory, if it is not there; returns its name."""
    path = Path(file)
    if path.resolve().parent != directory.resolve():
        shutil.copyfile(path, directory / path.name)
    return path.name
