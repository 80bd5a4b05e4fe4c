"""Single steps of adaptation, each held against what it should be, where a whole run would not show a slip."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file
from torch import nn
from untouched import untouched

from hf_it3 import IT3Config, IT3ForImageClassification, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.hub.delta import changed_tensors
from hf_it3.it3.augmentation_it3 import MAX_ROTATION, MAX_SHIFT, Augmentation
from hf_it3.it3.backbones_it3 import HeadlessClassifier
from hf_it3.it3.batchnorm_it3 import norm_statistics
from hf_it3.it3.loading_it3 import _apply
from hf_it3.it3.objective_it3 import IdempotenceDistance, Objective
from hf_it3.it3.shift_test_it3 import idempotence_distances
from hf_it3.it3.stream_it3 import CollapseGuard
from hf_it3.it3.task_it3 import MAX_DRIFT, Task


def task_of(problem_type, num_labels=4) -> Task:
    return Task.of(IT3Config(problem_type=problem_type, num_labels=num_labels))


class TestObjective:
    y0 = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.4, 0.3, 0.1]])
    y1 = torch.tensor([[0.9, 0.05, 0.03, 0.02], [0.1, 0.6, 0.1, 0.2]])

    @pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification"])
    def test_it_is_the_mean_distance_minus_the_weighted_entropy_of_what_is_used(self, problem_type):
        task = task_of(problem_type)
        shares = self.y0.mean(0) / self.y0.mean(0).sum()
        spread = -(shares * shares.log()).sum()
        agreement = (self.y1 * self.y0).sum(1)
        if task.per_label:
            agreement = (self.y1 * self.y0 + (1 - self.y1) * (1 - self.y0)).mean(1)
        distance = IdempotenceDistance("neg_dot", task)
        distances = distance(self.y1, self.y0)
        torch.testing.assert_close(distances, -agreement)
        loss = Objective(task, distance, 0.5)(distances, self.y0, with_diversity=True)
        torch.testing.assert_close(loss, -agreement.mean() - 0.5 * spread)
        loss = Objective(task, distance, 0.5)(distances, self.y0, with_diversity=False)
        torch.testing.assert_close(loss, -agreement.mean())

    def test_diversity_among_labels_asks_for_no_other_rate_of_them(self):
        task = task_of("multi_label_classification")
        torch.testing.assert_close(task.spread(self.y0 / 3), task.spread(self.y0))
        scale = torch.ones((), requires_grad=True)
        (slope,) = torch.autograd.grad(task.spread(self.y0 * scale), scale)
        assert slope.abs() < 1e-6

    def test_regression_has_no_classes_to_spread_over(self):
        task = task_of("regression")
        distance = IdempotenceDistance("mse", task)
        distances = distance(self.y1, self.y0)
        loss = Objective(task, distance, 1.0)(distances, self.y0, with_diversity=True)
        torch.testing.assert_close(loss, (self.y1 - self.y0).square().mean())
        assert distances.shape == (2,)


@pytest.mark.parametrize("kind", ["batch", "mixed"])
@pytest.mark.parametrize("settings", [{"scope": "batch"}, {"scope": "stream"}, {"scope": "image"}], ids=str)
def test_the_frozen_anchor_sees_the_statistics_that_the_steps_see(batch_norm_model, kind, settings):
    model = batch_norm_model.double()
    images = torch.rand(4, 1, 16, 16, dtype=torch.float64) * 2 + 1
    if settings["scope"] != "image":
        settings = {**settings, "diversity_weight": 0.0}
    adapter = TestTimeAdapter(
        model, anchor="frozen", norm_statistics=kind, prior_count=4, gate=None, num_steps=1, **settings
    )
    groups = [images] if settings["scope"] != "image" else images.split(1)
    with norm_statistics(kind, 4):
        expected = [idempotence_distances(model, group).mean() for group in groups]
    source = idempotence_distances(model, images).mean()
    actual = adapter(images).loss_history[0]
    torch.testing.assert_close(actual.reshape(-1), torch.stack(expected))
    assert not torch.allclose(actual.mean(), source, rtol=1e-3)


def test_a_stream_takes_no_step_on_a_gradient_that_is_not_finite(model, shifted_images):
    def of_broken_gradient(y1, y0):
        # The square root of zero has an infinite derivative, which times zero is NaN.
        return -(y1 * y0).sum(-1) + 0 * (y0 - y0.detach()).abs().sum(-1).sqrt()

    adapter = TestTimeAdapter(model, scope="stream", gate=None, num_steps=3, distance=of_broken_gradient)
    history = adapter(shifted_images).loss_history
    assert history.shape == (1,), "a step was taken, and the next loss measured"
    assert history.isfinite().all()


@pytest.mark.parametrize("vectorize", [True, False])
def test_gradients_within_the_norm_are_not_scaled(model, shifted_images, vectorize):
    settings = {"scope": "image", "gate": None, "num_steps": 2, "optimizer": "sgd", "learning_rate": 0.1}
    images = shifted_images[:3].double()
    free = TestTimeAdapter(model.double(), vectorize=vectorize, **settings)(images).logits
    clipped = TestTimeAdapter(model, vectorize=vectorize, max_grad_norm=1e6, **settings)(images).logits
    torch.testing.assert_close(clipped, free, rtol=0, atol=1e-9)


class TestLimits:
    @staticmethod
    def classes(share):
        """One-hot predictions of 100 images, that share of them of class 0, the others of classes 1 to 3."""
        count = round(100 * share)
        return torch.eye(4)[torch.tensor([0] * count + [1 + index % 3 for index in range(100 - count)])]

    def verdict(self, problem_type, adapted, unadapted):
        return CollapseGuard(task_of(problem_type), 100).verdict(adapted, unadapted, None)

    def test_a_class_may_grow_by_a_quarter_of_all_images(self):
        assert MAX_DRIFT == 0.25
        before = self.classes(0.4)
        assert self.verdict(None, self.classes(0.64), before) is None
        assert "66% of the adapted predictions are one class, against 40%" in self.verdict(
            None, self.classes(0.66), before
        )

    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_rate_of_labels_may_change_by_a_quarter_of_itself(self, sign):
        def rate(count):
            return torch.cat([torch.ones(count), torch.zeros(1000 - count)]).reshape(100, 10)

        task = ("multi_label_classification", rate(400 + sign * 95), rate(400))
        assert CollapseGuard(task_of(task[0], 10), 100).verdict(*task[1:], None) is None
        reason = CollapseGuard(task_of(task[0], 10), 100).verdict(rate(400 + sign * 105), rate(400), None)
        assert "of the labels are predicted, against 40.0%" in reason

    def test_numbers_may_move_by_a_tenth_of_a_standard_deviation(self):
        values = torch.zeros(100, 4)
        assert self.verdict("regression", values + 0.099, values) is None
        assert "predictions moved by 0.1 standard deviations" in self.verdict("regression", values + 0.101, values)

    def test_fewer_than_32_images_are_not_judged(self):
        guard = CollapseGuard(task_of(None), 256)
        one, even = self.classes(1.0), torch.eye(4).repeat(8, 1)
        assert guard.verdict(one[:31], even[:31], None) is None
        assert guard.verdict(one[:1], even[31:], None) is not None

    @pytest.mark.parametrize(("deviations", "runs_away"), [(5.9, False), (6.1, True)])
    def test_a_loss_may_rise_by_six_deviations(self, deviations, runs_away):
        guard = CollapseGuard(task_of(None), 8)
        predictions = torch.eye(4)
        for _ in range(20):
            for loss in (-1.0, 1.0):
                assert guard.verdict(predictions, predictions, loss) is None
        spread = math.sqrt(guard.square - guard.mean**2)
        reason = guard.verdict(predictions, predictions, guard.mean + deviations * spread)
        assert (reason is not None) is runs_away

    @pytest.mark.parametrize(("count", "runs_away"), [(9, False), (10, True)])
    def test_ten_losses_are_needed_to_judge_by(self, count, runs_away):
        guard = CollapseGuard(task_of(None), 8)
        predictions = torch.eye(4)
        for _ in range(count):
            assert guard.verdict(predictions, predictions, 0.0) is None
        assert (guard.verdict(predictions, predictions, 1.0) is not None) is runs_away

    def test_the_running_mean_and_square_take_in_a_twentieth_of_each_loss(self):
        guard = CollapseGuard(task_of(None), 8)
        predictions = torch.eye(4)
        for loss in [1.0] * 40 + [1.0 + 1e-6]:
            assert guard.verdict(predictions, predictions, loss) is None
        assert guard.mean == pytest.approx(1 + 0.05 * 1e-6, abs=1e-9)
        assert guard.square == pytest.approx(1 + 0.05 * 2e-6, abs=1e-9)


def test_the_reference_is_that_of_a_model_in_eval_mode(batch_norm_model, train_rows, tmp_path):
    arguments = IT3TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no")
    trainer = IT3Trainer(batch_norm_model.train(), arguments, train_dataset=train_rows[:40])
    with untouched_weights(batch_norm_model):
        measured = trainer.measure_reference_distance()
    assert batch_norm_model.training
    images = torch.stack([row["pixel_values"] for row in train_rows[:40]])
    expected = idempotence_distances(batch_norm_model.eval(), images)
    assert measured["mean"] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert measured["std"] == pytest.approx(expected.std().item(), rel=1e-4)


class untouched_weights:
    """Asserts that a block writes to no weight and no buffer of the network."""

    def __init__(self, model):
        self.model = model

    def _weights(self):
        values = self.model.state_dict().items()
        return {name: value for name, value in values if not name.startswith("shift_reference.")}

    def __enter__(self):
        self.before = {name: value.clone() for name, value in self._weights().items()}

    def __exit__(self, *error):
        assert all(torch.equal(value, self.before[name]) for name, value in self._weights().items())


@pytest.mark.parametrize("scope", ["batch", "stream", "image"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_gate_does_not_look_at_images_that_are_not_finite(model, images, shifted_images, scope, value):
    for given, is_shifted in ((images, False), (shifted_images, True)):
        broken = given.clone()
        broken[5] = value
        adapted = TestTimeAdapter(model, scope=scope)(broken).adapted
        whole = torch.arange(64) != 5
        expected = TestTimeAdapter(model, scope=scope)(given[whole]).adapted
        assert torch.equal(adapted[whole], expected)
        assert expected.any() or not is_shifted
        assert not adapted[5]


class TestGeometryOfAugmentations:
    @staticmethod
    def copy_of(image, rotation=0.0, scaling=0.0, shift=(0.0, 0.0)):
        augmentation = Augmentation(2)
        augmentation._draws[1] = torch.tensor([rotation, scaling, *shift], dtype=torch.float64)
        return augmentation.apply(image)[0, 1]

    def test_shifts_are_a_part_of_each_side(self):
        image = torch.rand(1, 1, 200, 100)
        moved = self.copy_of(image, shift=(1.0, 0.0))
        columns = round(100 * MAX_SHIFT)
        torch.testing.assert_close(moved[:, :, :-columns], image[0, :, :, columns:], rtol=0, atol=1e-3)
        moved = self.copy_of(image, shift=(0.0, 1.0))
        rows = round(200 * MAX_SHIFT)
        torch.testing.assert_close(moved[:, :-rows], image[0, :, rows:], rtol=0, atol=1e-3)

    @pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 160), (160, 60)])
    def test_rotations_keep_angles_whatever_the_shape(self, height, width):
        rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        x, y = columns - width / 2, rows - height / 2
        for offset in ((20.0, 0.0), (0.0, 20.0)):
            blob = torch.exp(-((x - offset[0]) ** 2 + (y - offset[1]) ** 2) / 18)[None, None]
            moved = self.copy_of(blob, rotation=1.0)[0]
            centre = torch.stack([(moved * x).sum(), (moved * y).sum()]) / moved.sum()
            angle = math.radians(MAX_ROTATION)
            expected = torch.tensor(
                [
                    offset[0] * math.cos(angle) + offset[1] * math.sin(angle),
                    offset[1] * math.cos(angle) - offset[0] * math.sin(angle),
                ]
            )
            torch.testing.assert_close(centre, expected, rtol=0, atol=0.1)

    def test_what_was_predicted_for_pixels_goes_back_to_them(self):
        image = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 12), (64, 96), mode="bicubic")
        augmentation = Augmentation(5)
        back = augmentation.undo(augmentation.apply(image))
        inside = (slice(None), slice(None), slice(None), slice(16, -16), slice(16, -16))
        torch.testing.assert_close(back[inside], image[:, None].expand_as(back)[inside], rtol=0, atol=0.1)


class TestDeltas:
    @pytest.mark.parametrize(
        ("name", "shape", "expected"), [("backbone.fc4.bias", (3,), "expected (10,)"), ("new", (2,), "no such weight")]
    )
    def test_tensors_that_the_base_does_not_have_are_refused(self, model, tmp_path, name, shape, expected):
        file = tmp_path / "delta.safetensors"
        save_file({name: torch.ones(shape)}, file)
        with untouched(model), pytest.raises(ValueError, match="do not fit the base model") as error:
            _apply(model, str(file), "user/foggy")
        assert expected in str(error.value)
        assert name in str(error.value)

    def test_a_tensor_that_spreads_over_the_bases_is_refused(self, model, tmp_path):
        save_file({"backbone.fc4.bias": torch.ones(1)}, tmp_path / "delta.safetensors")
        with untouched(model), pytest.raises(ValueError, match=r"has shape \(1,\), expected \(10,\)"):
            _apply(model, str(tmp_path / "delta.safetensors"), "user/foggy")

    def test_weights_that_the_base_lacks_have_changed(self, model):
        base = IT3ForImageClassification(tiny_config())
        base.load_state_dict(model.state_dict())
        assert changed_tensors(model, base) == {}
        model.register_buffer("extra", torch.ones(2))
        assert list(changed_tensors(model, base)) == ["extra"]


class Features(nn.Module):
    """Stands for a model without a head, which returns features as they are."""

    channels, device, dtype = (4,), torch.device("cpu"), torch.float32

    def forward(self, pixel_values):
        return SimpleNamespace(last_hidden_state=pixel_values)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 7, 4)])
def test_features_of_a_headless_model_are_averaged_over_space(shape):
    classifier, features = HeadlessClassifier(Features(), num_labels=5), torch.rand(shape)
    space = (2, 3) if len(shape) == 4 else 1
    torch.testing.assert_close(classifier(features).logits, classifier.classifier(features.mean(space)))
