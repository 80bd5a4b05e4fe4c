"""On devices without double precision, as Apple's, nothing asks for it: the whole path, on a device that pretends."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, tiny_config
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from hf_it3 import IT3ForImageClassification, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.calibration import calibrate
from hf_it3.corruptions import corrupt, list_corruptions
from hf_it3.evaluation.outcomes import Collector


class DeviceWithoutDouble(TorchFunctionMode):
    """Tensors put on it, and whatever is computed from them, refuse double precision until `.cpu()` brings them back.

    What `torch.func` computes under a transformation leaves it unnoticed.
    """

    def __init__(self):
        super().__init__()
        self._held = WeakIdKeyDictionary()

    def put(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self._held[tensor] = True

    def holds(self, value) -> bool:
        return isinstance(value, Tensor) and value in self._held

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        held = any(self.holds(value) for value in tree_flatten((args, kwargs))[0])
        if held and (function is Tensor.cpu or (function is Tensor.to and _names_cpu(args, kwargs))):
            return function(*args, **kwargs).clone()
        if held and function is Tensor.numpy:
            raise TypeError("a tensor of the device was turned into an array; copy it to the host with .cpu() first")
        output = function(*args, **kwargs)
        if held:
            for value in tree_flatten(output)[0]:
                if isinstance(value, Tensor):
                    if value.dtype in (torch.float64, torch.complex128):
                        name = getattr(function, "__name__", function)
                        raise TypeError(f"{name} asks for double precision, which the device does not have")
                    self.put(value)
        return output


def _names_cpu(args, kwargs) -> bool:
    return any(
        value == "cpu" or value == torch.device("cpu")
        for value in (*args[1:], *kwargs.values())
        if not isinstance(value, Tensor)
    )


@pytest.fixture
def device():
    with DeviceWithoutDouble() as device:
        yield device


@pytest.fixture
def on_device(model, device):
    device.put(*model.parameters(), *model.buffers())
    return model


def test_the_device_refuses_double_precision(device):
    held = torch.ones(2)
    device.put(held)
    for compute in (
        lambda: (held + 1).double(),
        lambda: held.sum().to(torch.float64),
        lambda: held.mean(dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match="asks for double precision"):
            compute()
    with pytest.raises(TypeError, match="turned into an array"):
        held.numpy()
    assert (held * 2).cpu().double().numpy().tolist() == [2.0, 2.0]
    assert torch.ones(2).double().dtype == torch.float64


@pytest.mark.parametrize(
    "settings",
    [
        {"scope": "batch"},
        {"scope": "batch", "gate": None, "max_grad_norm": 1.0},
        {"scope": "stream"},
        {"scope": "image", "vectorize": False, "num_steps": 1},
        {"scope": "image", "vectorize": True, "num_steps": 1},
        {"scope": "average", "augmentations": 2, "augmentation_steps": 1},
    ],
    ids=str,
)
def test_adaptation(on_device, device, shifted_images, settings):
    images = shifted_images[:40]
    device.put(images)
    adapter = TestTimeAdapter(on_device, **settings)
    output = adapter(images)
    assert output.adapted.any()
    assert settings.get("vectorize") or device.holds(output.logits)
    collector = Collector()
    collector.add_images(np.arange(40), np.zeros(40), torch.zeros(40).long(), output.idempotence)
    collector.add_answers("adapted", np.arange(40), output.logits, torch.zeros(40).long(), output.adapted)
    if settings["scope"] == "stream":
        again = TestTimeAdapter(on_device, **settings)
        again.load_state_dict(adapter.state_dict())
        again(images)
    if settings["scope"] != "image" and settings["scope"] != "average":
        adapter.adapted_model()


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_training_and_the_reference(device, train_rows, processor, tmp_path, problem_type):
    regression = {} if problem_type is None else {"problem_type": problem_type, "num_labels": 1}
    model = IT3ForImageClassification(tiny_config(**regression))
    device.put(*model.parameters(), *model.buffers())
    rows = [{**row, "label": float(row["label"])} if regression else row for row in train_rows[:32]]
    arguments = IT3TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=16, use_cpu=True, disable_tqdm=True, eval_adapted=True
    )
    trainer = IT3Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    trainer.train()
    assert trainer.model.config.reference_distance
    assert trainer.evaluate()


def test_calibration(on_device, device, digits, processor):
    corruptions = ["digits-shift/brightness"]
    rows = digits["test"].select(range(9))
    result = calibrate(on_device, processor, rows, corruptions=corruptions, batch_size=3, show_progress=False)
    assert result.table()


def test_corruptions(device):
    images = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    device.put(images)
    for suite in ("digits-shift", "imagenet-c", "mnist-c"):
        for name in list_corruptions(suite):
            given = images[:, :1] if suite == "mnist-c" else images
            try:
                corrupt(given, name)
            except TypeError as error:
                raise AssertionError(f"{name}: {error}") from error
