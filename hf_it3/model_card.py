"""Model cards: generated from what was measured, merged with what a person wrote."""

import importlib.metadata
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .card_merging import CARD_NAME, load_card, merge_cards, sign, union


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
TAGS = ("it3", "test-time-training", "test-time-adaptation", "robustness", "image-classification")
ADAPTED_TAG = "adapted-at-test-time"
VERSIONED = ("hf-it3", "torch", "transformers", "datasets", "huggingface-hub")
SETTINGS = (
    "scope",
    "batch_size",
    "num_steps",
    "learning_rate",
    "optimizer",
    "anchor",
    "parameters",
    "distance",
    "diversity_weight",
    "max_class_share",
    "norm_statistics",
    "gate",
    "augmentations",
)


@dataclass
class ConditionResult:
    """Accuracy under one condition, clean or corrupted, as it was measured.

    Args:
        name (`str`): the condition, for example `"noise 2"`.
        accuracy_unadapted (`float`), accuracy_adapted (`float`): fractions; means over the training seeds, if several.
            `None` if the adapted accuracy was not measured.
        unadapted_per_seed (`list[float]`), adapted_per_seed (`list[float]`): the accuracies behind those means.
        num_images (`int`, *optional*), split (`str`, *optional*): images per seed, and where they are from.
        milliseconds_unadapted (`float`, *optional*), milliseconds_adapted (`float`, *optional*): time per image.

    Raises:
        ValueError: if an accuracy is not a fraction between 0 and 1.
    """

    name: str
    accuracy_unadapted: float
    accuracy_adapted: float | None
    unadapted_per_seed: Sequence[float] = ()
    adapted_per_seed: Sequence[float] = ()
    num_images: int | None = None
    split: str | None = None
    milliseconds_unadapted: float | None = None
    milliseconds_adapted: float | None = None

    def __post_init__(self) -> None:
        for field in ("accuracy_unadapted", "accuracy_adapted"):
            value = getattr(self, field)
            if value is None and field == "accuracy_adapted":
                continue
            if not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ValueError(f"{field} of condition {self.name!r} must be a fraction from 0 to 1, got {value!r}")

    @classmethod
    def from_any(cls, result: Any) -> "ConditionResult":
        """A result from a dictionary or dataclass that has at least the fields without default; others are ignored."""
        if isinstance(result, cls):
            return result
        values = asdict(result) if is_dataclass(result) and not isinstance(result, type) else dict(result)
        if missing := [name for name in ("name", "accuracy_unadapted", "accuracy_adapted") if name not in values]:
            raise ValueError(f"the result of a condition lacks {', '.join(missing)}; it has {', '.join(values)}")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


def write_model_card(directory: Any, model: Any, **kwargs: Any) -> Path:
    """Writes the card of a model into the directory where it is saved, or merges it into the card that is there.

    A card that a person edited keeps its text, and what the person set in its metadata; generated metadata is added.

    Args:
        directory (`str` or `PathLike`): where the model is saved.
        model ([`IT3ForImageClassification`] or [`IT3Config`]): the model, or its configuration.
        plots: image files to show, copied into the directory.
        kwargs: see [`build_model_card`].

    Returns:
        The path of the card.

    Raises:
        ValueError: if a card is there that cannot be read; it is left as it is.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    kwargs["plots"] = [_keep_plot(plot, directory) for plot in kwargs.get("plots", ())]
    kwargs["model_id"] = kwargs.get("model_id") or directory.resolve().name
    card = build_model_card(model, **kwargs)
    path = directory / CARD_NAME
    if path.exists():
        card = merge_cards(load_card(path), card)
    # Written beside the card first, so that an interruption leaves the old one.
    unfinished = path.with_name(f".{CARD_NAME}.part")
    card.save(unfinished)
    unfinished.replace(path)
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
    versions: Mapping[str, str] | None = None,
    hardware: str | None = None,
) -> ModelCard:
    """The generated card of a model.

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
        versions (`dict`, *optional*): of the packages; by default those installed.
        hardware (`str`, *optional*): what the times were measured on.
    """
    config = getattr(model, "config", model)
    if hasattr(results, "model_index_entries"):
        results = results.model_index_entries()
    results = [ConditionResult.from_any(result) for result in results]
    adapted = getattr(config, "base_model", None)
    data = ModelCardData(
        license=license,
        language=language,
        library_name="hf_it3",
        pipeline_tag="image-classification",
        tags=union(TAGS, [ADAPTED_TAG] if adapted else [], tags),
        base_model=public_id(base_model or _base_of(config)),
        datasets=[dataset] if dataset is not None and public_id(dataset) else None,
        metrics=["accuracy"],
        model_name=_name(model_id) if results else None,
        eval_results=_eval_results(results, dataset, dataset_name) or None,
    )
    text = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=_name(model_id),
        model_id=model_id,
        dataset_name=dataset_name or dataset,
        adapted=_adapted_facts(adapted) if adapted else None,
        architecture=config.backbone_config.model_type,
        num_labels=config.num_labels,
        labels=_label_list(config),
        settings=[(name, _cell(_setting(config, name))) for name in SETTINGS],
        adaptation=config.adaptation,
        reference=_reference(config),
        calibration_corruptions=", ".join(getattr(config, "calibration_corruptions", None) or []),
        rows=[_row(result) for result in results],
        num_images=next((f"{result.num_images:,}" for result in results if result.num_images), None),
        seeds=max((len(result.adapted_per_seed) for result in results), default=1),
        cost=_cost(results),
        hardware=hardware,
        plots=[{"file": file, "caption": _cell(caption)} for file, caption in plots],
        versions=list((installed_versions() if versions is None else versions).items()),
        **_input_facts(config),
    ).text
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n")
    card.text = sign(text, model_id, card.data.to_dict())
    return card


def _setting(config: Any, name: str) -> Any:
    """A setting as it takes effect, with the defaults of the scope and of the model filled in."""
    adaptation = config.adaptation
    if name == "anchor":
        return adaptation.effective_anchor
    if name == "distance" and adaptation.distance is None:
        return config.distance
    return getattr(adaptation, name)


def _name(model_id: str) -> str:
    return model_id.split("/")[-1]


def public_id(name: Any) -> str | None:
    """A repository id "user/name" as it is, `None` for anything else, local paths above all."""
    if not isinstance(name, str) or "/" not in name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a card lists."""
    found = {}
    for package in VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _base_of(config: Any) -> str | None:
    adapted = getattr(config, "base_model", None)
    return adapted.get("name_or_path") if adapted else config.backbone_config.name_or_path or None


def _eval_results(results: list[ConditionResult], dataset: str | None, name: str | None) -> list[EvalResult]:
    kind, name = dataset or "unknown", name or dataset or "unknown"
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=kind,
            dataset_name=f"{name}, {result.name}",
            dataset_config=result.name,
            dataset_split=result.split,
            metric_type="accuracy",
            metric_name=f"Accuracy, {how}",
            metric_value=round(value, 4),
        )
        for result in results
        for how, value in (("unadapted", result.accuracy_unadapted), ("adapted", result.accuracy_adapted))
        if value is not None
    ]


def _row(result: ConditionResult) -> dict[str, str]:
    gain, adapted = "", "not measured"
    if result.accuracy_adapted is not None:
        gain = f"{100 * (result.accuracy_adapted - result.accuracy_unadapted):+.1f}"
        adapted = _percent(result.accuracy_adapted, result.adapted_per_seed)
    return {
        "name": _cell(result.name),
        "unadapted": _percent(result.accuracy_unadapted, result.unadapted_per_seed),
        "adapted": adapted,
        "gain": gain,
    }


def _percent(mean: float, values: Sequence[float]) -> str:
    spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def _cost(results: list[ConditionResult]) -> dict[str, str] | None:
    times = [(result.milliseconds_unadapted, result.milliseconds_adapted) for result in results]
    times = [pair for pair in times if None not in pair]
    if not times:
        return None
    unadapted, adapted = (statistics.fmean(column) for column in zip(*times, strict=True))
    return {"unadapted": f"{unadapted:.3g}", "adapted": f"{adapted:.3g}"}


def _adapted_facts(base: dict[str, Any]) -> dict[str, str]:
    name, revision = public_id(base.get("name_or_path")), base.get("revision")
    facts = {key: "not recorded" if base.get(key) is None else _cell(base[key]) for key in _ADAPTED_FIELDS}
    local = Path(base["name_or_path"]).name if base.get("name_or_path") else "a model"
    facts["base"] = f"[{name}](https://huggingface.co/{name})" if name else f"{_cell(local)} (not on the Hub)"
    facts["revision"] = f"`{revision}`" if revision else "not recorded"
    facts["weights"] = "only those that changed (a delta)" if base.get("weights") == "delta" else "all"
    return facts


_ADAPTED_FIELDS = ("data", "num_images", "num_steps", "learning_rate", "scope", "parameters", "date")


def _label_list(config: Any) -> str | None:
    labels = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if len(labels) > 20 or all(label.startswith("LABEL_") for label in labels):
        return None
    return ", ".join(_cell(label) for label in labels)


def _reference(config: Any) -> dict[str, str] | None:
    reference = getattr(config, "reference_distance", None)
    if not reference:
        return None
    count = reference.get("num_images")
    return {
        "mean": f"{reference['mean']:.4g}",
        "std": f"{reference['std']:.4g}",
        "num_images": f"{count:,}" if count else "the",
    }


def _input_facts(config: Any) -> dict[str, Any]:
    size = getattr(config.backbone_config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    is_grey = getattr(config.backbone_config, "num_channels", 3) == 1
    shades = "(0, 128, 255)" if is_grey else '("black", "grey", "white")'
    return {"mode": "L" if is_grey else "RGB", "width": width, "height": height, "shades": shades}


def _cell(value: Any) -> str:
    """A value as it can stand in a table: on one line, without column marks."""
    if callable(value):
        value = getattr(value, "__qualname__", type(value).__name__)
    return " ".join(str(value).split()).replace("|", "\\|")


def _keep_plot(plot: Any, directory: Path) -> tuple[str, str]:
    """Copies a plot into the directory; returns its name there and its caption."""
    path, caption = (plot, None) if isinstance(plot, (str, Path)) else plot
    path = Path(path)
    if path.resolve().parent != directory.resolve():
        shutil.copyfile(path, directory / path.name)
    return path.name, caption or path.stem.replace("_", " ")
