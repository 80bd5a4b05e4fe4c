"""Whether copies of colour images are mirrored is measured on clean images: photos may be, digits and arrows not."""

import math

import pytest
import torch
from conftest import IMAGE_SIZE
from torch import nn
from trainer_fixtures import measured_by_trainer
from transformers import set_seed

from hf_it3 import (
    IT3CNNConfig,
    IT3Config,
    IT3ForImageClassification,
    IT3Trainer,
    IT3TrainingArguments,
    TestTimeAdapter,
)
from hf_it3.calibration import calibrate
from hf_it3.it3.agreement_it3 import may_mirror, mirrored_agreement
from hf_it3.it3.alignment_it3 import collected_statistics
from hf_it3.it3.shift_test_it3 import observe
from hf_it3.it3.task_it3 import resize


SYMMETRIC = {"all": 1.02, "least": 0.85}


def in_colour(**values):
    backbone = IT3CNNConfig(num_channels=3, image_size=IMAGE_SIZE, conv_channels=[4, 8], hidden_size=24)
    return IT3ForImageClassification(IT3Config(**{"backbone_config": backbone, **values}))


def as_colour(rows):
    return [{**row, "pixel_values": row["pixel_values"].expand(3, -1, -1)} for row in rows]


@pytest.fixture(scope="module")
def digits_in_colour(train_rows, tmp_path_factory):
    """A model trained on digits whose three channels are the same, to above 85 %."""
    set_seed(0)
    model = in_colour()
    folder = tmp_path_factory.mktemp("colour")
    arguments = IT3TrainingArguments(
        str(folder),
        num_train_epochs=10,
        learning_rate=7e-3,
        per_device_train_batch_size=32,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    IT3Trainer(model, arguments, train_dataset=as_colour(train_rows)).train()
    return model.eval()


def test_digits_are_not_mirrored_and_averaging_costs_them_nothing(digits_in_colour, digits, processor):
    """Nobody who brings digits, letters or signs in colour should have to know that they must not be mirrored."""
    images = processor(images=digits["test"]["image"][:], return_tensors="pt").pixel_values.expand(-1, 3, -1, -1)
    labels = torch.tensor(digits["test"]["label"][:])

    def accuracy(**settings):
        output = TestTimeAdapter(digits_in_colour, gate=float("inf"), **settings)(images)
        return (output.logits.argmax(1) == labels).float().mean().item()

    plain, averaged = accuracy(average_answers="never"), accuracy(average_answers="always")
    assert plain > 0.85
    assert averaged > plain - 0.03
    assert accuracy(average_answers="always", augmentation_kinds=["flip"]) < plain - 0.05
    agreement = digits_in_colour.config.reference_distance["mirrored"]
    assert agreement["all"] < 0.8
    assert agreement["least"] < 0.5
    assert not may_mirror(digits_in_colour.config.reference_distance)


def test_what_is_measured_is_how_often_classes_are_kept(digits_in_colour, train_rows):
    images = torch.stack([row["pixel_values"] for row in as_colour(train_rows)])
    with torch.no_grad():
        classes, cropped, mirrored = (
            digits_in_colour(copy).logits.argmax(1).tolist()
            for copy in (images, resize(images[..., 1:-1, 1:-1], images.shape[2:]), images.flip(3))
        )

    def share(chosen):
        kept_mirrored = sum(mirrored[index] == classes[index] for index in chosen)
        kept_cropped = sum(cropped[index] == classes[index] for index in chosen)
        return (kept_mirrored + 10) / (kept_cropped + 10)

    everything = range(len(classes))
    by_class = [share([index for index in everything if classes[index] == one]) for one in set(classes)]
    measured = digits_in_colour.config.reference_distance["mirrored"]
    # The cropped copies differ a little at their edges.
    assert measured["all"] == pytest.approx(share(everything), abs=2e-2)
    assert measured["least"] == pytest.approx(min(by_class), abs=5e-2)


class Sides(nn.Module):
    """Tells how bright an image is, and, if it knows arrows, which of its sides is the brighter one."""

    def __init__(self, arrows):
        super().__init__()
        self.arrows = arrows
        self.stem = nn.Conv2d(3, 4, 1)

    def forward(self, pixel_values):
        level = pixel_values.mean((1, 2, 3)) + 0 * self.stem(pixel_values).mean((1, 2, 3))
        left, right = (half.mean((1, 2, 3)) for half in pixel_values.chunk(2, 3))
        logits = [-50 * (level - centre) ** 2 for centre in (0, 0.5, 1)]
        if self.arrows:
            logits += [20 * (left - right - 0.4), 20 * (right - left - 0.4)]
        return torch.stack(logits, 1)


def bright_images(arrows):
    """Ninety images of three brightnesses, and five times left and right."""
    images = torch.rand(90, 3, IMAGE_SIZE, IMAGE_SIZE) / 20 + torch.tensor([0, 0.5, 1]).repeat(30)[:, None, None, None]
    pointing = torch.zeros(10, 3, IMAGE_SIZE, IMAGE_SIZE)
    pointing[:5, ..., : IMAGE_SIZE // 2] = 1
    pointing[5:, ..., IMAGE_SIZE // 2 :] = 1
    return torch.cat([images, pointing]) if arrows else images


@pytest.mark.parametrize("arrows", [False, True])
def test_a_class_that_turns_into_another_is_enough_not_to_mirror(tmp_path, arrows):
    model = IT3ForImageClassification.from_backbone(Sides(arrows), num_labels=5 if arrows else 3)
    reference = measured_by_trainer(model, bright_images(arrows), tmp_path)
    expected = {"all": 100 / 110, "least": 10 / 15} if arrows else {"all": 1.0, "least": 1.0}
    assert reference["mirrored"] == pytest.approx(expected)
    assert may_mirror(reference) != arrows


def test_chance_in_a_class_of_few_images_does_not_decide():
    # Ten photos of a rare class, of which a copy keeps nine and the mirrored one six.
    classes = torch.tensor([0] * 90 + [1] * 10)
    cropped = torch.cat([classes[:99], torch.zeros(1, dtype=torch.long)])
    mirrored = torch.cat([classes[:96], torch.zeros(4, dtype=torch.long)])
    agreement = mirrored_agreement({"plain": classes, "cropped": cropped, "mirrored": mirrored})
    assert agreement == pytest.approx({"all": 106 / 109, "least": 16 / 19})
    assert may_mirror({"mirrored": agreement})


@pytest.mark.parametrize(
    "settings",
    [
        {"average_answers": "always", "num_steps": 1},
        {"average_answers": "always", "gate": math.inf},
        {"scope": "average"},
    ],
    ids=["adapted", "not adapted", "alone"],
)
@pytest.mark.parametrize(
    ("mirrored", "kinds"),
    [
        (SYMMETRIC, ["crop", "flip"]),
        ({**SYMMETRIC, "all": 0.89}, ["crop"]),
        ({**SYMMETRIC, "least": 0.69}, ["crop"]),
        (None, ["crop"]),
    ],
)
def test_copies_are_mirrored_by_default_where_that_was_measured(settings, mirrored, kinds):
    model = in_colour(reference_distance={"mean": 0.0, "std": 1.0, "mirrored": mirrored}).eval()
    images = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE)
    settings = {"gate": None, **settings}
    answers = {
        name: TestTimeAdapter(model, augmentation_kinds=given, **settings)(images).logits
        for name, given in (("open", None), ("crop", ["crop"]), ("crop, flip", ["crop", "flip"]))
    }
    assert not torch.equal(answers["crop"], answers["crop, flip"])
    assert torch.equal(answers["open"], answers[", ".join(kinds)])


@pytest.mark.parametrize(
    ("channels", "problem_type"), [(1, None), (3, "multi_label_classification"), (3, "regression")]
)
def test_where_nothing_is_mirrored_anyway_nothing_is_measured(tmp_path, channels, problem_type):
    backbone = IT3CNNConfig(num_channels=channels, image_size=IMAGE_SIZE, conv_channels=[4, 8], hidden_size=24)
    model = in_colour(backbone_config=backbone, problem_type=problem_type)
    assert "mirrored" not in measured_by_trainer(model, torch.rand(8, channels, IMAGE_SIZE, IMAGE_SIZE), tmp_path)


def test_copies_do_not_count_among_clean_features(tmp_path):
    images = torch.rand(24, 3, IMAGE_SIZE, IMAGE_SIZE)
    model, other = in_colour().eval(), in_colour().eval()
    other.load_state_dict(model.state_dict())
    measured_by_trainer(model, images, tmp_path)
    sums: dict = {}
    with collected_statistics(sums):
        observe(other, images)
    other.feature_statistics.measure([sums])
    expected = dict(other.feature_statistics.named_buffers())
    assert any(value.any() for value in expected.values())
    for name, value in model.feature_statistics.named_buffers():
        torch.testing.assert_close(value, expected[name])


def test_calibration_measures_it_on_the_held_out_images(digits, processor):
    model = IT3ForImageClassification.from_backbone(Sides(arrows=False), num_labels=3).eval()
    images = (bright_images(arrows=False).clamp(0, 1) * 255).byte()
    rows = [{"image": image.permute(1, 2, 0).numpy(), "label": index % 3} for index, image in enumerate(images)]
    options = {"corruptions": "shear", "num_samples": 16, "batch_size": 4, "show_progress": False}
    result = calibrate(model, None, rows, **options)
    assert result.reference_distance["mirrored"] == pytest.approx({"all": 1.0, "least": 1.0})


def test_it_is_saved_and_loaded(tmp_path):
    model = in_colour(reference_distance={"mean": 0.0, "std": 1.0, "mirrored": SYMMETRIC})
    model.save_pretrained(tmp_path)
    assert IT3ForImageClassification.from_pretrained(tmp_path).config.reference_distance["mirrored"] == SYMMETRIC
