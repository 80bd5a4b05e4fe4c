import doctest
import importlib
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from hf_it3.evaluation import metrics


def random_problem(seed, num_images=200, num_labels=5, decimals=None):
    """Logits, probabilities and labels that agree more often than chance; few decimals make ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_labels, size=num_images)
    logits = rng.normal(size=(num_images, num_labels)) + 1.5 * np.eye(num_labels)[labels]
    if decimals is not None:
        logits = logits.round(decimals)
    exponentials = np.exp(logits)
    return logits, exponentials / exponentials.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("module", ["classification", "robustness", "uncertainty", "evaluate_metric"])
def test_documented_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"hf_it3.evaluation.metrics.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_metric_returns_a_plain_float():
    _, probabilities, labels = random_problem(0)
    correct = probabilities.argmax(axis=1) == labels
    values = [
        metrics.accuracy(probabilities, labels),
        metrics.error_rate(probabilities, labels),
        metrics.expected_calibration_error(probabilities.astype(np.float32), labels),
        metrics.negative_log_likelihood(probabilities, labels),
        metrics.brier_score(probabilities, labels),
        metrics.mean_corruption_error({"fog": np.array([0.1, 0.2])}, {"fog": np.array([0.2, 0.2])}),
        metrics.auroc(probabilities[:, 0], correct),
        metrics.area_under_risk_coverage(probabilities[:, 0], correct),
        *vars(metrics.accuracy_gain(correct, ~correct)).values(),
        *metrics.classification_metrics(SimpleNamespace(predictions=probabilities, label_ids=labels)).values(),
    ]
    assert {type(value) for value in values} == {float, int}
    json.dumps(values)


class TestClassification:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("decimals", [None, 0])
    def test_agrees_with_a_loop_over_images(self, seed, decimals):
        logits, probabilities, labels = random_problem(seed, decimals=decimals)
        predictions = probabilities.argmax(axis=1)
        images = list(zip(probabilities.tolist(), labels.tolist(), strict=True))
        right = sum(row.index(max(row)) == label for row, label in images) / len(images)
        assert metrics.accuracy(logits, labels) == metrics.accuracy(predictions, labels) == pytest.approx(right)
        assert metrics.error_rate(logits, labels) == pytest.approx(1 - right)
        likelihood = sum(-math.log(row[label]) for row, label in images) / len(images)
        assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(likelihood, abs=1e-12)
        brier = sum((row[k] - (k == label)) ** 2 for row, label in images for k in range(len(row))) / len(images)
        assert metrics.brier_score(probabilities, labels) == pytest.approx(brier, abs=1e-12)

    def test_brier_score_agrees_with_scikit_learn_class_by_class(self):
        _, probabilities, labels = random_problem(0)
        one_by_one = [sklearn_metrics.brier_score_loss(labels == k, probabilities[:, k]) for k in range(5)]
        assert metrics.brier_score(probabilities, labels) == pytest.approx(sum(one_by_one), abs=1e-12)

    def test_zero_probability_of_the_label_costs_that_of_the_rounding_unit(self):
        probabilities, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]]), [1, 1, 0]
        expected = -(math.log(np.finfo(np.float64).eps) + math.log(0.3)) / 3
        assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(expected, abs=1e-12)

    def test_classes_that_no_image_has_are_classes_all_the_same(self):
        probabilities = np.array([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])
        expected = -(math.log(0.3) + math.log(0.2)) / 2
        assert metrics.negative_log_likelihood(probabilities, [1, 1]) == pytest.approx(expected)

    @pytest.mark.filterwarnings("error")
    def test_rows_that_rounding_left_off_one_are_divided_by_their_sum(self):
        rounded = np.array([[1 + 1e-7, 0.0], [0.5, 0.502]])
        expected = -math.log(0.502 / 1.002) / 2
        assert metrics.negative_log_likelihood(rounded, [0, 1]) == pytest.approx(expected, abs=1e-12)

    def test_perfect_predictions_score_zero(self):
        probabilities = np.eye(3)
        for metric in (metrics.error_rate, metrics.brier_score, metrics.expected_calibration_error):
            assert str(metric(probabilities, [0, 1, 2])) == "0.0"
        # scikit-learn counts a probability of 1 as one rounding unit less.
        assert 0 <= metrics.negative_log_likelihood(probabilities, [0, 1, 2]) < 1e-15

    @pytest.mark.parametrize("num_bins", [1, 2, 10, 15])
    @pytest.mark.parametrize("decimals", [None, 1])
    def test_calibration_error_agrees_with_a_loop_over_bins(self, num_bins, decimals):
        rng = np.random.default_rng(num_bins)
        confidences = rng.uniform(0.5, 1.0, size=300)
        if decimals is not None:  # on bin edges
            confidences = confidences.round(decimals)
        probabilities = np.stack([confidences, 1 - confidences], axis=1)
        labels = rng.integers(2, size=300)
        correct = probabilities.argmax(axis=1) == labels
        edges = np.linspace(0, 1, num_bins + 1)
        expected = 0.0
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (confidences > low) & (confidences <= high)
            if inside.any():
                expected += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
        assert metrics.expected_calibration_error(probabilities, labels, num_bins) == pytest.approx(
            expected, abs=1e-12
        )

    def test_calibration_bins_are_closed_on_the_right(self):
        # 0.5 shares its bin with lower confidences, so its error does not cancel the opposite one at 0.75.
        probabilities = [[0.5, 0.5], [0.75, 0.25]]
        assert metrics.expected_calibration_error(probabilities, [0, 1], num_bins=2) == pytest.approx(0.625)

    def test_calibration_error_is_small_for_labels_drawn_from_the_probabilities(self):
        _, probabilities, _ = random_problem(0, num_images=20_000)
        draws = np.random.default_rng(1).uniform(size=(len(probabilities), 1))
        labels = (draws > probabilities.cumsum(axis=1)).sum(axis=1).clip(max=4)
        assert metrics.expected_calibration_error(probabilities, labels) < 0.02
        assert metrics.expected_calibration_error(probabilities, (labels + 1) % 5) > 0.2

    def test_torch_tensors_of_any_float_type_are_taken(self):
        logits, _, labels = random_problem(0)
        logits = torch.tensor(logits, dtype=torch.bfloat16, requires_grad=True)
        expected = (logits.argmax(-1) == torch.tensor(labels)).double().mean().item()
        assert metrics.accuracy(logits, torch.tensor(labels)) == pytest.approx(expected)
        metrics.brier_score(logits.softmax(-1), labels)  # a bfloat16 softmax does not sum to 1 exactly

    @pytest.mark.parametrize(
        ("predictions", "labels", "message"),
        [
            ([], [], r"logits_or_predictions is empty \(shape \(0,\)\)"),
            (np.empty((0, 3)), [], r"is empty \(shape \(0, 3\)\)"),
            ([0, 1, 2], [0, 1], r"shape \(3,\) but labels has shape \(2,\)"),
            (np.eye(3), [0, 1], r"shape \(3, 3\) but labels has shape \(2,\)"),
            (np.eye(3), [0, 3, 4], r"labels\[1\] is 3; expected a class index from 0 to 2"),
            (np.eye(3), [0, 1, -100], r"labels\[2\] is -100"),
            ([0, 1, -1], [0, 1, 1], r"logits_or_predictions\[2\] is -1"),
            ([0.2, 0.8], [0, 1], r"logits_or_predictions\[0\] is 0.2; expected an integer"),
            ([[0.0, np.nan], [1.0, 0.0]], [0, 1], r"logits_or_predictions\[0, 1\] is nan"),
            ([0, 1], [0.0, np.nan], r"labels\[1\] is nan"),
            (["cat", "dog"], [0, 1], "dtype <U3"),
            (np.zeros((2, 2, 2)), [0, 1], r"shape \(2, 2, 2\)"),
            (np.eye(2), np.eye(2), r"labels has shape \(2, 2\)"),
        ],
    )
    def test_bad_predictions_or_labels_are_named(self, predictions, labels, message):
        with pytest.raises(ValueError, match=message):
            metrics.accuracy(predictions, labels)

    @pytest.mark.parametrize(
        "metric", [metrics.expected_calibration_error, metrics.negative_log_likelihood, metrics.brier_score]
    )
    @pytest.mark.parametrize(
        ("probabilities", "labels", "message"),
        [
            (np.empty((0, 2)), [], "probabilities is empty"),
            ([[0.5, 0.5], [0.5, 0.7]], [0, 1], r"probabilities\[1\] sums to 1.2; expected 1. Apply a softmax"),
            ([[2.0, -1.0]], [0], r"probabilities\[0, 0\] is 2.0"),
            ([[0.5, np.nan]], [0], r"probabilities\[0, 1\] is nan"),
            ([[0.5, 0.5]], [2], r"labels\[0\] is 2; expected a class index from 0 to 1"),
            ([[0.5, 0.5]], [0, 1], r"probabilities has shape \(1, 2\) but labels has shape \(2,\)"),
            ([0.5, 0.5], [0, 1], r"probabilities has shape \(2,\); expected 2 dimensions"),
        ],
    )
    def test_bad_probabilities_are_named(self, metric, probabilities, labels, message):
        with pytest.raises(ValueError, match=message):
            metric(probabilities, labels)

    def test_number_of_bins_must_be_positive(self):
        with pytest.raises(ValueError, match="num_bins=0"):
            metrics.expected_calibration_error(np.eye(2), [0, 1], num_bins=0)


class TestClassificationMetrics:
    @pytest.mark.parametrize("wrap", [lambda logits: logits, lambda logits: (logits, logits[:, :1], np.zeros(3))])
    def test_takes_logits_alone_or_first_in_a_tuple(self, wrap):
        from transformers import EvalPrediction

        logits, probabilities, labels = random_problem(0)
        result = metrics.classification_metrics(
            EvalPrediction(predictions=wrap(logits.astype(np.float32)), label_ids=labels)
        )
        assert result == {
            "accuracy": metrics.accuracy(logits, labels),
            "negative_log_likelihood": pytest.approx(metrics.negative_log_likelihood(probabilities, labels), abs=1e-6),
            "expected_calibration_error": pytest.approx(
                metrics.expected_calibration_error(probabilities, labels), abs=1e-6
            ),
        }

    @pytest.mark.parametrize("scale", [1.0, 1000.0])
    def test_likelihood_equals_cross_entropy_however_large_the_logits(self, scale):
        logits, _, labels = random_problem(1)
        logits = logits * scale
        loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
        result = metrics.classification_metrics(SimpleNamespace(predictions=logits, label_ids=labels))
        assert result["negative_log_likelihood"] == pytest.approx(loss, rel=1e-9)

    @pytest.mark.parametrize(
        ("logits", "message"),
        [([[np.nan, 0.0]], r"predictions\[0, 0\] is nan"), ([[-np.inf, -np.inf]], r"rules out every class")],
    )
    def test_logits_without_an_answer_are_named(self, logits, message):
        with pytest.raises(ValueError, match=message):
            metrics.classification_metrics(SimpleNamespace(predictions=logits, label_ids=[0]))

    def test_works_in_a_trainer(self, tmp_path):
        from transformers import Trainer, TrainingArguments

        class Linear(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(5, 5)

            def forward(self, features, labels):
                logits = self.layer(features)
                return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

        logits, _, labels = random_problem(0, num_images=50)
        images = [{"features": torch.tensor(x).float(), "labels": int(y)} for x, y in zip(logits, labels, strict=True)]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), report_to=[], disable_tqdm=True, use_cpu=True, per_device_eval_batch_size=16
        )
        metric = metrics.IT3Metric()

        def compute_metrics(prediction):
            by_evaluate = metric.compute(
                predictions=prediction.predictions.argmax(axis=-1), references=prediction.label_ids
            )
            return {**metrics.classification_metrics(prediction), "error_rate": by_evaluate["error_rate"]}

        trainer = Trainer(Linear(), arguments, eval_dataset=images, compute_metrics=compute_metrics)
        for _ in range(2):
            result = trainer.evaluate()
            assert result["eval_negative_log_likelihood"] == pytest.approx(result["eval_loss"], rel=1e-4)
            assert result["eval_accuracy"] == pytest.approx(1 - result["eval_error_rate"])
            assert 0 <= result["eval_expected_calibration_error"] <= 1


def test_evaluate_is_imported_only_with_the_metric_that_needs_it():
    code = "import sys, hf_it3.evaluation.metrics; assert 'evaluate' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "IT3Metric" in dir(metrics)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'f2'"):
        metrics.__getattr__("f2")
