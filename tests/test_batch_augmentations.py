"""Images that adapt together can be answered by the mean over changed copies of each."""

import copy

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import ConvNextConfig, ResNetConfig, ViTConfig

from hf_it3 import (
    AdaptationConfig,
    IT3CNNConfig,
    IT3Config,
    IT3ForImageClassification,
    TestTimeAdapter,
)
from hf_it3.it3.alignment_it3 import collected_statistics
from hf_it3.it3.augmentation_it3 import Augmentation
from hf_it3.it3.backbone_defaults_it3 import resolve_defaults
from hf_it3.it3.batchnorm_it3 import norm_statistics
from hf_it3.it3.shift_reference_it3 import Observation
from hf_it3.it3.shift_test_it3 import observe, store_reference


SMALL = {"num_channels": 3, "num_labels": 4, "image_size": 16}
CONFIGS = {
    "resnet": ResNetConfig(num_channels=3, num_labels=4, embedding_size=8, hidden_sizes=[8], depths=[1]),
    "convnext": ConvNextConfig(**SMALL, hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    "vit": ViTConfig(
        **SMALL, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    ),
    "cnn": IT3CNNConfig(num_channels=3, num_labels=4, image_size=16, conv_channels=[4, 8], hidden_size=24),
}
SETTINGS = {"gate": None, "parameters": "norm", "learning_rate": 0.01, "num_steps": 1, "prior_count": 4}


@pytest.fixture
def clean():
    return torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def untrained(name: str, **values) -> IT3ForImageClassification:
    torch.manual_seed(0)
    return IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(CONFIGS[name]), **values)).eval()


def measure(model: IT3ForImageClassification, images: torch.Tensor) -> IT3ForImageClassification:
    sums = {}
    with collected_statistics(sums):
        seen = observe(model, images)
    store_reference(model, seen, [sums])
    return model


@pytest.fixture(params=["resnet", "convnext", "vit"])
def model(request, clean):
    return measure(untrained(request.param), clean)


def copies_of(images: torch.Tensor, count: int, kinds: tuple[str, ...] = ("crop", "flip")) -> list[torch.Tensor]:
    return list(Augmentation(count, kinds).apply(images).unbind(1))


@torch.no_grad()
def mean_over(model: IT3ForImageClassification, copies: list[torch.Tensor]) -> torch.Tensor:
    """Probabilities, by the definition."""
    return sum(model(batch).logits.softmax(1) for batch in copies) / len(copies)


@pytest.mark.parametrize("scope", ["batch", "stream"])
def test_the_answer_is_the_mean_prediction_of_weights_adapted_to_the_images_themselves(model, clean, scope):
    settings = {**SETTINGS, "scope": scope, "norm_statistics": "source"}
    plain = TestTimeAdapter(model, settings, batch_augmentations=1)
    plain(clean)
    adapter = TestTimeAdapter(model, settings, batch_augmentations=3)
    output = adapter(clean)
    expected = mean_over(plain.adapted_model(), copies_of(clean, 3))
    torch.testing.assert_close(output.logits.softmax(1), expected, rtol=0, atol=1e-6)
    assert output.averaged.all()
    for name, value in plain.adapted_model().state_dict().items():
        assert torch.equal(adapter.adapted_model().state_dict()[name], value), name


def test_each_copy_has_statistics_of_its_own_kind(model, clean):
    settings = {**SETTINGS, "norm_statistics": "mixed", "class_balance": False, "diversity_weight": 0.0}
    plain = TestTimeAdapter(model, settings, batch_augmentations=1)
    plain(clean)
    adapted = plain.adapted_model()
    with norm_statistics("mixed", 4):
        expected = mean_over(adapted, copies_of(clean, 2))
    output = TestTimeAdapter(model, settings, batch_augmentations=2)(clean)
    torch.testing.assert_close(output.logits.softmax(1), expected, rtol=0, atol=1e-6)


def test_images_that_the_gate_leaves_alone_have_no_copies(model, clean):
    output = TestTimeAdapter(model, SETTINGS, gate=float("inf"), batch_augmentations=2)(clean)
    assert torch.equal(output.logits, output.initial_logits)
    assert not output.averaged.any()


class TestDefault:
    """Two, where clean images keep their answer when mirrored and cropped; else one."""

    @staticmethod
    def default(model, **overrides):
        return resolve_defaults(AdaptationConfig(**overrides), model).batch_augmentations

    def test_the_agreement_is_the_mean_cosine_of_predictions(self, clean):
        model = measure(untrained("vit"), clean)
        with torch.no_grad():
            y0, mirrored = (model(batch).logits.softmax(1) for batch in copies_of(clean, 2))
        expected = cosine_similarity(y0, mirrored).mean()
        torch.testing.assert_close(model.shift_reference.agreement[0], expected)

    def test_copies_are_no_clean_images(self, clean, monkeypatch):
        with_copies = measure(untrained("convnext"), clean)
        monkeypatch.setattr("hf_it3.it3.task_it3.SingleLabel.takes_crops", False, raising=False)
        without = measure(untrained("convnext"), clean)
        assert without.shift_reference.agreement == 0
        for name, value in without.feature_statistics.state_dict().items():
            assert torch.equal(with_copies.feature_statistics.state_dict()[name], value), name

    @pytest.mark.parametrize(("agreement", "count"), [(0.81, 2), (0.79, 1), (0.0, 1)])
    def test_two_where_copies_agree(self, model, agreement, count):
        model.shift_reference.store(agreement=torch.tensor([agreement]))
        assert self.default(model) == count
        assert self.default(model, batch_augmentations=5) == 5

    def test_one_where_nothing_was_measured_or_the_network_is_the_small_one(self, clean):
        assert self.default(untrained("vit")) == 1
        small = measure(untrained("cnn"), clean)
        small.shift_reference.store(agreement=torch.ones(1))
        assert self.default(small) == 1

    def test_one_for_several_labels(self, clean):
        model = measure(untrained("vit", problem_type="multi_label_classification"), clean)
        model.shift_reference.store(agreement=torch.ones(1))
        assert self.default(model) == 1

    def test_grey_images_are_not_mirrored(self):
        config = copy.deepcopy(CONFIGS["vit"])
        config.num_channels = 1
        model = IT3ForImageClassification(IT3Config(backbone_config=config)).eval()
        measure(model, torch.rand(8, 1, 16, 16))
        assert model.shift_reference.agreement == 0

    def test_it_travels_with_the_weights(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = IT3ForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(loaded.shift_reference.agreement, model.shift_reference.agreement)


def test_a_stream_saved_before_copies_were_compared_goes_on(model, clean):
    adapter = TestTimeAdapter(model, {**SETTINGS, "scope": "stream"})
    adapter(clean)
    state = adapter.state_dict()
    assert set(state["window"]) == {"features", "classes", "distances"}
    fresh = TestTimeAdapter(model, {**SETTINGS, "scope": "stream"})
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh(clean).logits, adapter(clean).logits)


def test_observations_join_what_all_of_them_hold(clean):
    model = untrained("vit")
    seen = observe(model, clean)
    unknown = Observation(seen.features, seen.classes, seen.distances)
    assert Observation.join([seen, seen]).agreements is not None
    assert Observation.join([seen, unknown]).agreements is None


def test_crops_are_refused_where_the_whole_image_is_asked_for(clean):
    model = untrained("vit", problem_type="regression")
    with pytest.raises(ValueError, match="a crop tells less than the whole image"):
        TestTimeAdapter(model, batch_augmentations=2, augmentation_kinds=["crop"])


@pytest.mark.parametrize("scope", ["image", "average"])
def test_other_scopes_refuse_it(model, scope):
    with pytest.raises(ValueError, match="it acts where images share weights"):
        TestTimeAdapter(model, scope=scope, batch_augmentations=2)


@pytest.mark.parametrize("count", [0, -1, 1.5, "two"])
def test_other_counts_are_refused(count):
    with pytest.raises(ValueError, match="batch_augmentations must be an integer >= 1 or None"):
        AdaptationConfig(batch_augmentations=count)
