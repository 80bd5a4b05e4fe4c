"""What a caller names, acts or is refused; what a caller froze, stays; and adapters can be copied and saved."""

import copy
import json
import logging
import math
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD
from untouched import untouched

from hf_it3 import AdaptationConfig, IT3ForImageClassification, TestTimeAdapter
from hf_it3.calibration import calibrate
from hf_it3.hub.delta import changed_tensors


SCOPES = {
    "batch": {"scope": "batch", "num_steps": 2},
    "stream": {"scope": "stream", "num_steps": 2},
    "images at once": {"scope": "image", "num_steps": 2, "vectorize": True},
    "image by image": {"scope": "image", "num_steps": 2, "vectorize": False},
    "average": {"scope": "average", "augmentations": 2},
    "average with steps": {"scope": "average", "augmentations": 2, "augmentation_steps": 1},
}
every_scope = pytest.mark.parametrize("settings", SCOPES.values(), ids=SCOPES)


class TestNamedSettings:
    @pytest.mark.parametrize(
        ("scope", "name", "value"),
        [
            ("average", "num_steps", 5),
            ("average", "diversity_weight", 1.0),
            ("image", "diversity_weight", 1.0),
            ("image", "augmentations", 4),
            ("stream", "augmentations", 4),
            ("image", "augmentation_steps", 1),
            ("stream", "augmentation_steps", 1),
            ("image", "single_image", "image"),
            ("stream", "single_image", "batch"),
            ("batch", "gate_window", 64),
            ("image", "gate_window", 64),
            ("batch", "collapse_guard", True),
            ("image", "max_class_share", 0.5),
            ("image", "class_balance", True),
            ("batch", "chunk_size", 4),
            ("stream", "vectorize", True),
            ("average", "learning_rate", 0.1),
            ("average", "parameters", "bias"),
            ("average", "max_grad_norm", 1.0),
            ("average", "gate", 3.0),
        ],
    )
    def test_what_cannot_act_in_a_scope_is_refused(self, model, shifted_images, scope, name, value):
        message = rf"{name}={value!r} cannot act in scope '{scope}': it acts .*; leave it out, or choose another scope"
        with pytest.raises(ValueError, match=message):
            TestTimeAdapter(model, scope=scope, **{name: value})
        with pytest.raises(ValueError, match=message):
            model.adapt(shifted_images[:1], scope=scope, **{name: value})

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"ema_decay": 0.5}, "ema_decay=0.5 does nothing here: it acts with anchor='ema'"),
            ({"prior_count": 4}, "prior_count=4 does nothing here: it acts with norm_statistics='mixed'"),
            (
                {"norm_statistics": "batch"},
                "norm_statistics='batch' does nothing here: it acts on layers of BatchNorm",
            ),
            ({"optimizer": SGD, "learning_rate": 0.2}, "learning_rate=0.2 does nothing here: it acts on optimizers"),
        ],
    )
    def test_what_another_setting_or_the_model_rules_out_is_told(self, model, shifted_images, caplog, values, message):
        logging.Logger.warning_once.cache_clear()
        model.adapt(shifted_images, **values)
        assert message in caplog.text

    def test_a_number_of_zero_rules_nothing_out(self, model, shifted_images):
        model.adapt(shifted_images, num_steps=0, learning_rate=0.1, max_grad_norm=1.0)
        model.adapt(shifted_images, scope="average", augmentation_steps=0, learning_rate=0.1, gate=3.0)
        model.adapt(shifted_images, diversity_weight=0.0, max_class_share=0.5, num_steps=1)
        model.adapt(shifted_images, augmentation_steps=1, chunk_size=2, vectorize=True, num_steps=1)

    def test_one_call_is_one_batch(self, model, shifted_images):
        with pytest.raises(ValueError, match="batch_size=4 cannot act: the images of one call adapt together"):
            model.adapt(shifted_images, batch_size=4)

    def test_the_statistics_of_a_method_that_has_none_to_choose_count_as_no_adaptation(self, model, shifted_images):
        output = TestTimeAdapter(model, AdaptationConfig.preset("statistics"))(shifted_images)
        assert not output.adapted.any()
        assert torch.equal(output.logits, output.initial_logits)

    def test_settings_that_come_with_the_model_are_not_named(self, model):
        model.config.adaptation = AdaptationConfig(num_steps=3, augmentations=4, gate_window=64)
        for scope in ("batch", "stream", "image", "average"):
            TestTimeAdapter(model, scope=scope)
        TestTimeAdapter(model, AdaptationConfig(scope="average", num_steps=3))

    def test_what_asks_for_nothing_may_be_named(self, model):
        TestTimeAdapter(model, scope="image", diversity_weight=0.0, augmentation_steps=0)
        TestTimeAdapter(model, scope="average", num_steps=0)

    def test_steps_of_images_alone_are_taken(self, model, shifted_images):
        output = model.adapt(shifted_images[:1], scope="image", num_steps=5, gate=None)
        assert output.loss_history.shape == (5, 1)
        assert (output.adapted.tolist(), output.averaged.tolist()) == ([True], [False])


class TestSingleImages:
    @pytest.mark.parametrize(
        ("single_image", "same_as"),
        [
            ("average", {"scope": "average", "augmentations": 3}),
            ("image", {"scope": "image", "num_steps": 2}),
            ("batch", None),
        ],
    )
    def test_a_batch_of_one_gets_what_the_settings_say(self, model, shifted_images, single_image, same_as):
        one = shifted_images[:1]
        own = {"augmentations": 3} if single_image == "average" else {}
        output = model.adapt(one, gate=None, num_steps=2, single_image=single_image, **own)
        assert output.averaged.item() is (single_image == "average")
        assert output.adapted.item() is (single_image != "average")
        if same_as is not None:
            expected = model.adapt(one, gate=None, **same_as)
        else:
            # As a batch of twice the same image, where nothing is to be spread over classes.
            adapter = TestTimeAdapter(model, gate=None, num_steps=2, diversity_weight=0.0)
            expected = adapter(one.repeat(2, 1, 1, 1))
        torch.testing.assert_close(output.logits, expected.logits[:1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(output.logits, output.initial_logits)

    def test_two_are_a_batch(self, model, shifted_images):
        output = model.adapt(shifted_images[:2], gate=None, num_steps=2)
        assert output.adapted.all()
        assert not output.averaged.any()

    def test_a_single_image_that_takes_steps_asks_the_gate(self, model, images):
        closed = model.adapt(images[:1], gate=1e6, single_image="image")
        assert not closed.adapted.any()
        assert torch.equal(closed.logits, closed.initial_logits)
        closed = model.adapt(images[:1], gate=1e6, augmentation_steps=1)
        assert not closed.adapted.any()
        assert closed.averaged.all()  # that changes no weights, and is not gated


def freeze(model) -> list[str]:
    """Freezes two layers and names their parameters."""
    frozen = [name for name, _ in model.named_parameters() if ".conv1." in name or ".fc4." in name]
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    assert frozen
    return frozen


class TestFrozenParameters:
    @pytest.mark.parametrize("scope", ["batch", "stream"])
    def test_they_keep_their_values_where_weights_are_shared(self, model, shifted_images, scope):
        frozen = freeze(model)
        adapter = TestTimeAdapter(model, scope=scope, gate=None, num_steps=2)
        with untouched(model):
            assert adapter(shifted_images).adapted.all()
        adapted = dict(adapter.adapted_model().named_parameters())
        for name, value in model.named_parameters():
            expected = name in frozen or name.startswith("embedder.")
            assert torch.equal(adapted[name], value) is expected, name

    @pytest.mark.parametrize("vectorize", [True, False])
    def test_they_keep_their_values_where_each_image_has_its_own(self, model, shifted_images, vectorize):
        settings = {"scope": "image", "gate": None, "num_steps": 2, "vectorize": vectorize}
        frozen = freeze(model)
        adapter = TestTimeAdapter(model, **settings)
        assert not set(frozen) & set(adapter.shell.names)
        given = adapter(shifted_images[:3]).logits
        model.requires_grad_(True)
        # The same as naming all others.
        others = r"^backbone\.(?!conv1\.|fc4\.)"
        named = TestTimeAdapter(model, parameters=others, **settings)(shifted_images[:3]).logits
        torch.testing.assert_close(given, named)
        assert not torch.allclose(given, TestTimeAdapter(model, **settings)(shifted_images[:3]).logits)

    def test_an_expression_does_not_thaw_them(self, model):
        freeze(model)
        with pytest.raises(ValueError, match="parameters='conv1' selects none of the"):
            TestTimeAdapter(model, parameters="conv1")

    def test_calibration_leaves_them(self, model, digits, processor):
        frozen = freeze(model)
        rows = digits["test"].select(range(9))
        before = {name: value.clone() for name, value in model.named_parameters()}
        calibrate(model, processor, rows, corruptions=["digits-shift/brightness"], batch_size=3, show_progress=False)
        assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
        assert [name for name, value in model.named_parameters() if not value.requires_grad] == frozen

    def test_a_delta_does_not_hold_them(self, model, shifted_images):
        frozen = freeze(model)
        adapter = TestTimeAdapter(model, gate=None)
        adapter(shifted_images)
        changed = changed_tensors(adapter.adapted_model(), model)
        assert changed
        assert not set(changed) & set(frozen)

    @every_scope
    def test_a_model_that_is_frozen_altogether_is_refused(self, model, settings):
        """Where steps are taken; by default scope average takes none."""
        model.requires_grad_(False)
        with pytest.raises(ValueError, match=r"no parameter of IT3For.* requires gradients.*requires_grad_\(True\)"):
            TestTimeAdapter(
                model, **{"augmentation_steps": 1, **settings} if settings["scope"] == "average" else settings
            )


class CountsCalls(nn.Module):
    """Writes to buffers whatever mode it is in, as some backbones do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, stride=2)
        self.head = nn.Linear(6, 10)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, pixel_values):
        features = self.conv(pixel_values).relu().mean((2, 3))
        self.calls += 1
        self.mean.lerp_(features.detach().mean(0), 0.5)
        return self.head(features - 0.1 * self.mean)


@pytest.mark.parametrize("name", ["batch", "stream", "image by image", "average"])
def test_buffers_that_a_backbone_writes_to_stay_the_callers(name, shifted_images):
    model = IT3ForImageClassification.from_backbone(CountsCalls(), num_labels=10).eval()
    model(shifted_images)
    adapter = TestTimeAdapter(model, gate=None, **SCOPES[name])
    with untouched(model):
        first = adapter(shifted_images[:4]).logits
        adapter.reset()
        torch.testing.assert_close(adapter(shifted_images[:4]).logits, first)
    before = model.backbone.calls.clone()
    model(shifted_images)
    assert model.backbone.calls == before + 1


@every_scope
@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda adapter: pickle.loads(pickle.dumps(adapter))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_as_the_adapter_does(model, shifted_images, settings, make):
    adapter = TestTimeAdapter(model, gate=None, **settings)
    adapter(shifted_images[:6])
    copied = make(adapter)
    assert copied.config == adapter.config
    assert copied.model is not model
    expected = adapter(shifted_images[6:12]).logits
    adapter.reset()
    torch.testing.assert_close(copied(shifted_images[6:12]).logits, expected)


class TestNeverAdapting:
    @every_scope
    def test_an_infinite_gate_never_opens(self, model, shifted_images, settings):
        output = TestTimeAdapter(model, gate=math.inf, **settings)(shifted_images)
        assert not output.adapted.any()
        if settings["scope"] != "average":
            assert torch.equal(output.logits, output.initial_logits)

    def test_it_stays_closed_without_a_reference(self, model, shifted_images, caplog):
        model.config.reference_distance = None
        assert not model.adapt(shifted_images, gate=math.inf).adapted.any()
        assert "not gated" not in caplog.text

    def test_it_can_be_saved(self, model, shifted_images, tmp_path):
        model.config.adaptation = AdaptationConfig(gate=math.inf)
        model.save_pretrained(tmp_path)
        text = (tmp_path / "config.json").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["adaptation"]["gate"] == "inf"
        loaded = IT3ForImageClassification.from_pretrained(tmp_path)
        assert loaded.config.adaptation.gate == math.inf
        assert not loaded.adapt(shifted_images).adapted.any()

    @pytest.mark.parametrize("gate", [-math.inf, math.nan, "never", True])
    def test_other_values_are_refused(self, gate):
        with pytest.raises(ValueError, match=f"AdaptationConfig.gate must be .*got {gate!r}"):
            AdaptationConfig(gate=gate)
