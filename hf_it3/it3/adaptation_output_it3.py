"""What adaptation returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class AdaptationOutput(ModelOutput):
    """What [`TestTimeAdapter`] returns for a batch of B images.

    Args:
        logits (`Tensor` of shape `(B, num_labels)`, or `(B, num_labels, h, w)` of a segmentation model): the answer.
        initial_logits (`Tensor`, shaped as `logits`): of the model as it was given.
        idempotence (`Tensor` of shape `(B,)`): idempotence distance D(y1, y0) before adaptation.
        adapted (`Tensor` of shape `(B,)`, bool): whose answer comes from adapted weights, or at least from other
            statistics than those of training.
        averaged (`Tensor` of shape `(B,)`, bool): whose answer is a mean over augmentations.
        loss_history (`Tensor` of shape `(steps,)`, or `(steps, B)` where each image is adapted to alone, as in scope
            `"image"`): the objective before each step, in at least single precision; NaN for images that were not
            adapted. Of 0 steps where no image was.
        distance_shift, feature_shift (`Tensor` of shape `(B,)`): how far those who share weights lie from clean
            images, by their idempotence distance and by their first features, in standard errors; the gate opens where
            one of them is above it. NaN where nothing was measured, or nobody asked.
    """

    # Always set; ModelOutput wants defaults.
    logits: Tensor = None  # type: ignore[assignment]
    initial_logits: Tensor = None  # type: ignore[assignment]
    idempotence: Tensor = None  # type: ignore[assignment]
    adapted: Tensor = None  # type: ignore[assignment]
    averaged: Tensor = None  # type: ignore[assignment]
    loss_history: Tensor = None  # type: ignore[assignment]
    distance_shift: Tensor = None  # type: ignore[assignment]
    feature_shift: Tensor = None  # type: ignore[assignment]
