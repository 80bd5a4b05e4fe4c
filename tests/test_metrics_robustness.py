import numpy as np
import pytest

from hf_it3.evaluation import metrics


class TestMeanCorruptionError:
    def test_is_the_mean_of_ratios_of_sums_over_severities(self):
        rng = np.random.default_rng(0)
        names = ["fog", "snow", "frost"]
        errors, reference = ({name: rng.uniform(0.1, 0.9, size=5) for name in names} for _ in range(2))
        expected = np.mean([errors[name].sum() / reference[name].sum() for name in names])
        assert metrics.mean_corruption_error(errors, reference) == pytest.approx(expected)
        assert metrics.mean_corruption_error(errors) == pytest.approx(np.mean([errors[name] for name in names]))

    def test_a_model_is_as_bad_as_itself(self):
        errors = {"fog": [0.1, 0.2], "snow": {2: 0.5, 4: 0.0}}
        assert metrics.mean_corruption_error(errors, errors) == pytest.approx(1.0)

    def test_severities_are_matched_by_number_and_spare_corruptions_of_the_reference_ignored(self):
        reference = {"fog": {2: 0.2, 1: 0.6}, "snow": [1.0]}
        assert metrics.mean_corruption_error({"fog": [0.3, 0.1]}, reference) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("errors", "reference", "message"),
        [
            ({}, None, r"errors is empty \(\{\}\)"),
            ({"fog": []}, None, r"errors\['fog'\] is empty"),
            ({"fog": [0.1, 20.0]}, None, r"errors\['fog'\] has error 20.0 at severity 2"),
            ({"fog": [np.nan]}, None, r"error nan at severity 1"),
            ({"fog": [0.1]}, {"snow": [0.1], "frost": [0.1]}, "no corruption 'fog'; it has frost, snow"),
            ({"fog": [0.1, 0.2]}, {"fog": [0.1]}, r"severities \[1, 2\] but reference_errors\['fog'\] has \[1\]"),
            ({"fog": [0.1]}, {"fog": [0.0]}, "undefined"),
        ],
    )
    def test_bad_errors_are_named(self, errors, reference, message):
        with pytest.raises(ValueError, match=message):
            metrics.mean_corruption_error(errors, reference)


class TestAccuracyGain:
    def draw(self, rng, num_images, lost=0.1, won=0.2):
        change = rng.choice([-1, 0, 1], p=[lost, 1 - lost - won, won], size=num_images)
        before = np.where(change == 0, rng.random(num_images) < 0.5, change < 0)
        return before, np.where(change == 0, before, change > 0)

    def test_gain_is_the_difference_of_accuracies(self):
        before, after = self.draw(np.random.default_rng(0), 137)
        result = metrics.accuracy_gain(before, after)
        assert result.gain == pytest.approx(after.mean() - before.mean())
        assert result.lower <= result.gain <= result.upper
        assert (result.confidence, result.num_images, result.num_resamples) == (0.95, 137, 10_000)

    @pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99])
    @pytest.mark.parametrize("num_conditions", [1, 3])
    def test_interval_agrees_with_resampling_images_one_by_one(self, confidence, num_conditions):
        rng = np.random.default_rng(0)
        pairs = [self.draw(rng, 300) for _ in range(num_conditions)]
        before, after = (np.stack(part) for part in zip(*pairs, strict=True))
        # Conditions that share their images' fate widen the interval; drawing them apart would miss it.
        before[-1], after[-1] = before[0], after[0]
        images = rng.integers(300, size=(20_000, 300))
        gains = (after.mean(axis=0) - before.mean(axis=0))[images].mean(axis=1)
        lower, upper = np.quantile(gains, [(1 - confidence) / 2, (1 + confidence) / 2])
        if num_conditions == 1:
            before, after = before[0], after[0]
        result = metrics.accuracy_gain(before, after, num_resamples=20_000, confidence=confidence)
        assert result.gain == pytest.approx(after.mean() - before.mean())
        # Gains are multiples of 1/300 (about a tenth of their standard deviation), so quantiles may be one step apart.
        assert result.lower == pytest.approx(lower, abs=1.01 / 300)
        assert result.upper == pytest.approx(upper, abs=1.01 / 300)

    def test_interval_covers_the_true_gain_in_about_95_percent_of_repeats(self):
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(1000):
            result = metrics.accuracy_gain(*self.draw(rng, 200), num_resamples=1000)
            covered += result.lower <= 0.2 - 0.1 <= result.upper
        assert 930 <= covered <= 970

    def test_pairing_makes_the_interval_narrower_than_independent_samples_would(self):
        before = np.arange(1000) % 2 == 0
        after = before.copy()
        after[1:21:2] = True
        result = metrics.accuracy_gain(before, after)
        assert result.gain == pytest.approx(0.01)
        assert 0 < result.lower < result.upper < 0.02

    def test_no_change_gives_a_point(self):
        result = metrics.accuracy_gain([True, False, True], [True, False, True])
        assert (result.gain, result.lower, result.upper) == (0.0, 0.0, 0.0)

    def test_seed_decides_the_interval(self):
        before, after = self.draw(np.random.default_rng(0), 997)
        results = {metrics.accuracy_gain(before, after, num_resamples=50, seed=seed) for seed in [0, 0, 1, 2, 3]}
        assert 1 < len(results) <= 4
        state = np.random.get_state()[1].copy()
        assert metrics.accuracy_gain(before, after) == metrics.accuracy_gain(before, after)
        assert (np.random.get_state()[1] == state).all()

    @pytest.mark.parametrize(
        ("before", "after", "options", "message"),
        [
            ([], [], {}, "correct_before is empty"),
            ([1, 0], [1, 0, 0], {}, r"shape \(2,\) but correct_after has shape \(3,\)"),
            ([[1, 0]], [1, 0], {}, r"shape \(1, 2\) but correct_after has shape \(2,\)"),
            ([1, 2], [1, 0], {}, r"correct_before\[1\] is 2; expected True or False"),
            ([1, 0], [np.nan, 0], {}, r"correct_after\[0\] is nan"),
            ([1], [1], {"num_resamples": 0}, "num_resamples=0"),
            ([1], [1], {"confidence": 95}, "confidence=95"),
        ],
    )
    def test_bad_input_is_named(self, before, after, options, message):
        with pytest.raises(ValueError, match=message):
            metrics.accuracy_gain(before, after, **options)


class TestAuroc:
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("decimals", [None, 1, 0])
    def test_agrees_with_comparing_every_pair_also_with_ties(self, seed, decimals):
        rng = np.random.default_rng(seed)
        is_positive = rng.random(150) < 0.2
        scores = rng.normal(size=150) + is_positive
        if decimals is not None:
            scores = scores.round(decimals)
        wins = [np.sign(up - down) / 2 + 0.5 for up in scores[is_positive] for down in scores[~is_positive]]
        expected = np.mean(wins)
        assert metrics.auroc(scores, is_positive) == pytest.approx(expected, abs=1e-14)

    def test_infinite_scores_are_ranked(self):
        assert metrics.auroc([-np.inf, 0.0, np.inf], [False, False, True]) == 1.0

    def test_equal_scores_tell_nothing(self):
        assert metrics.auroc([3.0] * 5, [True, False, True, True, False]) == 0.5

    @pytest.mark.parametrize("flag", [True, False])
    def test_is_nan_for_one_class(self, flag):
        assert np.isnan(metrics.auroc([0.1, 0.2], [flag, flag]))


class TestRiskCoverage:
    def test_agrees_with_rejecting_images_one_by_one(self):
        rng = np.random.default_rng(0)
        uncertainty, correct = rng.normal(size=80), rng.random(80) < 0.7
        coverage, risk, thresholds = metrics.risk_coverage(uncertainty, correct)
        order = np.argsort(uncertainty)
        expected = [1 - correct[order[: kept + 1]].mean() for kept in range(80)]
        np.testing.assert_allclose(coverage, np.arange(1, 81) / 80)
        np.testing.assert_allclose(risk, expected, atol=1e-12)
        np.testing.assert_array_equal(thresholds, uncertainty[order])
        area = metrics.area_under_risk_coverage(uncertainty, correct)
        assert area == pytest.approx(np.mean(expected))

    def test_tied_images_enter_together_whatever_their_order(self):
        rng = np.random.default_rng(1)
        uncertainty, correct = rng.integers(8, size=80), rng.random(80) < 0.7
        curve = metrics.risk_coverage(uncertainty, correct)
        for coverage, risk, threshold in zip(*curve, strict=True):
            accepted = uncertainty <= threshold
            assert coverage == pytest.approx(accepted.mean())
            assert risk == pytest.approx(1 - correct[accepted].mean())
        expected = np.mean([1 - correct[uncertainty <= value].mean() for value in uncertainty])
        shuffled = rng.permutation(80)
        assert metrics.area_under_risk_coverage(uncertainty, correct) == pytest.approx(expected)
        assert metrics.area_under_risk_coverage(uncertainty[shuffled], correct[shuffled]) == pytest.approx(expected)

    def test_full_coverage_has_the_error_rate(self):
        curve = metrics.risk_coverage([0.3, 0.1, 0.2, 0.3], [True, True, False, False])
        assert curve.coverage[-1] == 1.0
        assert curve.risk[-1] == 0.5

    def test_without_errors_the_area_is_zero_and_with_equal_uncertainty_the_error_rate(self):
        assert metrics.area_under_risk_coverage([0.1, 0.2], [True, True]) == 0.0
        assert metrics.area_under_risk_coverage([0.1] * 4, [True, True, True, False]) == 0.25


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.risk_coverage, metrics.area_under_risk_coverage])
@pytest.mark.parametrize(
    ("scores", "flags", "message"),
    [
        ([], [], r"is empty \(shape \(0,\)\)"),
        ([0.1, np.nan], [True, False], r"\[1\] is nan"),
        ([0.1, 0.2, 0.3], [True, False], r"shape \(3,\) but \w+ has shape \(2,\)"),
        ([0.1, 0.2], [0, 2], r"\[1\] is 2"),
        ([[0.1, 0.2]], [True, False], r"shape \(1, 2\); expected 1 dimension\."),
    ],
)
def test_bad_scores_are_named(metric, scores, flags, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, flags)
