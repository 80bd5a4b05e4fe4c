"""What clean images look like to a model: the reference of the shift test, saved with the weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .clean_buffers_it3 import CleanBuffers


# Sizes of groups of images that limits are measured for; those between are interpolated.
GROUP_SIZES = tuple(4**power for power in range(6))
# Standard errors of a normal distribution: a group of clean images lies above a limit of level z with the probability
# 1 - Phi(z).
LEVELS = (0.0, 1.0, 2.0, 3.0)
_RESAMPLES = 4000
_RESAMPLES_AT_ONCE = 500
# A feature that deviates by less than this part of what features usually do is always the same, but for rounding.
_CONSTANT = 1e-4
# Images that groups are drawn from; means and deviations are those of all.
_MAX_POOL = 1000
# A class that few clean images were predicted as counts as if it had as many more of the mean image.
_PRIOR_IMAGES = 4
# Images of another day, and answers to shifted ones, are this share less mixed without being sorted.
_MIX_DRIFT = 0.3
# Mean features of classes are kept up to this number of values, correlations up to this number of features.
_MAX_CLASS_VALUES = 2_000_000
_MAX_CORRELATED = 3072
# Limits are of images whose correlations were not measured on themselves: in this number of parts, of so many images
# at least.
_PARTS = 5
_MIN_PART = 10


@dataclass
class Observation:
    """What a model sees in N images without a label signal.

    Args:
        features (`Tensor` of shape `(N, F)`): the first features, see [`ShiftReference`].
        classes (`Tensor` of shape `(N,)`): the class that each is predicted as.
        distances (`Tensor` of shape `(N,)`): the idempotence distances.
    """

    features: Tensor
    classes: Tensor
    distances: Tensor

    def __len__(self) -> int:
        return len(self.distances)

    def __getitem__(self, chosen: Tensor | slice) -> "Observation":
        return Observation(self.features[chosen], self.classes[chosen], self.distances[chosen])

    @classmethod
    def join(cls, parts: "list[Observation]") -> "Observation":
        """Several observations as one."""
        names = ("features", "classes", "distances")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def empty(cls, reference: "ShiftReference") -> "Observation":
        """Of no images."""
        features = torch.zeros(0, reference.feature_mean.shape[1])
        return cls(features, torch.zeros(0, dtype=torch.long), torch.zeros(0))

    def together(self) -> "Observation":
        """All images as one group: shape `(1, N, ...)`."""
        return Observation(self.features[None], self.classes[None], self.distances[None])

    def each(self) -> "Observation":
        """Each image as a group of its own: shape `(N, 1, ...)`."""
        return Observation(self.features[:, None], self.classes[:, None], self.distances[:, None])

    def cpu(self) -> "Observation":
        """The same in the computer's memory."""
        return Observation(self.features.cpu(), self.classes.cpu(), self.distances.cpu())


class ShiftReference(CleanBuffers):
    """First features and idempotence distances of clean images, and how far groups of them lie from the mean.

    Both are compared with those of clean images that are predicted as the same class, so that clean images of one
    class alone look clean. First features are the mean and the standard deviation over space of each channel of the
    injection layer's output: `F = 2 x channels` numbers per image. They are compared by their Mahalanobis distance,
    since they depend on each other: noise changes the deviation of a channel without the mean that belongs to it.

    Args:
        channels (`int`): of the injection layer.
        num_classes (`int`): classes of which an image has one; 1 where it has none, or several.
    """

    num_images: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    feature_whitening: Tensor
    distance_mean: Tensor
    distance_std: Tensor
    distance_limits: Tensor
    feature_limits: Tensor
    class_limits: Tensor
    class_shares: Tensor

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.channels = channels
        self.num_classes = 0
        self.fit_to(num_classes)

    def fit_to(self, num_classes: int) -> None:
        """Makes room for so many classes, and discards what was measured of another number of them.

        A model is built before labels tell what task it has, or before somebody sets `config.problem_type`.
        """
        if num_classes == self.num_classes:
            return
        channels = self.channels
        rows = num_classes if num_classes * 2 * channels <= _MAX_CLASS_VALUES else 1
        limits = (len(GROUP_SIZES), len(LEVELS))
        self.add(
            num_images=(1,),
            feature_mean=(rows, 2 * channels),
            feature_std=(2 * channels,),
            feature_whitening=(2 * channels,) * 2 if 2 * channels <= _MAX_CORRELATED else (0, 0),
            distance_mean=(rows,),
            distance_std=(1,),
            distance_limits=limits,
            feature_limits=limits,
            class_limits=limits,
            class_shares=(num_classes,),
        )
        self.num_classes = num_classes

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if (shares := state_dict.get(f"{prefix}class_shares")) is not None:
            self.fit_to(len(shares))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to compare with."""
        return self.num_images.device.type != "meta" and self.num_images.item() > 0

    @torch.no_grad()
    def measure(self, clean: Observation, seed: int = 0) -> None:
        """Takes clean images, predicted in eval mode, for the reference.

        Args:
            clean ([`Observation`]): of N images.
            seed (`int`): of the groups that limits are resampled from.
        """
        clean = clean.cpu()
        features, distances = clean.features.double(), clean.distances.double()[:, None]
        rows = self._rows_of(clean.classes)
        feature_mean, residuals = self._apart(features, rows)
        feature_std = _deviation(residuals)
        feature_std[feature_std <= 1e-6 * features.mean(0).abs().clamp_min(1e-6)] = math.inf  # the same in all images
        feature_std = _without_constants(feature_std)
        residuals /= feature_std
        distances = (distances - distances.mean()) / _deviation(distances).clamp_min(1e-12)
        distance_mean, apart = self._apart(distances, rows)
        distance_std = _deviation(apart)
        apart /= distance_std.clamp_min(1e-12)
        pool = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:_MAX_POOL]
        kinds = torch.nn.functional.one_hot(clean.classes, self.num_classes)
        correlates = len(self.feature_whitening) > 0
        parts = _whitened_apart(residuals[pool]) if correlates else [residuals[pool]]
        self.store(
            num_images=torch.tensor([float(len(features))]),
            feature_mean=feature_mean,
            feature_std=feature_std,
            feature_whitening=_whitening(residuals) if correlates else self.feature_whitening,
            distance_mean=distance_mean[:, 0],
            distance_std=distance_std,
            distance_limits=_group_limits([apart[pool]], lambda means: means[:, 0], seed),
            feature_limits=_group_limits(parts, lambda means: means.square().mean(1), seed),
            class_limits=_group_limits([kinds[pool]], lambda shares: shares.square().sum(1), seed, as_they_are=True),
            class_shares=kinds.double().mean(0),
        )

    def _apart(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means `(rows, V)` of values `(N, V)` for each class, of rare ones nearer to that of all, and how far each
        image lies from that of the others of its class, `(N, V)`."""
        sums = values.new_zeros(len(self.feature_mean), values.shape[1]).index_add_(0, rows, values)
        counts = torch.bincount(rows, minlength=len(sums))[:, None] + _PRIOR_IMAGES
        means = (sums + _PRIOR_IMAGES * values.mean(0)) / counts
        return means, (values - means[rows]) * (counts / (counts - 1))[rows]

    def _rows_of(self, classes: Tensor) -> Tensor:
        return classes if len(self.feature_mean) > 1 else torch.zeros_like(classes)

    def feature_statistics(self, groups: Observation) -> Tensor:
        """How far the first features `(G, n, F)` of G groups of n images lie from those of clean images, shape `(G,)`:
        n times the square of the Mahalanobis distance between both means, divided by F. Where features are so many
        that their correlations are not kept, those count as 0."""
        residuals = groups.features.float() - self.feature_mean[self._rows_of(groups.classes)]
        size = groups.distances.shape[1]
        std = _without_constants(self.feature_std)  # older weights may hold some
        means = residuals.mean(1) / std * scale(size, self.num_images.item())
        if self.feature_whitening[:1, :1].any():  # all zero in weights from before correlations were kept
            means = means @ self.feature_whitening
        return means.square().mean(1)

    def distance_statistics(self, distances: Tensor, classes: Tensor) -> Tensor:
        """How many standard errors the mean of standardised distances `(G, n)` of G groups of n images lies above that
        of clean images that are predicted as the same classes `(G, n)`, shape `(G,)`."""
        std = self.distance_std.item() or 1.0  # 0 in weights from before classes were told apart
        mean = self.distance_mean.to(distances.device)  # first, since not every device has double precision
        apart = distances - mean.to(distances.dtype)[self._rows_of(classes).to(distances.device)]
        return apart.mean(1) / std * scale(distances.shape[1], self.num_images.item())

    def are_of_few_classes(self, classes: Tensor) -> Tensor:
        """Which groups of predicted classes `(G, n)` are less mixed than groups of clean images, shape `(G,)`.

        The probability that two of its images, drawn with replacement, are of one class (Simpson's index) is higher
        than in 739 of 740 of these, by 30 % of what it is in most.
        """
        count, size = classes.shape
        limits = self.limits("class", size)
        if not self.is_measured or self.num_classes < 2 or size < 2 or not any(limits):  # older weights have none
            return torch.zeros(count, dtype=torch.bool, device=classes.device)
        shares = torch.stack([torch.bincount(group, minlength=self.num_classes) for group in classes]) / size
        return shares.square().sum(1) > limits[-1] + _MIX_DRIFT * limits[0]

    def class_weights(self, classes: Tensor) -> Tensor:
        """How much images of predicted classes `(n,)` count, 1 in all, shape `(n,)`, so that classes come as often as
        among clean images; where none were measured, all the same.

        These are the importance weights of label shift (Lipton et al., 2018) by Laplace's rule of succession: clean
        images count as if there was one more of each class, and the others as if there was one more of each clean one.
        """
        weights = torch.ones(len(classes), device=classes.device)
        if self.is_measured and self.class_shares.any():  # older weights have none
            total = self.num_images.to(classes.device)
            clean = (self.class_shares.to(classes.device) * total + 1) / (total + self.num_classes)
            counts = torch.bincount(classes, minlength=self.num_classes)
            weights = (clean / (counts + self.num_classes * clean))[classes]
        return weights / weights.sum()

    def limits(self, name: str, size: int) -> list[float]:
        """Limits of one statistic (`"distance"`, `"feature"` or `"class"`) for groups of a size, one for each of
        [`LEVELS`]."""
        table = self.get_buffer(f"{name}_limits").cpu()
        position = min(max(math.log(size, 4), 0.0), len(GROUP_SIZES) - 1.0)
        low = min(int(position), len(GROUP_SIZES) - 2)
        row = torch.lerp(table[low], table[low + 1], position - low)
        return row.cummax(0).values.tolist()


def _without_constants(std: Tensor) -> Tensor:
    """Deviations of features, infinite where there is only what rounding leaves of a feature that is always the same,
    which differs from machine to machine."""
    known = std[std.isfinite()]
    return std.masked_fill(std <= _CONSTANT * known.median(), math.inf) if len(known) else std


def _deviation(values: Tensor) -> Tensor:
    """Standard deviations of columns `(N, V)`; 0 for a single row."""
    return values.std(0) if len(values) > 1 else torch.zeros_like(values[0])


def scale(size: float, reference_size: float) -> float:
    """What the difference of two means, of groups of these sizes, is multiplied by to have unit variance."""
    return 1 / math.sqrt(1 / size + 1 / reference_size)


def in_standard_errors(value: float, limits: list[float]) -> float:
    """The level at which a value is the limit: the standard errors of a normal distribution that it lies above the
    median of clean images. Beyond [`LEVELS`], the last two of them go on as a straight line."""
    if not any(limits):  # nothing was measured
        return value
    for low in range(len(LEVELS) - 1):
        if value <= limits[low + 1] or low == len(LEVELS) - 2:
            width = max(limits[low + 1] - limits[low], 1e-9)
            return LEVELS[low] + (value - limits[low]) / width * (LEVELS[low + 1] - LEVELS[low])
    raise AssertionError("the last interval takes what is left")


def limit_at(level: float, limits: list[float]) -> float:
    """The value that lies at a level: the inverse of [`in_standard_errors`]."""
    if not any(limits):
        return level
    low = min(max(int(level), 0), len(LEVELS) - 2)
    return limits[low] + (level - LEVELS[low]) * max(limits[low + 1] - limits[low], 1e-9)


def _whitening(standardised: Tensor) -> Tensor:
    """A matrix `(F, F)` that takes features `(N, F)` of mean 0 to ones that do not depend on each other.

    Their covariance is shrunk towards a multiple of the identity, the more, the fewer images there are, by the oracle
    approximating shrinkage (Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, eq. 23).
    """
    count, features = standardised.shape
    covariance = standardised.T @ standardised / count
    variance, square = covariance.trace() / features, covariance.square().mean()
    excess = (count + 1) * (square - variance**2 / features)
    share = ((square + variance**2) / excess).clamp(max=1.0) if excess > 0 else torch.ones(())
    identity = torch.eye(features, dtype=covariance.dtype)
    least = share * variance + 1e-6  # of features that are always the same, there is none to share
    shrunk = (1 - share) * covariance + least * identity
    return torch.linalg.solve_triangular(torch.linalg.cholesky(shrunk), identity, upper=False).T


def _whitened_apart(standardised: Tensor) -> list[Tensor]:
    """Parts of features `(N, F)`, each whitened with the covariance of the others, as that of new images will be, and
    with mean 0."""
    count = min(_PARTS, len(standardised) // _MIN_PART)
    if count < 2:
        return [standardised @ _whitening(standardised)]
    parts = []
    for index in range(count):
        apart = torch.arange(len(standardised)) % count == index
        part = standardised[apart]
        spread = math.sqrt(len(part) / (len(part) - 1))  # what deviations from a mean of their own lack
        parts.append((part - part.mean(0)) * spread @ _whitening(standardised[~apart]))
    return parts


def _group_limits(
    parts: list[Tensor], statistic: Callable[[Tensor], Tensor], seed: int, as_they_are: bool = False
) -> Tensor:
    """Quantiles of a statistic of groups of clean images, `(GROUP_SIZES, LEVELS)`, by the bootstrap.

    Both the group and the reference that it is compared with are drawn anew, each time from one of the parts, which
    have values `(N, F)` of mean 0 and variance 1, so that the limits hold for few reference images, too; means of
    values `as_they_are` are compared with none.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [part.float() for part in parts]
    count = sum(len(part) for part in parts)
    rates = torch.special.ndtr(torch.tensor(LEVELS, dtype=torch.float64)).float()
    references = [0.0 if as_they_are else _drawn_means(part, count, len(parts), generator) for part in parts]
    limits = []
    for size in GROUP_SIZES:
        values = []
        for part, reference in zip(parts, references, strict=True):
            means = _drawn_means(part, size, len(parts), generator)
            values.append(statistic(means if as_they_are else (means - reference) * scale(size, count)))
        limits.append(torch.quantile(torch.cat(values), rates))
    return torch.stack(limits)


def _drawn_means(values: Tensor, size: int, parts: int, generator: torch.Generator) -> Tensor:
    """Means of this part's share of `_RESAMPLES` groups of this number of rows, drawn with replacement."""
    means = []
    left = _RESAMPLES // parts
    while left:
        few = min(left, _RESAMPLES_AT_ONCE)
        drawn = torch.randint(len(values), (few, size), generator=generator)
        counts = torch.zeros(few, len(values)).scatter_add_(1, drawn, torch.ones(drawn.shape))
        means.append(counts @ values / size)
        left -= few
    return torch.cat(means)
