"""An adapted model carries the statistics of the images it was adapted to, so it answers alike without adaptation."""

import copy

import pytest
import torch
from clean_statistics import with_clean_statistics
from families import FAMILIES, as_if_trained, classifier, family_images
from torch import nn
from untouched import untouched

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification, TestTimeAdapter


# Its convolutions standardise their weights and have no bias, so there is nothing that could take statistics up.
CANNOT_CARRY = {"bit"}
ALWAYS = {"gate": None, "diversity_weight": 0.0, "norm_statistics": "mixed", "average_answers": "never"}


def family_model(name: str) -> IT3ForImageClassification:
    clean = family_images(name, 24)
    model = as_if_trained(lambda: IT3ForImageClassification.from_backbone(classifier(name)), clean)
    return with_clean_statistics(model, clean)


def shifted(name: str) -> torch.Tensor:
    return family_images(name, 12) * 0.5 + 0.4


@pytest.fixture
def cnn():
    torch.manual_seed(0)
    config = IT3CNNConfig(image_size=16, conv_channels=[4, 8], hidden_size=24)
    model = IT3ForImageClassification(IT3Config(backbone_config=config))
    return with_clean_statistics(model, torch.randn(64, 1, 16, 16) * 0.5 + 0.3)


@pytest.fixture
def images():
    return torch.randn(48, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.2 + 1.0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in CANNOT_CARRY])
def test_an_adapted_model_answers_as_the_adapter_did(name):
    model = family_model(name)
    adapter = TestTimeAdapter(model, num_steps=1, **ALWAYS)
    with untouched(model):
        output = adapter(shifted(name))
        adapted = adapter.adapted_model()
    movement = (output.logits - output.initial_logits).abs().max()
    with torch.no_grad():
        difference = (adapted(shifted(name)).logits - output.logits).abs().max()
    assert difference <= max(1e-5, 0.01 * movement)
    assert movement > 1e-4


@pytest.mark.parametrize("name", CANNOT_CARRY)
def test_what_cannot_be_carried_is_said(name, caplog):
    adapter = TestTimeAdapter(family_model(name), num_steps=0, **ALWAYS)
    adapter(shifted(name))
    adapter.adapted_model()
    assert "no weight and bias that may take up the statistics" in caplog.text


@pytest.mark.parametrize("kind", ["batch", "mixed", "shrunk"])
def test_batch_norm_takes_over_any_kind_of_statistics(kind):
    adapter = TestTimeAdapter(family_model("resnet"), **{**ALWAYS, "norm_statistics": kind}, num_steps=1)
    output = adapter(shifted("resnet"))
    with torch.no_grad():
        logits = adapter.adapted_model()(shifted("resnet")).logits
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=1e-5)


def test_signal_passes_of_batch_norm_see_features_brought_back_to_those_of_training():
    torch.manual_seed(0)
    model = family_model("resnet")
    adapter = TestTimeAdapter(model, num_steps=0, **ALWAYS)
    adapter(shifted("resnet"))
    adapted = dict(adapter.adapted_model().named_modules())
    features = torch.randn(5, 8, 3, 3)
    name, before = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    after = adapted[name]
    back = nn.functional.batch_norm(features, after.running_mean, after.running_var, eps=after.eps)
    back = back * (before.running_var + before.eps).sqrt()[:, None, None] + before.running_mean[:, None, None]
    expected = nn.functional.batch_norm(back, before.signal_running_mean, before.signal_running_var, eps=before.eps)
    actual = nn.functional.batch_norm(features, after.signal_running_mean, after.signal_running_var, eps=before.eps)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(after.signal_running_mean, before.signal_running_mean, atol=1e-4)


def folded_stem(model, batches, shares):
    """Weight and bias of the first convolution, from the formula: aligned features, statistics averaged by shares."""
    stem, clean = model.backbone.conv1, model.feature_statistics["conv1"]
    mean = square = None
    for batch, share in zip(batches, shares, strict=True):
        features = stem(batch).double().transpose(0, 1).flatten(1)
        own = 16 / (16 + len(batch))  # the part of the clean statistics
        batch_mean = (1 - own) * features.mean(1) + own * clean.mean.double()
        variance = (1 - own) * features.var(1, correction=0) + own * clean.std.double() ** 2
        batch_square = variance + batch_mean**2
        mean = batch_mean if mean is None else (1 - share) * mean + share * batch_mean
        square = batch_square if square is None else (1 - share) * square + share * batch_square
    scale = clean.std.double() / (square - mean**2 + 1e-5).sqrt()
    weight = stem.weight.double() * scale[:, None, None, None]
    return weight, stem.bias.double() * scale + clean.mean.double() - mean * scale


# Batches of 12, 24 and 12 images.
@pytest.mark.parametrize(
    ("window", "shares"), [(256, [1, 24 / 36, 12 / 48]), (30, [1, 24 / 30, 12 / 30]), (20, [1, 1, 0.6])]
)
@torch.no_grad()
def test_a_stream_averages_the_statistics_of_its_latest_images(cnn, images, window, shares):
    batches = images[:12], images[12:36] * 1.5, images[36:] - 0.3
    adapter = TestTimeAdapter(
        cnn, scope="stream", num_steps=0, prior_count=16, gate_window=window, class_balance=False, **ALWAYS
    )
    for batch in batches:
        adapter(batch)
    weight, bias = folded_stem(cnn, batches, shares)
    stem = adapter.adapted_model().backbone.conv1
    torch.testing.assert_close(stem.weight.double(), weight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stem.bias.double(), bias, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_stream_that_goes_on_elsewhere_carries_them_along(cnn, images):
    settings = {"scope": "stream", "num_steps": 1, **ALWAYS}
    adapter = TestTimeAdapter(cnn, **settings)
    adapter(images[:24])
    other, copied = TestTimeAdapter(cnn, **settings), copy.deepcopy(adapter)
    state = adapter.state_dict()
    other.load_state_dict(state)
    adapter(images[24:])
    expected = adapter.adapted_model().state_dict()
    for one in (other, copied):
        one(images[24:])
        assert all(torch.equal(value, expected[name]) for name, value in one.adapted_model().state_dict().items())
    # A state from before there were any.
    other.load_state_dict({name: value for name, value in state.items() if name != "seen"})
    assert torch.equal(other.adapted_model().backbone.conv1.weight, state["parameters"]["backbone.conv1.weight"])


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([], "this is not the state of a stream: seen must hold averages and num_images"),
        ({"averages": {}}, "seen must hold averages and num_images"),
        ({"averages": {"conv9": ()}, "num_images": 4}, "statistics of 'conv9', a layer this model lacks"),
    ],
)
def test_a_broken_state_is_refused_and_changes_nothing(cnn, images, seen, message):
    adapter = TestTimeAdapter(cnn, scope="stream", num_steps=1, **ALWAYS)
    adapter(images[:24])
    before = adapter.adapted_model().state_dict()
    with pytest.raises(ValueError, match=message):
        adapter.load_state_dict({**adapter.state_dict(), "seen": seen})
    assert all(torch.equal(value, before[name]) for name, value in adapter.adapted_model().state_dict().items())


@torch.no_grad()
def test_it_is_saved_and_loaded(cnn, images, tmp_path):
    adapter = TestTimeAdapter(cnn, num_steps=1, **ALWAYS)
    output = adapter(images)
    adapter.adapted_model().save_pretrained(tmp_path)
    again = IT3ForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(images).logits, output.logits, atol=1e-5, rtol=1e-5)
    assert (output.logits - output.initial_logits).abs().max() > 0.01


@torch.no_grad()
def test_nothing_is_left_of_images_that_were_not_adapted_to(cnn, images):
    adapter = TestTimeAdapter(cnn, num_steps=0, **ALWAYS)
    adapter(images)
    assert not torch.equal(adapter.adapted_model()(images).logits, cnn(images).logits)
    adapter.reset()
    assert torch.equal(adapter.adapted_model()(images).logits, cnn(images).logits)
    adapter(images)
    adapter.config.gate = 1e9
    adapter(images)
    assert torch.equal(adapter.adapted_model()(images).logits, cnn(images).logits)


@torch.no_grad()
def test_frozen_layers_keep_their_weights(cnn, images, caplog):
    cnn.backbone.conv1.requires_grad_(False)
    adapter = TestTimeAdapter(cnn, num_steps=1, **ALWAYS)
    adapter(images)
    adapted = adapter.adapted_model()
    assert torch.equal(adapted.backbone.conv1.weight, cnn.backbone.conv1.weight)
    assert torch.equal(adapted.backbone.conv1.bias, cnn.backbone.conv1.bias)
    assert "backbone.conv1 first" in caplog.text
