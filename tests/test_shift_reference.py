"""What a model knows of clean images, and the shift test that asks about it."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.covariance import oas
from trainer_fixtures import quiet_arguments

from hf_it3 import IT3ForImageClassification, IT3Trainer, TestTimeAdapter
from hf_it3.it3.shift_reference_it3 import (
    GROUP_SIZES,
    LEVELS,
    Observation,
    ShiftReference,
    in_standard_errors,
    limit_at,
)
from hf_it3.it3.shift_test_it3 import ShiftTest, observe
from hf_it3.training.clean_images import CleanReference


def drawn(count: int, seed: int, shift: float = 0.0, classes: int = 3, only: int | None = None) -> Observation:
    """Images whose features depend on their class, and are correlated with each other."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(classes, (count,), generator=generator) if only is None else torch.full((count,), only)
    mixing = torch.randn(8, 8, generator=torch.Generator().manual_seed(99))
    features = torch.randn(count, 8, generator=generator) @ mixing + kinds[:, None] * 2.0 + shift
    return Observation(features, kinds, torch.rand(count, generator=generator) - 1)


@pytest.fixture(scope="module")
def reference():
    made = ShiftReference(4, 3)
    made.measure(drawn(3000, 0))
    return made


DISTANCES = {"mean": -0.5, "std": 12**-0.5, "num_images": 3000}


def standardised(seen, reference):
    """Features `(N, F)` less the mean of their class, over their deviation, row by row."""
    rows = [
        (row - reference.feature_mean[kind]) / reference.feature_std
        for row, kind in zip(seen.features, seen.classes, strict=True)
    ]
    return np.stack([row.double().numpy() for row in rows])


def test_the_statistic_is_the_mahalanobis_distance_of_the_means(reference):
    clean, group = drawn(3000, 0), drawn(50, 1, shift=0.3)
    counts = torch.bincount(clean.classes)[clean.classes, None].numpy() + 4
    apart = standardised(clean, reference) * counts / (counts - 1)  # from the mean of the others of the class
    covariance, _ = oas(apart, assume_centered=True)
    mean = standardised(group, reference).mean(0)
    squared = mean @ np.linalg.inv(covariance) @ mean
    expected = squared / (1 / 50 + 1 / 3000) / 8
    assert reference.feature_statistics(group.together()).item() == pytest.approx(expected, rel=1e-3)


def test_what_was_measured_before_correlations_were_kept_counts_features_one_by_one(reference):
    older, group = copy.deepcopy(reference), drawn(50, 1, shift=0.3)
    older.feature_whitening.zero_()
    mean = standardised(group, reference).mean(0)
    expected = (mean**2).mean() / (1 / 50 + 1 / 3000)
    assert older.feature_statistics(group.together()).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("older", [False, True])
def test_what_rounding_leaves_of_a_constant_feature_is_no_shift(monkeypatch, older):
    """The deviation over space of a channel that is the same everywhere, on another machine."""
    if older:
        monkeypatch.setattr("hf_it3.it3.shift_reference_it3._CONSTANT", 0.0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1000, 8, generator=generator)
    features[:, 7] *= 1e-7
    made = ShiftReference(4, 1)
    made.measure(of_one_class(features))
    monkeypatch.undo()
    group = torch.randn(64, 8, generator=generator)
    group[:, 7] = 1e-6
    assert made.feature_statistics(of_one_class(group).together()).item() < made.limits("feature", 64)[-1]


def test_a_change_of_what_belongs_together_is_seen_where_means_hardly_move():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3000, 1, generator=generator)
    features = base + 0.1 * torch.randn(3000, 8, generator=generator)
    zeros = torch.zeros(3000, dtype=torch.long)
    made = ShiftReference(4, 1)
    made.measure(Observation(features, zeros, torch.rand(3000, generator=generator)))
    moved = features[:16].clone()
    moved[:, 4:] += 0.15  # of a deviation of 1
    group = Observation(moved, zeros[:16], torch.zeros(16)).together()
    assert made.feature_statistics(group).item() > 2 * made.limits("feature", 16)[-1]


def opened(test: ShiftTest, groups: list[Observation]) -> int:
    """How many of these the gate opens for."""
    return sum(test.opens(group.together(), test.scores(group.together())).item() for group in groups)


def of_one_class(features: torch.Tensor) -> Observation:
    return Observation(features, torch.zeros(len(features), dtype=torch.long), torch.zeros(len(features)))


@pytest.mark.parametrize("size", [4, 16, 64])
def test_limits_hold_where_reference_images_are_few_for_their_features(size):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(40, 40, generator=generator)
    made = ShiftReference(20, 1)
    made.measure(of_one_class(torch.randn(100, 40, generator=generator) @ mixing))
    groups = [of_one_class(torch.randn(size, 40, generator=generator) @ mixing) for _ in range(400)]
    limit = made.limits("feature", size)[-1]
    assert sum(made.feature_statistics(group.together()).item() > limit for group in groups) <= 0.01 * len(groups)


@pytest.mark.parametrize("kind", [0, None])
def test_a_small_difference_that_does_not_fade_is_no_shift(kind, reference):
    test = ShiftTest(3.0, reference, None, None)
    direction = torch.randn(8, 8, generator=torch.Generator().manual_seed(99)).T.sum(1)  # all at once
    for number in (16, 256):
        # A squared Mahalanobis distance of 0.02 for each feature, where 0.05 are allowed.
        groups = [drawn(number, seed, only=kind) for seed in range(50)]
        for group in groups:
            group.features += 0.14 * direction
        assert opened(test, groups) <= 1
        for group in groups:
            group.features += 1.5 * direction
        assert opened(test, groups) == len(groups)


@pytest.mark.parametrize("size", [1, 4, 10, 64, 300])
def test_clean_groups_seldom_exceed_the_limit_at_3(reference, size):
    test = ShiftTest(3.0, reference, DISTANCES, None)
    groups = [drawn(size, 1000 + seed) for seed in range(400)]
    assert opened(test, groups) <= 0.02 * len(groups)


def test_half_of_the_clean_groups_lie_below_the_median(reference):
    groups = [drawn(20, 5000 + seed).together() for seed in range(200)]
    distances = [(group.distances.double() - DISTANCES["mean"]) / DISTANCES["std"] for group in groups]
    for name, values in {
        "feature": [reference.feature_statistics(group).item() for group in groups],
        "distance": [
            reference.distance_statistics(each, group.classes).item()
            for each, group in zip(distances, groups, strict=True)
        ],
    }.items():
        median = reference.limits(name, 20)[0]
        assert 60 <= sum(value < median for value in values) <= 140


def unequal(count: int, seed: int, only: int | None = None) -> Observation:
    """Images of three classes, of which the model is the less sure, the higher their number."""
    made = drawn(count, seed, only=only)
    made.distances = made.distances * 0.1 + made.classes
    return made


def test_distances_are_compared_with_those_of_images_predicted_as_the_same_class():
    clean, group = unequal(900, 0), unequal(20, 1)
    made = ShiftReference(4, 3)
    made.measure(clean)
    mean, std = clean.distances.double().mean().item(), clean.distances.double().std().item()
    of_class = {
        kind: (clean.distances[clean.classes == kind].sum() + 4 * mean) / ((clean.classes == kind).sum() + 4)
        for kind in range(3)
    }
    apart = []
    for i in range(900):
        others = (clean.classes == clean.classes[i]).index_fill(0, torch.tensor(i), False)
        apart.append(
            clean.distances[i].item() - (clean.distances[others].sum().item() + 4 * mean) / (others.sum() + 4)
        )
    above = [(group.distances[i] - of_class[group.classes[i].item()]).item() for i in range(20)]
    expected = np.mean(above) / np.std(apart, ddof=1) / math.sqrt(1 / 20 + 1 / 900)
    standardised = (group.together().distances.double() - mean) / std
    assert made.distance_statistics(standardised, group.together().classes).item() == pytest.approx(expected, rel=1e-4)


def test_clean_images_of_a_class_that_is_hard_are_not_taken_for_shifted_ones():
    clean = unequal(3000, 0)
    made = ShiftReference(4, 3)
    made.measure(clean)
    distances = {"mean": clean.distances.mean().item(), "std": clean.distances.std().item(), "num_images": 3000}
    test = ShiftTest(3.0, made, distances, None)
    for seed in range(20):
        hard = unequal(24, 100 + seed, only=2)
        hard.classes[:12] = 1  # two of them, as mixed as clean images may be
        hard.distances[:12] -= 1
        assert test.scores(hard.together()).distance.item() < 3
        hard.distances += 0.2
        assert test.scores(hard.together()).distance.item() > 3


def test_a_shift_that_leaves_the_distance_alone_is_seen_by_the_features(reference):
    test = ShiftTest(3.0, reference, DISTANCES, None)
    group = drawn(64, 2, shift=1.5).together()
    scores = test.scores(group)
    assert scores.distance.item() < 3 < scores.features.item()
    assert test.opens(group, scores).all()


def test_sorted_clean_images_are_not_taken_for_shifted_ones(reference):
    test = ShiftTest(3.0, reference, DISTANCES, None)
    for only in range(3):
        group = drawn(64, 3, only=only)
        assert reference.are_of_few_classes(group.classes[None]).all()
        assert not test.opens(group.together(), test.scores(group.together())).any()
    far = drawn(64, 3, only=1, shift=20.0).together()
    assert test.opens(far, test.scores(far)).all()


def test_images_count_so_that_classes_come_as_often_as_among_clean_ones():
    reference = ShiftReference(4, 3)
    clean = drawn(3000, 0)
    clean.classes[:1200] = 0
    reference.measure(clean)
    shares = [(count + 1) / 3003 for count in torch.bincount(clean.classes).tolist()]
    seen = torch.tensor([0] * 10 + [1] * 50 + [2] * 4)
    raw = [shares[kind] / ((seen == kind).sum().item() + 3 * shares[kind]) for kind in seen]
    torch.testing.assert_close(reference.class_weights(seen), torch.tensor(raw) / sum(raw))
    many = torch.tensor([0] * 2000 + [1] * 10_000 + [2] * 500)
    weights = reference.class_weights(many)
    frequent = torch.zeros(3).index_add_(0, many, weights)
    torch.testing.assert_close(frequent, torch.tensor(shares), atol=2e-3, rtol=0)


def test_images_count_the_same_where_nothing_tells_how_often_classes_come(reference):
    seen = torch.tensor([0] * 10 + [1] * 50 + [2] * 4)
    old = copy.deepcopy(reference)
    old.class_shares.zero_()
    for made in (ShiftReference(4, 3), old):
        torch.testing.assert_close(made.class_weights(seen), torch.full((64,), 1 / 64))
    single = ShiftReference(4, 1)
    single.measure(drawn(300, 0, classes=1))
    torch.testing.assert_close(single.class_weights(seen * 0), torch.full((64,), 1 / 64))


def test_scores_and_limits_are_each_others_inverse():
    limits = [0.8, 1.9, 4.1, 7.0]
    for level in (-1.0, 0.0, 0.5, 2.0, 2.9, 3.0, 5.0):
        assert in_standard_errors(limit_at(level, limits), limits) == pytest.approx(level)
    assert in_standard_errors(2.5, [0.0] * 4) == 2.5


def test_the_distance_limit_is_where_the_gate_opens(reference):
    test = ShiftTest(3.0, reference, DISTANCES, None)
    group = drawn(30, 4)
    limit = test.distance_limit(group.classes)
    for offset in (-1e-4, 1e-4):
        group.distances[:] = limit + offset
        assert (test.scores(group.together()).distance > 3).item() is (offset > 0)


@pytest.mark.parametrize("gate", [None, math.inf])
def test_a_gate_may_always_or_never_open(gate, reference):
    test = ShiftTest(gate, reference, DISTANCES, None)
    for group in (drawn(16, 5).together(), drawn(16, 5, shift=50.0).together()):
        assert test.opens(group, test.scores(group)).item() is (gate is None)


def test_tables_have_a_row_for_each_size_and_grow_with_the_level(reference):
    for name in ("distance", "feature", "class"):
        table = reference.get_buffer(f"{name}_limits")
        assert table.shape == (len(GROUP_SIZES), len(LEVELS))
        assert (table.diff(dim=1) >= 0).all()


def test_features_that_are_always_the_same_tell_nothing():
    clean = drawn(200, 6)
    clean.features[:, 2] = 7.0
    reference = ShiftReference(4, 3)
    reference.measure(clean)
    group = drawn(16, 7)
    group.features[:, 2] = 8.0
    assert reference.feature_statistics(group.together()).isfinite().all()


class TestModel:
    def test_first_features_are_means_and_deviations_of_the_stems_channels(self, model, images):
        seen = observe(model, images)
        features = []
        layer = model.backbone.get_submodule(model.config.injection_layer)
        handle = layer.register_forward_hook(lambda *call: features.append(call[2]), prepend=True)
        with torch.no_grad():
            logits = model(images).logits
        handle.remove()
        expected = torch.cat([features[0].mean((2, 3)), features[0].std((2, 3), correction=0)], 1)
        torch.testing.assert_close(seen.features, expected)
        assert torch.equal(seen.classes, logits.argmax(1))

    def test_the_output_says_which_statistic_saw_the_shift(self, model, images, shifted_images):
        clean, shifted = model.adapt(images), model.adapt(shifted_images)
        assert not clean.adapted.any()
        assert clean.distance_shift.unique().numel() == clean.feature_shift.unique().numel() == 1
        assert max(clean.distance_shift[0], clean.feature_shift[0]) <= 3 < shifted.feature_shift[0]

    def test_training_measures_all_of_it(self, random_model, train_rows, tmp_path):
        model = random_model
        arguments = quiet_arguments(tmp_path, max_steps=1, reference_images=48)
        IT3Trainer(model, arguments, train_dataset=train_rows[:64]).train()
        assert model.config.reference_distance["num_images"] == 48
        assert model.shift_reference.is_measured
        assert model.feature_statistics.is_measured
        assert model.config.reference_distance["num_images"] == model.shift_reference.num_images.item()

    def test_a_reference_can_be_kept_and_put_back(self, model, random_model):
        before, other = CleanReference.of(model), CleanReference.of(random_model)
        other.store_in(model)
        assert not model.shift_reference.is_measured
        assert model.config.reference_distance is None
        before.store_in(model)
        again = CleanReference.of(model)
        assert again.distances == before.distances
        assert all(torch.equal(again.buffers[key], value) for key, value in before.buffers.items())

    def test_a_stream_that_is_saved_goes_on_with_what_it_saw(self, model, images, shifted_images):
        first, second = (TestTimeAdapter(model, scope="stream") for _ in range(2))
        first(images[:32])
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        one, two = first(shifted_images[:16]), second(shifted_images[:16])
        assert torch.equal(one.feature_shift, two.feature_shift)
        torch.testing.assert_close(one.logits, two.logits)

    def test_distances_that_are_not_finite_leave_nothing_behind(self, model, train_rows, tmp_path, caplog):
        with torch.no_grad():
            model.backbone.fc4.bias.fill_(math.nan)
        trainer = IT3Trainer(model, quiet_arguments(tmp_path, reference_images=16), train_dataset=train_rows)
        assert trainer.measure_reference_distance() is None
        assert not model.shift_reference.is_measured
        assert not IT3ForImageClassification.from_backbone(model.backbone).shift_reference.is_measured
