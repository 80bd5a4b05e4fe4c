"""Features of backbones without BatchNorm can be given the statistics of clean images."""

import copy

import pytest
import torch
from clean_statistics import with_clean_statistics
from first_layers import layers_in_order
from safetensors.torch import save_file
from transformers import ConvNextConfig, ResNetConfig, ViTConfig

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification, TestTimeAdapter
from hf_it3.it3.alignment_it3 import aligned_layers
from hf_it3.it3.augmentation_it3 import Augmentation
from hf_it3.it3.batchnorm_it3 import norm_statistics, noted_statistics


CONFIGS = {
    "cnn": IT3CNNConfig(image_size=16, conv_channels=[4, 8], hidden_size=24),
    "vit": ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    ),
    "convnext": ConvNextConfig(
        num_channels=1, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=10, image_size=16
    ),
}


def measured(name: str, images: torch.Tensor) -> IT3ForImageClassification:
    """A model that has seen clean images in two batches."""
    model = IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(CONFIGS[name])))
    return with_clean_statistics(model, *images.split(40))


@pytest.fixture
def clean():
    return torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.3


def features_of(model, name, images, signal=None):
    """What a layer of the backbone hands on."""
    seen = []
    handle = model.backbone.get_submodule(name).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(images, label_signal=signal)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", CONFIGS)
def test_statistics_are_those_of_clean_images_in_either_pass(name, clean):
    model = measured(name, clean)
    with torch.no_grad():
        y0 = model(clean).logits.softmax(1)
    layers = aligned_layers(model.backbone)
    assert len(layers) == len(model.feature_statistics) > 1
    for layer, _ in layers:
        statistics = model.feature_statistics[layer.replace(".", "/")]
        for prefix, signal in (("", None), ("signal_", y0)):
            features = features_of(model, layer, clean, signal)
            if features.ndim < 3:
                assert not statistics.std.any()  # behind the pooling there is nothing to align
                continue
            kind = type(model.backbone.get_submodule(layer)).__name__
            channels_first = kind == "Conv2d" or getattr(model.backbone.get_submodule(layer), "data_format", "") == (
                "channels_first"
            )
            features = features.movedim(1, -1) if channels_first else features
            # The stem's own output comes without what is injected behind it.
            if signal is not None and layer == model.config.injection_layer:
                continue
            values = features.double().flatten(0, -2)
            torch.testing.assert_close(
                getattr(statistics, f"{prefix}mean").double(), values.mean(0), atol=1e-5, rtol=0
            )
            expected = values.std(0, correction=0)
            torch.testing.assert_close(getattr(statistics, f"{prefix}std").double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prior_count", [0, 16])
def test_the_first_layer_is_aligned_by_the_formula(prior_count, clean):
    model = measured("cnn", clean)
    images = clean[:24] * 0.4 + 1.0
    plain = features_of(model, "conv1", images)
    with norm_statistics("mixed", prior_count):
        aligned = features_of(model, "conv1", images)
    statistics = model.feature_statistics["conv1"]
    share = prior_count / (prior_count + 24)
    for channel in range(plain.shape[1]):
        x, mean, std = plain[:, channel], statistics.mean[channel], statistics.std[channel]
        mixed_mean = (1 - share) * x.mean() + share * mean
        mixed_variance = (1 - share) * x.var(correction=0) + share * std**2
        expected = (x - mixed_mean) / (mixed_variance + 1e-5).sqrt() * std + mean
        torch.testing.assert_close(aligned[:, channel], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "shrunk"])
@pytest.mark.parametrize("name", CONFIGS)
def test_only_the_layers_that_are_counted_are_aligned(name, kind, clean):
    model, shifted = measured(name, clean), 2 * clean + 0.5
    statistics = model.feature_statistics
    layers = [layer for key, layer in aligned_layers(model.backbone) if statistics[key.replace(".", "/")].is_measured]
    order, plain = layers_in_order(model, shifted, layers), model(shifted).logits
    assert len(order) > 1
    for count in range(len(order) + 1):
        with noted_statistics() as noted, norm_statistics(kind, 4, num_layers=count):
            logits = model(shifted).logits
        assert list(noted) == order[:count]
        assert torch.equal(logits, plain) == (count == 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_aligned_one_by_one_where_asked_for(name, clean):
    model = measured(name, clean)
    images = clean[:5] * 0.4 + 1.0
    with torch.no_grad(), norm_statistics("mixed", 2, per_image=True):
        together = model(images).logits
    with torch.no_grad(), norm_statistics("mixed", 2):
        alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_alignment_takes_a_change_of_brightness_and_contrast_back(clean):
    model = measured("cnn", clean)
    with torch.no_grad():
        expected, spoiled = model(clean).logits, model(clean * 0.3 + 2.0).logits
        with norm_statistics("mixed", 0):
            aligned = model(clean * 0.3 + 2.0).logits
    assert (aligned - expected).norm() < 0.05 * (spoiled - expected).norm()


def test_it_is_what_auto_means_where_clean_images_were_measured(clean):
    model = measured("cnn", clean)
    assert TestTimeAdapter(model).config.norm_statistics == "mixed"
    fresh = IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(CONFIGS["cnn"])))
    assert TestTimeAdapter(fresh).config.norm_statistics == "source"
    resnet = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10)
    with_batch_norm = IT3ForImageClassification(IT3Config(backbone_config=resnet))
    assert len(with_batch_norm.feature_statistics) == 0
    assert TestTimeAdapter(with_batch_norm).config.norm_statistics == "shrunk"
    assert TestTimeAdapter(with_batch_norm, scope="image").config.norm_statistics == "source"
    averaging = TestTimeAdapter(with_batch_norm, scope="average").config
    assert (averaging.norm_statistics, averaging.prior_count, averaging.norm_depth) == ("mixed", 2, 0.17)
    steps = TestTimeAdapter(with_batch_norm, scope="average", augmentation_steps=1).config
    assert (steps.norm_statistics, steps.norm_depth) == ("source", 1.0)


def test_averaging_aligns_the_images_that_the_gate_sees_shifted(clean):
    model = measured("cnn", clean)
    images = torch.cat([clean[:3], clean[3:6] * 0.2 + 3.0])
    output = TestTimeAdapter(model, scope="average", augmentations=3)(images)
    assert output.averaged.all()
    assert output.adapted.tolist() == [False] * 3 + [True] * 3
    views = Augmentation(3).apply(images)
    for image, copies in enumerate(views):
        with torch.no_grad(), norm_statistics("mixed" if image >= 3 else "source", 2):
            answers = torch.cat([model(one[None]).logits.softmax(1) for one in copies])
        torch.testing.assert_close(output.logits[image].softmax(0), answers.mean(0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", ["source", "batch"])
def test_other_statistics_leave_features_alone(setting, clean):
    model = measured("cnn", clean)
    with torch.no_grad():
        expected = model(clean + 1).logits
        with norm_statistics(setting):
            assert torch.equal(model(clean + 1).logits, expected)


@pytest.mark.parametrize("scope", ["batch", "image", "stream", "average"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_scope_adapts_with_aligned_features_and_leaves_the_model_alone(name, scope, clean):
    model = measured(name, clean)
    before = copy.deepcopy(model.state_dict())
    output = TestTimeAdapter(model, scope=scope, gate=None, norm_statistics="mixed")(clean[:6] + 1)
    assert output.adapted.all()
    assert output.logits.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_image_alone_is_aligned_as_a_batch_of_one(clean):
    model = measured("cnn", clean)
    settings = {"gate": None, "num_steps": 0, "prior_count": 4}
    together = TestTimeAdapter(model, scope="image", **settings)(clean[:3] + 1).logits
    alone = TestTimeAdapter(model, single_image="batch", **settings)
    for image, logits in zip(clean[:3] + 1, together, strict=True):
        torch.testing.assert_close(logits[None], alone(image[None]).logits, atol=1e-5, rtol=1e-5)


class TestSaving:
    def test_what_was_measured_travels_with_the_weights(self, clean, tmp_path):
        model = measured("convnext", clean)
        model.save_pretrained(tmp_path)
        loaded = IT3ForImageClassification.from_pretrained(tmp_path)
        for key, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[key]), key
        torch.testing.assert_close(loaded.adapt(clean + 1).logits, model.adapt(clean + 1).logits)

    def test_it_stays_in_single_precision(self, clean, tmp_path):
        model = measured("cnn", clean)
        model.save_pretrained(tmp_path)
        expected = {key: value for key, value in model.state_dict().items() if "statistics" in key or "shift_" in key}
        assert expected
        loaded = IT3ForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
        for other in (loaded, model.half(), model.to(torch.float64)):
            values = other.state_dict()
            assert all(torch.equal(values[key], value) for key, value in expected.items())

    def test_weights_from_before_load_with_nothing_measured(self, clean, tmp_path, caplog):
        model = measured("cnn", clean)
        model.save_pretrained(tmp_path)
        old = {key: value for key, value in model.state_dict().items() if "statistics" not in key}
        old = {key: value for key, value in old.items() if not key.startswith("shift_reference")}
        save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded, info = IT3ForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not loaded.feature_statistics.is_measured
        assert not loaded.shift_reference.is_measured
        model.load_state_dict(old)
        assert not model.feature_statistics.is_measured
        output = loaded.adapt(clean + 1)
        assert output.feature_shift.isnan().all()
        assert output.distance_shift.isfinite().all()


def test_where_features_are_not_aligned_steps_have_more_to_do(clean):
    model = measured("vit", clean)
    settings = TestTimeAdapter(model).config
    assert (settings.parameters, settings.num_steps) == ("norm", 1)
    model.config.problem_type = "multi_label_classification"
    settings = TestTimeAdapter(model).config
    assert (settings.parameters, settings.num_steps, settings.norm_statistics) == ("all", 5, "source")
