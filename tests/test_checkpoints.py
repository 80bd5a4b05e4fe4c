"""Training that was killed while it wrote a checkpoint goes on from the last whole one."""

import shutil

import pytest
import torch
import trainer_fixtures
from trainer_fixtures import tiny, weights

from hf_it3 import IT3Trainer


arguments, rows = trainer_fixtures.arguments, trainer_fixtures.rows

FILES = [
    "config.json",
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, train_rows):
    """The folder of a training of six steps, with checkpoints after two and four, and the weights at its end."""
    folder, model = tmp_path_factory.mktemp("finished"), tiny()
    make_trainer(folder, model, train_rows[:64]).train()
    return folder, weights(model)


def make_trainer(folder, model, rows, **values):
    args = trainer_fixtures.quiet_arguments(folder, max_steps=6, save_strategy="steps", save_steps=2, **values)
    return IT3Trainer(model, args, train_dataset=rows)


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "checkpoint-6")
    return tmp_path / "runs"


def resume(folder, rows, checkpoint=True, **values):
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    make_trainer(folder, model, rows, **values).train(resume_from_checkpoint=checkpoint)
    return weights(model)


def assert_same(ours, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name)


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [empty, cut], ids=["empty", "cut off"])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_broken_file_is_skipped_with_a_warning(finished, folder, rows, caplog, name, damage):
    damage(folder / "checkpoint-4" / name)
    assert_same(resume(folder, rows), finished[1])
    assert f"checkpoint-4 was not written to its end: {name} is empty or cut off" in caplog.text
    assert "goes on from checkpoint-2" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_so_is_one_that_lacks_a_file(finished, folder, rows, caplog, name):
    (folder / "checkpoint-4" / name).unlink()
    assert_same(resume(folder, rows), finished[1])
    assert f"checkpoint-4 was not written to its end: it has no {name}" in caplog.text


def test_a_whole_one_is_taken_without_a_word(finished, folder, rows, caplog):
    (folder / "checkpoint-notes").mkdir()
    assert_same(resume(folder, rows), finished[1])
    assert "written to its end" not in caplog.text


def test_a_broken_one_that_is_named_is_an_error(folder, rows):
    empty(folder / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(
        ValueError, match=r"checkpoint-4 was not written to its end: optimizer\.pt is empty.*another one"
    ):
        resume(folder, rows, str(folder / "checkpoint-4"))
    with pytest.raises(ValueError, match=r"checkpoint-9' is no folder"):
        resume(folder, rows, str(folder / "checkpoint-9"))


def test_without_a_whole_one_there_is_an_error_that_says_why(folder, rows):
    shutil.rmtree(folder / "checkpoint-2")
    empty(folder / "checkpoint-4" / "model.safetensors")
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*: checkpoint-4 .* model\.safetensors is empty"):
        resume(folder, rows)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        resume(folder, rows)


def test_checkpoints_of_the_model_alone_are_whole_without_an_optimizer(folder, rows):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / "checkpoint-4" / name).unlink()
    resume(folder, rows, save_only_model=True)


def test_shards_belong_to_a_checkpoint(finished, folder, rows, caplog):
    model = tiny()
    shutil.rmtree(folder / "checkpoint-4")
    shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-4")
    (folder / "checkpoint-4" / "model.safetensors").unlink()
    model.save_pretrained(folder / "checkpoint-4", max_shard_size="2KB")
    min((folder / "checkpoint-4").glob("model-*.safetensors")).unlink()
    assert_same(resume(folder, rows), finished[1])
    assert "it has no model-00001-of" in caplog.text
