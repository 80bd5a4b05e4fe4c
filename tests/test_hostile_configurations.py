"""A stranger's config.json: whatever it holds, a ValueError names field and value before anything is built."""

import json
import re

import pytest
from conftest import tiny_config
from transformers import ResNetConfig, ResNetForImageClassification

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification
from hf_it3.hub.push import model_files


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    IT3ForImageClassification(tiny_config()).save_pretrained(folder)
    return folder


@pytest.fixture
def load_with(saved, tmp_path, monkeypatch):
    """Loads the model, its config.json replaced; nothing may be built."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def refuse(*args, **kwargs):
        raise AssertionError("something was built")

    def load(content):
        (tmp_path / "config.json").write_text(json.dumps(content))
        monkeypatch.setattr(IT3ForImageClassification, "__init__", refuse)
        return IT3ForImageClassification.from_pretrained(tmp_path)

    return load


@pytest.fixture
def content(saved):
    return json.loads((saved / "config.json").read_text())


WRONG = [
    *(("num_labels", value) for value in ("abc", -1, 0, 2.5, True, [], {}, 10**9)),
    *(("id2label", value) for value in ("abc", 3, True, [], ["x"], {"a": "b"})),
    *(("label2id", value) for value in ("abc", 3, ["x"])),
    *(("model_type", value) for value in (3, True, [], {"a": "b"})),
    *(("dtype", value) for value in ("abc", "nn", 3, [])),
    *(("architectures", value) for value in ("abc", [3])),
    *(("problem_type", value) for value in ("abc", 3, [])),
]
OWN = [*(("base_model", value) for value in ("abc", 3, [1])), *(("reference_distance", value) for value in ("abc", 3))]


@pytest.mark.parametrize(("field", "value"), [*WRONG, *OWN])
def test_a_field_of_the_wrong_type_or_size_is_named_with_its_value(load_with, content, field, value):
    with pytest.raises(ValueError, match=rf"config\.json: {field} must be .*, got {re.escape(repr(value))}$"):
        load_with({**content, field: value})


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_so_is_one_of_the_backbone(load_with, content, field, value):
    content["backbone_config"][field] = value
    with pytest.raises(
        ValueError, match=rf"^IT3Config\.backbone_config\.{field} must be .*, got {re.escape(repr(value))}$"
    ):
        load_with(content)


@pytest.mark.parametrize(
    ("field", "value"),
    [*(("distance", value) for value in ([], {}, ["a"])), ("injection_channels", 10**9), ("combine", [])],
)
def test_settings_of_ours_are_named_too(load_with, content, field, value):
    with pytest.raises(ValueError, match=rf"IT3Config\.{field} must be .*, got {re.escape(repr(value))}$"):
        load_with({**content, field: value})


def test_json_that_is_nested_too_deeply_is_refused(saved, tmp_path):
    (tmp_path / "config.json").write_text("[" * 5000 + "]" * 5000)
    with pytest.raises(ValueError, match=r"config\.json is nested too deeply"):
        IT3ForImageClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["x", None, 3, True, ["a"]])
def test_json_that_is_no_object_is_refused(load_with, content):
    with pytest.raises(ValueError, match=r"config\.json must be a mapping \(a JSON object\)"):
        load_with(content)


@pytest.mark.parametrize("content", ["x", None, 3, ["a"], {"num_labels": "x"}])
def test_it_is_not_pushed_either(saved, tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"config\.json(:| must be)"):
        model_files(tmp_path)


@pytest.mark.parametrize("content", ["x", None, {"num_labels": 10**9}, {"id2label": ["x"]}, {"model_type": []}])
def test_nor_wrapped(tmp_path, content):
    content = {**ResNetConfig().to_dict(), **content} if isinstance(content, dict) else content
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json(:| must be)"):
        IT3ForImageClassification.from_backbone(str(tmp_path))


@pytest.mark.parametrize("value", [10**9, "abc", None, [], [1], [1, 0], [1, 2.5], [True, 2]])
def test_sizes_of_the_tutorials_network_are_checked(value):
    with pytest.raises(ValueError, match=r"IT3CNNConfig\.conv_channels must be two positive integers"):
        IT3CNNConfig(conv_channels=value)


@pytest.mark.parametrize("name", ["num_channels", "image_size", "hidden_size"])
def test_so_is_what_would_take_gigabytes(name):
    with pytest.raises(ValueError, match=rf"IT3CNNConfig describes a layer of more than .*{name}=1000000000"):
        IT3CNNConfig(**{name: 10**9})


@pytest.mark.parametrize("reference", ["abc", {"name_or_path": 3, "revision": "a"}, {"name_or_path": "a/b"}])
def test_a_delta_of_what_is_not_named_is_refused(load_with, content, reference):
    with pytest.raises(ValueError, match="does not name base and revision"):
        load_with({**content, "base_model": {"weights": "delta", "delta_of": reference}})


def test_no_number_of_labels_is_that_of_the_backbone():
    backbone = {"model_type": "resnet", "num_labels": None}
    assert IT3Config(backbone_config=backbone, num_labels=None).num_labels == 2


def test_a_plain_classifier_is_not_loaded_but_wrapped(tmp_path):
    config = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1])
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a model of type 'resnet', .*from_backbone\('.*'\)"):
        IT3ForImageClassification.from_pretrained(tmp_path)
