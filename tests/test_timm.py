"""timm's models as backbones, as plain modules and through transformers' wrapper; skipped where timm is missing."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, TimmWrapperConfig
from untouched import untouched

from hf_it3 import IT3ForImageClassification
from hf_it3.it3.batchnorm_it3 import SplitBatchNorm


timm = pytest.importorskip(
    "timm", reason="needs the extra 'timm', and a torchvision for this torch", exc_type=Exception
)
SIDE, NUM_LABELS = 64, 4
# Ten architectures, and what the smallest model of each takes besides its name.
ARCHITECTURES = {
    "resnet10t": {},
    "densenet121": {},
    "mobilenetv3_small_050": {},
    "tf_efficientnet_lite0": {},
    "regnety_002": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": SIDE},
    "swin_tiny_patch4_window7_224": {"img_size": SIDE, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16},
    "xcit_nano_12_p16_224": {},
    "edgenext_xx_small": {},
}
# Normalisation and activation in one layer.
WITH_ACTIVATION_IN_BATCH_NORM = ("densenet121", "mobilenetv3_small_050", "tf_efficientnet_lite0", "regnety_002")


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture(params=["module", "wrapper"])
def classifier(request, architecture):
    arguments = ARCHITECTURES[architecture]
    if request.param == "module":
        model = timm.create_model(architecture, num_classes=NUM_LABELS, **arguments)
    else:
        config = TimmWrapperConfig(architecture=architecture, num_labels=NUM_LABELS, model_args=arguments)
        model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.9, 1.1)
    return model.eval()


def logits(output):
    return getattr(output, "logits", output)


def test_it_predicts_as_before_learns_the_signal_and_adapts(classifier, architecture, tmp_path):
    images, labels = torch.rand(4, 3, SIDE, SIDE), torch.arange(NUM_LABELS)
    with torch.no_grad():
        expected = logits(classifier(images))
        with untouched(classifier):
            model = IT3ForImageClassification.from_backbone(classifier)
            assert torch.equal(model(images).logits, expected)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(isinstance(norm, SplitBatchNorm) for norm in norms)
    if architecture in WITH_ACTIVATION_IN_BATCH_NORM:
        assert any(isinstance(getattr(norm, "act", None), nn.Module) for norm in norms)

    before = copy.deepcopy(model.embedder.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()(images, labels=labels).loss.backward()
    optimizer.step()
    assert not any(torch.equal(value, before[name]) for name, value in model.embedder.state_dict().items())

    model.eval()
    with untouched(model):
        for scope in ("batch", "image"):
            adapted = model.adapt(images, scope=scope, gate=None, parameters="norm", num_steps=2, learning_rate=1e-2)
            assert adapted.adapted.all()
            assert adapted.logits.isfinite().all()
            assert not torch.equal(adapted.logits, adapted.initial_logits)
