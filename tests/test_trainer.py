"""IT3Trainer: what it trains, logs, resumes, evaluates and measures, and what it says about bad data."""

import copy
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ResNetConfig, Seq2SeqTrainingArguments, TrainingArguments, set_seed

from hf_it3 import (
    IT3CNNConfig,
    IT3Config,
    IT3ForImageClassification,
    IT3Trainer,
    IT3TrainingArguments,
    TestTimeAdapter,
)
from hf_it3.gate_it3 import idempotence_distances


def tiny(**values) -> IT3ForImageClassification:
    set_seed(3)
    backbone = IT3CNNConfig(image_size=16, conv_channels=[4, 8], hidden_size=24)
    return IT3ForImageClassification(IT3Config(**{"backbone_config": backbone, **values}))


@pytest.fixture
def arguments(tmp_path):
    """Makes quiet arguments for a few steps on the CPU."""

    def make(**values):
        kind = values.pop("kind", IT3TrainingArguments)
        ours = {"reference_images": 0} if kind is IT3TrainingArguments else {}
        return kind(
            **{
                "output_dir": str(tmp_path / "runs"),
                "max_steps": 3,
                "per_device_train_batch_size": 8,
                "per_device_eval_batch_size": 32,
                "learning_rate": 1e-2,
                "save_strategy": "no",
                "logging_strategy": "no",
                "disable_tqdm": True,
                "use_cpu": True,
                **ours,
                **values,
            }
        )

    return make


@pytest.fixture(scope="session")
def rows(train_rows):
    return train_rows[:64]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class TestTraining:
    def test_every_parameter_moves_the_embedders_too(self, arguments, rows):
        model = tiny()
        before = weights(model)
        IT3Trainer(model, arguments(), train_dataset=rows).train()
        still = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
        assert still == []
        assert any(name.startswith("embedder.") for name in before)

    def test_a_data_set_of_images_and_labels_needs_no_preparation(self, arguments, digits):
        trainer = IT3Trainer(tiny(), arguments(), train_dataset=digits["train"], eval_dataset=digits["test"])
        assert trainer.train().global_step == 3
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1

    @pytest.mark.parametrize("from_function", [False, True])
    def test_classes_without_names_get_those_of_the_data_set(self, arguments, digits, from_function):
        names = [f"digit {index}" for index in range(10)]
        rows = digits["train"].select(range(16)).cast_column("label", datasets.ClassLabel(names=names))
        given = {"model_init": lambda: tiny()} if from_function else {"model": tiny()}
        trainer = IT3Trainer(args=arguments(), train_dataset=rows, **given)
        trainer.train()
        assert trainer.model.config.id2label == dict(enumerate(names))
        assert trainer.model.config.label2id == {name: index for index, name in enumerate(names)}

    def test_names_that_classes_have_stay(self, arguments, digits):
        letters = dict(enumerate("abcdefghij"))
        model = tiny(id2label=letters)
        IT3Trainer(model, arguments(), train_dataset=digits["train"])
        assert model.config.id2label == letters

    @pytest.mark.parametrize("streamed", [False, True])
    def test_columns_of_other_names_can_be_given(self, arguments, digits, streamed):
        dataset = digits["train"].rename_columns({"image": "scan", "label": "digit"})
        dataset = dataset.to_iterable_dataset() if streamed else dataset
        args = arguments(image_column="scan", label_column="digit", reference_images=16)
        trainer = IT3Trainer(tiny(), args, train_dataset=dataset)
        assert trainer.train().global_step == 3
        assert trainer.model.config.reference_distance["num_images"] == 16

    @pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device to pin memory for")
    def test_without_an_accelerator_there_is_no_warning_about_pinned_memory(self, arguments, rows, recwarn):
        IT3Trainer(tiny(), arguments(use_cpu=False), train_dataset=rows).train()
        assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]

    def test_both_losses_are_logged_as_means_since_the_last_entry(self, arguments, rows):
        model = tiny(idempotence_weight=0.5)
        first, second = ([], [])
        original = model.forward

        def forward(*args, **kwargs):
            output = original(*args, **kwargs)
            first.append(output.classification_loss.item())
            second.append(output.idempotence_loss.item())
            return output

        model.forward = forward
        trainer = IT3Trainer(
            model, arguments(logging_strategy="steps", logging_steps=2, max_steps=4), train_dataset=rows
        )
        trainer._signature_columns = ["pixel_values", "labels", "label"]
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(entries) == 2
        for position, entry in enumerate(entries):
            part = slice(2 * position, 2 * position + 2)
            assert entry["classification_loss"] == pytest.approx(np.mean(first[part]), abs=1e-4)
            assert entry["idempotence_loss"] == pytest.approx(np.mean(second[part]), abs=1e-4)
            assert entry["loss"] == pytest.approx(
                entry["classification_loss"] + 0.5 * entry["idempotence_loss"], abs=1e-3
            )

    def test_accumulated_gradients_equal_those_of_a_big_batch(self, arguments, rows):
        results = []
        for batch_size, steps in ((16, 1), (4, 4)):
            model = tiny()
            args = arguments(
                per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_steps=2, optim="sgd"
            )
            IT3Trainer(model, args, train_dataset=rows).train()
            results.append(weights(model))
        for name, value in results[0].items():
            torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)

    def test_a_resumed_run_ends_where_an_uninterrupted_one_does(self, arguments, rows, tmp_path):
        def run(**values):
            model = tiny()
            args = arguments(max_steps=6, save_strategy="steps", save_steps=3, logging_steps=1, **values)
            return IT3Trainer(model, args, train_dataset=rows), model

        trainer, uninterrupted = run()
        trainer.train()
        set_seed(99)
        trainer, resumed = run()
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.zero_()
        trainer.train(resume_from_checkpoint=str(tmp_path / "runs" / "checkpoint-3"))
        for name, value in weights(uninterrupted).items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_it_trains_under_autocast(self, arguments, rows):
        model = tiny()
        before = weights(model)
        trainer = IT3Trainer(model, arguments(bf16=True), train_dataset=rows, eval_dataset=rows)
        trainer.train()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert np.isfinite(trainer.evaluate()["eval_loss"])

    def test_the_signal_statistics_of_batch_norm_are_trained_and_kept(self, arguments, rows, tmp_path):
        set_seed(0)
        backbone = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10)
        model = IT3ForImageClassification(IT3Config(backbone_config=backbone))
        trainer = IT3Trainer(model, arguments(), train_dataset=rows)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        again = IT3ForImageClassification.from_pretrained(tmp_path / "saved")
        statistics = {name: value for name, value in again.named_buffers() if name.endswith("running_mean")}
        assert any("signal_" in name for name in statistics)
        for name, value in statistics.items():
            assert torch.equal(value, model.get_buffer(name))
            assert value.abs().sum() > 0

    @pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
    def test_other_problem_types_train(self, arguments, rows, problem_type):
        model = tiny(num_labels=2, problem_type=problem_type, distance="mse")
        data = [{"pixel_values": row["pixel_values"], "label": [1.0, 0.0]} for row in rows]
        trainer = IT3Trainer(model, arguments(), train_dataset=data, eval_dataset=data)
        assert trainer.train().global_step == 3
        assert np.isfinite(trainer.evaluate()["eval_loss"])


class TestArguments:
    @pytest.mark.parametrize("kind", [TrainingArguments, Seq2SeqTrainingArguments])
    def test_plain_arguments_are_accepted_and_keep_their_values(self, arguments, rows, kind):
        given = arguments(kind=kind, weight_decay=0.03, warmup_steps=2, seed=11)
        trainer = IT3Trainer(tiny(), given, train_dataset=rows)
        assert type(trainer.args) is IT3TrainingArguments
        for name in ("learning_rate", "weight_decay", "warmup_steps", "seed", "max_steps", "output_dir", "use_cpu"):
            assert getattr(trainer.args, name) == getattr(given, name), name
        assert trainer.train().global_step == 3

    @pytest.mark.parametrize(
        ("field", "value"),
        [("reference_images", -1), ("embedder_learning_rate", 0.0), ("embedder_learning_rate", -1.0)],
    )
    def test_values_out_of_range_are_named(self, arguments, field, value):
        with pytest.raises(ValueError, match=f"{field} must be .* got {value}"):
            arguments(**{field: value})

    def test_the_embedder_can_have_a_learning_rate_of_its_own(self, arguments, rows):
        model = tiny()
        args = arguments(embedder_learning_rate=0.5, learning_rate=1e-3, lr_scheduler_type="constant", max_steps=1)
        trainer = IT3Trainer(model, args, train_dataset=rows)
        trainer.train()
        embedder = {id(parameter) for parameter in model.embedder.parameters()}
        rates = {
            id(parameter): group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]
        }
        assert len(rates) == len(list(model.parameters()))
        assert all(rate == (0.5 if key in embedder else 1e-3) for key, rate in rates.items())

    def test_a_frozen_backbone_trains_embedder_and_normalisation_alone(self, arguments, rows):
        set_seed(0)
        backbone = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10)
        model = IT3ForImageClassification(IT3Config(backbone_config=backbone))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        IT3Trainer(model, arguments(freeze_backbone=True), train_dataset=rows).train()
        for name, parameter in model.named_parameters():
            expected = name.startswith("embedder.") or "normalization" in name
            assert torch.equal(parameter, before[name]) is not expected, name

    def test_a_model_that_takes_no_signal_is_refused(self, arguments, rows):
        with pytest.raises(TypeError, match="got IT3CNNForImageClassification; wrap it with"):
            IT3Trainer(tiny().backbone, arguments(), train_dataset=rows)
        with pytest.raises(TypeError, match="got IT3CNNForImageClassification; wrap it with"):
            IT3Trainer(model_init=lambda: tiny().backbone, args=arguments(), train_dataset=rows)

    def test_a_function_that_makes_the_model_will_do(self, arguments, digits):
        args = arguments(freeze_backbone=True)
        trainer = IT3Trainer(
            args=args,
            model_init=lambda: tiny(),
            train_dataset=digits["train"],
            eval_dataset=digits["test"].select(range(40)),
        )
        first = trainer.model
        trainer.train()
        assert trainer.model is not first
        assert [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad] == [
            name for name, _ in trainer.model.named_parameters() if name.startswith("embedder.")
        ]
        assert trainer.model._image_processor is trainer.processing_class
        assert trainer.callback_handler.processing_class is trainer.processing_class
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


class TestReferenceDistance:
    def test_it_is_that_of_the_first_training_images_at_the_end(self, arguments, rows):
        model = tiny()
        IT3Trainer(model, arguments(reference_images=40), train_dataset=rows).train()
        distances = idempotence_distances(model.eval(), torch.stack([row["pixel_values"] for row in rows[:40]]))
        reference = model.config.reference_distance
        assert reference["mean"] == pytest.approx(distances.mean().item(), abs=1e-5)
        assert reference["std"] == pytest.approx(distances.std().item(), abs=1e-5)
        assert reference["num_images"] == 40
        assert reference["distance"] == "neg_dot"

    def test_none_is_measured_where_none_is_asked_for(self, arguments, rows):
        model = tiny()
        IT3Trainer(model, arguments(reference_images=0), train_dataset=rows).train()
        assert model.config.reference_distance is None

    def test_it_is_saved_with_the_model_and_is_plain_json(self, trained_directory):
        reference = json.loads(Path(trained_directory, "config.json").read_text())["reference_distance"]
        assert reference["num_images"] == 1297
        assert -1 <= reference["mean"] <= 0 < reference["std"]

    def test_of_one_image_it_has_no_spread(self, arguments, rows):
        model = tiny()
        IT3Trainer(model, arguments(reference_images=1), train_dataset=rows).train()
        assert model.config.reference_distance["std"] == 0

    def test_measuring_leaves_the_mode_of_the_model(self, arguments, rows):
        trainer = IT3Trainer(tiny().train(), arguments(), train_dataset=rows)
        trainer.measure_reference_distance(rows[:10])
        assert trainer.model.training


class TestEvaluation:
    @pytest.fixture
    def shifted_rows(self, shifted_images, labels):
        return [
            {"pixel_values": image, "label": label.item()} for image, label in zip(shifted_images, labels, strict=True)
        ]

    def test_adapted_metrics_stand_beside_the_plain_ones(self, model, arguments, shifted_rows, shifted_images, labels):
        args = arguments(eval_adapted=True, per_device_eval_batch_size=64)
        metrics = IT3Trainer(model, args, eval_dataset=shifted_rows).evaluate()
        plain = (model(shifted_images).logits.argmax(-1) == labels).float().mean().item()
        adapted = (TestTimeAdapter(model)(shifted_images).logits.argmax(-1) == labels).float().mean().item()
        assert adapted > plain
        assert metrics["eval_accuracy"] == pytest.approx(plain)
        assert metrics["eval_adapted_accuracy"] == pytest.approx(adapted)
        assert np.isfinite(metrics["eval_loss"])

    def test_images_adapt_by_evaluation_batches(self, model, arguments, shifted_rows, shifted_images, labels):
        model.config.adaptation = model.config.adaptation.replace(gate=None)
        args = arguments(eval_adapted=True, per_device_eval_batch_size=10)
        metrics = IT3Trainer(model, args, eval_dataset=shifted_rows).evaluate(metric_key_prefix="shifted")
        adapter = TestTimeAdapter(model)
        logits = torch.cat([adapter(images).logits for images in shifted_images.split(10)])
        assert metrics["shifted_adapted_accuracy"] == pytest.approx(
            (logits.argmax(-1) == labels).float().mean().item()
        )

    def test_without_it_there_are_none(self, model, arguments, shifted_rows):
        metrics = IT3Trainer(model, arguments(), eval_dataset=shifted_rows).evaluate()
        assert not any("adapted" in name for name in metrics)

    def test_the_loss_of_an_evaluation_is_that_of_training(self, model, arguments, rows):
        metrics = IT3Trainer(model, arguments(per_device_eval_batch_size=64), eval_dataset=rows).evaluate()
        images = torch.stack([row["pixel_values"] for row in rows])
        labels = torch.tensor([row["label"] for row in rows])
        assert metrics["eval_loss"] == pytest.approx(model(images, labels=labels).loss.item(), abs=1e-4)

    def test_metrics_of_the_callers_own_replace_the_default_ones(self, model, arguments, shifted_rows):
        def mine(prediction):
            return {"rows": len(prediction.label_ids), "classes": prediction.predictions.shape[1]}

        args = arguments(eval_adapted=True)
        metrics = IT3Trainer(model, args, eval_dataset=shifted_rows, compute_metrics=mine).evaluate()
        assert metrics["eval_rows"] == metrics["eval_adapted_rows"] == 64
        assert metrics["eval_classes"] == metrics["eval_adapted_classes"] == 10
        assert "eval_accuracy" not in metrics

    def test_several_data_sets_are_evaluated_by_name(self, model, arguments, shifted_rows, rows):
        args = arguments(eval_adapted=True)
        metrics = IT3Trainer(model, args, eval_dataset={"clean": rows, "bright": shifted_rows}).evaluate()
        assert {"eval_clean_accuracy", "eval_clean_adapted_accuracy", "eval_bright_adapted_accuracy"} <= set(metrics)

    def test_training_goes_on_unchanged_by_evaluations_with_adaptation(self, arguments, rows):
        results = []
        for strategy in ("no", "steps"):
            model = tiny()
            args = arguments(eval_strategy=strategy, eval_steps=1, eval_adapted=True)
            IT3Trainer(model, args, train_dataset=rows, eval_dataset=rows[:20]).train()
            results.append(weights(model))
        assert all(torch.equal(results[0][name], value) for name, value in results[1].items())

    def test_predictions_have_the_metrics_of_their_logits(self, model, arguments, rows):
        output = IT3Trainer(model, arguments()).predict(rows)
        assert output.predictions.shape == (64, 10)
        right = (output.predictions.argmax(-1) == output.label_ids).mean()
        assert output.metrics["test_accuracy"] == pytest.approx(right)


class TestBadData:
    def test_a_missing_label_column_is_an_error_in_one_line(self, arguments, digits):
        trainer = IT3Trainer(tiny(), arguments(), train_dataset=digits["train"].rename_column("label", "digit"))
        with pytest.raises(ValueError, match="^the batch has no labels, .*label column.*label_column$"):
            trainer.train()

    @pytest.mark.parametrize("name", ["image_column", "label_column"])
    def test_a_given_column_that_does_not_exist_is_named(self, arguments, digits, name):
        trainer = IT3Trainer(tiny(), arguments(**{name: "nowhere"}), train_dataset=digits["train"])
        with pytest.raises(ValueError, match=r"^the data set has no \w+ column 'nowhere'; its columns are [^\n]*$"):
            trainer.train()

    def test_a_data_set_without_images_is_an_error_in_one_line(self, arguments, digits):
        dataset = digits["train"].rename_column("image", "scan")
        trainer = IT3Trainer(tiny(), arguments(), train_dataset=dataset)
        with pytest.raises(ValueError, match=r"^the data set has no image column: looked for [^\n]*image_column$"):
            trainer.train()

    def test_a_label_out_of_range_is_named(self, arguments, rows):
        data = copy.deepcopy(rows[:8])
        data[5]["label"] = 10
        with pytest.raises(ValueError, match="^label 10 of image [0-7] .* the model has 10 labels, 0 to 9$"):
            IT3Trainer(tiny(), arguments(), train_dataset=data).train()

    def test_a_broken_image_is_named(self, arguments, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
        Image.fromarray(noise).save(tmp_path / "good.png")
        whole = (tmp_path / "good.png").read_bytes()
        (tmp_path / "bad.png").write_bytes(whole[: len(whole) // 2])
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        paths = [str(tmp_path / name) for name in ("good.png", "bad.png")]
        dataset = datasets.Dataset.from_dict({"image": paths, "label": [0, 1]}, features=features)
        with pytest.raises((ValueError, OSError), match="^[^\n]*(truncated|image|Truncated)[^\n]*$"):
            IT3Trainer(tiny(), arguments(), train_dataset=dataset).train()


def test_cross_entropy_is_what_falls(arguments, rows):
    model = tiny()
    images = torch.stack([row["pixel_values"] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    before = F.cross_entropy(model.eval()(images).logits, labels).item()
    IT3Trainer(model, arguments(max_steps=30), train_dataset=rows).train()
    assert F.cross_entropy(model.eval()(images).logits, labels).item() < before
