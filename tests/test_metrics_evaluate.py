import os
import pickle
import subprocess
import sys

import datasets
import evaluate
import numpy as np
import pytest
import torch

from hf_it3.evaluation import metrics
from hf_it3.evaluation.metrics import IT3Metric


class TestIT3Metric:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "cache")
        return tmp_path / "cache"

    @pytest.fixture
    def columns(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(5, size=200)
        probabilities = rng.dirichlet(np.ones(5), size=200) / 2 + np.eye(5)[rng.permuted(labels, axis=0)] / 2
        return {
            "predictions": np.where(rng.random(200) < 0.5, labels, probabilities.argmax(axis=1)),
            "references": labels,
            "probabilities": probabilities,
            "distances": rng.random(200),
        }

    @pytest.fixture
    def expected(self, columns):
        predictions, labels, probabilities, distances = columns.values()
        return {
            "accuracy": metrics.accuracy(predictions, labels),
            "error_rate": metrics.error_rate(predictions, labels),
            "expected_calibration_error": metrics.expected_calibration_error(probabilities, labels),
            "negative_log_likelihood": metrics.negative_log_likelihood(probabilities, labels),
            "brier_score": metrics.brier_score(probabilities, labels),
            "error_detection_auroc": metrics.auroc(distances, predictions != labels),
            "area_under_risk_coverage": metrics.area_under_risk_coverage(distances, predictions == labels),
        }

    def test_compute_takes_optional_columns_undeclared(self, columns, expected):
        assert IT3Metric().compute(**columns) == expected
        few = IT3Metric().compute(predictions=columns["predictions"], references=columns["references"])
        assert few == {name: expected[name] for name in ("accuracy", "error_rate")}

    @pytest.mark.parametrize("keep_in_memory", [True, False])
    def test_batches_and_single_images_collect_declared_columns(self, columns, expected, keep_in_memory):
        metric = IT3Metric(["distances", "probabilities"], keep_in_memory=keep_in_memory)
        assert not metric
        for start in range(0, 150, 50):
            metric.add_batch(**{name: column[start : start + 50] for name, column in columns.items()})
        assert len(metric) == 150
        for image in range(150, 200):
            metric.add(
                prediction=columns["predictions"][image],
                reference=columns["references"][image],
                probabilities=columns["probabilities"][image],
                distances=columns["distances"][image],
            )
        assert metric.compute() == expected
        assert not metric

    def test_torch_tensors_are_collected(self, columns, expected):
        metric = IT3Metric("probabilities")
        del columns["distances"]
        metric.add_batch(**{name: torch.tensor(column) for name, column in columns.items()})
        assert metric.compute().items() <= expected.items()

    def test_combines_with_other_metrics(self, columns, expected):
        class Count(evaluate.Metric):
            def _info(self):
                features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
                return evaluate.MetricInfo(
                    description="", citation="", inputs_description="", features=datasets.Features(features)
                )

            def _compute(self, predictions, references):
                return {"count": len(predictions)}

        combined = evaluate.combine([IT3Metric(["probabilities", "distances"]), Count(keep_in_memory=True)])
        combined.add_batch(**columns)
        assert combined.compute() == {**expected, "count": 200}
        twice = evaluate.combine({"first": IT3Metric(), "second": IT3Metric()})
        result = twice.compute(**columns)
        assert result["first_accuracy"] == result["second_accuracy"] == expected["accuracy"]

    def test_no_errors_leave_error_detection_undefined(self):
        result = IT3Metric().compute(predictions=[0, 1], references=[0, 1], distances=[0.1, 0.2])
        assert np.isnan(result["error_detection_auroc"])
        assert result["area_under_risk_coverage"] == 0.0

    @pytest.mark.parametrize(
        ("declared", "columns", "message"),
        [
            ((), {}, "IT3Metric has no predictions"),
            ((), {"predictions": [], "references": []}, "references is empty"),
            ((), {"predictions": [0, 1], "references": [0]}, r"predictions has shape \(2,\)"),
            ((), {"predictions": [0.4], "references": [0]}, r"predictions\[0\] is 0.4"),
            ((), {"predictions": [0], "references": [0], "distances": [0.1, 0.2]}, r"distances has shape \(2,\)"),
            ((), {"predictions": [0], "references": [0], "distances": [np.nan]}, r"distances\[0\] is nan"),
            (["distances"], {"predictions": [0], "references": [0], "distances": [np.nan]}, r"distances\[0\] is nan"),
            (["distances"], {"predictions": [0], "references": [0]}, "missing: \\['distances'\\]"),
            (["distances"], {"predictions": [0], "references": [0], "distances": [1, 2]}, r"distances has shape"),
        ],
    )
    def test_bad_input_is_named_and_leaves_the_metric_usable(self, declared, columns, message):
        metric = IT3Metric(declared)
        with pytest.raises(ValueError, match=message):
            metric.compute(**columns)
        good = {"predictions": [0, 1], "references": [0, 0], "distances": [0.1, 0.2]}
        assert metric.compute(**good)["error_detection_auroc"] == 1.0

    @pytest.mark.parametrize(("declared", "given"), [((), {"distances": [0.1]}), (["distances"], {})])
    def test_collected_columns_must_be_the_declared_ones(self, declared, given):
        with pytest.raises(ValueError, match=r"IT3Metric\(optional_columns="):
            IT3Metric(declared).add_batch(predictions=[0], references=[0], **given)
        with pytest.raises(ValueError, match=r"IT3Metric\(optional_columns="):
            IT3Metric(declared).add(prediction=0, reference=0, **{name: column[0] for name, column in given.items()})

    def test_single_fractions_are_not_truncated(self):
        with pytest.raises(ValueError, match=r"prediction\[0\] is 0.7"):
            IT3Metric().add(prediction=0.7, reference=0)

    def test_unknown_columns_are_named(self):
        with pytest.raises(ValueError, match="'logits'; expected any of probabilities, distances"):
            IT3Metric(["logits"])

    def test_writes_nothing_by_default_and_only_in_the_cache_otherwise(self, columns, cache, tmp_path, monkeypatch):
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        IT3Metric(["probabilities", "distances"]).compute(**columns)
        assert [path.name for path in tmp_path.rglob("*")] == ["work"]
        IT3Metric(keep_in_memory=False).compute(**columns)
        assert cache.exists()
        assert not list((tmp_path / "work").iterdir())
        assert not list(cache.rglob("*.arrow"))

    @pytest.mark.slow
    def test_processes_that_share_a_cache_do_not_clash(self, cache):
        collecting = IT3Metric(keep_in_memory=False)
        collecting.add_batch(predictions=[0, 1], references=[0, 0])
        code = (
            "from hf_it3.evaluation.metrics import IT3Metric; metric = IT3Metric(keep_in_memory=False); "
            "metric.add_batch(predictions=[1], references=[1]); print(metric.compute()['accuracy'])"
        )
        environment = {**os.environ, "HF_METRICS_CACHE": str(cache)}
        other = subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
        )
        assert other.stdout.strip() == "1.0"
        assert collecting.compute() == {"accuracy": 0.5, "error_rate": 0.5}

    def test_can_be_pickled(self, columns, expected):
        assert pickle.loads(pickle.dumps(IT3Metric())).compute(**columns) == expected
