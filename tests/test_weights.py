"""Weights that cannot be copied and stepped on are refused with the way out, before anything runs."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from untouched import untouched

from hf_it3 import IT3TrainingArguments, TestTimeAdapter


SCOPES = pytest.mark.parametrize("scope", ["batch", "image", "stream"])


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, on the CPU."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@SCOPES
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dynamically_quantised_layers_are_named(model, images, scope):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    assert quantised(images).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"^backbone\.fc1 is quantised \(.*dynamic.*Linear\).*adapt the model before"):
        TestTimeAdapter(quantised, scope=scope)


def test_so_is_a_model_that_transformers_quantised(model):
    model.backbone.is_quantized = True
    with pytest.raises(ValueError, match="^backbone is quantised"):
        TestTimeAdapter(model)


@SCOPES
def test_sharded_parameters_are_named(model, one_process, scope):
    fully_shard(model, mesh=distributed.init_device_mesh("cpu", (1,)))
    with pytest.raises(
        ValueError, match=r"^backbone\.conv1\.weight is sharded over processes \(.*DTensor\).*load it whole"
    ):
        TestTimeAdapter(model, scope=scope)


def test_so_is_a_model_in_the_older_wrapper(model, one_process):
    wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"))
    with pytest.raises(ValueError, match="^the model is sharded over processes"):
        TestTimeAdapter(wrapped)


def test_evaluating_with_adaptation_is_refused_where_training_shards(tmp_path):
    with pytest.raises(ValueError, match="eval_adapted=True needs whole weights, which fsdp=True shards"):
        IT3TrainingArguments(str(tmp_path), fsdp=True, eval_adapted=True, use_cpu=True)


def test_weights_that_deepspeed_has_divided_are_named(model):
    model.backbone.conv2.weight.ds_id = 3
    with untouched(model), pytest.raises(ValueError, match=r"^backbone\.conv2\.weight is sharded over processes"):
        TestTimeAdapter(model)
