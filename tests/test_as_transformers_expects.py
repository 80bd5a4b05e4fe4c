"""Habits of transformers that hold for an idempotent model as for any other."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, tiny_config
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from hf_it3 import IT3Config, IT3ForImageClassification


VIT = ViTConfig(
    num_channels=1,
    image_size=IMAGE_SIZE,
    patch_size=8,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    num_labels=3,
)
RESNET = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)


def built(config):
    return IT3ForImageClassification(IT3Config(backbone_config=config))


def wrapped(config):
    return IT3ForImageClassification.from_backbone(AutoModelForImageClassification.from_config(config))


def headless(config):
    return IT3ForImageClassification.from_backbone(AutoModel.from_config(config), num_labels=3)


BUILDERS = pytest.mark.parametrize("build", [built, wrapped, headless])


@pytest.fixture
def pixels():
    return torch.rand(4, 1, IMAGE_SIZE, IMAGE_SIZE)


class TestTrainer:
    def test_a_plain_trainer_evaluates_with_loss_and_metrics(self, tmp_path, pixels):
        rows = [{"pixel_values": image, "labels": label} for label, image in enumerate(pixels)]
        seen = []

        def compute_metrics(prediction):
            seen.append(prediction)
            return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

        arguments = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, save_strategy="no")
        trainer = Trainer(
            IT3ForImageClassification(tiny_config()), arguments, eval_dataset=rows, compute_metrics=compute_metrics
        )
        metrics = trainer.evaluate()
        assert np.isfinite(metrics["eval_loss"])
        assert 0 <= metrics["eval_accuracy"] <= 1
        assert seen[0].predictions.shape == (4, 10)
        assert seen[0].label_ids.tolist() == [0, 1, 2, 3]


class TestOutputs:
    @pytest.mark.parametrize("config", [VIT, RESNET])
    @BUILDERS
    def test_the_configuration_can_ask_for_hidden_states(self, build, config, pixels):
        model = build(config)
        assert model(pixels).hidden_states is None
        model.config.output_hidden_states = True
        asked = model(pixels).hidden_states
        assert len(asked) == len(model(pixels, output_hidden_states=True).hidden_states) >= 3
        assert model(pixels, output_hidden_states=False).hidden_states is None

    def test_so_it_can_with_the_network_of_the_tutorial(self, pixels):
        model = IT3ForImageClassification(tiny_config(output_hidden_states=True)).eval()
        shapes = [tuple(features.shape) for features in model(pixels).hidden_states]
        assert shapes == [(4, 4, 6, 6), (4, 8, 1, 1), (4, 24), (4, 24), (4, 24)]
        assert model.adapt(pixels, gate=None).adapted.all()

    def test_the_configuration_can_ask_for_attentions(self, pixels):
        model = built(VIT)
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        assert len(model(pixels).attentions) == 2


class TestConfiguration:
    @pytest.mark.parametrize("config", [VIT, RESNET])
    @BUILDERS
    def test_model_and_backbone_read_one_configuration(self, build, config):
        model = build(config)
        backbone = getattr(model.backbone, "model", model.backbone)
        assert backbone.config is model.config.backbone_config
        assert backbone.config.num_labels == model.config.num_labels == 3

    @BUILDERS
    @pytest.mark.parametrize("implementation", ["eager", {"backbone_config": "eager"}], ids=["name", "nested"])
    def test_the_attention_implementation_reaches_the_backbone(self, build, implementation):
        model = build(VIT)
        assert model.config.backbone_config._attn_implementation == "sdpa"
        model.set_attn_implementation(implementation)
        assert {
            module.config._attn_implementation
            for module in model.backbone.modules()
            if hasattr(module, "config") and isinstance(module, nn.Module)
        } == {"eager"}

    def test_labels_given_for_a_classifier_are_the_backbones_too(self):
        names = {0: "ant", 1: "bee", 2: "cat"}
        classifier = AutoModelForImageClassification.from_config(RESNET)
        model = IT3ForImageClassification.from_backbone(classifier, id2label=names)
        assert model.backbone.config.id2label == names
        assert classifier.config.id2label != names

    @pytest.mark.parametrize(("own", "given"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
    def test_images_of_another_precision_are_cast_to_the_models(self, own, given):
        model = IT3ForImageClassification(IT3Config()).to(own).eval()
        images = torch.rand(2, 1, 28, 28).to(own)
        output = model(images.to(given), labels=torch.tensor([0, 1]))
        assert torch.equal(output.logits, model(images).logits)
        assert output.loss.isfinite()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("config", [VIT, RESNET])
    @BUILDERS
    def test_a_loaded_model_is_saved_as_it_was(self, build, config, dtype, tmp_path):
        build(config).to(dtype).save_pretrained(tmp_path / "first")
        IT3ForImageClassification.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
