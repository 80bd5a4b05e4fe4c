"""Every family of vision models can be wrapped, trained, saved, reloaded and adapted in the same way."""

import copy

import pytest
import torch
from families import FAMILIES, NUM_LABELS, classifier, family_config, family_images
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING
from untouched import untouched

from hf_it3 import IT3ForImageClassification, TestTimeAdapter
from hf_it3.cli.inspection import inspect_model
from hf_it3.it3.heads_it3 import has_head


LABELS = torch.arange(NUM_LABELS)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def wrap(family: str, **values) -> IT3ForImageClassification:
    return IT3ForImageClassification.from_backbone(classifier(family), **values)


def test_wrapping_keeps_the_logits_and_the_given_classifier(family):
    backbone, images = classifier(family), family_images(family)
    expected = backbone(images).logits
    with untouched(backbone):
        model = wrap(family)
        actual = model(images).logits
    assert torch.equal(actual, expected)
    assert model.config.id2label == backbone.config.id2label or len(model.config.id2label) == NUM_LABELS
    assert not {id(tensor) for tensor in model.parameters()} & {id(tensor) for tensor in backbone.parameters()}


def test_the_label_signal_enters_behind_the_stem(family):
    model, expected = wrap(family), FAMILIES[family]
    found = inspect_model(model, image_size=expected.image_size).injection
    assert (found.name, found.layout) == (expected.layer, expected.layout)
    assert found.channels == model.config.injection_channels
    assert found.batch_norm_behind is None
    images = family_images(family, 1).repeat(NUM_LABELS, 1, 1, 1).double()
    logits = model.double()(images, label_signal=100 * torch.eye(NUM_LABELS)).logits
    assert logits.std(0).min() > 0, "the signal makes no difference to equal images"


def test_a_training_step_moves_embedder_and_backbone(family):
    model = wrap(family).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    output = model(family_images(family), labels=LABELS)
    output.loss.backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved >= {f"embedder.{name}" for name, _ in model.embedder.named_parameters()}
    # A model may hold parameters that its classifier never uses, such as mask tokens, but not many.
    in_backbone = [name for name, _ in model.backbone.named_parameters()]
    assert len([name for name in in_backbone if f"backbone.{name}" in moved]) > 0.6 * len(in_backbone)
    after = model.state_dict()
    pairs = [(name, name.replace("signal_", "")) for name in before if name.endswith("signal_running_mean")]
    assert all(not torch.equal(after[name], before[name]) for pair in pairs for name in pair)
    assert not pairs or any(not torch.equal(after[signal], after[plain]) for signal, plain in pairs)


def test_saving_and_reloading_gives_equal_weights_and_logits(family, tmp_path):
    model, images = wrap(family), family_images(family)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "signal_running" in name:
                buffer.add_(torch.rand_like(buffer))
    model.save_pretrained(tmp_path)
    reloaded, info = IT3ForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    expected = model.state_dict()
    assert reloaded.state_dict().keys() == expected.keys()
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    signal = torch.eye(NUM_LABELS)
    with torch.no_grad():
        torch.testing.assert_close(reloaded(images).logits, model(images).logits)
        torch.testing.assert_close(
            reloaded(images, label_signal=signal).logits, model(images, label_signal=signal).logits
        )
    assert reloaded.config.injection_layer == FAMILIES[family].layer
    if family == "levit":
        return  # transformers appends to its configuration whenever the model is built
    reloaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


def test_adaptation_in_batch_scope_changes_a_copy_of_the_weights_alone(family):
    model, images = wrap(family), family_images(family)
    with untouched(model):
        adapter = TestTimeAdapter(model, scope="batch", gate=None, num_steps=1, learning_rate=1e-3)
        output = adapter(images)
    moved = [not torch.equal(a, b) for a, b in zip(adapter.shell.parameters, adapter.shell.source, strict=True)]
    assert sum(moved) > 0.6 * len(moved)
    assert output.adapted.all()
    assert output.logits.isfinite().all()
    assert not torch.equal(output.logits, output.initial_logits)
    torch.testing.assert_close(output.initial_logits, model(images).logits)


def test_adaptation_in_image_scope_answers_each_image_by_itself(family):
    model, images = wrap(family), family_images(family, 2)
    settings = {"scope": "image", "gate": None, "num_steps": 1, "learning_rate": 1e-3}
    with untouched(model):
        output = TestTimeAdapter(model, parameters="norm", vectorize=True, **settings)(images)
    assert output.adapted.all()
    assert output.loss_history.shape == (1, 2)
    assert (output.logits != output.initial_logits).any(-1).all()


# LeViT keeps attention biases between passes in eval mode. torch's backward pass of batch_norm on CPU is wrong for
# one image in LeViT and CvT.
@pytest.mark.parametrize("family", ["levit", "cvt", "resnet", "swin"])
def test_vectorised_adaptation_agrees_with_one_image_after_the_other(family):
    model, images = wrap(family).double(), family_images(family, 2).double()
    # LeViT's BatchNorm takes tokens for images, so an image has no statistics of its own there.
    statistics = {"norm_statistics": "source" if family == "levit" else "mixed", "prior_count": 16}
    settings = {"gate": None, "num_steps": 2, "optimizer": "sgd", "learning_rate": 0.1, **statistics}
    in_a_batch = {"scope": "batch", "single_image": "batch", "diversity_weight": 0.0, "average_answers": "never"}
    adapt_one = TestTimeAdapter(model, **in_a_batch, **settings)
    expected = torch.cat([adapt_one(image[None]).logits for image in images])
    assert not torch.allclose(expected, model(images).logits)
    for vectorize in (True, False):
        actual = TestTimeAdapter(model, scope="image", vectorize=vectorize, **settings)(images)
        torch.testing.assert_close(actual.logits, expected)


@pytest.mark.parametrize("family", ["levit", "cvt"])
def test_the_gradient_of_one_image_is_that_of_the_image_twice(family):
    model, image = wrap(family).double(), family_images(family, 1).double()
    gradients = []
    for images in (image, image.repeat(2, 1, 1, 1)):
        model.zero_grad()
        model(images).logits.square().sum(1).mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_a_classifier_that_keeps_biases_between_passes_can_be_wrapped_after_use():
    backbone, images = (
        AutoModelForImageClassification.from_config(family_config("levit")).eval(),
        family_images("levit"),
    )
    expected = backbone(images).logits
    assert backbone.levit.encoder.stages[0].layers[0].module.attention_bias_cache
    with untouched(backbone):
        model = IT3ForImageClassification.from_backbone(backbone)
    assert torch.equal(model(images).logits, expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                parameter.add_(torch.rand_like(parameter))
    assert not torch.equal(model(images).logits, expected), "the biases of an earlier pass were used again"


# What from_backbone takes


def test_a_saved_classifier_is_wrapped_by_its_path(tmp_path):
    backbone, images = classifier("resnet"), family_images("resnet")
    backbone.save_pretrained(tmp_path)
    for path in (str(tmp_path), tmp_path):
        model = IT3ForImageClassification.from_backbone(path, idempotence_weight=0.5).eval()
        torch.testing.assert_close(model(images).logits, backbone(images).logits)
        assert model.config.idempotence_weight == 0.5


def test_a_named_classifier_gets_a_new_head_for_other_labels(tmp_path):
    classifier("vit").save_pretrained(tmp_path)
    model = IT3ForImageClassification.from_backbone(tmp_path, id2label={0: "cat", 1: "dog"})
    assert model(family_images("vit")).logits.shape == (4, 2)
    assert model.config.id2label == {0: "cat", 1: "dog"}
    stem = "vit.embeddings.patch_embeddings.projection.weight"
    assert torch.equal(model.backbone.get_parameter(stem), classifier("vit").get_parameter(stem))


def test_an_instance_keeps_its_head_so_other_labels_are_refused():
    with pytest.raises(ValueError, match=r"num_labels=7 differs from the 4 classes of the given ViTFor"):
        wrap("vit", num_labels=7)


def test_a_configuration_gives_a_new_model():
    model = IT3ForImageClassification.from_backbone(family_config("vit"), dtype=torch.float64)
    assert model(family_images("vit").double()).logits.dtype == torch.float64


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (AutoBackbone.from_config, ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        (AutoModel.from_config, ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
        (AutoModel.from_config, ViTConfig(**FAMILIES["vit"].config)),
        (AutoModel.from_config, family_config("swin")),
        (AutoModel.from_config, family_config("convnext")),
        (AutoModel.from_config, family_config("efficientnet")),
        (AutoModel.from_config, family_config("mobilenet_v1")),
        (AutoModel.from_config, family_config("mobilevit")),
        (AutoModel.from_config, family_config("poolformer")),
        (AutoModel.from_config, family_config("pvt_v2")),
        (AutoModel.from_config, family_config("cvt")),
        (AutoModel.from_config, family_config("levit")),
        (AutoModel.from_config, family_config("dinov2")),
    ],
    ids=lambda value: getattr(value, "model_type", "backbone" if value == AutoBackbone.from_config else "model"),
)
def test_a_headless_model_gets_pooling_and_a_linear_head(build, config, tmp_path):
    config = copy.deepcopy(config)
    config.architectures = None
    headless = build(config).eval()
    model = IT3ForImageClassification.from_backbone(headless, num_labels=5).eval()
    size = FAMILIES[config.model_type].image_size
    images = torch.rand(2, 3, size, size)
    logits = model(images).logits
    assert logits.shape == (2, 5)
    model.save_pretrained(tmp_path)
    reloaded, info = IT3ForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(reloaded.eval()(images).logits, logits)


def test_a_headless_checkpoint_keeps_its_weights(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).save_pretrained(tmp_path)
    expected = ResNetModel.from_pretrained(tmp_path)
    model = IT3ForImageClassification.from_backbone(tmp_path, num_labels=3)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.backbone.model.state_dict()[name], value), name


class PlainNetwork(nn.Module):
    """As image classifiers are written without transformers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(8)
        self.unused = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, NUM_LABELS)

    def forward(self, pixel_values):
        return self.head(self.bn1(self.conv1(pixel_values)).relu().mean((2, 3)))


def test_a_plain_module_works_and_loads_into_another(tmp_path):
    network, images = PlainNetwork().eval(), family_images("vit")
    with untouched(network):
        model = IT3ForImageClassification.from_backbone(network)
        output = model.adapt(images, gate=None, num_steps=1)
    assert torch.equal(model(images).logits, network(images))
    assert output.adapted.all()
    model.save_pretrained(tmp_path)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path, backbone=PlainNetwork()).eval()
    assert torch.equal(loaded(images).logits, network(images))


class UnregisteredConfig(PreTrainedConfig):
    model_type = "unregistered_network"


class UnregisteredForImageClassification(PreTrainedModel):
    config_class = UnregisteredConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.network = PlainNetwork()
        self.post_init()

    def forward(self, pixel_values):
        return (self.network(pixel_values),)


class OwnConfig(PreTrainedConfig):
    model_type = "network_of_my_own"


class OwnClassifier(PreTrainedModel):
    """Nothing in its name says what it ends in."""

    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.network = PlainNetwork()
        self.post_init()

    def forward(self, pixel_values):
        return (self.network(pixel_values),)


class OwnModel(OwnClassifier):
    """Called as models without a head are, but says what it returns."""

    def forward(self, pixel_values) -> tuple | ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.network(pixel_values))


class OwnFeatures(OwnClassifier):
    """Without a head, as its output says."""

    def forward(self, pixel_values) -> BaseModelOutputWithPooling:
        features = self.network.conv1(pixel_values)
        return BaseModelOutputWithPooling(pooler_output=features.mean((2, 3)) @ self.network.head.weight.T)


@pytest.fixture
def registered():
    """The class as models of one's own are registered, for the time of a test."""
    AutoConfig.register(OwnConfig.model_type, OwnConfig)

    def register(model_class, auto_class=AutoModelForImageClassification):
        auto_class.register(OwnConfig, model_class)

    yield register
    del CONFIG_MAPPING._extra_content[OwnConfig.model_type]
    for mapping in (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING):
        mapping._extra_content.pop(OwnConfig, None)


@pytest.mark.parametrize("model_class", [OwnClassifier, OwnModel])
def test_a_classifier_of_ones_own_may_have_any_name(model_class, registered, tmp_path):
    registered(model_class)
    network, images = model_class(OwnConfig(num_labels=NUM_LABELS)).eval(), family_images("vit")
    model = IT3ForImageClassification.from_backbone(network)
    assert type(model.backbone) is model_class
    assert torch.equal(model(images).logits, network.network(images))
    model.save_pretrained(tmp_path)
    loaded = IT3ForImageClassification.from_pretrained(tmp_path).eval()
    assert type(loaded.backbone) is model_class
    assert torch.equal(loaded(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("model_class", "register_as", "expected"),
    [
        (OwnClassifier, None, True),
        (OwnModel, None, True),
        (OwnFeatures, None, False),
        (OwnFeatures, AutoModelForImageClassification, True),
        (type("OwnBackbone", (OwnClassifier,), {}), None, False),
        (type("OwnBackbone", (OwnClassifier,), {}), AutoModelForImageClassification, True),
        (type("OwnForImageClassification", (OwnFeatures,), {}), None, True),
    ],
)
def test_a_head_is_told_by_name_registration_and_output(model_class, register_as, expected, registered):
    if register_as is not None:
        registered(model_class, register_as)
    assert has_head(model_class, "image-classification") == expected


def test_of_two_classes_for_one_configuration_the_saved_one_is_built(registered, tmp_path):
    registered(OwnClassifier)
    registered(OwnFeatures, AutoModel)
    model = IT3ForImageClassification.from_backbone(OwnFeatures(OwnConfig()), num_labels=3)
    model.save_pretrained(tmp_path)
    assert type(model.backbone.model) is OwnFeatures
    assert type(IT3ForImageClassification.from_pretrained(tmp_path).backbone.model) is OwnFeatures


def test_a_model_that_the_auto_classes_do_not_know_is_not_saved(tmp_path):
    model = IT3ForImageClassification.from_backbone(
        UnregisteredForImageClassification(UnregisteredConfig(num_labels=NUM_LABELS))
    )
    assert model(family_images("vit")).logits.shape == (4, NUM_LABELS)
    with pytest.raises(ValueError, match="'unregistered_network' is unknown to the Auto classes; register it"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("backbone", "arguments", "error", "message"),
    [
        (42, {}, TypeError, "must be a model name or path, .*got int"),
        (PlainNetwork(), {"revision": "main"}, ValueError, "revision='main' is for backbones given by name"),
        (PlainNetwork(), {"combine": "subtract"}, ValueError, "IT3Config.combine must be one of"),
        (nn.Flatten(), {}, ValueError, "cannot tell the number of classes of Flatten; pass num_labels"),
        (nn.Linear(4, 2), {}, ValueError, "Linear has no 2-d convolution to start from"),
    ],
)
def test_what_cannot_be_wrapped_is_named(backbone, arguments, error, message):
    with pytest.raises(error, match=message):
        IT3ForImageClassification.from_backbone(backbone, **arguments)


def test_an_idempotent_model_is_not_wrapped_again(tmp_path):
    model = wrap("resnet")
    model.save_pretrained(tmp_path)
    for given in (model, model.config, str(tmp_path)):
        with pytest.raises(ValueError, match="already"):
            IT3ForImageClassification.from_backbone(given)


# Injection layers of the caller's choice


def test_an_unknown_layer_is_an_error_with_the_closest_name():
    with pytest.raises(
        ValueError, match="'resnet.embeder' is not a module of ResNetFor.*did you mean 'resnet.embedder'"
    ):
        wrap("resnet", injection_layer="resnet.embeder")


def test_a_layer_that_never_runs_is_an_error_that_names_one_that_does():
    model = IT3ForImageClassification.from_backbone(PlainNetwork(), injection_layer="unused")
    with pytest.raises(ValueError, match="'unused' did not run .* for example 'bn1'"):
        model(family_images("vit"), labels=LABELS)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("swin.encoder.layers.0.blocks.0.attention", "returns features of shape .* for example 'swin.embeddings'"),
        ("swin.encoder.layers.0.downsample.norm", None),
    ],
)
def test_a_shape_that_cannot_take_the_signal_is_an_error_that_names_a_better_layer(layer, message):
    model = wrap("swin", injection_layer=layer, injection_channels=None if message is None else 5)
    if message is None:
        assert model(family_images("swin"), labels=LABELS).loss.isfinite()
        return
    with pytest.raises((ValueError, TypeError), match=message):
        model(family_images("swin"), labels=LABELS)


def test_a_layer_in_front_of_a_batch_norm_is_a_warning_that_names_the_layer_behind(caplog):
    front, behind = "resnet.embedder.embedder.convolution", "resnet.embedder.embedder.normalization"
    with caplog.at_level("WARNING"):
        wrap("resnet", injection_layer=behind)
        assert "in front of" not in caplog.text
        wrap("resnet", injection_layer=front)
    assert f"{front!r} lies in front of the BatchNorm {behind!r}" in caplog.text
    assert f"injection_layer={behind!r} lies behind it" in caplog.text


def test_batch_statistics_erase_a_shared_signal_in_front_of_a_batch_norm_only():
    images = family_images("resnet")
    effects = {}
    for layer in ("convolution", "normalization"):
        model = wrap("resnet", injection_layer=f"resnet.embedder.embedder.{layer}").double().train()
        signals = torch.eye(NUM_LABELS).double()[:, None].expand(-1, len(images), -1)
        logits = [model(images.double(), label_signal=signal).logits for signal in signals]
        effects[layer] = (logits[0] - logits[1]).abs().max().item()
    assert effects["convolution"] < 1e-9 < 1e-4 < effects["normalization"]


def test_a_plain_network_gets_the_signal_behind_its_first_batch_norm():
    assert IT3ForImageClassification.from_backbone(PlainNetwork()).config.injection_layer == "bn1"


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, NUM_LABELS)

    def forward(self, pixel_values):
        return self.head(self.norm(self.project(pixel_values).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_channels_last_layer_with_as_many_columns_as_channels_takes_the_signal_on_its_channels():
    model = IT3ForImageClassification.from_backbone(ChannelsLast(), injection_layer="norm")
    found = inspect_model(model, image_size=32).injection
    assert (found.layout, found.shape) == ("B H W C", (2, 8, 8, 8))
    images = torch.rand(2, 3, 32, 32)
    signal = torch.eye(NUM_LABELS)[:2]
    features = model.backbone.norm(model.backbone.project(images).permute(0, 2, 3, 1))
    expected = model.backbone.head(features.mean((1, 2)) + model.embedder(signal))
    torch.testing.assert_close(model(images, label_signal=signal).logits, expected)


def test_models_that_take_no_images_are_called_that():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(ValueError, match="BertForSequenceClassification takes input_ids, not images"):
        IT3ForImageClassification.from_backbone(BertForSequenceClassification(config))


class SilentConfig(PreTrainedConfig):
    model_type = "silent-classifier"


class SilentClassifier(PreTrainedModel):
    """Does not say what it takes, so that transformers believes it to be text."""

    config_class = SilentConfig

    def __init__(self, config):
        super().__init__(config)
        self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.head(self.stem(pixel_values).mean((2, 3))))


def test_what_a_model_takes_is_told_by_its_forward_pass():
    assert SilentClassifier.main_input_name == "input_ids"
    model = IT3ForImageClassification.from_backbone(SilentClassifier(SilentConfig(num_labels=3)))
    assert model(torch.rand(2, 1, 8, 8)).logits.shape == (2, 3)
