"""IT3ForImageClassification: two passes in one forward, losses, injection, saving and loading."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    ViTConfig,
    pipeline,
    set_seed,
)
from untouched import untouched

from hf_it3 import IT3Config, IT3ForImageClassification, IT3ImageProcessor, LabelEmbedder
from hf_it3.it3.injection_it3 import SignalInjection
from hf_it3.it3.task_it3 import Task


def tiny(**values) -> IT3Config:
    backbone = {"model_type": "it3_cnn", "image_size": 16, "conv_channels": [4, 8], "hidden_size": 24, "num_labels": 3}
    return IT3Config(**{"backbone_config": backbone, **values})


def build(**values) -> IT3ForImageClassification:
    set_seed(0)
    return IT3ForImageClassification(tiny(**values)).eval()


@pytest.fixture
def pixels():
    return torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def count_passes(model) -> list[bool]:
    """A list that grows by one entry per pass through the backbone."""
    passes: list[bool] = []
    model.backbone.register_forward_hook(lambda *_: passes.append(True))
    return passes


class TestPasses:
    def test_with_labels_both_passes_run_in_one_forward(self, pixels):
        model = build(idempotence_weight=0.25)
        labels = torch.tensor([0, 1, 2, 0, 1])
        plain = model(pixels).logits
        signalled = model(pixels, label_signal=F.one_hot(labels, 3).float()).logits
        passes = count_passes(model)
        output = model(pixels, labels=labels)
        assert len(passes) == 2
        assert torch.equal(output.logits, plain)
        assert torch.equal(output.signal_logits, signalled)
        assert not torch.allclose(plain, signalled)
        torch.testing.assert_close(output.classification_loss, F.cross_entropy(plain, labels).detach())
        torch.testing.assert_close(output.idempotence_loss, F.cross_entropy(signalled, labels).detach())
        torch.testing.assert_close(output.loss, output.classification_loss + 0.25 * output.idempotence_loss)

    def test_without_labels_one_pass_runs_and_there_is_no_loss(self, pixels):
        model = build()
        passes = count_passes(model)
        output = model(pixels)
        assert len(passes) == 1
        assert list(output) == ["logits"]

    def test_a_given_signal_with_labels_runs_one_pass_and_has_its_loss(self, pixels):
        model = build()
        labels = torch.tensor([0, 1, 2, 0, 1])
        signal = torch.full((5, 3), 1 / 3)
        passes = count_passes(model)
        output = model(pixels, labels=labels, label_signal=signal)
        assert len(passes) == 1
        torch.testing.assert_close(output.loss, F.cross_entropy(model(pixels, label_signal=signal).logits, labels))

    def test_a_tuple_is_returned_on_request(self, pixels):
        model = build()
        assert torch.equal(model(pixels, return_dict=False)[0], model(pixels).logits)
        loss, logits = model(pixels, labels=torch.zeros(5, dtype=torch.long), return_dict=False)[:2]
        assert loss.ndim == 0
        assert logits.shape == (5, 3)

    def test_the_loss_reaches_every_parameter(self, pixels):
        model = build()
        model(pixels, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_a_plain_pass_leaves_nothing_behind_for_the_next(self, pixels):
        model = build()
        before = model(pixels).logits
        model(pixels, label_signal=torch.eye(3)[[0, 1, 2, 0, 1]])
        with pytest.raises(ValueError, match="pixel_values must have shape"):
            model(pixels[:, :, :8], label_signal=torch.eye(3)[[0, 1, 2, 0, 1]])
        assert torch.equal(model(pixels).logits, before)


class TestProblemTypes:
    def test_integer_labels_mean_a_single_label(self, pixels):
        model = build()
        model(pixels, labels=torch.tensor([0, 1, 2, 0, 1]))
        assert model.config.problem_type == "single_label_classification"

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
    @pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
    def test_integers_of_any_width_are_class_indices(self, pixels, dtype, problem_type):
        model = build(problem_type=problem_type)
        labels = torch.tensor([0, 1, 2, 0, 1])
        expected = model(pixels, labels=labels)
        model.config.problem_type = problem_type
        output = model(pixels, labels=labels.to(dtype))
        assert model.config.problem_type == "single_label_classification"
        assert torch.equal(output.loss, expected.loss)

    @pytest.mark.parametrize("dtype", [torch.long, torch.bool])
    def test_several_labels_may_be_integers(self, pixels, dtype):
        model = build()
        labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
        assert torch.equal(model(pixels, labels=labels.to(dtype)).loss, model(pixels, labels=labels.float()).loss)
        assert model.config.problem_type == "multi_label_classification"

    @pytest.mark.parametrize(
        ("problem_type", "labels"),
        [
            (None, torch.zeros(5)),
            (None, torch.zeros(4, dtype=torch.long)),
            (None, torch.tensor([0, 1, 2, 3, 1])),
            ("single_label_classification", torch.zeros(5)),
            ("single_label_classification", torch.zeros(5, 3)),
            ("multi_label_classification", torch.zeros(5, dtype=torch.long)),
            ("regression", torch.zeros(5)),
        ],
    )
    def test_labels_that_do_not_fit_are_refused_and_decide_nothing(self, pixels, problem_type, labels):
        model = build(problem_type=problem_type)
        with pytest.raises(ValueError, match=r"^labels for problem_type=.* of shape \(5,( 3)?\), got|out of range"):
            model(pixels, labels=labels)
        assert model.config.problem_type == problem_type
        if problem_type is None:
            assert model(pixels, labels=torch.tensor([0, 1, 2, 0, 1])).loss.isfinite()

    def test_float_labels_mean_several_labels_and_are_the_signal(self, pixels):
        model = build()
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])
        output = model(pixels, labels=labels)
        assert model.config.problem_type == "multi_label_classification"
        torch.testing.assert_close(
            output.classification_loss, F.binary_cross_entropy_with_logits(output.logits, labels).detach()
        )
        assert torch.equal(output.signal_logits, model(pixels, label_signal=labels).logits)

    def test_one_label_means_regression(self, pixels):
        model = build(num_labels=1, distance="mse")
        assert model.config.problem_type == model.config.backbone_config.problem_type == "regression"
        values = torch.rand(5)
        output = model(pixels, labels=values)
        assert model.config.problem_type == "regression"
        torch.testing.assert_close(output.classification_loss, F.mse_loss(output.logits[:, 0], values).detach())
        assert torch.equal(output.signal_logits, model(pixels, label_signal=values[:, None]).logits)

    def test_numbers_are_fed_back_as_standard_deviations_from_their_mean(self, pixels):
        model = build(num_labels=1, distance="mse", target_mean=[100.0], target_std=[5.0])
        values = torch.tensor([90.0, 95.0, 100.0, 105.0, 120.0])
        standardised = (values[:, None] - 100) / 5
        expected = model(pixels, label_signal=standardised).logits
        assert torch.equal(model(pixels, labels=values).signal_logits, expected)
        task = Task.of(model.config)
        assert torch.equal(task.predict(values[:, None]), standardised)
        torch.testing.assert_close(task.logits_of(standardised), values[:, None])

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_out_of_range_is_named_with_its_position(self, pixels, label):
        with pytest.raises(
            ValueError, match=f"^label {label} of image 3 .* out of range: the model has 3 labels, 0 to 2$"
        ):
            build()(pixels, labels=torch.tensor([0, 1, 2, label, 1]))

    @pytest.mark.parametrize("signal", [torch.zeros(5, 4), torch.zeros(4, 3), torch.zeros(5)])
    def test_a_signal_of_wrong_shape_is_refused(self, pixels, signal):
        with pytest.raises(ValueError, match=r"label_signal must have shape \(5, 3\), got \("):
            build()(pixels, label_signal=signal)

    def test_pixels_that_are_no_tensor_are_refused(self):
        with pytest.raises(ValueError, match=r"pixel_values must be a tensor of shape \(B, C, H, W\), got list"):
            build()([[0.0]])


class TestSignal:
    @pytest.mark.parametrize(("neutral", "value"), [("zeros", 0.0), ("uniform", 1 / 3)])
    def test_the_neutral_signal_is_embedded_in_the_first_pass(self, pixels, neutral, value):
        model = build(neutral_signal=neutral)
        assert torch.equal(model(pixels).logits, model(pixels, label_signal=torch.full((5, 3), value)).logits)
        assert not torch.allclose(model(pixels).logits, build()(pixels).logits)

    def test_no_signal_leaves_the_backbone_alone(self, pixels):
        model = build()
        assert torch.equal(model(pixels).logits, model.backbone(pixels).logits)

    @pytest.mark.parametrize(
        ("combine", "expected"),
        [
            ("add", lambda features, embedding: features + embedding),
            ("multiply", lambda features, embedding: features * (1 + embedding)),
            (torch.maximum, torch.maximum),
        ],
    )
    @pytest.mark.parametrize("shape", [(2, 6, 4, 4), (2, 9, 6), (2, 4, 4, 6), (2, 6)])
    def test_features_and_embedding_are_joined_as_configured(self, combine, expected, shape):
        features, embedding = torch.rand(shape), torch.rand(2, 6)
        position = {4: (2, 6, 1, 1), 3: (2, 1, 6), 2: (2, 6)}[len(shape)]
        if shape == (2, 4, 4, 6):
            position = (2, 1, 1, 6)
        layer = nn.Identity()
        layer.register_forward_hook(SignalInjection("layer", combine))
        assert torch.equal(inject(layer, features, embedding), expected(features, embedding.reshape(position)))

    def test_only_the_first_of_a_tuple_receives_the_signal(self):
        class Tuple(nn.Module):
            def forward(self, features):
                return features, "height", "width"

        layer = Tuple()
        layer.register_forward_hook(SignalInjection("layer"))
        features, embedding = torch.rand(2, 9, 6), torch.rand(2, 6)
        output = inject(layer, features, embedding)
        assert torch.equal(output[0], features + embedding[:, None])
        assert output[1:] == ("height", "width")

    @pytest.mark.parametrize("output", ["text", {"x": 1}])
    def test_a_layer_that_returns_no_tensor_is_named(self, output):
        class Odd(nn.Module):
            def forward(self, features):
                return output

        layer = Odd()
        layer.register_forward_hook(SignalInjection("my.layer"))
        with pytest.raises(TypeError, match=f"'my.layer' returns {type(output).__name__}"):
            inject(layer, torch.rand(2, 6), torch.rand(2, 6))

    def test_a_callable_that_combines_is_used_by_the_model(self, pixels):
        seen = []

        def mine(features, embedding):
            seen.append((tuple(features.shape), tuple(embedding.shape)))
            return features - embedding

        build(combine=mine)(pixels, label_signal=torch.zeros(5, 3))
        assert seen == [((5, 4, 12, 12), (5, 4, 1, 1))]

    def test_no_hook_is_added_or_removed_by_use(self, pixels):
        model = build()
        with untouched(model):
            for _ in range(3):
                model(pixels)
                model(pixels, label_signal=torch.zeros(5, 3))
                model.adapt(pixels, gate=None)

    def test_an_injection_layer_that_does_not_exist_is_an_error_with_the_closest_name(self):
        with pytest.raises(ValueError, match="'conv11' is not a module of IT3CNN.*did you mean 'conv1'"):
            build(injection_layer="conv11")

    def test_an_injection_layer_that_does_not_run_is_an_error(self, pixels):
        backbone = Network()
        backbone.unused = nn.Conv2d(1, 4, 3)
        model = IT3ForImageClassification.from_backbone(backbone, injection_layer="unused")
        with pytest.raises(ValueError, match="'unused' did not run in the forward pass of Network"):
            model(pixels, label_signal=torch.zeros(5, 3))

    @pytest.mark.parametrize(
        ("backbone", "layer"),
        [
            (ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3), "resnet.embedder"),
            (
                ViTConfig(
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    intermediate_size=8,
                    image_size=16,
                    patch_size=8,
                    num_labels=3,
                ),
                "vit.embeddings",
            ),
            (
                SwinConfig(
                    embed_dim=8, depths=[1], num_heads=[1], image_size=16, patch_size=4, window_size=2, num_labels=3
                ),
                "swin.embeddings",
            ),
        ],
        ids=["4-d", "3-d", "tuple"],
    )
    def test_the_signal_reaches_outputs_of_every_layout(self, backbone, layer):
        set_seed(0)
        model = IT3ForImageClassification(IT3Config(backbone_config=backbone)).eval()
        assert model.config.injection_layer == layer
        images = torch.rand(2, 3, 16, 16)
        signal = torch.eye(3)[:2]
        assert not torch.equal(model(images).logits, model(images, label_signal=signal).logits)
        # Each image receives its own signal.
        alone = model(images[1:], label_signal=signal[1:]).logits
        torch.testing.assert_close(model(images, label_signal=signal).logits[1:], alone, rtol=1e-4, atol=1e-5)


def inject(layer, features, embedding):
    from hf_it3.it3.injection_it3 import ForwardPass, running_pass

    with running_pass(ForwardPass(embedding)):
        return layer(features)


class Network(nn.Module):
    """A plain classifier of 1x16x16 images into 3 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, pixel_values):
        return self.head(self.stem(pixel_values).mean((2, 3)))


class TestBackbonesAndEmbedders:
    def test_a_trained_backbone_keeps_its_weights_and_stays_the_callers(self):
        set_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3)
        backbone = ResNetForImageClassification(config).eval()
        images = torch.rand(2, 3, 16, 16)
        with untouched(backbone):
            model = IT3ForImageClassification.from_backbone(backbone)
            assert torch.equal(model(images).logits, backbone(images).logits)
        assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in backbone.parameters())

    def test_a_plain_module_can_be_wrapped(self, pixels):
        network = Network()
        model = IT3ForImageClassification.from_backbone(network)
        assert model.config.num_labels == 3
        assert torch.equal(model(pixels).logits, network(pixels))
        assert model.adapt(pixels, gate=None).adapted.all()

    @pytest.mark.parametrize("given", [3, None, ["resnet"]])
    def test_anything_else_is_no_backbone(self, given):
        with pytest.raises(TypeError, match=f"got {type(given).__name__}"):
            IT3ForImageClassification.from_backbone(given)

    def test_a_missing_checkpoint_is_an_error_that_names_it(self, tmp_path):
        with pytest.raises(OSError, match="nowhere"):
            IT3ForImageClassification.from_backbone(str(tmp_path / "nowhere"))

    def test_an_embedder_of_the_callers_own_is_used_and_required_again_on_loading(self, pixels, tmp_path):
        model = IT3ForImageClassification(tiny(), embedder=nn.Linear(3, 4)).eval()
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"embedder of its own \(.*Linear\); pass embedder="):
            IT3ForImageClassification.from_pretrained(tmp_path)
        again = IT3ForImageClassification.from_pretrained(tmp_path, embedder=nn.Linear(3, 4))
        signal = torch.eye(3)[[0, 1, 2, 0, 1]]
        expected = model(pixels, label_signal=signal).logits
        torch.testing.assert_close(again(pixels, label_signal=signal).logits, expected)

    @pytest.mark.parametrize("neutral", ["none", "zeros"])
    def test_an_embedder_without_parameters_works(self, pixels, neutral):
        class Pad(nn.Module):
            def forward(self, signal):
                return F.pad(signal, (0, 1))

        model = IT3ForImageClassification(tiny(neutral_signal=neutral), embedder=Pad()).eval()
        assert model(pixels, labels=torch.tensor([0, 1, 2, 0, 1])).loss.isfinite()

    def test_an_embedder_of_the_wrong_width_is_an_error_that_says_so(self, pixels):
        model = IT3ForImageClassification(tiny(), embedder=nn.Linear(3, 7))
        with pytest.raises(ValueError, match="'conv1' returns features of shape .* 7 channels"):
            model(pixels, label_signal=torch.zeros(5, 3))

    def test_the_default_embedder_has_the_layers_of_the_public_engine(self):
        layers = [type(layer) for layer in LabelEmbedder(3, 4)]
        assert layers == [nn.Linear, nn.LeakyReLU, nn.Linear, nn.LeakyReLU]
        assert LabelEmbedder(3, 4)(torch.zeros(2, 3)).shape == (2, 4)


class TestSaving:
    def test_a_new_process_loads_the_same_weights_and_answers_the_same(
        self, model, images, trained_directory, tmp_path
    ):
        signal = model(images).logits.softmax(-1)
        with torch.no_grad():
            expected = {"plain": model(images).logits, "signalled": model(images, label_signal=signal).logits}
        save_file({"images": images, "signal": signal.detach()}, tmp_path / "inputs.safetensors")
        script = f"""
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
import hf_it3
torch.set_num_threads(1)
model = AutoModelForImageClassification.from_pretrained({trained_directory!r})
assert not model.training
inputs = load_file({str(tmp_path / "inputs.safetensors")!r})
with torch.no_grad():
    plain = model(inputs["images"]).logits
    signalled = model(inputs["images"], label_signal=inputs["signal"]).logits
weights = {{name: value.contiguous() for name, value in model.state_dict().items()}}
save_file({{"plain": plain, "signalled": signalled, **weights}}, {str(tmp_path / "outputs.safetensors")!r})
"""
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        outputs = load_file(tmp_path / "outputs.safetensors")
        for name, value in model.state_dict().items():
            assert torch.equal(outputs.pop(name), value), name
        # Another process may compute with other instructions: its memory lies at other addresses.
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)

    def test_saved_weights_are_those_in_memory(self, model, trained_directory):
        saved = load_file(f"{trained_directory}/model.safetensors")
        assert saved.keys() == model.state_dict().keys()
        assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
        assert {name for name in saved if name.startswith("embedder.")}

    def test_saving_an_adapted_model_leaves_what_it_knows_of_its_base(self, tmp_path):
        model = build()
        provenance = {"name_or_path": str(tmp_path), "weights": "delta", "delta_of": {"name_or_path": "a/b"}}
        model.config.base_model = dict(provenance)
        model.save_pretrained(tmp_path / "saved")
        assert model.config.base_model == provenance
        assert IT3Config.from_pretrained(tmp_path / "saved").base_model == {"name_or_path": tmp_path.name}

    def test_a_checkpoint_without_the_embedder_is_an_error(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        kept = {name: value for name, value in weights.items() if not name.startswith("embedder.")}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        for auto_class in (IT3ForImageClassification, AutoModelForImageClassification):
            with pytest.raises(ValueError, match=r"lacks weights of IT3For.*: embedder\.0\.bias.*from_backbone"):
                auto_class.from_pretrained(tmp_path)

    def test_the_auto_classes_load_everything(self, trained_directory):
        assert type(AutoConfig.from_pretrained(trained_directory)) is IT3Config
        assert type(AutoModelForImageClassification.from_pretrained(trained_directory)) is IT3ForImageClassification
        assert type(AutoImageProcessor.from_pretrained(trained_directory)) is IT3ImageProcessor

    def test_the_stock_pipeline_gives_the_unadapted_answer(self, trained_directory, model, images, digits):
        classifier = pipeline("image-classification", model=trained_directory)
        image = digits["test"]["image"][0]
        best = classifier(image)[0]
        scores = model(images[:1]).logits.softmax(-1)[0]
        assert best["label"] == model.config.id2label[scores.argmax().item()]
        assert best["score"] == pytest.approx(scores.max().item(), abs=1e-6)

    def test_labels_can_be_renamed_on_loading(self, trained_directory, images, tmp_path):
        names = {index: f"digit {index}" for index in range(10)}
        model = IT3ForImageClassification.from_pretrained(trained_directory, id2label=names)
        assert model.config.id2label == names
        assert model.config.label2id["digit 3"] == 3
        assert model.config.backbone_config.id2label == names
        model.save_pretrained(tmp_path)
        assert IT3ForImageClassification.from_pretrained(tmp_path).config.id2label == names

    def test_adaptation_settings_can_be_changed_on_loading(self, trained_directory):
        model = IT3ForImageClassification.from_pretrained(trained_directory, adaptation={"num_steps": 2})
        assert model.config.adaptation.num_steps == 2
        assert model.config.reference_distance["num_images"] == 1297

    def test_a_callable_in_the_configuration_keeps_the_model_from_being_saved(self, model, tmp_path):
        model.config.distance = F.mse_loss
        with pytest.raises(ValueError, match=r"IT3Config\.distance is a callable"):
            model.save_pretrained(tmp_path / "model")
        assert not (tmp_path / "model" / "model.safetensors").exists()

    def test_the_saved_configuration_is_plain_json(self, trained_directory):
        saved = json.loads(Path(trained_directory, "config.json").read_text())
        assert saved["model_type"] == "it3"
        assert saved["architectures"] == ["IT3ForImageClassification"]
        assert saved["backbone_config"]["architectures"] == ["IT3CNNForImageClassification"]
        assert saved["adaptation"]["scope"] == "batch"
        assert saved["injection_layer"] == "conv1"

    def test_loading_in_half_precision_keeps_embedder_and_backbone_alike(self, trained_directory, images):
        model = IT3ForImageClassification.from_pretrained(trained_directory, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        logits = model(images.bfloat16(), label_signal=torch.zeros(64, 10)).logits
        assert logits.isfinite().all()


class TestAdapt:
    def test_stream_scope_needs_an_adapter_to_live_in(self, model, images):
        with pytest.raises(ValueError, match="create one TestTimeAdapter"):
            model.adapt(images, scope="stream")

    def test_overrides_are_checked(self, model, images):
        with pytest.raises(ValueError, match="'step'"):
            model.adapt(images, step=3)
