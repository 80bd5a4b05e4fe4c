"""IT3Trainer: what it trains, logs and resumes, and what it says about bad arguments and data."""

import copy
import pickle

import datasets
import numpy as np
import pytest
import torch
import trainer_fixtures
from PIL import Image
from torch.nn import functional as F
from trainer_fixtures import tiny, weights
from transformers import ResNetConfig, Seq2SeqTrainingArguments, TrainingArguments, pipeline, set_seed

from hf_it3 import IT3Config, IT3ForImageClassification, IT3ImageProcessor, IT3Trainer, IT3TrainingArguments


arguments, rows = trainer_fixtures.arguments, trainer_fixtures.rows


class TestTraining:
    def test_every_parameter_moves_the_embedders_too(self, arguments, rows):
        model = tiny()
        before = weights(model)
        IT3Trainer(model, arguments(), train_dataset=rows).train()
        still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
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
        assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
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

    def test_copies_keep_the_token_and_files_do_not(self, arguments):
        args = arguments(hub_token="hf_secret")
        assert copy.deepcopy(args).hub_token == "hf_secret"
        assert copy.deepcopy(args).to_dict() == args.to_dict()
        assert b"hf_secret" not in pickle.dumps(args)

    def test_a_model_that_takes_no_signal_is_refused(self, arguments, rows):
        with pytest.raises(TypeError, match="IT3CNNForImageClassification takes no label signal; wrap it with"):
            IT3Trainer(tiny().backbone, arguments(), train_dataset=rows)
        with pytest.raises(TypeError, match="IT3CNNForImageClassification takes no label signal; wrap it with"):
            IT3Trainer(model_init=lambda: tiny().backbone, args=arguments(), train_dataset=rows)

    @pytest.mark.parametrize("label", [0.5, [1.0, 0.0]])
    def test_the_task_can_be_told_by_the_labels(self, arguments, rows, label):
        data = [{"pixel_values": row["pixel_values"], "label": label} for row in rows]
        args = arguments(eval_adapted=True)
        model = tiny(num_labels=np.size(label), distance="mse")
        trainer = IT3Trainer(model, args, train_dataset=data, eval_dataset=data)
        trainer.train()
        metrics = trainer.evaluate()
        assert np.isfinite(metrics["eval_loss"])
        assert "eval_accuracy" not in metrics

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


def test_the_image_processor_is_saved_with_a_model_that_was_trained_with_it(arguments, rows, processor, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "before")
    assert not (tmp_path / "before" / "preprocessor_config.json").exists()
    IT3Trainer(model, arguments(), train_dataset=rows, processing_class=processor).train()
    model.save_pretrained(tmp_path / "after")
    loaded = IT3ImageProcessor.from_pretrained(tmp_path / "after")
    assert loaded.to_dict() == processor.to_dict()
    other = IT3ImageProcessor(num_channels=1, image_mean=[0.25])
    pipeline("it3-image-classification", model, image_processor=other).save_pretrained(tmp_path / "pipeline")
    assert IT3ImageProcessor.from_pretrained(tmp_path / "pipeline").image_mean == [0.25]
    model.save_pretrained(tmp_path / "pipeline")
    assert IT3ImageProcessor.from_pretrained(tmp_path / "pipeline").image_mean == [0.25]
