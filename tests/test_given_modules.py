"""Modules that a caller hands over keep their weights, frozen parts, modes and types, and stay the caller's."""

import copy

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel
from untouched import untouched

from hf_it3 import IT3Config, IT3ForImageClassification, LabelEmbedder


SMALL = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)


class Sequence(nn.Module):
    """A classifier that has a model of transformers inside, with a layer of its own in front and behind."""

    def __init__(self, inner):
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 3, padding=1)
        self.inner = inner
        self.head = nn.Linear(3, 2)

    def forward(self, pixels):
        return self.head(self.inner(self.stem(pixels)).logits)


def classifiers():
    """Trained ones: one with a head, one without, and a plain module around one."""
    return [ResNetForImageClassification(SMALL), ResNetModel(SMALL), Sequence(ResNetForImageClassification(SMALL))]


def same_tensors(module, other) -> bool:
    expected = other.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in module.state_dict().items() if name in expected)


def given_part(model):
    """What the model has of the classifier that was handed over."""
    return getattr(model.backbone, "model", model.backbone)


@pytest.mark.parametrize("embedder", [LabelEmbedder(3, 8), nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8))])
def test_a_trained_embedder_keeps_its_weights_and_stays_the_callers(embedder):
    with torch.no_grad():
        for parameter in embedder.parameters():
            parameter.uniform_(1, 2)
    with untouched(embedder):
        model = IT3ForImageClassification.from_backbone(ResNetForImageClassification(SMALL), embedder=embedder)
        assert same_tensors(model.embedder, embedder)
        with torch.no_grad():
            for parameter in model.embedder.parameters():
                parameter.zero_()


@pytest.mark.parametrize("part", ["backbone", "embedder"])
def test_the_constructor_keeps_the_weights_of_what_it_is_given(part):
    config = IT3Config(backbone_config=SMALL, num_labels=2)
    given = {"backbone": Sequence(ResNetForImageClassification(SMALL)), "embedder": LabelEmbedder(2, 8)}[part]
    before = copy.deepcopy(given)
    model = IT3ForImageClassification(config, **{part: given})
    assert same_tensors(getattr(model, part), before)


@pytest.mark.parametrize("classifier", classifiers(), ids=["head", "no head", "inside"])
def test_frozen_parts_stay_frozen_and_modes_stay_as_they_are(classifier):
    classifier.train()
    for index, module in enumerate(classifier.modules()):
        module.training = bool(index % 3)
    for index, parameter in enumerate(classifier.parameters()):
        parameter.requires_grad_(bool(index % 2))
    embedder = LabelEmbedder(3, 8).requires_grad_(False).eval()
    frozen = {name for name, parameter in classifier.named_parameters() if not parameter.requires_grad}
    modes = {name: module.training for name, module in classifier.named_modules()}
    model = IT3ForImageClassification.from_backbone(classifier, embedder=embedder)
    assert {name for name, value in given_part(model).named_parameters() if not value.requires_grad} == frozen
    assert {name: module.training for name, module in given_part(model).named_modules()} == modes
    assert model.training == classifier.training
    assert not any(parameter.requires_grad for parameter in model.embedder.parameters())
    assert not any(module.training for module in model.embedder.modules())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("classifier", classifiers(), ids=["head", "no head", "inside"])
def test_new_parts_are_in_the_mode_of_the_classifier(classifier, training):
    model = IT3ForImageClassification.from_backbone(classifier.train(training))
    assert {module.training for module in model.modules()} == {training}


def test_a_model_inside_the_given_module_keeps_its_weights():
    classifier = Sequence(ResNetForImageClassification(SMALL))
    with untouched(classifier):
        model = IT3ForImageClassification.from_backbone(classifier)
    assert same_tensors(model.backbone, classifier)


@pytest.mark.parametrize("classifier", classifiers(), ids=["head", "no head", "inside"])
def test_new_parts_have_the_type_of_the_classifier(classifier):
    model = IT3ForImageClassification.from_backbone(classifier.to(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    images = torch.rand(2, 1, 16, 16, dtype=torch.bfloat16)
    assert model(images, labels=torch.tensor([0, 1])).loss.isfinite()
