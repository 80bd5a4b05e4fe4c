"""How adaptation may change images, told without labels by what changes do to the predicted classes of clean ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


# Mirrored copies may keep so much less of the classes than cropped ones do: of all images, and of those of one class.
# Of photos they keep more, but for a class of few images now and then; of digits they keep half, and of some none.
_LEAST = 0.9
_LEAST_OF_A_CLASS = 0.7
# A class that few images were predicted as counts as if so many more had kept it in either copy.
_PRIOR_KEPT = 10

# Shares of the layers that copies may be corrected in, the first ones; and that they are, where nothing was measured.
DEPTHS = {"quarter": 0.25, "half": 0.5, "all": 1.0}
_LEAST_DEPTH = 0.17
# Images that were corrected keep so many of their classes at least, and no fewer than cropped ones do: digits hold on
# to theirs with all layers corrected, deep networks for photos with a sixth.
_LEAST_CORRECTED = 0.9

# What a model's `reference_distance` may hold of changed images, see the functions below.
AGREEMENTS: dict[str, tuple[str, ...]] = {"mirrored": ("all", "least"), "corrected": ("cropped", *DEPTHS)}


def mirrored_agreement(classes: Mapping[str, Tensor]) -> dict[str, float]:
    """How many images keep their class when mirrored, relative to those that do when cropped: of `"all"`, and of the
    class of which it is `"least"`.

    Args:
        classes: predicted for N > 0 images, each of shape `(N,)`: as they are, under `"plain"`, and for their copies,
            under `"cropped"` and `"mirrored"`.
    """
    plain = classes["plain"]
    kept = (torch.stack([classes["cropped"], classes["mirrored"]], 1) == plain[:, None]).long()
    of_classes = torch.zeros(int(plain.max()) + 1, 2, dtype=torch.long).index_add_(0, plain, kept)
    cropped, mirrored = (torch.cat([kept.sum(0)[None], of_classes]) + _PRIOR_KEPT).double().unbind(1)
    shares = (mirrored / cropped).tolist()
    return {"all": shares[0], "least": min(shares[1:])}


def corrected_agreement(classes: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of images that keep their class when their features are corrected so deep, and when `"cropped"`.

    Args:
        classes: predicted for N > 0 images, each of shape `(N,)`: as they are, under `"plain"`, for their copies,
            under `"cropped"`, and with corrected features, under the names of `DEPTHS`.
    """
    plain = classes["plain"]
    return {name: (classes[name] == plain).double().mean().item() for name in AGREEMENTS["corrected"]}


def may_mirror(reference: Mapping[str, Any] | None) -> bool:
    """Whether images may be mirrored unless settings say otherwise, by what a model's `reference_distance` holds of
    clean ones; unknown is no."""
    agreement = (reference or {}).get("mirrored")
    return agreement is not None and agreement["all"] >= _LEAST and agreement["least"] >= _LEAST_OF_A_CLASS


def depth_of_copies(reference: Mapping[str, Any] | None) -> float:
    """In what share of the layers copies of images are corrected unless settings say otherwise, by what a model's
    `reference_distance` holds of clean ones: as deep as these keep their classes, and in the first sixth anyway."""
    depth, agreement = _LEAST_DEPTH, (reference or {}).get("corrected")
    if agreement is None:
        return depth
    least = max(_LEAST_CORRECTED, agreement["cropped"])
    for name, share in DEPTHS.items():
        if agreement[name] < least:
            break
        depth = share
    return depth
