"""Losses, optimizers and trainers of the caller's own in IT3Trainer."""

import pytest
import torch
import trainer_fixtures
from torch.nn import functional as F
from trainer_fixtures import tiny, weights

from hf_it3 import IT3Trainer


arguments, rows = trainer_fixtures.arguments, trainer_fixtures.rows

CLASS_WEIGHTS = torch.linspace(0.1, 2, 10)


def weighted(outputs, labels, num_items_in_batch=None):
    """As the documentation of transformers has it."""
    return F.cross_entropy(outputs.logits, labels, CLASS_WEIGHTS)


def batch_of(rows):
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def smoothed(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, label_smoothing=0.1)


class TestOwnLoss:
    @pytest.mark.parametrize(
        ("loss", "given", "values"),
        [(weighted, {"compute_loss_func": weighted}, {}), (smoothed, {}, {"label_smoothing_factor": 0.1})],
        ids=["class weights", "label smoothing"],
    )
    def test_it_takes_the_place_of_the_models_in_both_passes(self, arguments, rows, loss, given, values):
        model = tiny(idempotence_weight=0.5, problem_type="single_label_classification").eval()
        trainer = IT3Trainer(model, arguments(**values), train_dataset=rows, **given)
        batch = batch_of(rows)
        output = model(**batch)
        second = type(output)(logits=output.signal_logits)
        expected = loss(output, batch["labels"]) + 0.5 * loss(second, batch["labels"])
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)
        assert (expected - output.loss).abs() > 1e-3

    @pytest.mark.parametrize("from_function", [False, True])
    def test_training_logs_its_parts_and_moves_every_parameter(self, arguments, rows, from_function):
        given = {"model_init": lambda: tiny()} if from_function else {"model": tiny()}
        args = arguments(logging_strategy="steps", logging_steps=1)
        trainer = IT3Trainer(args=args, train_dataset=rows, eval_dataset=rows, compute_loss_func=weighted, **given)
        before = weights(tiny())
        trainer.train()
        assert all(not torch.equal(value, before[name]) for name, value in trainer.model.named_parameters())
        entry = trainer.state.log_history[0]
        assert entry["loss"] == pytest.approx(entry["classification_loss"] + entry["idempotence_loss"], rel=1e-3)
        assert trainer.evaluate()["eval_loss"] > 0

    def test_batches_that_accumulate_give_the_step_of_a_large_one(self, arguments, rows):
        def summed(outputs, labels, num_items_in_batch=None):
            return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

        results = []
        for size, accumulated in ((8, 2), (16, 1)):
            model = tiny()
            values = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
            args = arguments(max_steps=2, optim="sgd", learning_rate=0.1, **values)
            IT3Trainer(model, args, train_dataset=rows, compute_loss_func=summed).train()
            results.append(weights(model))
        for name, value in results[0].items():
            torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-6)

    def test_smoothing_is_for_one_class_per_image(self, arguments, rows):
        model = tiny(problem_type="regression", num_labels=1)
        data = [{"pixel_values": row["pixel_values"], "label": 0.5} for row in rows]
        with pytest.raises(ValueError, match="label_smoothing_factor=0.1 is for one class per image, .*='regression'"):
            IT3Trainer(model, arguments(label_smoothing_factor=0.1), train_dataset=data).train()


class WithoutSignalPass(IT3Trainer):
    """The recipe for a loss of one's own that is right for models of a single pass."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits, labels, CLASS_WEIGHTS)
        return (loss, outputs) if return_outputs else loss


class WithBothPasses(IT3Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        both = (outputs.logits, outputs.signal_logits)
        loss = sum(F.cross_entropy(logits, inputs["labels"], CLASS_WEIGHTS) for logits in both)
        return (loss, outputs) if return_outputs else loss


class TestOwnTrainer:
    def test_a_loss_without_the_signal_pass_is_refused_at_the_first_step(self, arguments, rows):
        trainer = WithoutSignalPass(tiny(), arguments(), train_dataset=rows)
        with pytest.raises(ValueError, match="compute_loss of WithoutSignalPass gives the label embedder no gradient"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_a_loss_of_both_passes_trains(self, arguments, rows):
        model = tiny()
        before = weights(model)
        WithBothPasses(model, arguments(), train_dataset=rows).train()
        assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())

    def test_a_frozen_embedder_needs_no_signal_pass(self, arguments, rows):
        model = tiny()
        model.embedder.requires_grad_(False)
        assert WithoutSignalPass(model, arguments(), train_dataset=rows).train().global_step == 3


class TestOwnOptimizer:
    def test_it_is_used(self, arguments, rows):
        model = tiny()
        before = weights(model)
        optimizer = torch.optim.SGD([{"params": model.embedder.parameters(), "lr": 0.1}])
        IT3Trainer(model, arguments(), train_dataset=rows, optimizers=(optimizer, None)).train()
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {name for name in before if name.startswith("embedder.")}

    def test_a_class_of_it_gets_the_rate_of_the_embedder(self, arguments, rows):
        given = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.2})}
        trainer = IT3Trainer(tiny(), arguments(embedder_learning_rate=0.5), train_dataset=rows, **given)
        trainer.train()
        assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.2, 0.5}

    def test_a_rate_that_it_would_not_take_is_refused(self, arguments, rows):
        model = tiny()
        given = {"optimizers": (torch.optim.SGD(model.parameters()), None)}
        with pytest.raises(ValueError, match="embedder_learning_rate=0.5 has no effect on the SGD given"):
            IT3Trainer(model, arguments(embedder_learning_rate=0.5), train_dataset=rows, **given)


class TestModelsThatCannotBeSaved:
    @pytest.mark.parametrize("name", ["combine", "distance"])
    def test_they_are_refused_before_training_unless_nothing_is_saved(self, arguments, rows, name):
        model = tiny(**{name: lambda first, second: first + second})
        with pytest.raises(
            ValueError, match=rf"IT3Config\.{name} is a callable .* cannot be saved.*save_strategy='no'"
        ):
            IT3Trainer(model, arguments(save_strategy="steps"), train_dataset=rows)
        IT3Trainer(model, arguments(), train_dataset=rows)
