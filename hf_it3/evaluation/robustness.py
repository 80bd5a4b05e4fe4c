"""Robustness evaluation of models, as one function."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from ..it3.adaptation_config_it3 import AdaptationConfig
from ..it3.task_it3 import Task
from .answers import Answers, ClassAnswers, answers_of
from .conditions import (
    PUBLISHED,
    Condition,
    check_corruptions,
    left_out_corruptions,
    make_conditions,
    missing_published,
    parse_corruptions,
    parse_severities,
    published_conditions,
    split_names,
)
from .execution import Evaluation
from .images import ORDERS
from .inputs import (
    LoadedModel,
    check_classes,
    describe_dataset,
    describe_image_processor,
    has_splits,
    load_model,
    load_subsets,
    weights_checksum,
)
from .methods import Method, make_methods, why_not_applicable
from .plots import plot_class
from .processes import on_main_process, process_state
from .published import PublishedImages, find_published
from .reference import read_reference
from .results import RobustnessResults
from .storage import ResultsFolder
from .tracking import Tracker


def evaluate_robustness(
    models: Any,
    dataset: Any,
    *,
    split: str = "test",
    config_name: str | Sequence[str] | None = None,
    corruptions: str | Iterable[str] | None = "all",
    exclude: str | Iterable[str] | None = None,
    severities: str | int | Iterable[int] = PUBLISHED,
    methods: str | Iterable[str] | Mapping[str, AdaptationConfig | Mapping[str, Any] | None] | None = None,
    order: str = "iid",
    batch_size: int | None = None,
    num_samples: int | None = None,
    seeds: int | Sequence[int] = 0,
    image_processor: Any = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    dtype: Any = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    reference: Any = None,
    output_dir: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    plots: bool = True,
    report_to: Any = "none",
    run_name: str | None = None,
    show_progress: bool = True,
) -> RobustnessResults:
    """Measures models on corrupted images, without and with several ways of adapting to them.

    Classifiers are measured by accuracy, segmentation models by mean IoU over the classes of all images together;
    corruptions that move pixels move the maps of classes with them, and pixels from outside of an image do not count.

    Pixels are corrupted in [0, 1] at the model's input size, between the resizing and the normalisation of its image
    processor. Corruption and order are seeded, by the position of an image in the data set; so the figures depend
    neither on the number of processes (`torchrun`, `accelerate launch`) nor, without adaptation, on the batch size.
    Bit for bit this holds for processes with equally many threads: torchrun gives each process one, unless
    `OMP_NUM_THREADS` says otherwise, and rounding on a CPU (about 1e-6 in probabilities) depends on that number.

    Args:
        models: an idempotent model (or its Hub name or path) or a list of them, trained with several seeds for
            example; figures are means over models and seeds.
        dataset: what to evaluate on: a Hub name, path, `"digits"` or `"scenes"` (see [`~hf_it3.data.load_images`]); a
            data set with an image column and a label column (of maps, in segmentation), which may be streamed; or a
            mapping from names to data sets, such as several test sets, of which one may be named `"clean"`. Also a
            folder of published corrupted files (CIFAR-10-C, ImageNet-C, MNIST-C, ... as downloaded, see
            [`~hf_it3.evaluation.published.find_published`]); each of its conditions is evaluated under its published
            name, and nothing is corrupted here.
        split, config_name: which part of a named data set, of a split also a range such as `"test[2000:]"`; several,
            comma-separated, become conditions of their own.
        corruptions: `"all"` (MNIST-C for models of grey images, ImageNet-C for colour), `"none"`, suites or names;
            see [`~hf_it3.corruptions.list_corruptions`]. The images as they are always come first. Of published
            files, `"all"` is what the benchmark counts.
        exclude: of these, suites or names to leave out; `"calibrated"` stands for those that the models' settings were
            chosen on (`config.calibration_corruptions`), which say less about new kinds of shift.
        severities: `"published"` (all five of ImageNet-C, the one of each corruption of MNIST-C), `"one"` (3, or that
            of MNIST-C), `"1-5"`, `"1,3"`, a number or a list, for corruptions that have severities.
        methods: `"none"` (always among them), `"statistics"` (Schneider et al., NeurIPS 2020), `"tent"` (Wang et al.,
            ICLR 2021), `"torch-ttt"`, `"it3"` (presets of [`AdaptationConfig`]); `"batch"`, `"stream"`, `"image"` (the
            model's own settings in that scope); or a mapping from names to settings ([`AdaptationConfig`], a mapping
            of its fields, or `None` for no adaptation). All but `"it3"` by default. Methods that a model has no layers
            for are reported as not applicable.
        order: `"iid"` (shuffled), `"class-sorted"`, `"mixed"` (every batch holds all conditions) or `"continual"` (as
            i.i.d., but streams go on from one condition to the next). It decides whether adaptation helps.
        batch_size: images that adapt together; by default the first model's `config.adaptation.batch_size`.
        num_samples: number of images, drawn with a fixed seed (of a streamed data set, the first ones); default all.
        seeds: of corruptions and order; one or several.
        image_processor: by default that of each model's checkpoint.
        image_column, label_column: by default the usual names.
        streaming: whether a named data set is streamed instead of loaded; memory then does not grow with its images.
        revision, dtype, device_map: of models given by name, as in `from_pretrained`.
        trust_remote_code: whether code that these models and their image processors bring along may run.
        reference: a `results.json` (path, or its content) of a reference model with the same conditions, whose
            unadapted errors are divided by: over all of a benchmark that gives its mean corruption error and relative
            mCE (Hendrycks and Dietterich, ICLR 2019), over other conditions a ratio of errors. Or `"alexnet"`, for the
            published errors of AlexNet, on ImageNet-C alone.
        output_dir: folder for `results.json`, `results.csv`, `plots/` and, for resuming, `outcomes/`; each finished
            condition is there at once.
        resume: go on from what is in `output_dir`; the results are those of an uninterrupted evaluation.
        overwrite: replace what is in `output_dir`.
        plots: whether to draw plots into `output_dir` (needs matplotlib).
        report_to, run_name: as in `TrainingArguments`: `"trackio"`, `"tensorboard"`, `"wandb"`, ..., or `"none"`.
        show_progress: whether the main process shows a progress bar with the running accuracy of its share of images.

    Returns:
        [`RobustnessResults`], in every process. Accuracies and mean IoU are fractions.

    Raises:
        ValueError: for unknown names, unsuitable models or data sets, and an `output_dir` that has other results.
        EvaluationInterrupted: on Ctrl-C, a `KeyboardInterrupt` that carries the `results` so far.
        ImportError: if plots need the extra `eval`, or a corruption that is named the extra `frost`.

    Example:

    ```python
    >>> from hf_it3 import IT3Config, IT3ForImageClassification
    >>> from hf_it3.evaluation import evaluate_robustness
    >>> model = IT3ForImageClassification(IT3Config(id2label={i: str(i) for i in range(10)}))
    >>> results = evaluate_robustness(
    ...     model, "digits", corruptions="digits-shift/contrast", methods="batch", num_samples=64, show_progress=False
    ... )
    >>> [condition.name for condition in results.conditions]
    ['clean', 'digits-shift/contrast']

    ```
    """
    models = models if isinstance(models, (list, tuple)) else [models]
    if not models:
        raise ValueError("models is empty; pass at least one model")
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")
    batch_size, num_samples = _count("batch_size", batch_size), _count("num_samples", num_samples)
    seeds = _parse_seeds(seeds)
    if output_dir is None and (resume or overwrite):
        raise ValueError("resume and overwrite need output_dir, the folder with the results")
    if output_dir is not None and plots:
        plot_class()
    loading = (revision, dtype, device_map, trust_remote_code)
    loaded = [load_model(model, image_processor, *loading) for model in models]
    kind = _kind(loaded)
    if order == "class-sorted" and kind is not ClassAnswers:
        raise ValueError("order='class-sorted' sorts images by their one class; models of maps have no such order")
    dataset = os.fspath(dataset) if isinstance(dataset, os.PathLike) else dataset
    found = find_published(dataset) if isinstance(dataset, str) else []
    if found:
        chosen = (found, corruptions, _excluded(exclude, loaded, found), parse_severities(severities))
        files, left_out = published_conditions(*chosen), missing_published(*chosen)
        conditions = list(files)
        subsets: dict[str | None, Any] = {one.name: published.images for one, published in files.items()}
        check_classes(subsets, loaded)
    else:
        subsets = load_subsets(dataset, split, config_name, streaming)
        conditions, left_out = _conditions(loaded, corruptions, exclude, severities, list(subsets))
    check_corruptions(conditions)
    if order == "mixed" and len(subsets) > 1:
        raise ValueError("order='mixed' mixes corruptions of the same images; evaluate one split or configuration")
    by_model = [make_methods(methods, one.model.config.adaptation) for one in loaded]
    if batch_size is None:
        batch_size = loaded[0].model.config.adaptation.batch_size
    settings = {
        "models": [_describe(one, own) for one, own in zip(loaded, by_model, strict=True)],
        "image_processors": [describe_image_processor(one.image_processor) for one in loaded],
        "dataset": describe_dataset(dataset),
        "config_name": None if config_name is None else split_names(config_name),
        "split": split if has_splits(dataset) else None,
        "image_column": image_column,
        "label_column": label_column,
        "streaming": streaming,
        "num_samples": num_samples,
        "dataset_sizes": [len(one) if hasattr(one, "__len__") else None for one in subsets.values()],
        "conditions": [condition.name for condition in conditions],
        "methods": [method.name for method in by_model[0]],
        "order": order,
        "batch_size": batch_size,
        "seeds": seeds,
    }
    results = RobustnessResults(
        settings=settings,
        runs=[{"model": one.name, "seed": seed} for one in loaded for seed in seeds],
        conditions=conditions,
        left_out=left_out,
        kind=kind,
        **_applicable(loaded, by_model),
        gates=[_gate(one) for one in loaded for _ in seeds],
        reference=read_reference(reference, conditions, loaded, kind.metric),
    )
    folder = tracker = None
    if output_dir is not None:
        folder = on_main_process(lambda: ResultsFolder(output_dir, settings, resume, overwrite))
    if process_state().is_main_process:
        if show_progress:
            print(_plan(results), file=sys.stderr)
        tracker = Tracker(report_to, str(output_dir or "."), run_name)
    evaluation = Evaluation(results, loaded, by_model, subsets, seeds, folder, tracker, show_progress)
    evaluation.run(num_samples=num_samples, image_column=image_column, label_column=label_column)
    if output_dir is not None and plots and process_state().is_main_process:
        results.save_plots(Path(output_dir) / "plots")
    return results


def _kind(loaded: Sequence[LoadedModel]) -> type[Answers]:
    """What is kept of the answers of all models."""
    kinds = [answers_of(Task.of(one.model.config), one.name) for one in loaded]
    for one, kind in zip(loaded, kinds, strict=True):
        if kind is not kinds[0]:
            raise ValueError(
                f"{one.name} is measured by {kind.noun}, and {loaded[0].name} by {kinds[0].noun}; evaluate models of "
                "different tasks one by one"
            )
    return kinds[0]


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _count(name: str, value: Any) -> int | None:
    if value is not None and not _is_integer(value, 1):
        raise ValueError(f"{name}={value!r} must be an integer >= 1")
    return None if value is None else int(value)


def _parse_seeds(given: Any) -> list[int]:
    seeds = list(given) if isinstance(given, Iterable) else [given]
    if not seeds or not all(_is_integer(seed, 0) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={given!r} must be one or more different integers >= 0")
    return [int(seed) for seed in seeds]


def _excluded(exclude: Any, loaded: list[LoadedModel], found: Sequence[PublishedImages] = ()) -> list[str]:
    """Names of corruptions to leave out; `"calibrated"` are those that calibration has seen, whatever suite it took
    them from, and of published files those that there are."""
    excluded = split_names(exclude)
    if "calibrated" in excluded:
        excluded.remove("calibrated")
        seen = [name for one in loaded for name in one.model.config.calibration_corruptions or ()]
        if found:
            seen = [one.corruption for one in found if one.corruption in {name.rpartition("/")[2] for name in seen}]
        excluded += seen
    return excluded


def _conditions(
    loaded: list[LoadedModel], corruptions: Any, exclude: Any, severities: Any, subsets: list[str | None]
) -> tuple[list[Condition], dict[str, str]]:
    """The conditions, and why corruptions that were asked for are not among them."""
    channels = [one.model.config.image_channels for one in loaded]
    chosen = [parse_corruptions(corruptions, number) for number in channels]
    if any(names != chosen[0] for names in chosen):
        raise ValueError(
            f"corruptions={corruptions!r} means other ones for grey than for colour images, and the models have "
            f"{', '.join(map(str, channels))} channels; name the corruptions, or evaluate the models one by one"
        )
    unwanted = set(parse_corruptions(_excluded(exclude, loaded), channels[0]))
    wanted = [name for name in chosen[0] if name not in unwanted]
    left_out = left_out_corruptions(corruptions, channels[0])
    left_out = {name: reason for name, reason in left_out.items() if name not in unwanted and name not in wanted}
    return make_conditions(wanted, parse_severities(severities), subsets), left_out


def _describe(loaded: LoadedModel, methods: Sequence[Method]) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "weights_sha256": weights_checksum(loaded.model),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "reference_distance": loaded.model.config.reference_distance,
        "methods": {method.name: None if method.config is None else method.config.to_dict() for method in methods},
    }


def _applicable(loaded: list[LoadedModel], by_model: list[list[Method]]) -> dict[str, Any]:
    """Methods that some model can use, and why none can use the others."""
    usable: dict[str, None] = {}
    reasons: dict[str, str] = {}
    for one, methods in zip(loaded, by_model, strict=True):
        for method in methods:
            reason = why_not_applicable(method, one.model)
            if reason is None:
                usable[method.name] = None
            else:
                reasons.setdefault(method.name, reason)
    names = [method.name for method in by_model[0] if method.name in usable]
    return {
        "methods": names,
        "not_applicable": {name: reason for name, reason in reasons.items() if name not in usable},
    }


def _plan(results: RobustnessResults) -> str:
    """Describes the amount of work in one line."""
    settings, conditions = results.settings, results.conditions
    runs = f", {len(results.runs)} times (models and seeds)" if len(results.runs) > 1 else ""
    sizes = [size for size in settings["dataset_sizes"] if size is not None]
    count = min([*sizes, *filter(None, [settings["num_samples"]])], default=None)
    images = "all images of a stream" if count is None else f"{count:,} images"
    return (
        f"Evaluating {len(conditions)} condition{'s' if len(conditions) > 1 else ''} on {images} each with "
        f"{', '.join(results.methods)}, in batches of {settings['batch_size']}{runs}"
    )


def _gate(loaded: LoadedModel) -> dict[str, Any] | None:
    config = loaded.model.config
    if config.reference_distance is None:
        return None
    return {**config.reference_distance, "gate": config.adaptation.gate}
