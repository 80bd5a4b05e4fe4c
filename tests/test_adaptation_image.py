"""Scope image: every image its own adapted weights, the same as in a loop, from itself or its augmentations."""

import pytest
import torch
from naive_adaptation import DISTANCES, image_by_image

from hf_it3 import TestTimeAdapter
from hf_it3.it3.augmentation_it3 import Augmentation


ALONE = {"scope": "image", "gate": None, "num_steps": 3, "learning_rate": 3e-3}


AVERAGE = {"scope": "average"}


def _named(settings):
    """Without the steps, where those of an image alone cannot act."""
    return {key: value for key, value in settings.items() if (key, settings["scope"]) != ("num_steps", "average")}


@pytest.fixture
def double_model(model):
    return model.double()


@pytest.fixture
def few(shifted_images):
    return shifted_images[:6].double()


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        *({"distance": distance} for distance in DISTANCES),
        {"anchor": "self"},
        {"anchor": "ema", "ema_decay": 0.6},
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.02},
        {**AVERAGE, "augmentations": 4, "augmentation_steps": 2},
        {**AVERAGE, "augmentations": 4, "augmentation_steps": 2, "anchor": "ema", "ema_decay": 0.6},
        {
            **AVERAGE,
            "augmentations": 4,
            "augmentation_steps": 2,
            "anchor": "self",
            "max_grad_norm": 0.02,
            "optimizer": "sgd",
        },
        {**AVERAGE, "augmentations": 4, "augmentation_steps": 0},
        {"chunk_size": 4},
        {**AVERAGE, "chunk_size": 4, "augmentations": 3, "augmentation_steps": 2},
    ],
    ids=str,
)
def test_all_images_at_once_equal_a_loop_over_images(double_model, few, vectorize, settings):
    settings = _named({**ALONE, **settings})
    output = TestTimeAdapter(double_model, vectorize=vectorize, **settings)(few)
    expected = image_by_image(double_model, few, **settings)
    actual = output.logits
    if settings["scope"] == "average":
        # The mean of predictions has logits up to a constant.
        actual, expected = actual.log_softmax(-1), expected.log_softmax(-1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)
    assert output.averaged.all().item() is (settings["scope"] == "average")
    assert output.adapted.all().item() is (settings.get("augmentation_steps") != 0)
    assert not torch.allclose(output.logits, output.initial_logits, atol=1e-3)


@pytest.mark.parametrize("kind", ["batch", "mixed"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"anchor": "self"},
        {"anchor": "ema"},
        {"parameters": "norm"},
        {**AVERAGE, "augmentations": 3, "augmentation_steps": 1},
        {**AVERAGE, "augmentations": 3, "augmentation_steps": 0},
        {"norm_depth": 0.5},
        {**AVERAGE, "augmentations": 3, "augmentation_steps": 1, "norm_depth": 0.5},
        {**AVERAGE, "augmentations": 3, "augmentation_steps": 0, "norm_depth": 0.5},
    ],
    ids=str,
)
def test_statistics_of_one_image_are_its_own(batch_norm_model, kind, settings):
    model = batch_norm_model.double()
    images = torch.rand(3, 1, 16, 16, dtype=torch.float64) + 0.5
    settings = _named({**ALONE, "norm_statistics": kind, **settings})
    if kind == "mixed":
        settings["prior_count"] = 2
    together = TestTimeAdapter(model, vectorize=True, **settings)(images).logits
    for loop in (
        TestTimeAdapter(model, vectorize=False, **settings)(images).logits,
        torch.cat([TestTimeAdapter(model, **settings)(image[None]).logits for image in images]),
    ):
        torch.testing.assert_close(together, loop, rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {**AVERAGE, "augmentations": 3, "augmentation_steps": 1}], ids=str)
def test_the_size_of_chunks_does_not_matter(double_model, few, settings):
    settings = _named({**ALONE, **settings})
    whole = TestTimeAdapter(double_model, **settings)(few)
    for size in (1, 4, 100):
        chunked = TestTimeAdapter(double_model, chunk_size=size, **settings)(few)
        torch.testing.assert_close(chunked.logits, whole.logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(chunked.loss_history, whole.loss_history, rtol=0, atol=1e-9)


def test_neither_company_nor_order_of_images_matters(double_model, few):
    adapter = TestTimeAdapter(double_model, **ALONE)
    logits = adapter(few).logits
    torch.testing.assert_close(adapter(few.flip(0)).logits.flip(0), logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(adapter(few[2:3]).logits, logits[2:3], rtol=0, atol=1e-9)


def test_every_image_has_its_own_losses(double_model, few):
    output = TestTimeAdapter(double_model, **ALONE)(few)
    assert output.loss_history.shape == (3, 6)
    torch.testing.assert_close(output.loss_history[0], output.idempotence, rtol=0, atol=1e-9)
    assert (output.loss_history[-1] < output.loss_history[0]).all()


def test_vectorized_steps_need_a_named_optimizer(model):
    with pytest.raises(ValueError, match="vectorize=True needs a named optimizer"):
        TestTimeAdapter(model, scope="image", vectorize=True, optimizer=torch.optim.SGD)


def test_an_optimizer_of_the_callers_own_sees_one_image_at_a_time(double_model, few):
    def mine(parameters):
        return torch.optim.Adam(parameters, lr=ALONE["learning_rate"])

    output = TestTimeAdapter(double_model, **{**ALONE, "optimizer": mine})(few)
    torch.testing.assert_close(output.logits, image_by_image(double_model, few, **ALONE), rtol=0, atol=1e-9)


def test_a_distance_of_the_callers_own_is_vectorized_too(double_model, few):
    def mine(y1, y0):
        return (y1 - y0).abs().sum(-1)

    settings = {**ALONE, "distance": mine}
    output = TestTimeAdapter(double_model, vectorize=True, **settings)(few)
    torch.testing.assert_close(output.logits, image_by_image(double_model, few, **settings), rtol=0, atol=1e-9)


class TestOneImage:
    def test_alone_it_is_averaged_over_augmentations(self, double_model, few):
        settings = {"gate": None, "augmentations": 5, "augmentation_steps": 0}
        output = TestTimeAdapter(double_model, **settings)(few[:1])
        views = Augmentation(5).apply(few[:1])[0]
        expected = double_model(views).logits.softmax(-1).mean(0).log()
        torch.testing.assert_close(output.logits[0].log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=1e-9)
        assert output.averaged.item()
        assert not output.adapted.item()

    def test_with_others_it_is_not(self, double_model, few):
        settings = {"gate": None, "augmentations": 5, "augmentation_steps": 0, "num_steps": 0}
        output = TestTimeAdapter(double_model, **settings)(few)
        assert torch.equal(output.logits, output.initial_logits)

    @pytest.mark.parametrize("augmentations", [0, 1])
    def test_without_copies_there_is_nothing_to_average(self, double_model, few, augmentations):
        settings = {"gate": None, "augmentations": augmentations, "scope": "average"}
        output = TestTimeAdapter(double_model, **settings)(few)
        assert torch.equal(output.logits, output.initial_logits)
        assert not output.averaged.any()
        steps = TestTimeAdapter(double_model, augmentation_steps=2, **settings)(few)
        expected = TestTimeAdapter(double_model, scope="image", num_steps=2, gate=None)(few)
        torch.testing.assert_close(steps.logits, expected.logits)

    @pytest.mark.parametrize(
        ("problem_type", "predict"),
        [("multi_label_classification", torch.sigmoid), ("regression", lambda logits: logits)],
    )
    def test_the_average_is_one_of_predictions_of_the_models_kind(self, double_model, few, problem_type, predict):
        double_model.config.problem_type = problem_type
        settings = {"gate": None, "augmentations": 5, "augmentation_steps": 0, "distance": "mse"}
        output = TestTimeAdapter(double_model, **settings)(few[:1])
        expected = predict(double_model(Augmentation(5).apply(few[:1])[0]).logits).mean(0)
        torch.testing.assert_close(predict(output.logits[0]), expected, rtol=0, atol=1e-5)


class TestAugmentations:
    def test_the_first_copy_is_the_image_itself(self, shifted_images):
        copies = Augmentation(4).apply(shifted_images)
        assert copies.shape == (64, 4, 1, 16, 16)
        assert torch.equal(copies[:, 0], shifted_images)
        assert all(not torch.allclose(copies[:, i], copies[:, j]) for i in range(4) for j in range(i))

    def test_they_are_the_same_for_every_image_and_channel(self):
        image = torch.rand(1, 1, 12, 20)
        copies = Augmentation(3, ["warp"]).apply(torch.cat([image, image]).expand(2, 3, 12, 20))
        torch.testing.assert_close(copies[0], copies[1])
        torch.testing.assert_close(copies[:, :, 0], copies[:, :, 2])

    def test_they_are_small_changes(self, images):
        copies = Augmentation(16).apply(images)
        difference = (copies - images[:, None]).abs().mean((0, 2, 3, 4))
        unrelated = (images - images.roll(1, 0)).abs().mean()
        assert (difference < unrelated).all()

    def test_colour_images_are_cropped_by_default_and_grey_ones_warped(self, images):
        assert torch.equal(Augmentation(4).apply(images), Augmentation(4, ["warp"]).apply(images))
        photos = images.expand(-1, 3, -1, -1)
        assert torch.equal(Augmentation(4).apply(photos), Augmentation(4, ["crop"]).apply(photos))

    def test_a_crop_is_refused_where_it_tells_too_little(self, double_model):
        double_model.config.problem_type = "regression"
        with pytest.raises(ValueError, match="cannot act in regression: a crop tells less"):
            TestTimeAdapter(double_model, augmentation_kinds=["crop"], distance="mse")

    def test_every_second_copy_is_mirrored(self, images):
        copies = Augmentation(4, ["flip"]).apply(images)
        for position, copy_ in enumerate(copies.unbind(1)):
            torch.testing.assert_close(copy_, images.flip(-1) if position % 2 else images, rtol=0, atol=1e-4)

    def test_crops_show_at_least_three_quarters_of_each_side_and_nothing_from_outside(self):
        rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
        copies = Augmentation(32, ["crop"]).apply(torch.stack([rows, columns])[None])[0]
        for image in copies[1:]:
            for channel, side in ((0, 40), (1, 80)):
                low, high = image[channel].min().item(), image[channel].max().item()
                assert low >= 0
                assert high <= side - 1
                assert 0.75 * side - 2 <= high - low + 1 <= side
        corners = torch.tensor([[image[0].min(), image[1].min()] for image in copies[1:]])
        assert (corners.std(0) > 0.5).all()

    def test_colors_change_brightness_and_contrast_alone(self, images):
        copies = Augmentation(3, ["color"]).apply(images)
        assert torch.equal(copies[:, 0], images)
        for copy_ in copies.unbind(1)[1:]:
            design = torch.stack([images.flatten(), torch.ones(images.numel())], 1)
            factor, offset = torch.linalg.lstsq(design, copy_.flatten()[:, None]).solution.flatten().tolist()
            assert 0.9 <= factor <= 1.1
            assert -0.1 <= offset <= 0.1
            torch.testing.assert_close(copy_, images * factor + offset, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kinds", [["flip"], ["warp", "flip"], ["color"], ["flip", "color"]], ids=str)
    def test_maps_of_the_copies_go_back_to_the_image(self, kinds):
        image = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 12), (64, 96), mode="bicubic")
        augmentation = Augmentation(5, kinds)
        maps = augmentation.apply(image)
        back = augmentation.undo(maps)
        inside = (slice(None), slice(None), slice(None), slice(16, -16), slice(16, -16))
        expected = image[:, None].expand_as(back) if "color" not in kinds else None
        if expected is not None:
            torch.testing.assert_close(back[inside], expected[inside], rtol=0, atol=0.1)
        elif kinds == ["color"]:
            assert torch.equal(back, maps)

    def test_an_even_image_stays_even(self):
        copies = Augmentation(8).apply(torch.full((1, 1, 9, 9), 0.7))
        torch.testing.assert_close(copies, torch.full((1, 8, 1, 9, 9), 0.7))
