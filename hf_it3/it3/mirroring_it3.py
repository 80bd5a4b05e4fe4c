"""May images be mirrored? What mirroring clean ones does to their classes tells it, without labels."""

from typing import Any

import torch
from torch import Tensor

from .augmentation_it3 import middle_of


# Mirrored copies may keep so much less of the classes than cropped ones do: of all images, and of those of one class.
# Of photos they keep more, but for a class of few images now and then; of digits they keep half, and of some none.
_LEAST = 0.9
_LEAST_OF_A_CLASS = 0.7
# A class that few images were predicted as counts as if so many more had kept it in either copy.
_PRIOR_KEPT = 10


def copies_to_compare(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images `(B, C, H, W)` cropped, by as much as copies are on average, and mirrored."""
    return middle_of(images), images.flip(-1)


def mirrored_agreement(classes: Tensor, of_copies: Tensor) -> dict[str, float]:
    """How many images keep their class when mirrored, relative to those that do when cropped: of `"all"`, and of the
    class of which it is `"least"`.

    Args:
        classes (`Tensor` of shape `(N,)`): predicted for the images, N > 0.
        of_copies (`Tensor` of shape `(N, 2)`): predicted for the cropped and the mirrored copy of each.
    """
    kept = (of_copies == classes[:, None]).long()
    of_classes = torch.zeros(int(classes.max()) + 1, 2, dtype=torch.long).index_add_(0, classes, kept)
    cropped, mirrored = (torch.cat([kept.sum(0)[None], of_classes]) + _PRIOR_KEPT).double().unbind(1)
    shares = (mirrored / cropped).tolist()
    return {"all": shares[0], "least": min(shares[1:])}


def may_mirror(reference: dict[str, Any] | None) -> bool:
    """Whether images may be mirrored unless settings say otherwise, by what a model's `reference_distance` holds of
    clean ones; unknown is no."""
    agreement = (reference or {}).get("mirrored")
    return agreement is not None and agreement["all"] >= _LEAST and agreement["least"] >= _LEAST_OF_A_CLASS
