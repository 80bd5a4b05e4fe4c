"""The model in every form that PyTorch and transformers give it: types, devices, compiled, pickled, checkpointed."""

import copy
import io
import pickle

import pytest
import torch
from families import NUM_LABELS, classifier, family_images

from hf_it3 import IT3ForImageClassification


DEVICES = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
LABELS = torch.arange(NUM_LABELS)
SIGNAL = torch.eye(NUM_LABELS)
ADAPT = {"gate": None, "num_steps": 1, "learning_rate": 1e-3}


@pytest.fixture(params=["resnet", "vit", "levit"])
def family(request):
    return request.param


@pytest.fixture
def wrapped(family):
    return IT3ForImageClassification.from_backbone(classifier(family))


@pytest.fixture
def saved(wrapped, tmp_path):
    wrapped.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_point_type_predicts_trains_and_adapts(family, wrapped, device, dtype):
    images = family_images(family)
    with torch.no_grad():
        expected = wrapped(images, label_signal=SIGNAL).logits
    model = wrapped.to(device=device, dtype=dtype)
    images = images.to(device, dtype)
    output = model.adapt(images, **ADAPT)
    assert output.logits.dtype == dtype
    assert output.adapted.all()
    assert (output.logits != output.initial_logits).any()
    actual = model(images, label_signal=SIGNAL.to(device)).logits
    tolerance = {torch.float64: 1e-4, torch.float32: 1e-4}.get(dtype, 0.15) * expected.abs().max().item()
    assert (actual.float().cpu() - expected).abs().max().item() < tolerance
    model.train()(images, labels=LABELS.to(device)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.embedder.parameters())


@pytest.mark.parametrize("device", DEVICES)
def test_adaptation_per_image_runs_on_every_device(family, wrapped, device):
    images = family_images(family, 2)
    expected = wrapped.double().adapt(images.double(), scope="image", optimizer="sgd", **ADAPT)
    actual = wrapped.to(device).adapt(images.double().to(device), scope="image", optimizer="sgd", **ADAPT)
    torch.testing.assert_close(actual.logits.cpu(), expected.logits)


def test_half_is_as_good_as_to(family, wrapped):
    assert wrapped.half()(family_images(family).half()).logits.dtype == torch.float16


@pytest.mark.parametrize("arguments", [{"device_map": "auto"}, {"device_map": {"": "cpu"}}, {"dtype": "auto"}, {}])
def test_loading_options_change_no_prediction(family, wrapped, saved, arguments):
    model = IT3ForImageClassification.from_pretrained(saved, **arguments).eval()
    images = family_images(family)
    device = model.device
    with torch.no_grad():
        actual = model(images.to(device), label_signal=SIGNAL.to(device)).logits.cpu()
        torch.testing.assert_close(actual, wrapped(images, label_signal=SIGNAL).logits)
    assert model.adapt(images.to(device), **ADAPT).adapted.all()


def test_loading_in_half_precision_makes_all_of_the_model_half(family, saved):
    model = IT3ForImageClassification.from_pretrained(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_weights_offloaded_to_disk_predict_and_refuse_adaptation(family, wrapped, saved):
    placement = {"embedder": "cpu", "backbone": "disk", "feature_statistics": "cpu", "shift_reference": "cpu"}
    model = IT3ForImageClassification.from_pretrained(saved, device_map=placement, offload_folder=saved / "offload")
    images = family_images(family)
    torch.testing.assert_close(model(images).logits, wrapped(images).logits)
    with pytest.raises(ValueError, match="offloaded or not loaded, and cannot be adapted; load the model without"):
        model.adapt(images, **ADAPT)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_are_chosen_in_the_backbone(implementation, tmp_path):
    wrapped = IT3ForImageClassification.from_backbone(classifier("vit"))
    wrapped.save_pretrained(tmp_path)
    classifier("vit").save_pretrained(tmp_path / "plain")
    loaded = IT3ForImageClassification.from_pretrained(tmp_path, attn_implementation=implementation)
    named = IT3ForImageClassification.from_backbone(tmp_path / "plain", attn_implementation=implementation)
    images = family_images("vit")
    for model in (loaded.eval(), named.eval()):
        assert model.backbone.config._attn_implementation == implementation
        torch.testing.assert_close(model(images).logits, wrapped(images).logits)


def test_a_backbone_without_sdpa_says_so(tmp_path):
    IT3ForImageClassification.from_backbone(classifier("levit")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="LevitForImageClassification does not support"):
        IT3ForImageClassification.from_pretrained(tmp_path, attn_implementation="sdpa")


def _through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _through_torch_save]
)
def test_a_used_model_can_be_copied_and_pickled(family, wrapped, duplicate):
    images = family_images(family)
    wrapped.adapt(images, **ADAPT)
    wrapped(images, labels=LABELS).loss.backward()
    twin = duplicate(wrapped)
    with torch.no_grad():
        for name, value in wrapped.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value), name
        expected = wrapped(images, label_signal=SIGNAL).logits
        torch.testing.assert_close(twin(images, label_signal=SIGNAL).logits, expected)
        next(twin.backbone.parameters()).zero_()
        assert not torch.equal(twin(images).logits, wrapped(images).logits), "the twin shares its weights"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_the_forward_pass_compiles_without_a_graph_break(family, training):
    wrapped = IT3ForImageClassification.from_backbone(classifier(family))
    torch._dynamo.reset()
    images = family_images(family)
    model = copy.deepcopy(wrapped).train(training)
    compiled = torch.compile(wrapped.train(training), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, labels=LABELS).loss, model(images, labels=LABELS).loss)
    if training:
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(wrapped.get_buffer(name), buffer, msg=name)
        return
    torch.testing.assert_close(compiled(images, label_signal=SIGNAL).logits, model(images, label_signal=SIGNAL).logits)
    assert not torch.equal(compiled(images).logits, compiled(images, label_signal=SIGNAL).logits)


# Gradient checkpointing runs a block's forward pass again in the backward pass, when no signal pass is under way.


def gradients(model, images) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(images, labels=LABELS).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("vit", None),
        ("vit", "vit.layers.0.attention"),
        ("vit", "vit.layers.1"),
        ("swin", None),
        ("swin", "swin.encoder.layers.0.blocks.0.layernorm_before"),
        ("convnext", None),
        ("convnext", "convnext.encoder.stages.1.layers.0.dwconv"),
        ("resnet", None),
    ],
)
def test_gradient_checkpointing_changes_no_gradient(family, layer, reentrant):
    model = IT3ForImageClassification.from_backbone(classifier(family), injection_layer=layer).double().train()
    images = family_images(family).double()
    if not model.backbone.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="gradient"):
            model.gradient_checkpointing_enable()
        return
    expected = gradients(model, images)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    actual = gradients(model, images)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)
