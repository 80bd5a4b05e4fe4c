"""Semantic segmentation with test-time adaptation in every call."""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .adapting_pipeline_it3 import AdaptingPipeline
from .configuration_it3 import SEGMENTATION
from .task_it3 import Task, resize


class IT3SegmentationPipeline(AdaptingPipeline):
    """Classifies every pixel with a model that adapts itself to the images, without labels.

    Answers as the stock image segmentation pipeline does for semantic segmentation: for an image a list of
    dictionaries, one for each class that is found, with `label`, `mask` (`PIL.Image` of mode `"L"` and of the size of
    the image, 255 where the class is, else 0), and `score`, the mean probability of the class over its mask.

    Args:
        adapt (`bool`, defaults to `True`): whether to adapt; without, the plain model answers.
        adaptation_batch_size, batch_size (`int`, *optional*), overrides: as in [`IT3Pipeline`].
        return_idempotence (`bool`, defaults to `False`): add to every dictionary the `idempotence` distance of its
            image and whether that was `adapted` to, or `averaged` over augmentations, with `distance_shift` and
            `feature_shift`, how far its group lies from clean images; not with `adapt=False`, which never measures it.
        return_unadapted (`bool`, defaults to `False`): add to every dictionary its `unadapted_mask`: where the model
            sees the class without adaptation.
        return_loss_history (`bool`, defaults to `False`): as in [`IT3Pipeline`].

    Example:

    ```python
    >>> from PIL import Image
    >>> from transformers import SegformerConfig, SegformerImageProcessor, pipeline
    >>> from hf_it3 import IT3ForSemanticSegmentation
    >>> backbone = SegformerConfig(
    ...     depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=3
    ... )
    >>> model = IT3ForSemanticSegmentation.from_backbone(backbone)
    >>> processor = SegformerImageProcessor(size={"height": 64, "width": 64})
    >>> segmenter = pipeline("it3-image-segmentation", model=model, image_processor=processor)
    >>> segmenter(Image.new("RGB", (100, 80)), gate=None)[0]["mask"].size
    (100, 80)

    ```
    """

    task_of_models = SEGMENTATION
    verb = "segment"
    participle = "segmented"

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: dict[str, Tensor],
        return_idempotence: bool = False,
        return_unadapted: bool = False,
        return_loss_history: bool = False,
    ) -> list[dict[str, Any]]:
        """Turns one image's logits into a mask for each class that is found."""
        size = model_outputs["image_size"][0].tolist()
        logits = resize(model_outputs["logits"].float(), size)
        probabilities = Task.of(self.model.config).predict(logits)[0].numpy()
        classes = probabilities.argmax(0)
        shift = self._shift_of(model_outputs, return_idempotence, return_loss_history)
        unadapted = None
        if return_unadapted:
            initial = model_outputs.get("initial_logits", model_outputs["logits"])
            unadapted = resize(initial.float(), size)[0].argmax(0).numpy()
        segments = []
        for index in np.unique(classes).tolist():
            where = classes == index
            segment = {
                "score": float(probabilities[index][where].mean()),
                "label": self.model.config.id2label[index],
                "mask": _mask(where),
            }
            if unadapted is not None:
                segment["unadapted_mask"] = _mask(unadapted == index)
            segments.append({**segment, **shift})
        return segments


def class_map(segments: list[dict[str, Any]], label2id: dict[str, int]) -> np.ndarray:
    """The class index of each pixel, an array `(H, W)` of int64, from what the pipeline answers for an image."""
    classes = np.zeros(np.shape(segments[0]["mask"]), np.int64)
    for segment in segments:
        classes[np.asarray(segment["mask"]) > 0] = label2id[segment["label"]]
    return classes


def _mask(where: np.ndarray) -> Image.Image:
    return Image.fromarray(where.astype(np.uint8) * 255)
