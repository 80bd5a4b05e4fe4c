"""Answers of images that share weights, averaged over copies of each image."""

import copy

import pytest
import torch
from first_layers import first_layers_corrected, one_image_corrected
from naive_adaptation import NaiveAdaptation, mean_over_copies
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_it3 import (
    AdaptationConfig,
    IT3ForSemanticSegmentation,
    TestTimeAdapter,
)
from hf_it3.it3.augmentation_it3 import Augmentation
from hf_it3.it3.backbone_defaults_it3 import BACKBONE_DEFAULTS
from hf_it3.it3.modeling_cnn_it3 import IT3CNNForImageClassification


STEPS = {"gate": None, "num_steps": 2, "learning_rate": 3e-3}
ADAPTED = {"average_answers": "adapted", "augmentations": 4}


def log_probabilities(output):
    """The mean of predictions has logits up to a constant."""
    return output.logits.log_softmax(1)


@pytest.mark.parametrize("kinds", [["warp"], ["crop", "flip"], ["color"], ["color", "warp", "flip"]], ids=str)
def test_copies_one_after_the_other_are_the_copies_at_once(kinds):
    augmentation, images = Augmentation(5, kinds), torch.rand(3, 3, 12, 17)
    assert torch.equal(torch.stack(list(augmentation.each(images)), 1), augmentation.apply(images))


@pytest.mark.parametrize("scope", ["batch", "stream"])
@pytest.mark.parametrize("kinds", [None, ["flip", "color"]], ids=str)
def test_answers_are_means_of_the_adapted_model_over_copies(model, shifted_images, scope, kinds):
    model, images = model.double(), shifted_images[:12].double()
    adapter = TestTimeAdapter(model, scope=scope, augmentation_kinds=kinds, **STEPS, **ADAPTED)
    naive = NaiveAdaptation(model, scope=scope, **STEPS)
    for part in images.split(6 if scope == "stream" else 12):
        output = adapter(part)
        naive(part)
        expected = mean_over_copies(naive.model, part, 4, kinds)
        torch.testing.assert_close(log_probabilities(output), expected, rtol=0, atol=1e-9)
        assert output.adapted.all()
        assert output.averaged.all()


def test_copies_have_the_statistics_of_their_own_batch(batch_norm_model, images):
    output = TestTimeAdapter(batch_norm_model, gate=None, num_steps=0, norm_statistics="batch", **ADAPTED)(images)
    in_training_mode = copy.deepcopy(batch_norm_model).train()  # where BatchNorm uses those of the batch
    expected = mean_over_copies(in_training_mode, images, 4)
    torch.testing.assert_close(log_probabilities(output), expected, rtol=1e-4, atol=1e-5)


DEEP = {"mean": 0.0, "std": 1.0, "corrected": {"cropped": 0.8, "quarter": 0.95, "half": 0.9, "all": 0.89}}
DIGITS = {"mean": 0.0, "std": 1.0, "corrected": {"cropped": 0.96, "quarter": 0.98, "half": 0.97, "all": 0.96}}


def means_over_corrected_copies(model, images, num_layers, prior_count=2):
    """Log of the mean prediction for each image and three copies of it, which are corrected in the first layers."""
    expected = []
    for image in images:
        copies = Augmentation(4).apply(image[None])[0, 1:]
        answers = [one_image_corrected(model, one, num_layers, prior_count) for one in copies]
        expected.append(torch.stack([model(image[None]).logits[0], *answers]).softmax(1).mean(0).log())
    return torch.stack(expected)


@pytest.mark.parametrize("gate", [{}, {"gate": None}])
@pytest.mark.parametrize(
    ("settings", "reference", "num_layers"),
    [({}, None, 1), ({"norm_depth": 0.5}, None, 2), ({}, DEEP, 2), ({}, DIGITS, 4), ({"norm_depth": 0.5}, DIGITS, 2)],
    ids=["not measured", "named", "half", "all", "named and measured"],
)
def test_copies_of_an_image_alone_are_corrected_in_the_first_layers(
    batch_norm_model, images, gate, settings, reference, num_layers
):
    model, images = batch_norm_model.double(), 2 * images[:3].double() + 0.5
    model.config.reference_distance = reference
    output = TestTimeAdapter(model, scope="average", augmentations=4, **gate, **settings)(images)
    expected = means_over_corrected_copies(model, images, num_layers)
    torch.testing.assert_close(log_probabilities(output), expected, rtol=0, atol=1e-6)
    assert output.averaged.all()
    assert not output.adapted.any()
    plain = TestTimeAdapter(model, scope="average", augmentations=4, norm_statistics="source")(images)
    assert not torch.allclose(plain.logits.softmax(1), output.logits.softmax(1), atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"scope": "stream", "norm_depth": 0.5}], ids=str)
def test_so_are_copies_of_images_that_the_gate_leaves_alone_where_all_are_averaged(batch_norm_model, images, settings):
    model, images = batch_norm_model.double(), 2 * images[:6].double() + 0.5
    adapter = TestTimeAdapter(model, gate=float("inf"), average_answers="always", augmentations=4, **settings)
    expected = means_over_corrected_copies(model, images, num_layers=1 if "scope" not in settings else 2)
    torch.testing.assert_close(log_probabilities(adapter(images)), expected, rtol=0, atol=1e-6)
    named = TestTimeAdapter(
        model, gate=float("inf"), average_answers="always", augmentations=4, norm_statistics="shrunk", **settings
    )
    torch.testing.assert_close(log_probabilities(named(images)), mean_over_copies(model, images, 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_a_batch_is_corrected_as_deep_as_settings_say(batch_norm_model, images, depth):
    settings = {"norm_statistics": "batch", "norm_depth": depth, "diversity_weight": 0.0, "average_answers": "never"}
    output = TestTimeAdapter(batch_norm_model, settings, gate=None, num_steps=0)(images)
    torch.testing.assert_close(
        output.logits, first_layers_corrected(batch_norm_model, images, depth), rtol=1e-4, atol=1e-4
    )


class TestWhoseAnswers:
    """Never, where the gate opens, or always."""

    def test_images_that_the_gate_leaves_alone_keep_their_answer(self, model, images):
        output = TestTimeAdapter(model, gate=float("inf"), **ADAPTED)(images)
        assert not (output.adapted | output.averaged).any()
        assert torch.equal(output.logits, output.initial_logits)

    def test_always_averages_what_the_gate_leaves_alone(self, model, images):
        output = TestTimeAdapter(model, average_answers="always", augmentations=4)(images)
        assert output.averaged.all()
        assert not output.adapted.any()
        torch.testing.assert_close(log_probabilities(output), mean_over_copies(model, images, 4))

    @pytest.mark.parametrize("settings", [{"average_answers": "always"}, {"scope": "average"}], ids=str)
    def test_an_image_that_has_its_answer_is_not_classified_again_as_the_first_of_its_copies(
        self, model, images, monkeypatch, settings
    ):
        original, seen = IT3CNNForImageClassification.forward, []

        def counted(self, pixel_values, *arguments, **options):
            seen.append(len(pixel_values))
            return original(self, pixel_values, *arguments, **options)

        monkeypatch.setattr(IT3CNNForImageClassification, "forward", counted)
        output = TestTimeAdapter(model, gate=float("inf"), augmentations=4, **settings)(images)
        assert output.averaged.all()
        assert sum(seen) == (2 + 3) * len(images)

    def test_a_closed_stream_averages_with_the_unadapted_model(self, model, images, shifted_images):
        settings = {"average_answers": "always", "augmentations": 4, "num_steps": 2}
        adapter = TestTimeAdapter(model, scope="stream", gate_window=64, **settings)
        assert adapter(shifted_images).adapted.all()
        output = adapter(images)
        assert not output.adapted.any()
        torch.testing.assert_close(log_probabilities(output), mean_over_copies(model, images, 4))

    def test_never_is_as_if_nothing_were_averaged(self, model, shifted_images):
        output = TestTimeAdapter(model, average_answers="never", **STEPS)(shifted_images)
        assert not output.averaged.any()

    @pytest.mark.parametrize("count", [0, 1])
    def test_one_copy_is_the_image_itself(self, model, shifted_images, count):
        settings = {**STEPS, "average_answers": "always"}
        output = TestTimeAdapter(model, augmentations=count, **settings)(shifted_images)
        plain = TestTimeAdapter(model, average_answers="never", **STEPS)(shifted_images)
        assert torch.equal(output.logits, plain.logits)
        assert not output.averaged.any()

    def test_images_with_broken_pixels_get_no_mean(self, model, shifted_images):
        shifted_images[3, 0, 0, 0] = float("nan")
        output = TestTimeAdapter(model, **STEPS, **ADAPTED)(shifted_images)
        assert output.averaged.tolist() == [index != 3 for index in range(len(shifted_images))]
        assert output.logits[output.averaged].isfinite().all()

    @pytest.mark.parametrize("name", ["none", "statistics", "tent", "torch-ttt"])
    def test_published_methods_average_nothing(self, name):
        assert AdaptationConfig.preset(name).average_answers == "never"

    @pytest.mark.parametrize("scope", ["image", "average"])
    def test_scopes_without_shared_weights_refuse_it(self, model, scope):
        with pytest.raises(ValueError, match=f"average_answers='adapted' cannot act in scope '{scope}'"):
            TestTimeAdapter(model, scope=scope, average_answers="adapted")

    def test_another_value_is_refused(self):
        with pytest.raises(ValueError, match="average_answers must be one of 'never', 'adapted', 'always' or None"):
            AdaptationConfig(average_answers="sometimes")

    def test_every_kind_of_backbone_has_a_default(self):
        assert all("average_answers" in defaults for defaults in BACKBONE_DEFAULTS.values())


def test_the_adapted_model_is_the_same_as_without_averaging(model, shifted_images):
    adapters = [TestTimeAdapter(model, average_answers=name, **STEPS) for name in ("never", "adapted")]
    for adapter in adapters:
        adapter(shifted_images)
    first, second = (adapter.adapted_model().state_dict() for adapter in adapters)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_maps_come_back_to_where_their_pixels_were():
    config = SegformerConfig(
        num_channels=3, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 16], decoder_hidden_size=16, num_labels=4
    )
    model = IT3ForSemanticSegmentation.from_backbone(SegformerForSemanticSegmentation(config)).eval()
    images = torch.rand(4, 3, 64, 64)
    settings = {"gate": None, "num_steps": 0, "norm_statistics": "source"}
    always = TestTimeAdapter(model, average_answers="always", augmentation_kinds=["flip"], augmentations=2, **settings)
    with torch.no_grad():
        mirrored = model(images.flip(-1)).logits.softmax(1).flip(-1)
        expected = ((model(images).logits.softmax(1) + mirrored) / 2).log()
    actual = always(images)
    assert actual.averaged.all()
    torch.testing.assert_close(actual.logits.log_softmax(1), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"augmentation_kinds=\['crop'\] cannot act in .*: a crop tells less"):
        TestTimeAdapter(model, average_answers="adapted", augmentation_kinds=["crop"])
