"""How far adaptation is from its plainest possible form, for every family of vision models and every scope.

    python tests/reference.py [FAMILY ...]

prints, for each, the largest difference between our logits and those of `naive_adaptation` (a copy, a loop over
images, an optimizer that is not fused) beside how far adaptation moved them.
"""

import sys

import torch
from families import FAMILIES, classifier, family_images
from naive_adaptation import NaiveAdaptation, image_by_image, mean_over_copies
from torch import Tensor
from transformers import set_seed

from hf_it3 import IT3ForImageClassification, TestTimeAdapter


STEPS = {
    "learning_rate": 1e-3,
    "gate": None,
    "parameters": "all",
    "norm_statistics": "source",
    "max_class_share": 1.0,
    "average_answers": "never",
}
AVERAGED = {"average_answers": "adapted", "augmentations": 2}
CASES = {
    "batch": {"scope": "batch", "num_steps": 2},
    "batch, averaged": {"scope": "batch", "num_steps": 2, **AVERAGED},
    "batch, channels last": {"scope": "batch", "num_steps": 2},
    "stream": {"scope": "stream", "num_steps": 1},
    "image": {"scope": "image", "num_steps": 2, "vectorize": True},
    "image, one by one": {"scope": "image", "num_steps": 2, "vectorize": False},
    "average": {"scope": "average", "augmentations": 2, "augmentation_steps": 2, "vectorize": True},
}
MAX_DIFFERENCE = 1e-5
MAX_SHARE = 0.01  # of the movement


def compare(family: str, case: str) -> tuple[float, float]:
    """The largest difference between our logits and the reference's, and between these and the unadapted ones."""
    settings = {**STEPS, **CASES[case]}
    set_seed(0)
    model = IT3ForImageClassification.from_backbone(classifier(family)).double().eval()
    images = family_images(family, 4).double()
    with torch.no_grad():
        unadapted = model(images).logits
    if settings["average_answers"] == "adapted":
        unadapted = mean_over_copies(model, images, settings["augmentations"])
    expected = _reference(model, images, settings)
    if case.endswith("channels last"):
        model, images = (value.to(memory_format=torch.channels_last) for value in (model, images))
    adapter = TestTimeAdapter(model, **settings)
    actual = torch.cat([adapter(part).logits for part in _parts(images, settings)])
    if "augmentations" in settings:
        # The mean of predictions has logits up to a constant.
        actual, expected, unadapted = (logits.log_softmax(-1) for logits in (actual, expected, unadapted))
    return (actual - expected).abs().max().item(), (expected - unadapted).abs().max().item()


def _parts(images: Tensor, settings: dict) -> list[Tensor]:
    return images.split(2) if settings["scope"] == "stream" else [images]


def _reference(model: IT3ForImageClassification, images: Tensor, settings: dict) -> Tensor:
    settings = {name: value for name, value in settings.items() if name != "vectorize"}
    if settings["scope"] in ("image", "average"):
        return image_by_image(model, images, **settings)
    naive = NaiveAdaptation(model, **settings)
    answers = torch.cat([naive(part) for part in _parts(images, settings)])
    if settings["average_answers"] == "adapted":
        return mean_over_copies(naive.model, images, settings["augmentations"])
    return answers


def is_close(difference: float, movement: float) -> bool:
    """Whether a difference is small, or small beside the movement."""
    return difference <= max(MAX_DIFFERENCE, MAX_SHARE * movement)


def main(families: list[str]) -> int:
    """Prints the table and returns how many cells are not close."""
    width = max(map(len, CASES))
    print(f"{'family':<14}{'scope':<{width + 2}}{'difference':>12}{'movement':>12}")
    far = 0
    for family in families or FAMILIES:
        for case in CASES:
            difference, movement = compare(family, case)
            far += not is_close(difference, movement)
            note = "" if is_close(difference, movement) else "  far"
            print(f"{family:<14}{case:<{width + 2}}{difference:>12.1e}{movement:>12.1e}{note}", flush=True)
    count = len(families or FAMILIES) * len(CASES)
    print(f"{count - far} of {count} within {MAX_DIFFERENCE} or {MAX_SHARE:.0%} of the movement")
    return far


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
