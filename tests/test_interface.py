"""Every entrance asks the same question of a model: does it take a label signal?"""

import pytest
import torch
from conftest import tiny_config
from torch import nn
from transformers import HGNetV2Config, HGNetV2ForImageClassification, ResNetConfig, ResNetModel

from hf_it3 import IT3ForImageClassification, IT3Pipeline, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.calibration import calibrate
from hf_it3.evaluation import evaluate_robustness
from hf_it3.it3.interface_it3 import takes_label_signal


RESNET = ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1])
HGNET = HGNetV2Config(
    num_channels=1,
    embedding_size=4,
    hidden_sizes=[4],
    depths=[1],
    stem_channels=[1, 4, 4],
    stage_in_channels=[4],
    stage_mid_channels=[4],
    stage_out_channels=[4],
    stage_num_blocks=[1],
    stage_downsample=[False],
    stage_light_block=[False],
    stage_kernel_size=[3],
    stage_numb_of_layers=[1],
)


def make_trainer(model):
    arguments = IT3TrainingArguments("build/unused", save_strategy="no", use_cpu=True)
    return IT3Trainer(model, arguments, train_dataset=[{"pixel_values": torch.zeros(1, 16, 16), "label": 0}])


ENTRANCES = {
    "adapter": TestTimeAdapter,
    "pipeline": lambda model: IT3Pipeline(model=model),
    "trainer": make_trainer,
    "evaluation": lambda model: evaluate_robustness(model, [], corruptions=["mnist-c/fog"]),
    "calibration": lambda model: calibrate(model, None, []),
}


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES)
@pytest.mark.parametrize(
    "build", [lambda: ResNetModel(RESNET), lambda: HGNetV2ForImageClassification(HGNET)], ids=["resnet", "hgnet"]
)
def test_a_plain_model_with_a_part_called_embedder_is_refused_everywhere(build, entrance):
    plain = build()
    assert isinstance(plain.embedder, nn.Module)
    with pytest.raises((TypeError, ValueError), match=f"{type(plain).__name__} takes no label signal; wrap it with"):
        entrance(plain)


@pytest.mark.parametrize("model", [None, nn.Linear(1, 1), nn.ModuleDict({"embedder": nn.Linear(1, 1)})])
def test_what_is_no_model_of_transformers_is_not_idempotent(model):
    assert not takes_label_signal(model)
    with pytest.raises(TypeError, match="takes no label signal"):
        TestTimeAdapter(model)


def test_an_idempotent_model_is_known_by_its_parts():
    assert takes_label_signal(IT3ForImageClassification(tiny_config()))
