"""What is kept of each image: never the image, only a few numbers."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from .answers import ANSWERS, Answers, ClassAnswers


@dataclass
class Outcomes:
    """Answers of all methods to the images of one pass or condition, in the order of the data set.

    Attributes:
        index: position of each image in its data set, shape (N,).
        condition: number of the condition each image was under, shape (N,).
        label: what is kept of the true answers, see [`~hf_it3.evaluation.answers.Answers.truth`].
        distance: idempotence distance of the unadapted model, shape (N,).
        methods: [`~hf_it3.evaluation.answers.Answers`] by method.
    """

    index: np.ndarray
    condition: np.ndarray
    label: np.ndarray
    distance: np.ndarray
    methods: dict[str, Answers] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def correct(self, method: str) -> np.ndarray | None:
        """Whether each image is answered correctly, shape (N,) of bool; `None` for tasks of more than one answer."""
        return self.methods[method].correct(self.label)

    def where(self, chosen: np.ndarray) -> "Outcomes":
        """The outcomes of some images, given as bools of shape (N,) or positions."""
        return self.from_arrays({name: values[chosen] for name, values in self.to_arrays().items()})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays by name; those of a method are named `"method/field"`."""
        arrays = {name: getattr(self, name) for name in ("index", "condition", "label", "distance")}
        for method, outcomes in self.methods.items():
            arrays.update({f"{method}/{name}": values for name, values in vars(outcomes).items()})
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Outcomes":
        """The inverse of `to_arrays`."""
        methods: dict[str, dict[str, np.ndarray]] = {}
        for name, values in arrays.items():
            method, separator, field_name = name.rpartition("/")
            if separator:
                methods.setdefault(method, {})[field_name] = values
        return cls(
            **{name: values for name, values in arrays.items() if "/" not in name},
            methods={method: _answers(fields) for method, fields in methods.items()},
        )

    @classmethod
    def concatenate(cls, parts: "list[Outcomes]") -> "Outcomes":
        """Joins outcomes one after the other."""
        arrays = [part.to_arrays() for part in parts]
        return cls.from_arrays({name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]})


def _answers(arrays: dict[str, np.ndarray]) -> Answers:
    """The answers whose fields these are."""
    return next(kind for kind in ANSWERS if {one.name for one in dataclasses.fields(kind)} == set(arrays))(**arrays)


class Collector:
    """Collects the answers of one process batch by batch, and joins those of all processes.

    Args:
        kind: what to keep of answers; by default of those that tell one class.
        num_labels: number of classes.
        ignore_index: class of pixels that do not count.
    """

    def __init__(self, kind: type[Answers] = ClassAnswers, num_labels: int = 0, ignore_index: int = 255) -> None:
        self.kind = kind
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.images: list[dict[str, np.ndarray]] = []
        self.answers: dict[str, list[dict[str, np.ndarray]]] = {}
        self._running: dict[str, list[int]] = {}

    def add_images(self, index: np.ndarray, condition: np.ndarray, label: Tensor, distance: Tensor) -> None:
        """Adds a batch of B images: arrays and a distance of shape (B,), and their labels."""
        # A distance that is not a number says that the model is as unsure as can be.
        distances = distance.float().nan_to_num(nan=float("inf")).cpu().numpy()
        truth = self.kind.truth(label.cpu(), self.num_labels, self.ignore_index)
        self.images.append({"index": index, "condition": condition, "label": truth, "distance": distances})

    def add_answers(self, method: str, index: np.ndarray, logits: Tensor, label: Tensor, adapted: Tensor) -> None:
        """Adds a method's answers to B images: logits of shape (B, num_labels, ...), labels, adapted or not (B,)."""
        # In double precision, so that sums do not depend on how they are formed.
        logits, label = logits.detach().cpu().double(), label.cpu()
        answers = {**self.kind.of(logits, label, self.ignore_index), "adapted": adapted.cpu().numpy()}
        self.answers.setdefault(method, []).append({"index": index, **answers})
        truth = self.kind.truth(label, self.num_labels, self.ignore_index)
        newly_right, newly_seen = self.kind(**answers).counts(truth)
        right, seen = self._running.get(method, (0, 0))
        self._running[method] = [right + newly_right, seen + newly_seen]

    def running_accuracy(self) -> dict[str, float]:
        """Share of right answers (of pixels, in segmentation) so far of each method, in this process."""
        return {method: right / seen for method, (right, seen) in self._running.items() if seen}

    def to_parts(self) -> dict[str, Any]:
        """Returns everything collected, to send to the other processes."""
        return {"images": self.images, "answers": self.answers}

    @staticmethod
    def join(parts: list[dict[str, Any]]) -> Outcomes:
        """The outcomes of all processes, sorted by position in the data set."""
        images = _sorted([batch for part in parts for batch in part["images"]])
        # The name of each method is in the part of every process that ran it.
        names = dict.fromkeys(name for part in parts for name in part["answers"])
        methods = {}
        for name in names:
            answers = _sorted([batch for part in parts for batch in part["answers"].get(name, ())])
            if not np.array_equal(answers.pop("index"), images["index"]):
                raise RuntimeError(f"the processes disagree on the images that method {name!r} answered")
            methods[name] = _answers(answers)
        return Outcomes(**images, methods=methods)


def _sorted(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(joined["index"], kind="stable")
    return {name: values[order] for name, values in joined.items()}
