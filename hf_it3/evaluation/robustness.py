"""The one function of robustness evaluation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..adaptation_config_it3 import AdaptationConfig
from .conditions import make_conditions, parse_corruptions, parse_severities
from .images import ORDERS, ImageSource
from .inputs import describe_dataset, load_model, load_subsets
from .methods import make_methods, why_not_applicable
from .results import RobustnessResults
from .runner import Runner, by_condition


def evaluate_robustness(
    models: Any,
    dataset: Any,
    *,
    split: str = "test",
    config_name: str | Sequence[str] | None = None,
    corruptions: str | Iterable[str] | None = "all",
    severities: str | int | Iterable[int] = "1-5",
    methods: str | Iterable[str] | Mapping[str, AdaptationConfig | None] | None = None,
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
    show_progress: bool = True,
) -> RobustnessResults:
    models = models if isinstance(models, (list, tuple)) else [models]
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if order not in ORDERS:
        raise ValueError(f"order={order!r} must be one of {', '.join(ORDERS)}")
    first = load_model(models[0], image_processor, revision, dtype, device_map)
    subsets = load_subsets(dataset, split, config_name, streaming)
    own = first.model.config.adaptation
    channels = getattr(first.model.config.backbone_config, "num_channels", 3)
    conditions = make_conditions(parse_corruptions(corruptions, channels), parse_severities(severities), list(subsets))
    chosen = make_methods(methods, own)
    batch_size = own.batch_size if batch_size is None else batch_size
    results = RobustnessResults(
        settings={
            "dataset": describe_dataset(dataset),
            "split": split,
            "order": order,
            "batch_size": batch_size,
        },
        runs=[],
        conditions=conditions,
        methods=[],
    )
    for number, model in enumerate(models):
        loaded = first if number == 0 else load_model(model, image_processor, revision, dtype, device_map)
        was_training = loaded.model.training
        loaded.model.eval()
        sources = {
            name: ImageSource(
                one, loaded.image_processor, loaded.model.config, image_column, label_column, num_samples
            )
            for name, one in subsets.items()
        }
        usable = []
        for method in make_methods(methods, loaded.model.config.adaptation):
            reason = why_not_applicable(method, loaded.model)
            if reason is None:
                usable.append(method)
            else:
                results.not_applicable[method.name] = reason
        results.methods = list(dict.fromkeys([*results.methods, *(m.name for m in usable)]))
        for seed in seeds:
            runner = Runner(
                loaded.model,
                loaded.image_processor,
                sources,
                conditions,
                usable,
                order,
                batch_size,
                seed,
                show_progress,
            )
            results.runs.append({"model": loaded.name, "seed": seed})
            passes = [runner.run(sweep) for sweep in runner.passes()]
            results.outcomes.append(by_condition(passes, len(conditions)))
        loaded.model.train(was_training)
    results.complete = True
    return results
