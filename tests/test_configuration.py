"""IT3Config, IT3CNNConfig and AdaptationConfig: what they accept, refuse, save and load."""

import inspect
import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, ConvNextConfig, ResNetConfig

from hf_it3 import AdaptationConfig, IT3CNNConfig, IT3Config
from hf_it3.it3.adaptation_config_it3 import PRESETS, field_names


def distance_of_my_own(y1, y0):
    return (y1 - y0).abs().sum(-1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scope", "batches"),
        ("scope", None),
        ("batch_size", 0),
        ("batch_size", 2.5),
        ("num_steps", -1),
        ("num_steps", True),
        ("num_steps", "5"),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", "1e-3"),
        ("optimizer", "lbfgs"),
        ("optimizer", 3),
        ("anchor", "source"),
        ("parameters", ""),
        ("parameters", "(unclosed"),
        ("parameters", ["conv1"]),
        ("distance", "cosine"),
        ("diversity_weight", -0.5),
        ("max_class_share", 1.5),
        ("class_balance", None),
        ("norm_statistics", "running"),
        ("prior_count", -1),
        ("norm_depth", -0.1),
        ("norm_depth", 1.5),
        ("augmentation_kinds", "flip"),
        ("augmentation_kinds", ["flip", "mirror"]),
        ("augmentation_kinds", []),
        ("gate", "3"),
        ("gate", float("nan")),
        ("gate_window", 0),
        ("ema_decay", 1.01),
        ("max_grad_norm", -1.0),
        ("augmentations", -1),
        ("augmentation_steps", 1.5),
        ("chunk_size", 0),
        ("vectorize", "auto"),
        ("collapse_guard", None),
    ],
)
def test_an_invalid_adaptation_setting_is_named_with_its_value(field, value):
    with pytest.raises(ValueError) as error:
        AdaptationConfig(**{field: value})
    assert f"AdaptationConfig.{field} " in str(error.value)
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers():
    config = AdaptationConfig(num_steps=np.int64(3), learning_rate=np.float32(0.5), gate=np.int32(2), batch_size=7)
    assert config == AdaptationConfig(num_steps=3, learning_rate=0.5, gate=2, batch_size=7)
    assert json.loads(json.dumps(config.to_dict()))["learning_rate"] == 0.5
    for field, value in (("num_steps", np.float64(3)), ("gate", np.float32("nan")), ("num_steps", np.bool_(True))):
        with pytest.raises(ValueError, match=f"AdaptationConfig.{field} must be"):
            AdaptationConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("neutral_signal", "zero"),
        ("combine", "concat"),
        ("distance", "cosine"),
        ("idempotence_weight", -1),
        ("idempotence_weight", float("inf")),
        ("idempotence_weight", True),
        ("injection_layer", 3),
        ("injection_channels", 0),
        ("injection_channels", 2.5),
        ("reference_distance", {"mean": 0.0}),
        ("reference_distance", {"mean": None, "std": 0.1}),
        ("reference_distance", {"mean": float("nan"), "std": 0.1}),
        ("reference_distance", {"mean": 0.0, "std": "a"}),
        ("reference_distance", {"mean": 0.0, "std": -0.1}),
        ("reference_distance", {"mean": 0.0, "std": 0.1, "mirrored": 0.9}),
        ("reference_distance", {"mean": 0.0, "std": 0.1, "mirrored": {"all": 0.9}}),
        ("reference_distance", {"mean": 0.0, "std": 0.1, "mirrored": {"all": 0.9, "least": float("nan")}}),
        ("reference_distance", {"mean": 0.0, "std": 0.1, "corrected": {"cropped": 0.9, "half": 0.9, "all": 0.9}}),
        ("num_labels", 0),
        ("adaptation", 5),
        ("backbone_config", "resnet"),
    ],
)
def test_an_invalid_model_setting_is_named_with_its_value(field, value):
    with pytest.raises(Exception) as error:
        IT3Config(**{field: value})
    assert isinstance(error.value, (ValueError, TypeError))
    assert field in str(error.value)
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_channels", 0),
        ("image_size", "28"),
        ("conv_channels", [10]),
        ("conv_channels", [10, 0]),
        ("hidden_size", -3),
    ],
)
def test_an_invalid_network_size_is_named_with_its_value(field, value):
    with pytest.raises(Exception) as error:
        IT3CNNConfig(**{field: value})
    assert isinstance(error.value, (ValueError, TypeError))
    assert field in str(error.value)
    assert str(value) in str(error.value)


def test_an_image_too_small_for_the_network_says_which_size_is_enough():
    with pytest.raises(ValueError, match="image_size=12 is too small.*at least 16"):
        IT3CNNConfig(image_size=12)
    assert IT3CNNConfig(image_size=16).feature_map_size == 1


@pytest.mark.parametrize(
    ("make", "wrong", "right"),
    [
        (IT3Config, "injection_layr", "injection_layer"),
        (AdaptationConfig, "learning_rat", "learning_rate"),
        (lambda **values: AdaptationConfig.from_dict(values), "max_grad_nor", "max_grad_norm"),
        (AdaptationConfig().replace, "num_step", "num_steps"),
        (lambda **values: IT3Config(adaptation=values), "gates", "gate"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_known_one(make, wrong, right):
    with pytest.raises(ValueError, match=f"no field '{wrong}'.*did you mean '{right}'"):
        make(**{wrong: "x"})


def test_settings_survive_json():
    config = IT3Config(
        adaptation={"scope": "stream", "gate": None, "learning_rate": 1e-2, "chunk_size": 7},
        neutral_signal="zeros",
        combine="multiply",
        distance="js",
        idempotence_weight=0.5,
        reference_distance={"mean": -0.9, "std": 0.1, "num_images": 5, "distance": "js"},
        calibration_corruptions=["gaussian_noise"],
        id2label={0: "cat", 1: "dog"},
        problem_type="multi_label_classification",
    )
    again = IT3Config.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    assert again.adaptation == config.adaptation
    assert again.id2label == {0: "cat", 1: "dog"}


def test_settings_survive_saving_and_auto_config(tmp_path):
    backbone = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=3)
    config = IT3Config(backbone_config=backbone, adaptation=AdaptationConfig(num_steps=2), injection_layer="convnext")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is IT3Config
    assert type(again.backbone_config) is ConvNextConfig
    assert again.backbone_config.hidden_sizes == [8, 16]
    assert again.adaptation.num_steps == 2
    assert again.to_json_string() == config.to_json_string()


def test_the_adaptation_of_a_saved_model_can_be_replaced_on_loading(tmp_path):
    IT3Config(adaptation={"num_steps": 2, "gate": 1.0}).save_pretrained(tmp_path)
    config = IT3Config.from_pretrained(tmp_path, adaptation={"num_steps": 4})
    assert config.adaptation == AdaptationConfig(num_steps=4, gate=1.0)
    config = IT3Config.from_pretrained(tmp_path, adaptation=AdaptationConfig(num_steps=4))
    assert config.adaptation == AdaptationConfig(num_steps=4)
    with pytest.raises(ValueError, match="num_step'.*did you mean 'num_steps'"):
        IT3Config.from_pretrained(tmp_path, adaptation={"num_step": 4})


@pytest.mark.parametrize(
    "given", [{"model_type": "resnet", "hidden_sizes": [8], "depths": [1]}, ResNetConfig(hidden_sizes=[8], depths=[1])]
)
def test_a_backbone_can_be_given_as_configuration_or_dict(given):
    config = IT3Config(backbone_config=given)
    assert type(config.backbone_config) is ResNetConfig
    assert config.backbone_config.hidden_sizes == [8]
    assert config.backbone_config is not given


@pytest.mark.parametrize("given", [{}, {"model_type": "resnett"}])
def test_a_backbone_of_unknown_type_is_an_error_that_names_it(given):
    with pytest.raises(ValueError, match=f"model_type.*{given.get('model_type')}"):
        IT3Config(backbone_config=given)


def test_labels_and_problem_type_come_from_the_backbone_and_go_back_to_it():
    backbone = ResNetConfig(id2label={0: "cat", 1: "dog", 2: "owl"}, problem_type="multi_label_classification")
    config = IT3Config(backbone_config=backbone)
    assert config.num_labels == 3
    assert config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert config.problem_type == "multi_label_classification"
    config = IT3Config(backbone_config=backbone, id2label={0: "yes", 1: "no"}, problem_type="regression")
    assert config.backbone_config.id2label == {0: "yes", 1: "no"}
    assert config.backbone_config.problem_type == "regression"
    assert IT3Config(backbone_config=backbone, num_labels=5).backbone_config.num_labels == 5
    assert backbone.num_labels == 3


def test_configurations_share_nothing():
    adaptation = AdaptationConfig()
    first, second = IT3Config(adaptation=adaptation), IT3Config()
    first.adaptation.num_steps = 99
    first.id2label[0] = "changed"
    assert adaptation.num_steps != 99
    assert second.adaptation.num_steps != 99
    assert second.id2label[0] != "changed"


def test_callables_work_in_memory_and_are_refused_by_name_when_saved(tmp_path):
    config = IT3Config(distance=distance_of_my_own)
    assert config.distance is distance_of_my_own
    assert "distance_of_my_own" in config.to_json_string()
    with pytest.raises(ValueError, match=r"IT3Config\.distance is a callable .*distance_of_my_own.* cannot be saved"):
        config.save_pretrained(tmp_path)
    config = IT3Config(adaptation=AdaptationConfig(optimizer=torch.optim.AdamW))
    with pytest.raises(ValueError, match=r"adaptation\.optimizer is a callable .*AdamW.* cannot be saved"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_varied(name):
    preset = AdaptationConfig.preset(name, batch_size=7)
    assert preset.batch_size == 7
    assert AdaptationConfig.from_dict(preset.to_dict()) == preset


def test_an_unknown_preset_or_field_of_one_is_an_error():
    with pytest.raises(ValueError, match="'tend'.*did you mean 'tent'"):
        AdaptationConfig.preset("tend")
    with pytest.raises(ValueError, match="'num_step'.*did you mean 'num_steps'"):
        AdaptationConfig.preset("tent", num_step=1)


@pytest.mark.parametrize(("scope", "anchor"), [("batch", "frozen"), ("image", "frozen"), ("stream", "ema")])
def test_the_default_anchor_depends_on_the_scope(scope, anchor):
    assert AdaptationConfig(scope=scope).effective_anchor == anchor
    assert AdaptationConfig(scope=scope, anchor="self").effective_anchor == "self"


def test_every_field_is_documented():
    text = inspect.getdoc(AdaptationConfig)
    assert [name for name in field_names() if f"\n    {name} (`" not in text] == []


def test_custom_pipelines_of_a_repository_do_not_stick(tmp_path):
    IT3Config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "custom_pipelines": {"it3": {"impl": "x.Y"}}}))
    assert not hasattr(AutoConfig.from_pretrained(tmp_path), "custom_pipelines")
