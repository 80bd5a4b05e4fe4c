"""The registry of corruptions and the one function that applies them."""

import difflib
import operator
from collections.abc import Sequence

import torch

from . import graded, imagenet_c, mnist_c, shifts
from .corruption import SEVERITIES, Corruption
from .randomness import ImageRandom


# Images are corrupted in chunks of about this many values, so that memory stays flat.
_CHUNK_VALUES = 2**16
DEFAULT_SEVERITY = 3

_REGISTRY = {
    corruption.qualified_name: corruption
    for module in (imagenet_c, mnist_c, graded, shifts)
    for corruption in module.CORRUPTIONS
}


def register(corruption: Corruption) -> None:
    """Adds a corruption of your own to the registry.

    Raises:
        ValueError: if its suite already has one of that name.
    """
    name = corruption.qualified_name
    if name in _REGISTRY:
        raise ValueError(f"corruption {name!r} is already registered; choose another name")
    _REGISTRY[name] = corruption


def list_suites() -> list[str]:
    """Names of the suites."""
    return list(dict.fromkeys(c.suite for c in _REGISTRY.values()))


def list_corruptions(suite: str | None = None) -> list[str]:
    """Qualified names (`"suite/name"`) of the corruptions of one suite, or of all, in the order of publication.

    Those that cannot be computed on this machine are left out, see `missing_corruptions`.

    Raises:
        ValueError: if there is no such suite.
    """
    return [c.qualified_name for c in _members(suite) if c.why_missing() is None]


def missing_corruptions(suite: str | None = None) -> dict[str, str]:
    """Qualified names of the corruptions that cannot be computed on this machine, and why not.

    Raises:
        ValueError: if there is no such suite.
    """
    reasons = {c.qualified_name: c.why_missing() for c in _members(suite)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _members(suite: str | None) -> list[Corruption]:
    if suite is not None and suite not in list_suites():
        raise ValueError(f"suite={suite!r} is unknown; choose one of {', '.join(list_suites())}")
    return [c for c in _REGISTRY.values() if suite in (None, c.suite)]


def get_corruption(name: str | tuple[str, str] | Corruption) -> Corruption:
    """Finds a corruption.

    Args:
        name: `"mnist-c/shot_noise"`, `("mnist-c", "shot_noise")`, or the bare name where only one suite has it, not
            counting `graded`.

    Raises:
        ValueError: if no corruption, or more than one, has that name; close matches are named.
    """
    if isinstance(name, Corruption):
        return name
    wanted = "/".join(name) if isinstance(name, tuple) else str(name)
    matches = [c for c in _REGISTRY.values() if wanted in (c.qualified_name, c.name)]
    if len(matches) > 1:
        matches = [c for c in matches if c.suite != "graded"]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = " or ".join(repr(c.qualified_name) for c in matches)
        raise ValueError(f"corruption {wanted!r} is in {len(matches)} suites; say {choices}")
    known = list_corruptions()
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.7)
    bare = difflib.get_close_matches(wanted.rpartition("/")[2], [n.rpartition("/")[2] for n in known], n=3)
    close += [n for n in known if n.rpartition("/")[2] in bare and n not in close]
    hint = f"did you mean {' or '.join(repr(n) for n in close)}?" if close else "list_corruptions() names them all"
    raise ValueError(f"corruption {wanted!r} is unknown; {hint}")


def corrupt(
    images: torch.Tensor,
    name: str | tuple[str, str] | Corruption,
    severity: int | None = None,
    seed: int = 0,
    indices: Sequence[int] | torch.Tensor | None = None,
) -> torch.Tensor:
    """Corrupts a batch of images.

    The randomness of an image is seeded from `(seed, corruption, severity, index)`, so the result for an image does
    not depend on the other images of the batch, on their order or on the number of processes. In the suite `graded`
    it is the same at every severity: the same lines, flakes or direction, only stronger.

    Args:
        images: float tensor (B, C, H, W) in [0, 1], C = 1 (grey) or 3 (RGB), any H and W, any device.
        name: a qualified name such as `"mnist-c/shot_noise"`, see `get_corruption`.
        severity: 1 (weak) to 5 (strong); without effect for conditions that have no severities. By default the one
            that the corruption was published at where there is one only (MNIST-C), else 3.
        seed: any int.
        indices: position of each image in its data set, length B; 0 to B - 1 by default. Pass them whenever a data
            set is corrupted batch by batch, or each batch gets the same noise.

    Returns:
        A new tensor of the same shape, dtype and device, in [0, 1] but for the suite `float-noise`.

    Raises:
        ValueError: if images, name, severity, seed or indices are not as described.
        ImportError: if the corruption needs the extra `frost`, which is not installed.
    """
    corruption = get_corruption(name)
    _check_images(images)
    return _apply(corruption, images, severity, seed, indices)


def corrupt_maps(
    maps: torch.Tensor,
    name: str | tuple[str, str] | Corruption,
    severity: int | None = None,
    seed: int = 0,
    indices: Sequence[int] | torch.Tensor | None = None,
    ignore_index: int = 255,
) -> torch.Tensor:
    """Moves maps of classes as [`corrupt`] moves the pixels of their images.

    A corruption that moves no pixels leaves the maps as they are. Where one does, each pixel gets the class that most
    of it comes from.

    Args:
        maps: integer tensor (B, H, W), any device.
        name, severity, seed, indices: those of the images.
        ignore_index: class of pixels that do not count, and of those that come in from outside of an image.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: if maps, name, severity, seed or indices are not as described.
    """
    corruption = get_corruption(name)
    if maps.ndim != 3 or maps.is_floating_point():
        raise ValueError(f"maps are {maps.dtype} of shape {tuple(maps.shape)}; pass integers of shape (B, H, W)")
    if not corruption.moves or not maps.numel():
        return maps.clone()
    classes = maps.unique()
    most, winner = torch.zeros(maps.shape, device=maps.device), torch.full_like(maps, ignore_index)
    # Class by class, for maps of many classes; what no class reaches comes from outside.
    for one in classes:
        share = _apply(corruption, (maps == one).float()[:, None], severity, seed, indices)[:, 0]
        winner = torch.where(share > most, one, winner)
        most = torch.maximum(most, share)
    inside = _apply(corruption, torch.ones_like(most)[:, None], severity, seed, indices)[:, 0]
    return torch.where(inside >= 0.5, winner, ignore_index)


def _apply(
    corruption: Corruption,
    images: torch.Tensor,
    severity: int | None,
    seed: int,
    indices: Sequence[int] | torch.Tensor | None,
) -> torch.Tensor:
    """Corrupts images `(B, C, H, W)`; of any number of channels, where the corruption `moves` pixels."""
    severity = check_severity(severity, corruption)
    indices = _check_indices(indices, len(images))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} is not an int")
    # Half precision is too coarse for filters and geometry: compute in float32, round once at the end.
    dtype = images.dtype if images.dtype == torch.float64 else torch.float32
    parameters = corruption.parameters(severity, *images.shape[-2:])
    stream = corruption.qualified_name
    if corruption.severities and not corruption.same_randomness:
        stream = f"{stream}/{severity}"
    step = max(1, _CHUNK_VALUES // images[:1].numel()) if len(images) else 1
    chunks = []
    with torch.no_grad():
        for start in range(0, len(images), step):
            chunk = images[start : start + step].to(dtype).contiguous()
            random = ImageRandom(seed, stream, indices[start : start + step], dtype, images.device)
            chunk = corruption.function(chunk, random, **parameters)
            chunks.append((chunk.clamp(0, 1) if corruption.clipped else chunk).to(images.dtype))
    return torch.cat(chunks) if chunks else images.clone()


def _check_images(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images are a {type(images).__name__}; pass a float tensor (B, C, H, W) in [0, 1]")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images have shape {tuple(images.shape)}; pass (B, C, H, W) with C = 1 or 3")
    if not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}; divide them by 255 to get floats in [0, 1]")
    if images.numel():
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"images range from {low:.4g} to {high:.4g}; corruptions work on pixels in [0, 1], "
                "before the normalisation of the image processor"
            )


def default_severity(corruption: Corruption) -> int:
    """The severity that a corruption was published at where there is one only, else 3."""
    return corruption.published_severity or DEFAULT_SEVERITY


def check_severity(severity: int | None, corruption: Corruption) -> int:
    """The severity, by default that of publication or 3, or a ValueError if it is not 1 to 5."""
    if severity is None:
        return default_severity(corruption)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} is not one of 1, 2, 3, 4, 5")
    return severity


def _check_indices(indices: Sequence[int] | torch.Tensor | None, count: int) -> list[int]:
    if indices is None:
        return list(range(count))
    if isinstance(indices, torch.Tensor):
        indices = indices.tolist()
    try:
        indices = [operator.index(i) for i in indices]
    except TypeError as error:
        raise ValueError(f"indices={indices!r} are not ints; pass the data-set position of each image") from error
    if len(indices) != count:
        raise ValueError(f"{len(indices)} indices for {count} images; pass one data-set position per image")
    return indices
