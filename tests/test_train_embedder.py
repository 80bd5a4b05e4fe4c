"""Training the label embedder alone leaves the classifier as it is, bit for bit."""

import copy

import pytest
import torch
import trainer_fixtures
from transformers import ResNetConfig, ViTConfig, set_seed

from hf_it3 import IT3Config, IT3ForImageClassification, IT3Trainer, IT3TrainingArguments


arguments, rows = trainer_fixtures.arguments, trainer_fixtures.rows

BACKBONES = {
    "resnet": ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10),
    "vit": ViTConfig(
        num_channels=1,
        image_size=16,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.5,
        num_labels=10,
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_what_it_answers_without_a_signal_stays_bit_identical(name, arguments, rows, images):
    set_seed(0)
    model = IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(BACKBONES[name]))).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model(images).logits
    IT3Trainer(model, arguments(train="embedder"), train_dataset=rows).train()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key in moved if key.startswith("embedder.")} == {
        f"embedder.{key}" for key in model.embedder.state_dict()
    }
    assert all(key.startswith("embedder.") or "signal_" in key for key in moved)
    with torch.no_grad():
        assert torch.equal(model.train()(images).logits, plain)
        assert torch.equal(model.eval()(images).logits, plain)


def test_signal_statistics_of_batch_norm_are_collected(arguments, rows):
    model = IT3ForImageClassification(IT3Config(backbone_config=copy.deepcopy(BACKBONES["resnet"])))
    IT3Trainer(model, arguments(train="embedder"), train_dataset=rows).train()
    layers = {name: value for name, value in model.named_buffers() if name.endswith("signal_num_batches_tracked")}
    assert layers
    assert all(value == 3 for value in layers.values())
    model.eval()
    frozen = copy.deepcopy(dict(model.named_buffers()))
    with torch.no_grad():
        model(rows[0]["pixel_values"][None], label_signal=torch.full((1, 10), 0.1))
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_buffers())


def test_it_learns_what_signals_mean(model, arguments, rows):
    model = IT3ForImageClassification.from_backbone(model.backbone)  # a trained classifier, a new embedder
    args = arguments(train="embedder", max_steps=150, per_device_train_batch_size=32, learning_rate=3e-2)
    trainer = IT3Trainer(model, args, train_dataset=rows)
    images = torch.stack([row["pixel_values"] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    with torch.no_grad():
        before = model.eval()(images, labels=labels).idempotence_loss
    trainer.train()
    with torch.no_grad():
        assert model.eval()(images, labels=labels).idempotence_loss < 0.8 * before


@pytest.mark.parametrize(
    ("values", "rate"),
    [({}, 3e-3), ({"learning_rate": 1e-4}, None), ({"embedder_learning_rate": 0.1}, 0.1), ({"train": "all"}, None)],
)
def test_the_embedder_has_a_rate_of_its_own_where_nobody_names_one(tmp_path, values, rate):
    made = IT3TrainingArguments(str(tmp_path), use_cpu=True, **{"train": "embedder", **values})
    assert made.embedder_learning_rate == rate


def test_names_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train must be one of 'all', 'norm', 'embedder', got 'head'"):
        IT3TrainingArguments(str(tmp_path), train="head")
    with pytest.raises(ValueError, match="freeze_backbone=True trains the normalisation layers, and train='embedder'"):
        IT3TrainingArguments(str(tmp_path), train="embedder", freeze_backbone=True)
    assert IT3TrainingArguments(str(tmp_path), freeze_backbone=True).train == "norm"
