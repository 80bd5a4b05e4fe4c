"""Mean corruption errors are those of Hendrycks and Dietterich (ICLR 2019), AlexNet's published errors included."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_it3.corruptions import list_corruptions, missing_corruptions
from hf_it3.evaluation.conditions import make_conditions
from hf_it3.evaluation.metrics import mean_corruption_error, relative_mean_corruption_error
from hf_it3.evaluation.reference import read_reference


# Corruption errors of ResNet-50 in percent of AlexNet's, from the paper's table.
RESNET_50 = {
    **{"gaussian_noise": 80, "shot_noise": 82, "impulse_noise": 83, "defocus_blur": 75, "glass_blur": 89},
    **{"motion_blur": 78, "zoom_blur": 80, "snow": 78, "frost": 75, "fog": 66, "brightness": 57, "contrast": 71},
    **{"elastic_transform": 85, "pixelate": 77, "jpeg_compression": 77},
}


def conditions(severities="published", left_out=()):
    names = [*list_corruptions("imagenet-c"), *missing_corruptions("imagenet-c")]
    return make_conditions([name for name in names if name not in left_out], severities)


def models(num_labels=1000):
    return [SimpleNamespace(name="tiny", model=SimpleNamespace(config=SimpleNamespace(num_labels=num_labels)))]


def test_the_published_resnet_50_has_its_published_mce_and_relative_mce():
    reference = read_reference("alexnet", conditions(), models())
    errors = {
        name: [RESNET_50[name.removeprefix("imagenet-c/")] / 100 * one for one in by_severity.values()]
        for name, by_severity in reference.errors.items()
    }
    assert mean_corruption_error(errors, reference.errors) == pytest.approx(0.767, abs=0.005)
    relative = relative_mean_corruption_error(errors, 0.239, reference.errors, reference.clean_error)
    assert relative == pytest.approx(1.05, abs=0.01)


def test_relative_mce_is_the_mean_ratio_of_what_corruption_adds():
    rng = np.random.default_rng(0)
    errors, reference = ({name: rng.uniform(0.4, 0.9, size=5) for name in ("fog", "snow")} for _ in range(2))
    ratios = [(errors[name] - 0.1).sum() / (reference[name] - 0.3).sum() for name in errors]
    assert relative_mean_corruption_error(errors, 0.1, reference, 0.3) == pytest.approx(np.mean(ratios))
    with pytest.raises(ValueError, match=r"reference_errors\['fog'\] are on average reference_clean_error"):
        relative_mean_corruption_error({"fog": [0.5]}, 0.1, {"fog": [0.3]}, 0.3)
    with pytest.raises(ValueError, match="clean_error=30 must be a fraction"):
        relative_mean_corruption_error({"fog": [0.5]}, 30, {"fog": [0.4]}, 0.3)
    with pytest.raises(ValueError, match="no corruption 'fog'"):
        relative_mean_corruption_error({"fog": [0.5]}, 0.1, {"snow": [0.4]}, 0.3)


@pytest.mark.parametrize(
    "wrong",
    [conditions("1-4"), conditions(left_out=["imagenet-c/fog"]), make_conditions(["digits-shift/blur"], "one")],
)
def test_alexnets_errors_are_for_the_whole_of_imagenet_c(wrong):
    with pytest.raises(ValueError, match="reference='alexnet' has error rates on imagenet-c as a whole"):
        read_reference("alexnet", wrong, models())


def test_alexnets_errors_are_for_imagenets_classes():
    with pytest.raises(ValueError, match="on the 1,000 classes of ImageNet, and tiny has 10 classes"):
        read_reference("alexnet", conditions(), models(10))


def test_a_reference_that_corruption_leaves_as_it_is_makes_no_relative_mce():
    scores = [
        {
            "corruption": one.corruption,
            "severity": one.severity,
            "subset": None,
            "is_clean": one.is_clean,
            "methods": {"none": {"accuracy": 0.75}},
        }
        for one in conditions()
    ]
    results = {"runs": [{"model": "steady"}], "metric": "accuracy", "conditions": scores}
    reference = read_reference(results, conditions(), models(10))
    assert (reference.name, reference.clean_error) == ("steady", None)
    assert reference.errors["imagenet-c/fog"] == dict.fromkeys(range(1, 6), 0.25)
    with pytest.raises(ValueError, match="reference was measured by accuracy, and these models are by mean_iou"):
        read_reference(results, conditions(), models(10), metric="mean_iou")
