"""What IT3Trainer measures by default for several labels per image and for numbers."""

import numpy as np
import pytest
import torch
import trainer_fixtures
from datasets import Dataset
from sklearn.metrics import f1_score, hamming_loss, mean_absolute_error, mean_squared_error
from trainer_fixtures import tiny
from transformers.trainer_utils import EvalPrediction

from hf_it3 import IT3Trainer
from hf_it3.evaluation.metrics import multi_label_metrics, regression_metrics


arguments = trainer_fixtures.arguments


def images(count):
    return [torch.rand(1, 16, 16) for _ in range(count)]


@pytest.fixture
def numbers():
    """Rows with one number each, far from 0."""
    return [{"pixel_values": image, "label": 100 + 5 * image.mean().item()} for image in images(16)]


def test_targets_are_measured_before_training_and_errors_are_reported_plain_and_adapted(numbers, arguments):
    model = tiny(problem_type="regression", num_labels=1)
    values = arguments(eval_adapted=True, max_steps=1)
    trainer = IT3Trainer(model, values, train_dataset=numbers, eval_dataset=numbers)
    assert model.config.target_mean is None
    trainer.train()
    labels = np.array([row["label"] for row in numbers])
    assert model.config.target_mean == pytest.approx([labels.mean()])
    assert model.config.target_std == pytest.approx([labels.std()])
    metrics = trainer.evaluate()
    predictions = model.eval()(torch.stack([row["pixel_values"] for row in numbers])).logits.detach().numpy()
    assert metrics["eval_mse"] == pytest.approx(mean_squared_error(labels, predictions), rel=1e-3)
    assert metrics["eval_mae"] == pytest.approx(mean_absolute_error(labels, predictions), rel=1e-3)
    assert {"eval_adapted_mse", "eval_adapted_mae"} <= metrics.keys()


def test_targets_of_a_data_set_are_read_from_its_column_and_those_of_the_model_are_kept(arguments):
    rows = Dataset.from_dict({"image": [[[0]]] * 3, "angle": [[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]]})
    model = tiny(problem_type="regression", num_labels=2)
    trainer = IT3Trainer(model, arguments(label_column="angle", max_steps=1), train_dataset=rows)
    trainer.data_collator = lambda rows: {
        "pixel_values": torch.rand(len(rows), 1, 16, 16),
        "labels": torch.tensor([row["angle"] for row in rows]),
    }
    trainer.train()
    assert model.config.target_mean == [3.0, 5.0]
    assert model.config.target_std == pytest.approx([(8 / 3) ** 0.5, 1.0])  # 1 where all targets are the same
    model.config.target_mean = [0.0, 0.0]
    trainer.train()
    assert model.config.target_mean == [0.0, 0.0]


def test_labels_of_their_own_are_reported_plain_and_adapted(arguments):
    torch.manual_seed(0)
    rows = [{"pixel_values": image, "label": torch.randint(0, 2, (5,)).float()} for image in images(16)]
    model = tiny(problem_type="multi_label_classification", num_labels=5)
    metrics = IT3Trainer(model, arguments(eval_adapted=True), eval_dataset=rows).evaluate()
    predicted = model.eval()(torch.stack([row["pixel_values"] for row in rows])).logits.detach().numpy() > 0
    labels = torch.stack([row["label"] for row in rows]).numpy()
    assert metrics["eval_f1_micro"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert metrics["eval_label_accuracy"] == pytest.approx(1 - hamming_loss(labels, predicted))
    assert {"eval_adapted_f1_micro", "eval_adapted_label_accuracy"} <= metrics.keys()
    assert multi_label_metrics(EvalPrediction(-np.ones((2, 3)), np.zeros((2, 3))))["f1_micro"] == 0.0


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"predictions has shape \(3, 1\) but label_ids has shape \(2,\)"):
        regression_metrics(EvalPrediction(np.zeros((3, 1)), np.zeros(2)))
    with pytest.raises(ValueError, match=r"label_ids\[0, 1\] is 2"):
        multi_label_metrics(EvalPrediction(np.zeros((1, 2)), np.array([[0, 2]])))
