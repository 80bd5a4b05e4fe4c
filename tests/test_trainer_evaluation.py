"""IT3Trainer: how it evaluates, with adaptation and without, and how it measures the reference distance."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trainer_fixtures
from trainer_fixtures import tiny, weights
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_it3 import IT3ForImageClassification, IT3Trainer, TestTimeAdapter
from hf_it3.it3.shift_test_it3 import idempotence_distances


arguments, rows = trainer_fixtures.arguments, trainer_fixtures.rows


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

    def test_it_is_that_of_held_out_images_where_they_are_given(self, arguments, rows):
        model = tiny()
        trainer = IT3Trainer(model, arguments(reference_images=40), train_dataset=rows, reference_dataset=rows[:7])
        trainer.train()
        measured = dict(model.config.reference_distance)
        assert measured["num_images"] == 7
        assert trainer.measure_reference_distance() == measured
        assert trainer.measure_reference_distance(rows[7:20])["num_images"] == 13

    def test_of_one_image_it_has_no_spread(self, arguments, rows):
        model = tiny()
        IT3Trainer(model, arguments(reference_images=1), train_dataset=rows).train()
        assert model.config.reference_distance["std"] == 0

    def test_measuring_leaves_the_mode_of_the_model(self, arguments, rows):
        trainer = IT3Trainer(tiny().train(), arguments(), train_dataset=rows)
        trainer.measure_reference_distance(rows[:10])
        assert trainer.model.training

    def test_measuring_leaves_the_mode_of_every_part(self, arguments, rows):
        model = tiny().train()
        model.backbone.eval()
        modes = {name: module.training for name, module in model.named_modules()}
        IT3Trainer(model, arguments(), train_dataset=rows).measure_reference_distance(rows[:10])
        assert {name: module.training for name, module in model.named_modules()} == modes

    def test_batches_that_training_drops_are_measured(self, arguments, rows):
        model = tiny()
        args = arguments(dataloader_drop_last=True, reference_images=40)
        trainer = IT3Trainer(model, args, train_dataset=rows)
        trainer.train()
        assert model.config.reference_distance["num_images"] == 40
        assert trainer.measure_reference_distance(rows[:10])["num_images"] == 10
        assert args.dataloader_drop_last

    def test_an_iterable_data_set_of_torch_is_measured(self, arguments, rows):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(rows)

        model = tiny()
        IT3Trainer(model, arguments(reference_images=40), train_dataset=Stream()).train()
        assert model.config.reference_distance["num_images"] == 40

    def test_no_images_are_an_error_in_one_line(self, arguments, rows):
        trainer = IT3Trainer(tiny(), arguments(), train_dataset=rows)
        with pytest.raises(ValueError, match="^the reference distance needs at least one image"):
            trainer.measure_reference_distance([])

    def test_a_distance_that_is_not_finite_is_not_stored(self, arguments, rows, caplog):
        model = tiny(reference_distance={"mean": 0.0, "std": 1.0})
        with torch.no_grad():
            model.embedder[0].weight.fill_(torch.nan)
        trainer = IT3Trainer(model, arguments(), train_dataset=rows)
        assert trainer.measure_reference_distance(rows[:10]) is None
        assert model.config.reference_distance is None
        assert "distance of 10 of 10 images is not finite" in caplog.text


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

    @pytest.mark.parametrize("batch_size", [1, 10, 64])
    def test_as_many_images_adapt_together_as_the_models_settings_say_whatever_the_batch_size(
        self, model, arguments, shifted_rows, shifted_images, labels, batch_size
    ):
        model.config.adaptation = model.config.adaptation.replace(gate=None, batch_size=10)
        args = arguments(eval_adapted=True, per_device_eval_batch_size=batch_size)
        metrics = IT3Trainer(model, args, eval_dataset=shifted_rows).evaluate(metric_key_prefix="shifted")
        adapter = TestTimeAdapter(model)
        logits = torch.cat([adapter(images).logits for images in shifted_images.split(10)])
        assert metrics["shifted_adapted_accuracy"] == pytest.approx(
            (logits.argmax(-1) == labels).float().mean().item()
        )
        assert args.per_device_eval_batch_size == batch_size

    @pytest.mark.parametrize(
        "loading",
        [{"dataloader_drop_last": True}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}],
    )
    def test_every_image_of_each_data_set_adapts_whatever_way_it_is_loaded(
        self, model, arguments, shifted_rows, rows, monkeypatch, loading
    ):
        seen = []
        call = TestTimeAdapter.__call__
        monkeypatch.setattr(
            TestTimeAdapter, "__call__", lambda self, images: seen.append(images) or call(self, images)
        )
        model.config.adaptation = model.config.adaptation.replace(gate=None, batch_size=20)
        datasets = {"a": shifted_rows[:24], "b": rows[:16]}
        args = arguments(eval_adapted=True, per_device_eval_batch_size=4, **loading)
        metrics = IT3Trainer(model, args, eval_dataset=datasets).evaluate()
        assert [len(images) for images in seen] == [20, 4, 16]
        expected = torch.stack([row["pixel_values"] for row in datasets["a"] + datasets["b"]])
        assert torch.equal(torch.cat(seen), expected)
        assert {"eval_a_adapted_accuracy", "eval_b_adapted_accuracy"} <= metrics.keys()
        assert all(getattr(args, name) == value for name, value in loading.items())

    def test_predictions_that_are_kept_batch_by_batch_have_the_same_metrics(self, model, arguments, shifted_rows):
        evaluate = [
            IT3Trainer(model, arguments(eval_adapted=True, **settings), eval_dataset=shifted_rows[:41]).evaluate()
            for settings in ({}, {"eval_do_concat_batches": False})
        ]
        for name, value in evaluate[0].items():
            if "runtime" not in name and "second" not in name and "time" not in name:
                assert evaluate[1][name] == pytest.approx(value), name

    def test_metrics_batch_by_batch_need_a_function_that_can(self, model, arguments, shifted_rows):
        args = arguments(batch_eval_metrics=True)
        with pytest.raises(ValueError, match="batch_eval_metrics=True needs compute_metrics of yours"):
            IT3Trainer(model, args, eval_dataset=shifted_rows)

        def count(prediction, compute_result=False):
            return {"last": len(prediction.label_ids)} if compute_result else None

        metrics = IT3Trainer(model, args, eval_dataset=shifted_rows[:40], compute_metrics=count).evaluate()
        assert metrics["eval_last"] == 8

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

    def test_callbacks_and_the_log_get_all_metrics_at_once(self, model, arguments, shifted_rows):
        class Listener(TrainerCallback):
            heard = []

            def on_evaluate(self, args, state, control, metrics, **kwargs):
                self.heard.append(metrics)

        args = arguments(eval_adapted=True)
        trainer = IT3Trainer(model, args, eval_dataset=shifted_rows, callbacks=[Listener()])
        metrics = trainer.evaluate()
        assert Listener.heard == [metrics]
        (entry,) = trainer.state.log_history
        assert {"eval_loss", "eval_accuracy", "eval_adapted_accuracy"} <= entry.keys()
        assert not any("adapted" in name for name in trainer.predict(shifted_rows).metrics)

    def test_the_best_model_can_be_that_of_the_best_adapted_accuracy(self, arguments, rows, caplog):
        args = arguments(
            eval_adapted=True,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            max_steps=6,
            learning_rate=0.0,
            load_best_model_at_end=True,
            metric_for_best_model="adapted_accuracy",
        )
        stopping = EarlyStoppingCallback(early_stopping_patience=2)
        trainer = IT3Trainer(tiny(), args, train_dataset=rows, eval_dataset=rows[:20], callbacks=[stopping])
        trainer.train()
        assert trainer.state.global_step == 3
        assert trainer.state.best_global_step == 1
        assert "early stopping is disabled" not in caplog.text

    def test_the_gate_of_an_evaluation_is_that_of_the_model_saved_then(self, arguments, rows, shifted_rows):
        values = {"eval_adapted": True, "reference_images": 40}
        args = arguments(
            **values,
            eval_strategy="steps",
            eval_steps=2,
            save_strategy="steps",
            save_steps=2,
            max_steps=6,
            load_best_model_at_end=True,
            metric_for_best_model="adapted_accuracy",
        )
        trainer = IT3Trainer(tiny(), args, train_dataset=rows, eval_dataset=shifted_rows + rows)
        trainer.train()
        logged = {
            entry["step"]: entry["eval_adapted_accuracy"]
            for entry in trainer.state.log_history
            if "eval_adapted_accuracy" in entry
        }
        for step, accuracy in logged.items():
            saved = IT3ForImageClassification.from_pretrained(f"{args.output_dir}/checkpoint-{step}").eval()
            distances = idempotence_distances(saved, torch.stack([row["pixel_values"] for row in rows[:40]]))
            assert saved.config.reference_distance["mean"] == pytest.approx(distances.mean().item(), abs=1e-5), step
            again = IT3Trainer(saved, arguments(**values), eval_dataset=shifted_rows + rows).evaluate()
            assert again["eval_adapted_accuracy"] == pytest.approx(accuracy), step
        assert trainer.evaluate()["eval_adapted_accuracy"] == pytest.approx(max(logged.values()))

    def test_a_model_without_a_reference_gets_one_before_it_adapts_and_another_keeps_its_own(
        self, model, arguments, rows, shifted_rows
    ):
        args = arguments(eval_adapted=True, reference_images=40)
        own = model.config.reference_distance
        IT3Trainer(model, args, train_dataset=rows, eval_dataset=shifted_rows).evaluate()
        assert model.config.reference_distance == own
        model.config.reference_distance = None
        IT3Trainer(model, args, train_dataset=rows, eval_dataset=shifted_rows).evaluate()
        assert model.config.reference_distance["num_images"] == 40

    def test_either_loop_has_a_progress_bar_of_its_own(self, model, arguments, shifted_rows, capsys):
        model.config.adaptation = model.config.adaptation.replace(batch_size=32)
        args = arguments(eval_adapted=True, disable_tqdm=False, per_device_eval_batch_size=32)
        IT3Trainer(model, args, eval_dataset=shifted_rows).evaluate()
        assert capsys.readouterr().err.count("2/2") >= 2
