"""Every family of segmentation models can be wrapped, trained, saved, reloaded and adapted in the same way."""

import copy

import pytest
import torch
from naive_adaptation import NaiveAdaptation, image_by_image
from segmentation_families import (
    NUM_LABELS,
    SEGMENTATION_FAMILIES,
    PlainSegmenter,
    family_config,
    family_images,
    segmenter,
)
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
)
from untouched import untouched

from hf_it3 import IT3Config, IT3ForImageClassification, IT3ForSemanticSegmentation, TestTimeAdapter


@pytest.fixture(params=SEGMENTATION_FAMILIES)
def family(request):
    return request.param


def wrap(family: str, **values) -> IT3ForSemanticSegmentation:
    return IT3ForSemanticSegmentation.from_backbone(segmenter(family), **values)


def plain_logits(family: str, images: torch.Tensor) -> torch.Tensor:
    output = segmenter(family)(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def test_wrapping_keeps_the_logits_and_the_given_model(family):
    backbone, images = segmenter(family), family_images(family)
    with untouched(backbone):
        model = wrap(family)
        output = model(images)
    assert torch.equal(output.logits, plain_logits(family, images))
    assert output.logits.shape[:2] == (len(images), NUM_LABELS)
    assert model.config.injection_layer == SEGMENTATION_FAMILIES[family].layer
    assert model.config.task == "semantic-segmentation"


def test_the_signal_of_a_place_enters_at_that_place(family):
    model, images = wrap(family).double(), family_images(family, 1).double()
    layer = model.backbone.get_submodule(model.config.injection_layer)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(first_tensor(output)))
    signal = torch.zeros(2, NUM_LABELS, 4, 4, dtype=torch.double)
    signal[1, :, 0, 0] = 100
    logits = model(images.expand(2, -1, -1, -1), label_signal=signal).logits
    handle.remove()
    assert (logits[1] - logits[0]).abs().max() > 1e-3, "the signal makes no difference"
    moved = seen[0][1] - seen[0][0]
    rows, columns = token_rows_and_columns(moved)
    assert rows[0] > 0
    assert columns[0] > 0
    assert rows[-1] == columns[-1] == 0, "the signal of the first place reached the last one"


def first_tensor(output):
    return (
        output
        if isinstance(output, torch.Tensor)
        else next(iter(output.values() if hasattr(output, "values") else output))
    )


def token_rows_and_columns(moved: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest movement of features `(C, H, W)`, or of tokens `(N, C)` of a square image, by row and by column."""
    if moved.ndim == 2:
        side = int(len(moved) ** 0.5)
        extra = len(moved) - side**2
        assert (moved[:extra] == 0).all(), "tokens that stand for no place took a signal"
        moved = moved[extra:].T.unflatten(1, (side, side))
    return moved.abs().amax((0, 2)), moved.abs().amax((0, 1))


def test_a_training_step_moves_embedder_and_backbone(family):
    model, images = wrap(family).train(), family_images(family)
    before = copy.deepcopy(model.state_dict())
    labels = torch.randint(0, NUM_LABELS, (len(images), *images.shape[-2:]))
    labels[:, 0] = 255
    output = model(images, labels=labels)
    output.loss.backward()
    torch.optim.Adam(model.parameters(), lr=1e-2).step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved >= {f"embedder.{name}" for name, _ in model.embedder.named_parameters()}
    in_backbone = [name for name, _ in model.backbone.named_parameters()]
    assert len([name for name in in_backbone if f"backbone.{name}" in moved]) > 0.6 * len(in_backbone)
    assert output.signal_logits.shape == output.logits.shape


@pytest.mark.parametrize("scope", ["batch", "image"])
def test_adaptation_is_that_of_the_naive_reference(family, scope):
    model, images = wrap(family).double(), family_images(family).double()
    settings = {"scope": scope, "num_steps": 2, "parameters": "all", "norm_statistics": "source"}
    # Adam's first step is sign-like and magnifies rounding; the guard would drop the diversity term.
    settings |= {"optimizer": "sgd", "learning_rate": 0.1, "max_class_share": 1.0}
    with untouched(model):
        output = TestTimeAdapter(model, gate=None, **settings)(images)
    if scope == "batch":
        expected = NaiveAdaptation(model, **settings)(images)
    else:
        expected = image_by_image(model, images, **settings)
    assert output.adapted.all()
    movement = (expected - output.initial_logits).abs().max()
    assert movement > 0
    assert (output.logits - expected).abs().max() < max(1e-2 * movement, 1e-9)
    torch.testing.assert_close(
        output.initial_logits, plain_logits(family, images.float()).double(), atol=1e-4, rtol=1e-4
    )


def test_saving_and_reloading_gives_equal_weights_and_logits(family, tmp_path):
    model, images = wrap(family), family_images(family)
    model.save_pretrained(tmp_path)
    own = {"backbone": PlainSegmenter()} if family == "plain module" else {}
    reloaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True, **own)
    assert type(reloaded) is IT3ForSemanticSegmentation
    assert not any(info.values()), info
    expected = model.state_dict()
    assert reloaded.state_dict().keys() == expected.keys()
    for name, value in reloaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    torch.testing.assert_close(reloaded(images).logits, model(images).logits)


# What from_backbone takes


def test_a_saved_segmentation_model_is_wrapped_by_its_path(tmp_path):
    segmenter("segformer").save_pretrained(tmp_path)
    model = IT3ForSemanticSegmentation.from_backbone(str(tmp_path)).eval()
    images = family_images("segformer")
    torch.testing.assert_close(model(images).logits, plain_logits("segformer", images))


def test_an_encoder_checkpoint_gets_a_new_head_for_the_labels(tmp_path):
    encoder = SegformerForImageClassification(family_config("segformer"))
    encoder.save_pretrained(tmp_path)
    model = IT3ForSemanticSegmentation.from_backbone(tmp_path, num_labels=7).eval()
    assert model(family_images("segformer")).logits.shape == (2, 7, 8, 8)
    stem = "segformer.stages.0.patch_embeddings.proj.weight"
    assert torch.equal(model.backbone.get_parameter(stem), encoder.get_parameter(stem))


def test_a_configuration_of_a_classifier_gives_a_segmentation_model():
    config = family_config("segformer")
    config.architectures = ["SegformerForImageClassification"]
    model = IT3ForSemanticSegmentation.from_backbone(config)
    assert type(model.backbone) is SegformerForSemanticSegmentation
    assert IT3ForImageClassification.from_backbone(config)(family_images("segformer")).logits.shape == (2, NUM_LABELS)


def test_the_ignored_label_is_that_of_the_backbone_unless_another_is_given():
    config = SegformerConfig(**SEGMENTATION_FAMILIES["segformer"].config, semantic_loss_ignore_index=9)
    assert IT3ForSemanticSegmentation.from_backbone(config).config.semantic_loss_ignore_index == 9
    given = IT3ForSemanticSegmentation.from_backbone(config, semantic_loss_ignore_index=5)
    assert given.config.semantic_loss_ignore_index == 5


def test_a_model_without_a_segmentation_head_is_refused_with_the_way_out():
    classifier = SegformerForImageClassification(family_config("segformer"))
    with pytest.raises(
        ValueError, match=r"SegformerForImageClassification has no head for semantic segmentation; pass"
    ):
        IT3ForSemanticSegmentation.from_backbone(classifier)
    with pytest.raises(ValueError, match=r"no model for semantic segmentation is known for backbone model_type='vit'"):
        IT3ForSemanticSegmentation.from_backbone(AutoConfig.for_model("vit"))


def test_a_module_that_answers_for_whole_images_is_refused_in_the_first_pass():
    module = nn.Sequential(nn.Conv2d(3, NUM_LABELS, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = IT3ForSemanticSegmentation.from_backbone(module, injection_layer="0")
    with pytest.raises(ValueError, match=r"Sequential returns logits of shape \(2, 4\); segmentation needs a class"):
        model(family_images("segformer"))


def test_a_module_may_answer_in_a_dictionary_as_those_of_torchvision_do():
    class Named(PlainSegmenter):
        def forward(self, pixel_values):
            return {"out": super().forward(pixel_values), "aux": None}

    network, images = Named().eval(), family_images("segformer")
    model = IT3ForSemanticSegmentation.from_backbone(network)
    assert torch.equal(model(images).logits, network(images)["out"])


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match=r"num_labels=1, but segmentation chooses among classes"):
        IT3ForSemanticSegmentation.from_backbone(PlainSegmenter(num_labels=1))


def test_a_model_for_one_task_is_refused_by_the_class_for_the_other(tmp_path):
    wrap("segformer").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="IT3ForImageClassification is for image-classification, but the configuration"
    ):
        IT3ForImageClassification.from_pretrained(tmp_path)
    assert IT3Config.from_pretrained(tmp_path).task == "semantic-segmentation"
