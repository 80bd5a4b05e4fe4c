"""What happens when a visitor presses the button: corrupt, adapt, and report the outcome. No user interface."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import as_bytes
from ..evaluation.corruptions import list_corruptions, list_suites
from ..it3.adapting_pipeline_it3 import AdaptingPipeline
from ..it3.pipeline_segmentation_it3 import IT3SegmentationPipeline, class_map


# Class of pixels that do not count, in the true map of an image.
IGNORED = 255


@dataclass
class Maps:
    """The class of each pixel of an image, arrays `(H, W)`, without adaptation and with it, and the true one."""

    before: np.ndarray
    after: np.ndarray
    truth: np.ndarray | None = None

    def right(self, found: np.ndarray) -> int:
        """Number of pixels of the true class, among those that count."""
        return 0 if self.truth is None else int((found == self.truth).sum())

    @property
    def counted(self) -> int:
        """Number of pixels that count."""
        return 0 if self.truth is None else int((self.truth != IGNORED).sum())


@dataclass
class Answer:
    """The answer of the model to one image: its pixels `(C, H, W)` in [0, 1], and scores before and after.

    Scores are in the order of `labels`, which may hold a label more than once. Of an image that is segmented they are
    the shares of the pixels, and `maps` has the classes of these.
    """

    pixels: Tensor
    labels: list[str]
    before: list[float]
    after: list[float]
    distance: float
    adapted: bool
    averaged: bool
    truth: str | None = None
    maps: Maps | None = None

    @property
    def changed(self) -> bool:
        return self.adapted or self.averaged

    @property
    def top_before(self) -> str:
        return self.labels[self.before.index(max(self.before))]

    @property
    def top_after(self) -> str:
        return self.labels[self.after.index(max(self.after))]


@dataclass
class Result:
    """The answers to the images of one call, and how the adaptation went.

    Attributes:
        answers: one per image.
        losses: the objective before each optimizer step, of image scope the mean over the images.
        seconds: that the call took.
        gate: idempotence distance from which on images are taken for shifted, `None` where there is no gate.
        looked_at: the distance that was held against it, of an image or the mean of those that share weights.
        whose: the image or images that this is the distance of, in words.
        shifts: how far the images lie from clean ones, in standard errors, by what the gate looks at; nothing where it
            was not asked. Of images that adapt alone the largest.
        limit: the standard errors that open the gate, `None` where there is no gate.
    """

    answers: list[Answer]
    losses: list[float]
    seconds: float
    gate: float | None
    looked_at: float
    whose: str
    shifts: dict[str, float]
    limit: float | None

    @property
    def only_averaged(self) -> bool:
        """Whether images were averaged over augmentations, and no weights or statistics changed."""
        answers = self.answers
        return any(answer.averaged for answer in answers) and not any(answer.adapted for answer in answers)


_SUITE_TITLES = {"digits-shift": "Digits", "mnist-c": "MNIST-C", "imagenet-c": "ImageNet-C"}
# Not what a picture holds.
_NOT_SHOWN = ("float-noise",)


def corruption_menu(num_channels: int) -> dict[str, list[tuple[str, str]]]:
    """The corruptions by suite, those of the model's domain first: readable and qualified names by the suite's title.

    Args:
        num_channels: of the model's images; 1 stands for digits, 3 for photographs.
    """
    first = ("digits-shift", "mnist-c") if num_channels == 1 else ("imagenet-c",)
    suites = [suite for suite in list_suites() if suite not in _NOT_SHOWN]
    menu = {}
    for suite in sorted(suites, key=lambda suite: first.index(suite) if suite in first else len(first)):
        names = [name.rpartition("/")[2] for name in list_corruptions(suite)]
        menu[_SUITE_TITLES.get(suite, suite.replace("-", " ").capitalize())] = [
            (name.replace("_", " "), f"{suite}/{name}") for name in names if name not in ("clean", "identity")
        ]
    return menu


def classify(classifier: AdaptingPipeline, pixels: Tensor, truths: Any = None, **settings: Any) -> Result:
    """Classifies or segments images `(N, C, H, W)` in [0, 1], without and with adaptation, as one batch.

    Args:
        classifier ([`IT3Pipeline`] or [`IT3SegmentationPipeline`]): the visitor's.
        pixels: one image or more, at the model's size; what lies outside [0, 1] is cut off, as on the screen.
        truths (*optional*): their labels; of images that are segmented maps of classes `(N, H, W)`.
        settings: fields of [`AdaptationConfig`].

    Raises:
        ValueError: for settings out of range, and for no images.
    """
    arrays = as_bytes(pixels)
    start = time.perf_counter()
    segments = isinstance(classifier, IT3SegmentationPipeline)
    # A segmentation model tells where it found a class, and the plain model may have found others.
    kind = {} if segments else {"top_k": classifier.model.config.num_labels, "return_unadapted": True}
    entries = classifier(
        arrays,
        adaptation_batch_size=len(arrays),
        return_idempotence=True,
        return_loss_history=True,
        **kind,
        **settings,
    )
    seconds = time.perf_counter() - start
    if segments:
        answers = _map_answers(classifier, pixels, entries, classifier(arrays, adapt=False), truths)
    else:
        answers = _class_answers(pixels, entries, truths)
    distances = [answer.distance for answer in answers]
    label2id = {label: index for index, label in classifier.model.config.id2label.items()}
    # Images that are segmented count as of one class.
    classes = torch.tensor([0 if segments else label2id[answer.top_before] for answer in answers])
    adapter = classifier.adapter(**settings)
    alone = adapter.config.scope_of(len(answers)) in ("image", "average")
    whose = "the image" if len(answers) == 1 else "mean of the images"
    if adapter.stream is not None and (window := adapter.stream.window) is not None:
        distances, classes, whose = window.distances.tolist(), window.classes, "mean of the latest images"
    elif alone and len(answers) > 1:
        distances, classes, whose = distances[:1], classes[:1], "the first image"
    gate = adapter.shift_test.distance_limit(classes)
    histories = [entry[0]["loss_history"] for entry in entries if entry[0]["loss_history"]]
    losses = np.mean(histories, axis=0).tolist() if histories else []
    looked_at = float(np.mean(distances))
    return Result(answers, losses, seconds, gate, looked_at, whose, _shifts(entries), adapter.config.gate)


def _shifts(entries: Any) -> dict[str, float]:
    """How far images lie from clean ones, by what was compared, in words; without what was not measured."""
    names = {"first features": "feature_shift", "idempotence distance": "distance_shift"}
    measured = {words: [entry[0][name] for entry in entries] for words, name in names.items()}
    known = {words: [value for value in values if value is not None] for words, values in measured.items()}
    return {words: max(values) for words, values in known.items() if values}


def _class_answers(pixels: Tensor, entries: Any, truths: Sequence[str] | None) -> list[Answer]:
    names: Sequence[str | None] = truths or [None] * len(pixels)
    # In an order that does not depend on how the image was adapted.
    entries = [sorted(classes, key=lambda entry: -entry["unadapted_score"]) for classes in entries]
    return [
        Answer(
            pixels=image,
            labels=[entry["label"] for entry in classes],
            before=[entry["unadapted_score"] for entry in classes],
            after=[entry["score"] for entry in classes],
            distance=classes[0]["idempotence"],
            adapted=classes[0]["adapted"],
            averaged=classes[0]["averaged"],
            truth=truth,
        )
        for image, classes, truth in zip(pixels, entries, names, strict=True)
    ]


def _map_answers(
    segmenter: AdaptingPipeline, pixels: Tensor, entries: Any, plain: Any, truths: Tensor | None
) -> list[Answer]:
    config = segmenter.model.config
    answers = []
    for position, (image, after, before) in enumerate(zip(pixels, entries, plain, strict=True)):
        truth = None if truths is None else truths[position].numpy()
        maps = Maps(class_map(before, config.label2id), class_map(after, config.label2id), truth)
        found = np.union1d(maps.before, maps.after).tolist()
        answers.append(
            Answer(
                pixels=image,
                labels=[config.id2label[index] for index in found],
                before=[float((maps.before == index).mean()) for index in found],
                after=[float((maps.after == index).mean()) for index in found],
                distance=after[0]["idempotence"],
                adapted=after[0]["adapted"],
                averaged=after[0]["averaged"],
                maps=maps,
            )
        )
    return answers


def clean_distances(classifier: AdaptingPipeline, pixels: Tensor) -> list[float]:
    """The idempotence distances of clean images `(N, C, H, W)`, with the model as it is."""
    entries = classifier(
        as_bytes(pixels), return_idempotence=True, num_steps=0, norm_statistics="source", scope="batch"
    )
    return [classes[0]["idempotence"] for classes in entries]
