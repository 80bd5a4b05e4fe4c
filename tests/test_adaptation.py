"""TestTimeAdapter, scope batch: the objective, its anchors, what may change, the gate, and the output."""

import logging
import math

import pytest
import torch
from naive_adaptation import DISTANCES, NaiveAdaptation
from torch import nn
from transformers import set_seed

from hf_it3 import AdaptationConfig, AdaptationOutput, IT3Config, IT3ForImageClassification, TestTimeAdapter
from hf_it3.it3.backbone_defaults_it3 import resolve_defaults
from hf_it3.it3.modeling_cnn_it3 import IT3CNNForImageClassification
from hf_it3.it3.objective_it3 import IdempotenceDistance
from hf_it3.it3.task_it3 import Task


@pytest.fixture
def double_model(model):
    return model.double()


@pytest.fixture
def forwards(monkeypatch):
    """A list that grows with every pass through a backbone, adapted copies included, by whether it had a graph."""
    original, passes = IT3CNNForImageClassification.forward, []

    def forward(self, *args, **kwargs):
        passes.append(torch.is_grad_enabled())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(IT3CNNForImageClassification, "forward", forward)
    return passes


@pytest.fixture
def backwards(monkeypatch):
    """A list that grows with every backward pass."""
    original, calls = torch.autograd.grad, []

    def grad(*args, **kwargs):
        calls.append(True)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return calls


def task(problem_type=None, num_labels=4):
    return Task.of(IT3Config(num_labels=num_labels, problem_type=problem_type))


def assert_as_naive(model, images, **settings):
    output = TestTimeAdapter(model, gate=None, **settings)(images)
    naive = NaiveAdaptation(model, gate=None, **settings)
    torch.testing.assert_close(output.logits, naive(images), rtol=0, atol=1e-9)
    torch.testing.assert_close(output.loss_history.double(), torch.tensor(naive.losses).double(), rtol=0, atol=1e-6)
    return output


class TestObjective:
    @pytest.mark.parametrize("anchor", ["frozen", "ema", "self"])
    @pytest.mark.parametrize("distance", DISTANCES)
    def test_every_distance_and_anchor_does_what_a_plain_loop_does(
        self, double_model, shifted_images, anchor, distance
    ):
        settings = {"anchor": anchor, "distance": distance, "num_steps": 3, "ema_decay": 0.7, "learning_rate": 3e-3}
        output = assert_as_naive(double_model, shifted_images.double(), **settings)
        assert not torch.allclose(output.logits, output.initial_logits, atol=1e-4)

    @pytest.mark.parametrize(
        "settings",
        [
            {"optimizer": "sgd", "learning_rate": 0.1},
            {"max_grad_norm": 0.05, "optimizer": "sgd", "learning_rate": 0.1},
            {"diversity_weight": 0.0},
            {"diversity_weight": 0.3},
            {"num_steps": 1},
        ],
        ids=str,
    )
    def test_every_other_setting_does_what_a_plain_loop_does(self, double_model, shifted_images, settings):
        assert_as_naive(double_model, shifted_images.double(), **{"num_steps": 3, **settings})

    def test_a_distance_of_the_callers_own_is_used(self, double_model, shifted_images):
        def mine(y1, y0):
            return (y1 - y0).abs().sum(-1)

        assert_as_naive(double_model, shifted_images.double(), distance=mine)

    def test_a_distance_that_returns_a_scalar_gives_one_value_per_image(self, model, images):
        def mine(y1, y0):
            return (y1 - y0).square().mean()

        output = model.adapt(images, distance=mine, gate=None)
        assert output.idempotence.shape == (64,)
        torch.testing.assert_close(output.idempotence, model.adapt(images, distance="mse", gate=None).idempotence)

    def test_a_distance_of_the_wrong_shape_is_an_error(self, model, images):
        with pytest.raises(ValueError, match=r"one value per image, shape \(64,\), got shape \(64, 10\)"):
            model.adapt(images, distance=lambda y1, y0: y1 - y0, gate=None)

    def test_the_models_own_distance_is_the_default(self, model, images):
        model.config.distance = "kl"
        by_default = model.adapt(images, gate=None)
        assert torch.equal(by_default.logits, model.adapt(images, distance="kl", gate=None).logits)

    @pytest.mark.parametrize("name", [name for name in DISTANCES if name != "entropy"])
    def test_equal_predictions_have_the_smallest_distance(self, name):
        set_seed(0)
        y0 = torch.eye(4, dtype=torch.float64)
        other = torch.rand(4, 4, dtype=torch.float64).softmax(-1)
        distance = IdempotenceDistance(name, task())
        assert (distance(y0, y0) < distance(other, y0)).all()

    def test_distances_are_finite_where_probabilities_are_zero(self):
        y0, y1 = torch.eye(3), torch.eye(3)[[1, 2, 0]]
        for name in DISTANCES:
            assert IdempotenceDistance(name, task())(y1, y0).isfinite().all(), name

    def test_several_labels_are_compared_label_by_label(self):
        y1, y0 = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.6, 0.5]])
        expected = torch.stack([DISTANCES["kl"](_yes_no(y1[:, i]), _yes_no(y0[:, i])) for i in range(2)]).mean(0)
        torch.testing.assert_close(IdempotenceDistance("kl", task("multi_label_classification"))(y1, y0), expected)

    @pytest.mark.parametrize("name", [name for name in DISTANCES if name != "mse"])
    def test_a_regression_model_refuses_distances_that_are_not_bounded_for_numbers(self, name):
        with pytest.raises(ValueError, match=f"distance='{name}' compares probabilities, which a regression model"):
            IdempotenceDistance(name, task("regression"))

    @pytest.mark.parametrize(
        ("problem_type", "labels", "distance"),
        [("multi_label_classification", 3, "neg_dot"), ("regression", 2, "mse"), (None, 3, "js")],
    )
    def test_every_problem_type_adapts(self, random_model, problem_type, labels, distance):
        config = random_model.config.to_dict()
        config.update(num_labels=labels, id2label=None, label2id=None, problem_type=problem_type, distance=distance)
        model = IT3ForImageClassification(type(random_model.config).from_dict(config)).eval()
        output = model.adapt(torch.rand(8, 1, 16, 16), gate=None, learning_rate=1e-2)
        assert output.logits.shape == (8, labels)
        assert output.adapted.all()
        assert not torch.equal(output.logits, output.initial_logits)

    def test_diversity_is_greatest_for_evenly_used_classes(self):
        assert task().spread(torch.eye(4)).item() == pytest.approx(math.log(4))
        assert task().spread(torch.eye(4)[[0, 0]]).item() == pytest.approx(0)
        assert task("regression", 1).spread(torch.rand(4, 1)).item() == 0

    def test_predictions_follow_the_problem_type(self):
        logits = torch.tensor([[0.0, 2.0]])
        assert torch.equal(task().predict(logits), logits.softmax(-1))
        assert torch.equal(task("multi_label_classification").predict(logits), logits.sigmoid())
        assert torch.equal(task("regression").predict(logits), logits)
        assert task().predict(logits.bfloat16()).dtype == torch.float32


def _yes_no(probability):
    return torch.stack([probability, 1 - probability], -1)


class TestDiversity:
    def test_a_batch_of_one_class_drops_the_diversity_term(self, double_model, shifted_images):
        images = shifted_images.double()
        classes = double_model(images).logits.argmax(-1)
        images = images[classes == classes.mode().values]
        assert len(images) > 2
        with_term = TestTimeAdapter(double_model, gate=None)(images)
        without = TestTimeAdapter(double_model, gate=None, diversity_weight=0.0)(images)
        kept = TestTimeAdapter(double_model, gate=None, max_class_share=1.0)(images)
        assert torch.equal(with_term.logits, without.logits)
        assert not torch.equal(kept.logits, without.logits)

    def test_a_single_image_has_no_diversity(self, double_model, images):
        settings = {"gate": None, "augmentations": 0, "max_class_share": 1.0}
        with_term = TestTimeAdapter(double_model, **settings)(images[:1].double())
        without = TestTimeAdapter(double_model, diversity_weight=0.0, **settings)(images[:1].double())
        assert torch.equal(with_term.logits, without.logits)

    def test_the_largest_share_counts_the_most_frequent_class(self):
        assert task(num_labels=3).largest_share(torch.eye(3)[[0, 1, 1, 2]]) == 0.5


class TestOptimizers:
    def test_an_optimizer_of_the_callers_own_is_made_anew_for_every_batch(self, double_model, shifted_images):
        made = []

        def mine(parameters):
            made.append(torch.optim.Adam(parameters, lr=3e-4))
            return made[-1]

        adapter = TestTimeAdapter(double_model, optimizer=mine, gate=None)
        named = TestTimeAdapter(double_model, optimizer="adam", gate=None)
        for images in (shifted_images, shifted_images[:10]):
            torch.testing.assert_close(
                adapter(images.double()).logits, named(images.double()).logits, rtol=0, atol=1e-9
            )
        assert len(made) == 2

    def test_an_optimizer_class_can_be_given(self, model, images):
        assert model.adapt(images, optimizer=torch.optim.AdamW, gate=None).adapted.all()

    def test_a_callable_that_returns_no_optimizer_is_an_error(self, model, images):
        with pytest.raises(TypeError, match="must return a torch.optim.Optimizer, got list"):
            model.adapt(images, optimizer=list, gate=None)

    @pytest.mark.parametrize("optimizer", ["adam", "sgd"])
    def test_a_batch_does_not_remember_the_one_before(self, model, images, shifted_images, optimizer):
        adapter = TestTimeAdapter(model, optimizer=optimizer, gate=None)
        fresh = TestTimeAdapter(model, optimizer=optimizer, gate=None)(images)
        adapter(shifted_images)
        assert torch.equal(adapter(images).logits, fresh.logits)


class TestParameters:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ("bias", lambda name: name.endswith(".bias")),
            (r"fc[12]\.", lambda name: ".fc1." in name or ".fc2." in name),
            ("all", lambda name: True),
        ],
    )
    def test_only_what_is_chosen_changes_and_never_the_embedder(self, model, shifted_images, choice, expected):
        adapter = TestTimeAdapter(model, parameters=choice, gate=None)
        adapter(shifted_images)
        before = dict(model.named_parameters())
        after = dict(adapter.adapted_model().named_parameters())
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if expected(name) and not name.startswith("embedder.")}

    def test_normalisation_layers_are_found(self, batch_norm_model):
        adapter = TestTimeAdapter(batch_norm_model, parameters="norm", gate=None)
        adapter(torch.rand(8, 1, 16, 16))
        before = dict(batch_norm_model.named_parameters())
        after = dict(adapter.adapted_model().named_parameters())
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed
        assert all("normalization" in name for name in changed)

    @pytest.mark.parametrize("choice", ["norm", "no such name", "embedder"])
    def test_a_choice_that_selects_nothing_is_an_error(self, model, choice):
        with pytest.raises(ValueError, match=f"parameters='{choice}' selects none of the .* such as backbone.conv1"):
            TestTimeAdapter(model, parameters=choice)


class TestNormStatistics:
    @pytest.mark.parametrize("kind", ["batch", "mixed"])
    @pytest.mark.parametrize("num_steps", [0, 2])
    def test_the_statistics_of_the_batch_are_used_and_never_written(self, batch_norm_model, kind, num_steps):
        images = torch.rand(8, 1, 16, 16) * 2 + 1
        # Without diversity nobody asks whether images are sorted, which these look like: all are alike to the network.
        settings = {"gate": None, "num_steps": num_steps, "diversity_weight": 0.0}
        source = batch_norm_model.adapt(images, norm_statistics="source", **settings)
        output = batch_norm_model.adapt(images, norm_statistics=kind, **settings)
        assert output.adapted.all()
        assert not torch.allclose(output.logits, source.logits, atol=1e-3)
        assert torch.equal(output.initial_logits, batch_norm_model(images).logits)

    def test_mixed_lies_between_source_and_batch(self, batch_norm_model):
        images = torch.rand(8, 1, 16, 16, dtype=torch.float64) * 2 + 1
        settings = {"gate": None, "num_steps": 0, "average_answers": "never"}
        model = batch_norm_model.double()
        batch = model.adapt(images, norm_statistics="batch", **settings).logits
        mixed = {
            count: model.adapt(images, norm_statistics="mixed", prior_count=count, **settings).logits
            for count in (0, 10**9)
        }
        torch.testing.assert_close(mixed[0], batch, rtol=0, atol=1e-9)
        torch.testing.assert_close(mixed[10**9], model(images).logits, rtol=0, atol=1e-5)

    def test_statistics_of_the_batch_equal_those_of_training_mode(self, batch_norm_model):
        images = torch.rand(8, 1, 16, 16)
        settings = {"gate": None, "num_steps": 0, "average_answers": "never"}
        output = batch_norm_model.adapt(images, norm_statistics="batch", **settings)
        torch.testing.assert_close(output.logits, batch_norm_model.train()(images).logits)

    def test_one_image_of_one_value_per_channel_is_handled(self, batch_norm_model):
        images = torch.rand(1, 1, 4, 4)
        output = batch_norm_model.adapt(images, norm_statistics="batch", augmentations=0, gate=None)
        assert output.logits.isfinite().all()


class TestGate:
    @pytest.mark.parametrize("anchor", ["frozen", "ema", "self"])
    def test_closed_it_costs_two_forwards_and_no_backward(self, model, images, forwards, backwards, anchor):
        output = TestTimeAdapter(model, anchor=anchor)(images)
        assert len(forwards) == 2
        assert backwards == []
        assert not output.adapted.any()
        assert len(output.loss_history) == 0
        assert torch.equal(output.logits, output.initial_logits)

    @pytest.mark.parametrize("scope", ["image", "stream"])
    def test_closed_it_costs_two_forwards_in_every_scope(self, model, images, forwards, backwards, scope):
        output = TestTimeAdapter(model, scope=scope, gate=1e6)(images)
        assert len(forwards) == 2
        assert backwards == []
        assert not output.adapted.any()

    @pytest.mark.parametrize(("anchor", "per_step"), [("frozen", 1), ("ema", 2), ("self", 2)])
    @pytest.mark.parametrize("num_steps", [1, 3])
    def test_open_again_the_first_step_reuses_both_passes(
        self, model, shifted_images, forwards, backwards, anchor, per_step, num_steps
    ):
        adapter = TestTimeAdapter(model, anchor=anchor, num_steps=num_steps)
        first = adapter(shifted_images)
        # The first passes kept no graph, as nobody knew that the gate would open: one step more from scratch.
        assert len(forwards) == 2 + per_step * num_steps + 1
        forwards.clear()
        backwards.clear()
        output = adapter(shifted_images)
        assert output.adapted.all()
        assert len(backwards) == num_steps
        assert len(forwards) == 2 + per_step * (num_steps - 1) + 1
        torch.testing.assert_close(output.logits, first.logits)

    def test_after_clean_images_the_first_passes_keep_no_graph(self, model, images, shifted_images, forwards):
        adapter = TestTimeAdapter(model)
        for batch in (shifted_images, images, images):
            adapter(batch)
        assert forwards[-2:] == [False, False]

    def test_it_compares_the_mean_with_the_clean_one_in_standard_errors(self, model, images):
        distances = TestTimeAdapter(model)(images).idempotence.double()
        deviation = 0.1
        for gate, is_open in ((1.99, True), (2.01, False)):
            mean = distances.mean().item() - 2 * deviation / math.sqrt(64)
            model.config.reference_distance = {"mean": mean, "std": deviation, "distance": "neg_dot"}
            assert TestTimeAdapter(model, gate=gate)(images).adapted.all().item() is is_open

    def test_a_new_reference_counts_at_once(self, model, images):
        adapter = TestTimeAdapter(model)
        assert not adapter(images).adapted.any()
        model.config.reference_distance = {"mean": -5.0, "std": 0.1, "distance": "neg_dot"}
        assert adapter(images).adapted.all()

    def test_image_scope_decides_for_every_image_alone(self, model, images):
        model.shift_reference.forget()
        reference = model.config.reference_distance = {"mean": -0.9, "std": 0.1}
        adapter = TestTimeAdapter(model, scope="image", gate=0.5)
        output = adapter(images)
        expected = output.idempotence > reference["mean"] + 0.5 * reference["std"]
        assert torch.equal(output.adapted, expected)
        assert 0 < expected.sum() < 64
        assert torch.equal(output.logits[~expected], output.initial_logits[~expected])
        assert output.loss_history.shape == (5, 64)
        assert torch.equal(output.loss_history.isnan().all(0), ~expected)

    @pytest.mark.parametrize(
        ("reference", "distance"),
        [(None, "neg_dot"), ({"mean": 5.0, "std": 0.1, "distance": "js"}, "neg_dot")],
    )
    def test_without_a_fitting_reference_it_is_open_and_says_so(self, model, images, caplog, reference, distance):
        logging.Logger.warning_once.cache_clear()
        model.config.reference_distance = reference
        model.shift_reference.forget()
        adapter = TestTimeAdapter(model, distance=distance)
        for _ in range(2):
            assert adapter(images).adapted.all()
        assert len([message for message in caplog.messages if "adaptation is not gated" in message]) == 1

    def test_without_a_fitting_distance_the_first_features_decide(self, model, images, shifted_images, caplog):
        logging.Logger.warning_once.cache_clear()
        model.config.reference_distance["distance"] = "js"
        adapter = TestTimeAdapter(model)
        assert not adapter(images).adapted.any()
        assert adapter(shifted_images).adapted.all()
        assert len([message for message in caplog.messages if "looks at the first features alone" in message]) == 1

    def test_without_first_features_the_distance_decides_and_it_says_so(self, model, images, caplog):
        logging.Logger.warning_once.cache_clear()
        model.shift_reference.forget()
        assert not TestTimeAdapter(model)(images).adapted.any()
        assert len([message for message in caplog.messages if "no first features of clean images" in message]) == 1

    def test_closed_for_clean_and_open_for_shifted_images_adaptation_gains(
        self, model, images, shifted_images, labels
    ):
        adapter = TestTimeAdapter(model)
        clean, shifted = adapter(images), adapter(shifted_images)
        assert not clean.adapted.any()
        right = [(logits.argmax(-1) == labels).sum() for logits in (shifted.initial_logits, shifted.logits)]
        assert right[1] > right[0]


class TestOutput:
    def test_it_holds_both_answers_the_distance_and_the_losses(self, model, shifted_images):
        output = TestTimeAdapter(model, num_steps=4)(shifted_images)
        assert type(output) is AdaptationOutput
        assert output.logits.shape == output.initial_logits.shape == (64, 10)
        assert torch.equal(output.initial_logits, model(shifted_images).logits)
        y0 = output.initial_logits.softmax(-1)
        y1 = model(shifted_images, label_signal=y0).logits.softmax(-1)
        torch.testing.assert_close(output.idempotence, -(y1 * y0).sum(-1))
        assert output.adapted.dtype == torch.bool
        assert output.loss_history.shape == (4,)
        assert not any(value.requires_grad for value in output.values())

    def test_without_steps_nobody_is_adapted(self, model, images, forwards):
        output = TestTimeAdapter(model, AdaptationConfig.preset("none"))(images)
        assert torch.equal(output.logits, model(images).logits)
        assert not output.adapted.any()

    @pytest.mark.parametrize("given", [torch.rand(1, 16, 16), [[1.0]], torch.rand(2, 1, 1, 16, 16)])
    def test_anything_but_a_batch_of_images_is_refused(self, model, given):
        with pytest.raises(ValueError, match=r"must be a tensor of shape \(B, C, H, W\), got"):
            TestTimeAdapter(model)(given)

    def test_an_empty_batch_is_refused(self, model):
        with pytest.raises(ValueError, match="empty batch"):
            TestTimeAdapter(model)(torch.rand(0, 1, 16, 16))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
    @pytest.mark.parametrize("scope", ["batch", "image", "stream"])
    def test_pixels_of_a_type_that_the_model_cannot_take_are_refused(self, model, dtype, scope):
        message = f"pixel_values are {dtype} but the model is torch.float32; pass them through the image processor"
        with pytest.raises(ValueError, match=message):
            TestTimeAdapter(model, scope=scope)(torch.ones(2, 1, 16, 16, dtype=dtype))

    @pytest.mark.parametrize(
        ("given", "own"), [("float64", "float32"), ("float32", "bfloat16"), ("float16", "float32")]
    )
    def test_floating_point_images_take_the_type_of_the_model(self, model, shifted_images, given, own):
        model.to(getattr(torch, own))
        images = shifted_images.to(getattr(torch, given))
        output = model.adapt(images)
        assert output.logits.dtype == getattr(torch, own)
        torch.testing.assert_close(output.logits, model.adapt(images.to(getattr(torch, own))).logits)

    def test_settings_may_be_a_dict(self, model, shifted_images):
        adapter = TestTimeAdapter(model, {"num_steps": 1}, gate=None)
        assert adapter.config == resolve_defaults(AdaptationConfig(num_steps=1, gate=None), model)
        assert len(adapter(shifted_images).loss_history) == 1
        with pytest.raises(ValueError, match="config must be an AdaptationConfig or a dict, got 'tent'"):
            TestTimeAdapter(model, "tent")

    @pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "float32"), ("float64", "float64")])
    @pytest.mark.parametrize("gate", [None, 1e6])
    @pytest.mark.parametrize(
        ("settings", "alone"),
        [
            ({"scope": "batch"}, False),
            ({"scope": "stream"}, False),
            ({"scope": "image", "vectorize": True}, True),
            ({"scope": "image", "vectorize": False}, True),
            ({"scope": "average", "augmentation_steps": 0}, True),
            ({"scope": "image", "num_steps": 0, "norm_statistics": "batch"}, True),
        ],
        ids=str,
    )
    def test_losses_have_the_same_shape_and_type_however_images_adapt(
        self, model, shifted_images, dtype, expected, gate, settings, alone
    ):
        dtype = getattr(torch, dtype)
        steps = {} if settings["scope"] == "average" else {"num_steps": 2}
        adapter = TestTimeAdapter(model.to(dtype), **{**steps, "gate": gate, **settings})
        history = adapter(shifted_images[:3].to(dtype)).loss_history
        steps = 0 if gate is not None or 0 in (adapter.config.num_steps, settings.get("augmentation_steps")) else 2
        assert history.shape == ((steps, 3) if alone else (steps,))
        assert history.dtype == getattr(torch, expected)

    def test_images_of_the_wrong_size_are_refused_by_the_model(self, model):
        with pytest.raises(
            ValueError, match=r"pixel_values must have shape \(batch, 1, 16, 16\), got \(2, 3, 16, 16\)"
        ):
            TestTimeAdapter(model)(torch.rand(2, 3, 16, 16))

    def test_a_model_that_takes_no_signal_is_refused(self, model):
        with pytest.raises(TypeError, match="IT3CNNForImageClassification takes no label signal; wrap it"):
            TestTimeAdapter(model.backbone)

    def test_wrappers_around_the_model_are_looked_through(self, model, shifted_images):
        wrapped = nn.DataParallel(model)
        assert torch.equal(TestTimeAdapter(wrapped)(shifted_images).logits, model.adapt(shifted_images).logits)


class TestAdaptedModel:
    def test_it_answers_as_the_latest_batch_was_answered_and_can_be_saved(self, model, shifted_images, tmp_path):
        adapter = TestTimeAdapter(model)
        output = adapter(shifted_images)
        adapted = adapter.adapted_model()
        torch.testing.assert_close(adapted(shifted_images).logits, output.logits)
        adapted.save_pretrained(tmp_path)
        again = IT3ForImageClassification.from_pretrained(tmp_path)
        assert torch.equal(again(shifted_images).logits, adapted(shifted_images).logits)
        assert again.config.base_model["num_images"] == 64
        assert again.config.base_model["num_steps"] == 5
        assert again.config.base_model["scope"] == "batch"

    def test_it_is_a_model_of_its_own(self, model, shifted_images):
        adapter = TestTimeAdapter(model)
        adapter(shifted_images)
        adapted = adapter.adapted_model()
        assert {id(value) for value in adapted.parameters()}.isdisjoint(id(value) for value in model.parameters())
        assert model.config.base_model is None
        before = adapted(shifted_images).logits
        adapter(shifted_images * 2)
        assert torch.equal(adapted(shifted_images).logits, before)

    @pytest.mark.parametrize("gate", [None, -1e6])
    def test_a_single_image_that_adapted_alone_leaves_none_behind(self, model, shifted_images, gate):
        adapter = TestTimeAdapter(model, gate=gate, augmentation_steps=3)
        adapter(shifted_images[:1])
        with pytest.raises(
            ValueError,
            match="a single image adapted by itself, as single_image='average' asks",
        ):
            adapter.adapted_model()
        adapter(shifted_images)
        assert adapter.adapted_model().config.base_model["num_steps"] == 5
        adapter(shifted_images[:1])
        adapter.reset()
        assert adapter.adapted_model().config.base_model["num_steps"] == 0

    @pytest.mark.parametrize("settings", [{"augmentation_steps": 3, "gate": 1e6}, {"augmentation_steps": 0}])
    def test_without_a_step_it_is_the_model_itself_and_counts_none(self, model, shifted_images, settings):
        adapter = TestTimeAdapter(model, **settings)
        adapter(shifted_images[:1])
        adapted = adapter.adapted_model()
        assert (adapted.config.base_model["num_images"], adapted.config.base_model["num_steps"]) == (0, 0)
        assert torch.equal(adapted(shifted_images).logits, model(shifted_images).logits)

    def test_steps_that_were_dropped_do_not_count(self, model, shifted_images):
        adapter = TestTimeAdapter(model, gate=None, learning_rate=1e38, optimizer="sgd", num_steps=2)
        adapter(shifted_images)
        adapted = adapter.adapted_model()
        assert (adapted.config.base_model["num_images"], adapted.config.base_model["num_steps"]) == (0, 0)
        assert torch.equal(adapted(shifted_images).logits, model(shifted_images).logits)

    def test_after_reset_it_is_the_model_itself(self, model, shifted_images):
        adapter = TestTimeAdapter(model)
        adapter(shifted_images)
        adapter.reset()
        assert adapter.adapted_model().config.base_model["num_steps"] == 0
        assert torch.equal(adapter.adapted_model()(shifted_images).logits, model(shifted_images).logits)

    def test_image_scope_leaves_none_behind(self, model):
        with pytest.raises(ValueError, match="scope='image' leaves no adapted weights"):
            TestTimeAdapter(model, scope="image").adapted_model()
