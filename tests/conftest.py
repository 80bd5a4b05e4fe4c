"""Fixtures for all tests: a tiny model trained on scikit-learn's bundled digits, and data to try it on."""

import copy
import gc
import logging
import os

import pytest
import torch
from transformers import ResNetConfig, set_seed

from hf_it3 import IT3CNNConfig, IT3Config, IT3ForImageClassification, IT3ImageProcessor, IT3Trainer
from hf_it3 import IT3TrainingArguments as TrainingArguments
from hf_it3.data import load_digits


IMAGE_SIZE = 16
# Of the tests and of the processes that they start; `IT3_TEST_THREADS=2 make test` must pass as well.
NUM_THREADS = os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("IT3_TEST_THREADS", "1"))


def pytest_collection_modifyitems(items):
    """As in transformers, slow tests run with `RUN_SLOW=1`."""
    if os.environ.get("RUN_SLOW", "0") != "1":
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; RUN_SLOW=1 runs it"))


def pytest_collection_finish():
    """Whatever is imported by now stays: Python need not look through all of it again for what can be thrown away,
    which took a quarter of the time."""
    gc.collect()
    gc.freeze()


class RaiseOnDeprecation(logging.Handler):
    """transformers logs most of its deprecations; a test that meets one fails."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecated" in message.lower():
            raise DeprecationWarning(message)


@pytest.fixture(autouse=True)
def seeded():
    """Random weights that do not depend on which tests ran before."""
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def deprecations_are_errors():
    handler = RaiseOnDeprecation(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session", autouse=True)
def threads():
    torch.set_num_threads(int(NUM_THREADS))


def tiny_config(**values) -> IT3Config:
    """A network of some 3,000 parameters for grey images of 16x16 pixels."""
    backbone = IT3CNNConfig(image_size=IMAGE_SIZE, conv_channels=[4, 8], hidden_size=24)
    return IT3Config(**{"backbone_config": backbone, **values})


@pytest.fixture(scope="session")
def digits():
    """Real 8x8 images of digits, `datasets` splits `train` (1,297) and `test` (500)."""
    return load_digits()


@pytest.fixture(scope="session")
def processor():
    return IT3ImageProcessor(
        num_channels=1, size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.3], image_std=[0.35]
    )


@pytest.fixture(scope="session")
def train_rows(digits, processor):
    """The training split as rows of tensors, so that a test that trains need not process images."""
    images = processor(images=digits["train"]["image"][:], return_tensors="pt").pixel_values
    rows = zip(images, digits["train"]["label"], strict=True)
    return [{"pixel_values": image, "label": label} for image, label in rows]


@pytest.fixture(scope="session")
def trained_directory(train_rows, processor, tmp_path_factory):
    """A saved model with reference distance and image processor, trained to well above 80% on the test digits."""
    directory = tmp_path_factory.mktemp("trained")
    set_seed(0)
    model = IT3ForImageClassification(tiny_config())
    arguments = TrainingArguments(
        str(directory / "runs"),
        num_train_epochs=8,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        learning_rate=5e-3,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = IT3Trainer(model, arguments, train_dataset=train_rows, processing_class=processor)
    trainer.train()
    # Most tests are about steps on features as they are; test_alignment.py is about features that are aligned.
    model.feature_statistics.forget()
    trainer.save_model(str(directory / "model"))
    return str(directory / "model")


@pytest.fixture(scope="session")
def _trained_model(trained_directory):
    return IT3ForImageClassification.from_pretrained(trained_directory).eval()


@pytest.fixture
def model(_trained_model):
    """The trained model in eval mode, the test's own copy."""
    return copy.deepcopy(_trained_model)


@pytest.fixture
def random_model():
    """An untrained model of the same shape, in eval mode."""
    set_seed(1)
    return IT3ForImageClassification(tiny_config()).eval()


@pytest.fixture
def batch_norm_model():
    """An untrained ResNet for the same images, whose BatchNorm statistics are not those of random weights alone."""
    set_seed(2)
    backbone = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=10)
    model = IT3ForImageClassification(IT3Config(backbone_config=backbone)).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 1, 16, 16), labels=torch.randint(0, 10, (16,)))
    return model.eval()


@pytest.fixture(scope="session")
def labels(digits):
    """Labels of the first 64 test digits."""
    return torch.tensor(digits["test"]["label"][:64])


@pytest.fixture(scope="session")
def _clean_images(digits, processor):
    return processor(images=digits["test"]["image"][:64], return_tensors="pt").pixel_values


@pytest.fixture
def images(_clean_images):
    """The first 64 test digits as the model takes them, `(64, 1, 16, 16)`."""
    return _clean_images.clone()


@pytest.fixture
def shifted_images(_clean_images):
    """The same digits, brighter: a shift on which the gate opens and adaptation gains."""
    return _clean_images + 1.0
