"""Streams of models that answer with numbers or with sets of labels gain, or stay near the unadapted answer."""

import pytest
import torch
from conftest import IMAGE_SIZE, tiny_config
from transformers import set_seed

from hf_it3 import IT3ForImageClassification, IT3Trainer, TestTimeAdapter
from hf_it3 import IT3TrainingArguments as TrainingArguments
from hf_it3.it3.augmentation_it3 import _warp


NUM_BATCHES, BATCH_SIZE = 60, 32


@pytest.fixture(scope="module")
def pixels(digits, processor):
    """All digits as the model takes them, by split."""
    return {
        split: (processor(images=rows["image"][:], return_tensors="pt").pixel_values, torch.tensor(rows["label"][:]))
        for split, rows in digits.items()
    }


def train(config, images, labels, folder) -> IT3ForImageClassification:
    set_seed(0)
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=10,
        per_device_train_batch_size=32,
        learning_rate=5e-3,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"pixel_values": image, "label": label} for image, label in zip(images, labels.tolist(), strict=True)]
    trainer = IT3Trainer(IT3ForImageClassification(config), arguments, train_dataset=rows)
    trainer.train()
    return trainer.model.eval()


def rotated(images, generator):
    """The images, each rotated by an angle between -45 and 45 degrees, and the angles `(B, 1)`."""
    angles = torch.rand(len(images), generator=generator) * 90 - 45
    cos, sin = angles.deg2rad().cos(), angles.deg2rad().sin()
    zeros = torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cos, -sin, zeros], -1), torch.stack([sin, cos, zeros], -1)], 1)
    return _warp(images[None], matrices)[0], angles[:, None]


def paired(images, labels, generator):
    """Pairs of digits at half size in opposite corners, and which digits are there `(B, 10)`."""
    small = torch.nn.functional.avg_pool2d(images, 2)
    others = torch.randperm(len(images), generator=generator)
    canvas = images.min().expand(len(images), 1, IMAGE_SIZE, IMAGE_SIZE).clone()
    canvas[:, :, : IMAGE_SIZE // 2, : IMAGE_SIZE // 2] = small
    canvas[:, :, IMAGE_SIZE // 2 :, IMAGE_SIZE // 2 :] = small[others]
    one_hot = torch.nn.functional.one_hot(labels, 10)
    return canvas, (one_hot | one_hot[others]).float()


def batches(images, labels):
    """The images again and again, in an order of its own each time, in batches of one size."""
    generator = torch.Generator().manual_seed(1)
    rounds = -(-NUM_BATCHES * BATCH_SIZE // len(images))
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(rounds)])
    for part in order.split(BATCH_SIZE)[:NUM_BATCHES]:
        yield images[part], labels[part]


@pytest.fixture(scope="module")
def angles(pixels):
    generator = torch.Generator().manual_seed(0)
    return {split: rotated(images, generator) for split, (images, _) in pixels.items()}


@pytest.fixture(scope="module")
def angle_model(angles, tmp_path_factory):
    config = tiny_config(problem_type="regression", num_labels=1)
    return train(config, *angles["train"], tmp_path_factory.mktemp("angles"))


class TestAngles:
    def test_training_measures_the_targets(self, angle_model, angles):
        targets = angles["train"][1]
        assert angle_model.config.target_mean == pytest.approx(targets.mean(0).tolist(), rel=1e-3)
        assert angle_model.config.target_std == pytest.approx(targets.std(0).tolist(), rel=1e-3)

    @pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("settings", [{}, {"gate": None}], ids=["defaults", "no gate"])
    def test_a_stream_is_never_far_worse_than_no_adaptation(self, angle_model, angles, shift, settings):
        adapter = TestTimeAdapter(angle_model, scope="stream", **settings)
        plain, adapted = [], []
        for images, targets in batches(*angles["test"]):
            output = adapter(images + shift)
            plain.append((output.initial_logits - targets).square().mean().item())
            adapted.append((output.logits - targets).square().mean().item())
        assert all(ours <= 2 * theirs for ours, theirs in zip(adapted, plain, strict=True))
        if shift == 0:
            assert sum(adapted) <= (1.02 if settings == {} else 1.2) * sum(plain)
        elif settings and shift == 0.5:
            assert sum(adapted) < 0.95 * sum(plain), "adaptation gains nothing"


@pytest.fixture(scope="module")
def pairs(pixels):
    generator = torch.Generator().manual_seed(0)
    return {split: paired(images, labels, generator) for split, (images, labels) in pixels.items()}


@pytest.fixture(scope="module")
def pair_model(pairs, tmp_path_factory):
    config = tiny_config(problem_type="multi_label_classification", num_labels=10)
    return train(config, *pairs["train"], tmp_path_factory.mktemp("labels"))


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_the_rate_of_labels_in_a_stream_stays(pair_model, pairs, shift):
    adapter = TestTimeAdapter(pair_model, scope="stream")
    rates, right = [], []
    for images, labels in batches(*pairs["test"]):
        output = adapter(images + shift)
        answers = torch.stack([output.initial_logits, output.logits]) > 0
        rates.append(answers.float().mean((1, 2)))
        right.append((answers == labels.bool()).float().mean((1, 2)))
    rate_before, rate = torch.stack(rates).mean(0).tolist()
    right_before, right_after = torch.stack(right).mean(0).tolist()
    assert abs(rate - rate_before) < 0.25 * rate_before
    assert right_after >= right_before + (0.01 if shift else 0)
