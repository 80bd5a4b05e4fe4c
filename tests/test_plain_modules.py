"""Plain modules of PyTorch as backbones: saved, loaded into an instance or built again, trained, pushed."""

import importlib
import json
import sys

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from transformers import AutoModelForImageClassification, pipeline
from untouched import untouched

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, IT3Trainer, IT3TrainingArguments
from hf_it3.hub.model_card import write_model_card
from hf_it3.it3.plain_module_it3 import ModuleConfig


SIDE, NUM_LABELS = 16, 10


class Network(nn.Module):
    """As torch-ttt's users bring one."""

    def __init__(self, width=8, num_labels=NUM_LABELS):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_labels)

    def forward(self, pixel_values):
        return self.head(self.stem(pixel_values).mean((2, 3)))


class Shared(Network, PyTorchModelHubMixin):
    """One that the Hub's client knows how to build."""


class NotAModule:
    """What a stranger's configuration must not call."""

    def __init__(self, **kwargs):
        raise AssertionError("built")


class Tied(Network):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, NUM_LABELS)
        self.other.weight = self.head.weight


class WithExtraState(Network):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


@pytest.fixture
def images():
    return torch.rand(4, 1, SIDE, SIDE)


@pytest.fixture
def trained(images):
    """A wrapped network whose weights and both sets of statistics are not those of a new one."""
    model = IT3ForImageClassification.from_backbone(Network())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()(images, labels=torch.arange(4)).loss.backward()
    optimizer.step()
    return model.eval()


def assert_same(model, other):
    expected = other.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("auto_class", [IT3ForImageClassification, AutoModelForImageClassification])
def test_its_weights_are_loaded_into_a_copy_of_an_instance(trained, images, auto_class, tmp_path):
    trained.save_pretrained(tmp_path)
    network = Network()
    with untouched(network):
        loaded = auto_class.from_pretrained(tmp_path, backbone=network).eval()
    assert_same(loaded, trained)
    signal = torch.eye(NUM_LABELS)[:4]
    assert torch.equal(loaded(images, label_signal=signal).logits, trained(images, label_signal=signal).logits)
    assert loaded.adapt(images, gate=None).adapted.all()
    again = IT3ForImageClassification.from_pretrained(tmp_path, backbone=loaded.backbone).eval()
    assert torch.equal(again(images, label_signal=signal).logits, trained(images, label_signal=signal).logits)


def test_an_embedder_of_ones_own_goes_with_it(images, tmp_path):
    def embedder():
        return nn.Sequential(nn.Linear(NUM_LABELS, 8), nn.LayerNorm(8))

    model = IT3ForImageClassification.from_backbone(Network(), embedder=embedder()).eval()
    model.save_pretrained(tmp_path)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path, backbone=Network(), embedder=embedder()).eval()
    assert_same(loaded, model)
    larger = nn.Sequential(*embedder(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"do not fit the Network.*embedder\.2\.bias"):
        IT3ForImageClassification.from_pretrained(tmp_path, backbone=Network(), embedder=larger)


@pytest.mark.parametrize(
    ("module", "arguments"), [(Network(width=6), {"width": 6}), (Shared(width=6, num_labels=10), None)]
)
def test_a_class_with_json_arguments_needs_no_instance(module, arguments, images, tmp_path):
    model = IT3ForImageClassification.from_backbone(module, backbone_kwargs=arguments).eval()
    model.save_pretrained(tmp_path)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path).eval()
    assert type(loaded.backbone) is type(module)
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_a_class_is_imported_only_where_that_is_allowed(monkeypatch, tmp_path):
    (tmp_path / "networks_elsewhere.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = importlib.import_module("networks_elsewhere").Net()
    IT3ForImageClassification.from_backbone(net, backbone_kwargs={}).save_pretrained(tmp_path / "model")
    del sys.modules["networks_elsewhere"]
    with pytest.raises(ValueError) as error:
        IT3ForImageClassification.from_pretrained(tmp_path / "model")
    assert str(error.value) == (
        "this model wraps a plain Net (networks_elsewhere.Net); import networks_elsewhere first, pass "
        "trust_remote_code=True to have it imported, or pass backbone=..., an instance of Net, to from_pretrained"
    )
    assert "networks_elsewhere" not in sys.modules
    loaded = IT3ForImageClassification.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert type(loaded.backbone).__name__ == "Net"
    assert type(loaded.backbone) is not type(net)
    monkeypatch.delitem(sys.modules, "networks_elsewhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_class": f"{__name__}.NotAModule"}, "is no torch.nn.Module"),
        ({"backbone_class": "os.system", "backbone_kwargs": {"command": "false"}}, "is no torch.nn.Module"),
        ({"backbone_class": f"{__name__}.Missing"}, "cannot be imported here"),
        ({"backbone_kwargs": {"width": "wide"}}, "could not be built from {'width': 'wide'}"),
        ({"backbone_kwargs": None}, "which only its own code can build; pass backbone=..., an instance of Network"),
        ({"backbone_class": 3}, "backbone_class must be the name of a class"),
        ({"backbone_kwargs": [3]}, "backbone_kwargs must be a mapping"),
    ],
)
def test_what_cannot_be_built_is_an_error_that_names_it(changes, message, tmp_path):
    IT3ForImageClassification.from_backbone(Network(), backbone_kwargs={}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"].update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        IT3ForImageClassification.from_pretrained(tmp_path)


class Deeper(Network):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(8, 8)


class Shallower(Network):
    def __init__(self):
        super().__init__()
        self.head = nn.Identity()


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Network(width=9), ValueError, r"head.weight is saved as \(10, 8\), expected \(10, 9\)"),
        (Deeper(), ValueError, r"do not fit the Deeper.*backbone\.more\.bias"),
        (Shallower(), ValueError, r"do not fit the Shallower.*backbone\.head\.bias"),
        ("resnet", TypeError, "backbone must be the nn.Module that the weights are loaded into, got str"),
    ],
)
def test_another_module_than_the_one_that_was_saved_is_refused(module, error, message, trained, tmp_path):
    trained.save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        IT3ForImageClassification.from_pretrained(tmp_path, backbone=module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wide": 3}, "unexpected keyword argument 'wide'"),
        ({"width": {3}}, "not JSON serializable"),
        ({"width": (3,)}, "a dict of values that JSON carries"),
        ([], "a dict of values that JSON carries"),
    ],
)
def test_arguments_that_would_not_build_it_again_are_refused_when_it_is_wrapped(arguments, message):
    with pytest.raises(ValueError, match=f"backbone_kwargs=.* cannot build a Network again: .*{message}"):
        IT3ForImageClassification.from_backbone(Network(), backbone_kwargs=arguments)


def test_a_class_inside_a_function_needs_an_instance():
    class Local(Network):
        pass

    with pytest.raises(ValueError, match="cannot build a Local again: the class is defined inside a function"):
        IT3ForImageClassification.from_backbone(Local(), backbone_kwargs={})
    IT3ForImageClassification.from_backbone(Local()).check_saveable()


def test_another_number_of_outputs_than_num_labels_is_an_error(images):
    model = IT3ForImageClassification.from_backbone(Network(), num_labels=7)
    with pytest.raises(ValueError, match=r"Network returns logits of shape \(\d+, \d+\), but num_labels is 7"):
        model(images)


def test_arguments_are_for_plain_modules_alone():
    with pytest.raises(ValueError, match="backbone_kwargs is for a plain nn.Module; a str is built"):
        IT3ForImageClassification.from_backbone("microsoft/resnet-18", backbone_kwargs={})


def arguments(directory, **values):
    quiet = {"disable_tqdm": True, "logging_strategy": "no", "use_cpu": True, "per_device_train_batch_size": 8}
    return IT3TrainingArguments(str(directory), **{**quiet, **values})


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Tied(), "head.weight and other.weight are the same tensor"),
        (WithExtraState(), "_extra_state is extra state of type dict"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_it_is_trained(module, message, tmp_path):
    model = IT3ForImageClassification.from_backbone(module, num_labels=NUM_LABELS)
    with pytest.raises(ValueError, match=f"{message}.*or train without checkpoints, with save_strategy='no'"):
        IT3Trainer(model, arguments(tmp_path), train_dataset=[])
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path)


def test_it_trains_with_checkpoints_resumes_and_answers_in_a_pipeline(train_rows, digits, processor, tmp_path):
    def trainer(model, max_steps):
        settings = arguments(tmp_path, max_steps=max_steps, save_steps=2, reference_images=32)
        return IT3Trainer(model, settings, train_dataset=train_rows[:64], processing_class=processor)

    first = trainer(IT3ForImageClassification.from_backbone(Network()), 2)
    first.train()
    second = trainer(IT3ForImageClassification.from_backbone(Network()), 4)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 4
    second.save_model()
    loaded = IT3ForImageClassification.from_pretrained(tmp_path, backbone=Network()).eval()
    assert_same(loaded, second.model)
    own_processor = IT3ImageProcessor.from_pretrained(tmp_path)
    answers = pipeline("it3-image-classification", model=loaded, image_processor=own_processor)(
        digits["test"]["image"][:8]
    )
    named = pipeline("it3-image-classification", model=str(tmp_path), model_kwargs={"backbone": Network()})(
        digits["test"]["image"][:8]
    )
    assert len(answers) == 8
    assert answers == named


def test_its_configuration_and_its_card_name_the_class(tmp_path):
    model = IT3ForImageClassification.from_backbone(Network())
    described = model.config.backbone_config
    assert isinstance(described, ModuleConfig)
    assert (described.backbone_class, described.num_channels) == (f"{__name__}.Network", 1)
    model.save_pretrained(tmp_path)
    write_model_card(tmp_path, model)
    card = (tmp_path / "README.md").read_text()
    assert "An image classifier (Network, 10 classes)" in card
    assert f"from {__name__} import Network" in card
    assert "\nbackbone = Network()\nclassifier = pipeline(" in card
    assert 'model_kwargs={"backbone": backbone})' in card
    assert "with the same name and `backbone=backbone`, the model itself" in card


def test_a_module_that_returns_probabilities_is_told_so_once(caplog):
    class Soft(nn.Module):
        def __init__(self, is_soft):
            super().__init__()
            self.stem, self.head, self.is_soft = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), is_soft

        def forward(self, pixel_values):
            logits = self.head(self.stem(pixel_values).mean((2, 3)))
            return logits.softmax(-1) if self.is_soft else logits

    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for is_soft in (False, True):
        model = IT3ForImageClassification.from_backbone(Soft(is_soft), num_labels=3, injection_layer="stem")
        for _ in range(2):
            model(images, labels=labels).loss.backward()
        assert caplog.text.count("Soft seems to return probabilities") == is_soft
