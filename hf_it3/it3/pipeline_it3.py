"""Image classification with test-time adaptation in every call."""

from typing import Any

from torch import Tensor
from transformers.pipelines import ImageClassificationPipeline

from .adapting_pipeline_it3 import AdaptingPipeline, check_count


_NOT_GIVEN = object()


class IT3Pipeline(AdaptingPipeline, ImageClassificationPipeline):
    """Classifies images with a model that adapts itself to them, without labels.

    Takes what the stock image classification pipeline takes, and adapts by default: the images of one call, in groups
    of `adaptation_batch_size`, share adapted weights (or not, as the model's settings say). The model itself is never
    changed, and answers as in eval mode whatever mode it is in.

    Streams live on from call to call, one for each setting of scope `"stream"`; of more than four, those that were
    used least recently are dropped and start again. A copy of a pipeline has streams of its own.

    Args:
        adapt (`bool`, defaults to `True`): whether to adapt; without, the plain model answers.
        adaptation_batch_size (`int`, *optional*): images that adapt together; by default
            `model.config.adaptation.batch_size`. A generator is answered once that number of images has been read.
        batch_size (`int`, *optional*): images that are computed at once where none adapt together, with `adapt=False`
            for example. It is for speed alone, and changes no answer beyond rounding.
        return_idempotence (`bool`, defaults to `False`): add to every class the `idempotence` distance of its image
            and whether that was `adapted` to, or `averaged` over augmentations, with `distance_shift` and
            `feature_shift`, how far its group lies from clean images; not with `adapt=False`, which never measures it.
        return_unadapted (`bool`, defaults to `False`): add to every class its `unadapted_score`.
        return_loss_history (`bool`, defaults to `False`): add to every class the `loss_history` of its image: the
            objective before each optimizer step, the same for images that adapted together; an empty list where no
            step was taken.
        overrides: any field of [`AdaptationConfig`], for this pipeline or for one call.

    Calls also take `top_k` (`int` or `None`, defaults to 5), how many classes to return, `None` for all, and
    `function_to_apply` as in the stock pipeline; they return lists of `{"label", "score"}` dictionaries, best first.

    All of these can be given when the pipeline is made and for a single call.

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import pipeline
    >>> from hf_it3 import IT3Config, IT3ForImageClassification, IT3ImageProcessor
    >>> processor = IT3ImageProcessor(num_channels=1)
    >>> model = IT3ForImageClassification(IT3Config())
    >>> classifier = pipeline("it3-image-classification", model=model, image_processor=processor)
    >>> len(classifier([Image.new("L", (28, 28))] * 3, top_k=2, gate=None))
    3

    ```
    """

    def _sanitize_parameters(  # type: ignore[override] # the rest goes through
        self, top_k: Any = _NOT_GIVEN, function_to_apply: Any = None, **kwargs: Any
    ) -> tuple[dict, dict, dict]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        stock = ImageClassificationPipeline._sanitize_parameters(self, None, function_to_apply)
        if top_k is not _NOT_GIVEN:
            check_count("top_k", top_k)
            postprocess["top_k"] = top_k
        return preprocess, forward, {**postprocess, **stock[2]}

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Tensor],
        function_to_apply: Any = None,
        top_k: int | None = 5,
        return_idempotence: bool = False,
        return_unadapted: bool = False,
        return_loss_history: bool = False,
    ) -> list[dict[str, Any]]:
        """Turns one image's logits into labels and scores, best first."""
        num_labels = self.model.config.num_labels
        top_k = num_labels if top_k is None else top_k
        classes = super().postprocess(model_outputs, function_to_apply, top_k)
        if return_unadapted:
            logits = model_outputs["logits"]
            initial = model_outputs.get("initial_logits", logits)
            unadapted = super().postprocess({"logits": initial}, function_to_apply, num_labels)
            indices = self._class_indices(unadapted, initial[0])
            scores = {index: entry["score"] for index, entry in zip(indices, unadapted, strict=True)}
            indices = self._class_indices(classes, logits[0])
            classes = [
                {**entry, "unadapted_score": scores[index]} for index, entry in zip(indices, classes, strict=True)
            ]
        shift = self._shift_of(model_outputs, return_idempotence, return_loss_history)
        return [{**entry, **shift} for entry in classes]

    def _class_indices(self, classes: list[dict[str, Any]], logits: Tensor) -> list[int]:
        """Which class each entry is of, given all logits `(num_labels,)`: several may have the same label."""
        by_label: dict[str, list[int]] = {}
        for index in logits.argsort(descending=True).tolist():
            by_label.setdefault(self.model.config.id2label[index], []).append(index)
        # The entries are sorted by score, and scores rise with logits.
        return [by_label[entry["label"]].pop(0) for entry in classes]
