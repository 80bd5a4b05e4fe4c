"""Makes `evaluate.evaluator("it3-image-classification")` known; importing this module is enough.

`evaluate` insists that evaluator and pipeline name the same task, and looks its evaluators up in a table.
"""

from typing import Any

from evaluate import EvaluationModule
from evaluate.evaluator import SUPPORTED_EVALUATOR_TASKS, ImageClassificationEvaluator
from transformers import PreTrainedModel, pipeline

from ..data import image_processor_for
from ..it3.interface_it3 import idempotent_model
from ..it3.pipeline_it3 import IT3Pipeline
from ..it3.registration import TASK
from .metrics import IT3Metric


class IT3ImageClassificationEvaluator(ImageClassificationEvaluator):
    """The image classification evaluator of `evaluate`, for [`IT3Pipeline`].

    It differs in two defaults: the metric is [`~hf_it3.evaluation.metrics.IT3Metric`], which needs no network, and
    labels are translated with the model's own names unless `label_mapping` says otherwise. It also takes pipelines
    made with `pipeline("image-classification", model=..., pipeline_class=IT3Pipeline)`.

    Example:

    ```python
    >>> import evaluate
    >>> from transformers import pipeline
    >>> import hf_it3.evaluation.evaluate_task
    >>> from hf_it3 import IT3Config, IT3ForImageClassification, IT3ImageProcessor
    >>> from hf_it3.data import load_digits
    >>> model = IT3ForImageClassification(IT3Config(id2label={i: str(i) for i in range(10)}))
    >>> processor = IT3ImageProcessor(num_channels=1)
    >>> classifier = pipeline("it3-image-classification", model=model, image_processor=processor, batch_size=32)
    >>> evaluator = evaluate.evaluator("it3-image-classification")
    >>> results = evaluator.compute(classifier, load_digits()["test"].select(range(64)))
    >>> 0 <= results["accuracy"] <= 1
    True

    ```
    """

    def __init__(self, task: str = TASK, default_metric_name: str | None = None):
        super().__init__(task, default_metric_name=default_metric_name)
        self._label2id: dict[str, int] | None = None

    def prepare_metric(self, metric: str | EvaluationModule | None) -> EvaluationModule:
        """Our metric, unless another is given."""
        return IT3Metric() if metric is None else super().prepare_metric(metric)

    def prepare_pipeline(
        self, model_or_pipeline: Any, tokenizer: Any = None, feature_extractor: Any = None, device: int | None = None
    ) -> Any:
        """The pipeline, made from a name or a model where one is given, and a note of its model's labels."""
        # evaluate 0.4.6 looks for TFPreTrainedModel here, which transformers 5 does not have.
        if isinstance(model_or_pipeline, str):
            model_or_pipeline = pipeline(self.task, model=model_or_pipeline, device=device)
        elif isinstance(model_or_pipeline, PreTrainedModel):
            processor = feature_extractor or image_processor_for(idempotent_model(model_or_pipeline).config)
            model_or_pipeline = pipeline(self.task, model=model_or_pipeline, image_processor=processor, device=device)
        pipe = self._checked(model_or_pipeline)
        self._label2id = {name: number for number, name in pipe.model.config.id2label.items()}
        return pipe

    @staticmethod
    def _checked(pipe: Any) -> IT3Pipeline:
        # By class, so that pipeline("image-classification", ..., pipeline_class=IT3Pipeline) is welcome too.
        if not isinstance(pipe, IT3Pipeline):
            raise ValueError(
                f"model_or_pipeline is a {type(pipe).__name__}; pass a model, or pipeline({TASK!r}, model=...)"
            )
        return pipe

    def predictions_processor(self, predictions: Any, label_mapping: dict[str, int] | None) -> dict[str, list]:
        """The class of each image as a number."""
        return super().predictions_processor(predictions, label_mapping or self._label2id)


def register_evaluator() -> None:
    """Adds the task to the table of `evaluate`; calling it again changes nothing."""
    SUPPORTED_EVALUATOR_TASKS.setdefault(
        TASK, {"implementation": IT3ImageClassificationEvaluator, "default_metric_name": None}
    )


register_evaluator()
