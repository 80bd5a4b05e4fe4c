"""What a corruption is: a function and its severity parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


SEVERITIES = (1, 2, 3, 4, 5)


def never_missing() -> None:
    """The corruption can be computed everywhere."""


@dataclass(frozen=True)
class Corruption:
    """A corruption of a suite, with its severity parameters.

    Attributes:
        name: name within the suite, for example `"shot_noise"`.
        suite: `"imagenet-c"`, `"mnist-c"`, `"graded"`, `"digits-shift"` or `"float-noise"`.
        function: `function(images, random, **parameters)` with images (B, C, H, W) in [0, 1] and an `ImageRandom`;
            returns a tensor of the same shape, clipped to [0, 1] afterwards where `clipped`.
        tables: severity parameters by the image side in pixels that they were published for. Each parameter has
            five values, one per severity, or one value for a condition without severities.
        source: where the parameters come from.
        lengths: names of those parameters that are lengths in pixels and scale with the image side.
        published_severity: the severity at which the suite was published, where it was published at one only.
        clipped: False for the conditions that may leave [0, 1].
        same_randomness: whether an image gets the same random numbers at all severities.
        moves: whether pixels move, so that a map of their classes has to move with them; `function` then takes images
            of any number of channels, and does the same to each.
        why_missing: returns why the corruption cannot be computed on this machine, or `None` if it can.
    """

    name: str
    suite: str
    function: Callable[..., torch.Tensor]
    tables: Mapping[int, Mapping[str, tuple[float, ...]]]
    source: str
    lengths: tuple[str, ...] = ()
    published_severity: int | None = None
    clipped: bool = True
    same_randomness: bool = False
    moves: bool = False
    why_missing: Callable[[], str | None] = never_missing

    @property
    def qualified_name(self) -> str:
        """`"suite/name"`."""
        return f"{self.suite}/{self.name}"

    @property
    def severities(self) -> tuple[int, ...]:
        """(1, 2, 3, 4, 5), or () for a condition without severities."""
        graded = any(len(values) > 1 for table in self.tables.values() for values in table.values())
        return SEVERITIES if graded else ()

    @property
    def published_severities(self) -> tuple[int, ...]:
        """The severities that the published benchmark consists of: all, one, or () for a condition without."""
        return (self.published_severity,) if self.published_severity is not None else self.severities

    def parameters(self, severity: int, height: int, width: int) -> dict[str, float]:
        """Parameters of `function` at a severity, for images of `height` x `width` pixels.

        The shorter side decides. Suites published for several image sides use the table of 32 px (CIFAR-10-C) below
        48 px, of 64 px (Tiny ImageNet-C) below 100 px and of 224 px (ImageNet-C) from there on. Lengths that scale
        are multiplied by the shorter side over the side of the table; for small images they are never shrunk, since
        some would vanish between pixels.
        """
        side = min(height, width)
        preferred = 32 if side < 48 else 64 if side < 100 else 224
        published_side = preferred if preferred in self.tables else next(iter(self.tables))
        values = {
            name: row[severity - 1] if len(row) > 1 else row[0] for name, row in self.tables[published_side].items()
        }
        scale = side / published_side if published_side > 64 else max(1.0, side / published_side)
        return {name: value * scale if name in self.lengths else value for name, value in values.items()}
