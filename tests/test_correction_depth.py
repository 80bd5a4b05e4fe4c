"""How deep copies of single images are corrected is measured on clean images: digits all through, photos at first."""

import copy

import pytest
import torch
from first_layers import one_image_corrected
from torch.nn import functional as F
from trainer_fixtures import measured_by_trainer
from transformers import ConvNextConfig, ResNetConfig

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification, TestTimeAdapter
from hf_it3.calibration import calibrate
from hf_it3.it3.agreement_it3 import depth_of_copies


BACKBONES = {
    "batch_norm": ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 12],
        depths=[1, 1],
        layer_type="basic",
        num_labels=10,
    ),
    "layer_norm": ConvNextConfig(
        num_channels=1, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=10, image_size=16
    ),
    "plain": IT3CNNConfig(image_size=16, conv_channels=[4, 8], hidden_size=24),
}
NUM_LAYERS = {"batch_norm": 7, "layer_norm": 4}


def untrained(name, **values):
    torch.manual_seed(0)
    model = IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(BACKBONES[name]), **values))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(2)  # so that it does not answer alike whatever it sees
    return model.eval()


@pytest.mark.parametrize("name", NUM_LAYERS)
def test_what_is_measured_is_how_many_images_keep_their_class(name, tmp_path):
    model, images = untrained(name).double(), torch.randn(40, 1, 16, 16).double()
    measured = measured_by_trainer(model, images, tmp_path)["corrected"]
    with torch.no_grad():
        plain = model(images).logits.argmax(1)
        cropped = model(F.interpolate(images[..., 1:-1, 1:-1], (16, 16), mode="bilinear")).logits.argmax(1)
    assert len(plain.unique()) > 2
    assert measured["cropped"] == pytest.approx((cropped == plain).double().mean().item(), abs=0.2)
    for depth, share in {"quarter": 0.25, "half": 0.5, "all": 1.0}.items():
        count = int(share * NUM_LAYERS[name])
        corrected = torch.stack([one_image_corrected(model, image, count, prior_count=2) for image in images])
        kept = (corrected.argmax(1) == plain).double().mean().item()
        assert 0 < kept < 1
        assert measured[depth] == pytest.approx(kept), depth


@pytest.mark.parametrize(
    ("kept", "depth"),
    [
        (None, 0.17),
        ({"cropped": 0.8, "quarter": 0.89, "half": 1.0, "all": 1.0}, 0.17),
        ({"cropped": 0.8, "quarter": 0.9, "half": 0.89, "all": 0.89}, 0.25),
        ({"cropped": 0.95, "quarter": 0.96, "half": 0.95, "all": 0.94}, 0.5),
        ({"cropped": 0.95, "quarter": 0.97, "half": 0.96, "all": 0.95}, 1.0),
        ({"cropped": 0.97, "quarter": 0.96, "half": 0.96, "all": 0.96}, 0.17),
    ],
)
@pytest.mark.parametrize("name", NUM_LAYERS)
def test_copies_are_corrected_as_deep_as_nine_tenths_and_no_fewer_than_cropped_ones_keep_their_class(
    name, kept, depth, tmp_path
):
    model = untrained(name)
    measured_by_trainer(model, torch.randn(20, 1, 16, 16), tmp_path)
    model.config.reference_distance["corrected"] = kept
    assert depth_of_copies(model.config.reference_distance) == depth
    config = TestTimeAdapter(model, scope="average").config
    assert (config.norm_statistics, config.prior_count, config.norm_depth) == ("mixed", 2, depth)
    assert TestTimeAdapter(model, scope="average", norm_depth=0.75).config.norm_depth == 0.75


@pytest.mark.parametrize(
    ("name", "problem_type"),
    [("plain", None), ("batch_norm", "regression"), ("batch_norm", "multi_label_classification")],
)
def test_where_it_would_decide_nothing_nothing_is_measured(name, problem_type, tmp_path):
    model = untrained(name, problem_type=problem_type)
    assert "corrected" not in measured_by_trainer(model, torch.rand(8, 1, 16, 16), tmp_path)


def test_without_clean_features_there_is_nothing_to_correct_with():
    model = untrained("layer_norm")
    assert TestTimeAdapter(model, scope="average").config.norm_statistics == "source"
    images = torch.rand(3, 1, 16, 16)
    plain, corrected = (
        TestTimeAdapter(model, scope="average", augmentations=4, **settings)(images).logits
        for settings in ({"norm_statistics": "source"}, {})
    )
    assert torch.equal(plain, corrected)


@pytest.mark.parametrize("name", NUM_LAYERS)
def test_calibration_measures_it_on_the_held_out_images(name, digits, processor):
    options = {"corruptions": "shear", "num_samples": 32, "batch_size": 8, "show_progress": False}
    result = calibrate(untrained(name), processor, digits["test"], **options)
    assert result.reference_distance["corrected"].keys() == {"cropped", "quarter", "half", "all"}


def test_it_is_saved_and_loaded(tmp_path):
    kept = {"cropped": 0.95, "quarter": 0.97, "half": 0.96, "all": 0.9}
    untrained("batch_norm", reference_distance={"mean": 0.0, "std": 1.0, "corrected": kept}).save_pretrained(tmp_path)
    model = IT3ForImageClassification.from_pretrained(tmp_path)
    assert model.config.reference_distance["corrected"] == kept
    assert TestTimeAdapter(model, scope="average").config.norm_depth == 0.5
