"""Models to the Hub and back, with the real client and a server on loopback."""

import json
import subprocess
import sys
import types
from pathlib import Path

import hub_fixtures
import pytest
import torch
from alike import assert_alike
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from trainer_fixtures import measured_by_trainer
from transformers import pipeline

from hf_it3 import IT3ForImageClassification, IT3ImageProcessor, IT3Trainer, IT3TrainingArguments, TestTimeAdapter
from hf_it3.cli import main
from hf_it3.cli.calibrate import save_calibrated
from hf_it3.it3.shift_test_it3 import ShiftTest


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

TASK = "it3-image-classification"
# What a new user runs, in a process of its own: adapted and plain answers for images in a folder.
CLASSIFY = """
import json, sys
from pathlib import Path
import hf_it3
from transformers import pipeline

answers = {}
for name in sys.argv[2:]:
    classifier = pipeline("it3-image-classification", model=name)
    files = sorted(map(str, Path(sys.argv[1]).glob("*.png")))
    answers[name] = [classifier(files, top_k=None, gate=None), classifier(files, top_k=None, adapt=False)]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def image_folder(digits, tmp_path_factory):
    """Sixteen digits as files, with grey fog."""
    folder = tmp_path_factory.mktemp("images")
    for position, image in enumerate(digits["test"]["image"][:16]):
        Image.blend(image, Image.new("L", image.size, 200), 0.3).save(folder / f"{position:02}.png")
    return folder


@pytest.fixture
def files(image_folder):
    return sorted(map(str, image_folder.glob("*.png")))


@pytest.fixture
def classifier(trained_directory):
    return pipeline(TASK, model=trained_directory)


@pytest.fixture
def base(hub, hub_client, classifier):
    """A repo with the trained model."""
    repo_id = hub.name("mnist-it3")
    classifier.push_to_hub(repo_id)
    return repo_id


def run(hub, code, *args, **env):
    """What a Python process prints, as JSON."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=hub.env(**env), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def adapted_from(repo_id, images, **overrides):
    adapter = TestTimeAdapter(IT3ForImageClassification.from_pretrained(repo_id), gate=None, **overrides)
    adapter(images)
    return adapter.adapted_model()


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_new_process_gets_the_same_answers_without_trust(
    hub, hub_client, classifier, trained_directory, train_rows, processor, image_folder, files, tmp_path
):
    names = [hub.name(way) for way in ("pipeline", "model", "trainer", "shell", "code")]
    expected = [classifier(files, top_k=None, gate=None), classifier(files, top_k=None, adapt=False)]
    assert expected[0] != expected[1]

    classifier.push_to_hub(names[0])
    IT3ForImageClassification.from_pretrained(trained_directory).push_to_hub(names[1])
    arguments = IT3TrainingArguments(str(tmp_path), hub_model_id=names[2], use_cpu=True)
    IT3Trainer(classifier.model, arguments, train_dataset=train_rows, processing_class=processor).push_to_hub()
    assert main(["push", trained_directory, names[3]]) == 0
    classifier.push_to_hub(names[4], include_code=True)

    answers = run(hub, CLASSIFY, image_folder, *names)
    assert_alike(answers, dict.fromkeys(names, expected))


def test_a_model_pushed_after_training_brings_the_processor_it_was_trained_with(
    hub, hub_client, random_model, train_rows, tmp_path
):
    processor = IT3ImageProcessor(
        num_channels=1, size={"height": 16, "width": 16}, image_mean=[0.11], image_std=[0.22]
    )
    arguments = IT3TrainingArguments(str(tmp_path), use_cpu=True)
    IT3Trainer(random_model, arguments, train_dataset=train_rows, processing_class=processor)
    repo_id = hub.name("model")
    random_model.push_to_hub(repo_id)
    assert json.loads(hub.read(repo_id, "preprocessor_config.json"))["image_mean"] == [0.11]


def test_batch_norm_statistics_of_both_passes_come_back(hub, hub_client, batch_norm_model):
    repo_id = hub.name("resnet")
    batch_norm_model.push_to_hub(repo_id)
    assert same_weights(IT3ForImageClassification.from_pretrained(repo_id), batch_norm_model)


def test_push_makes_one_commit_with_everything(hub, hub_client, classifier):
    repo_id = hub.name("model")
    hub_client.create_repo(repo_id)
    before = len(hub.commits(repo_id))
    classifier.push_to_hub(repo_id)
    assert len(hub.commits(repo_id)) == before + 1
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(hub.files(repo_id))


def test_shell_push_to_a_private_branch(hub, hub_client, trained_directory, capsys):
    repo_id = hub.name("model")
    assert main(["push", trained_directory, repo_id, "--private", "--revision", "v2"]) == 0
    assert hub.repo(repo_id)["private"]
    assert "model.safetensors" in hub.files(repo_id, "v2")
    assert "model.safetensors" not in hub.files(repo_id, "main")
    assert hub.commits(repo_id, "v2")[0] in capsys.readouterr().out


def test_training_directories_are_pushed_without_checkpoints_and_pickles(hub, hub_client, trained_directory, tmp_path):
    for file in Path(trained_directory).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "optimizer.pt").write_bytes(b"pickle")
    (tmp_path / "training_args.bin").write_bytes(b"pickle")
    repo_id = hub.name("model")
    assert main(["push", str(tmp_path), repo_id]) == 0
    assert not [name for name in hub.files(repo_id) if name.endswith((".pt", ".bin"))]


def test_smaller_weights_leave_no_stale_shards(hub, hub_client, classifier):
    repo_id = hub.name("model")
    classifier.push_to_hub(repo_id, max_shard_size="5KB")
    assert "model.safetensors.index.json" in hub.files(repo_id)
    assert same_weights(IT3ForImageClassification.from_pretrained(repo_id), classifier.model)
    classifier.push_to_hub(repo_id)
    assert [name for name in hub.files(repo_id) if name.startswith("model")] == ["model.safetensors"]


class TestAdaptedModels:
    @pytest.mark.parametrize("delta", [False, True])
    def test_adapted_weights_come_back(self, hub, base, shifted_images, delta):
        adapted = adapted_from(base, shifted_images)
        repo_id = hub.name("foggy")
        adapted.push_to_hub(repo_id, delta=delta)
        loaded = IT3ForImageClassification.from_pretrained(repo_id)
        assert same_weights(loaded, adapted)
        assert not same_weights(loaded, IT3ForImageClassification.from_pretrained(base))
        torch.testing.assert_close(loaded(shifted_images).logits, adapted(shifted_images).logits, rtol=1e-4, atol=1e-4)
        assert loaded.config.name_or_path == repo_id

    def test_a_delta_holds_what_changed_and_nothing_else(self, hub, base, shifted_images):
        adapted = adapted_from(base, shifted_images, parameters="bias")
        repo_id = hub.name("foggy")
        adapted.push_to_hub(repo_id, delta=True)
        assert "model.safetensors" not in hub.files(repo_id)
        assert hub.files(repo_id)["delta.safetensors"]["size"] < hub.files(base)["model.safetensors"]["size"] / 3

    def test_a_delta_keeps_to_the_revision_that_was_adapted(self, hub, base, shifted_images, random_model):
        adapted = adapted_from(base, shifted_images)
        repo_id = hub.name("foggy")
        adapted.push_to_hub(repo_id, delta=True)
        random_model.push_to_hub(base)
        assert same_weights(IT3ForImageClassification.from_pretrained(repo_id), adapted)

    def test_a_delta_of_a_delta_refers_to_the_whole_model(self, hub, base, shifted_images):
        first, second = hub.name("foggy"), hub.name("foggier")
        adapted_from(base, shifted_images).push_to_hub(first, delta=True)
        again = adapted_from(first, shifted_images + 1)
        again.push_to_hub(second, delta=True)
        config = json.loads(hub.read(second, "config.json"))["base_model"]
        assert (config["name_or_path"], config["delta_of"]["name_or_path"]) == (first, base)
        assert same_weights(IT3ForImageClassification.from_pretrained(second), again)

    def test_adapting_once_more_in_memory_counts_what_was_before(self, hub, base, shifted_images):
        first = adapted_from(base, shifted_images[:12], num_steps=2)
        adapter = TestTimeAdapter(first, gate=None, num_steps=3)
        adapter(shifted_images[12:20])
        second = adapter.adapted_model()
        counts = {key: second.config.base_model[key] for key in ("num_images", "num_steps")}
        assert counts == {"num_images": 20, "num_steps": 5}
        assert second.config.base_model["name_or_path"] == base

    def test_a_delta_that_is_calibrated_in_place_stays_one(self, hub, base, shifted_images, images, tmp_path):
        adapted_from(base, shifted_images).save_pretrained(tmp_path / "delta", delta=True)
        loaded = IT3ForImageClassification.from_pretrained(tmp_path / "delta")
        measured_by_trainer(loaded, images, tmp_path / "runs")
        as_loaded = types.SimpleNamespace(name=str(tmp_path / "delta"), model=loaded)
        save_calibrated(as_loaded, None, tmp_path / "delta")
        assert not (tmp_path / "delta" / "model.safetensors").exists()
        again = IT3ForImageClassification.from_pretrained(tmp_path / "delta")
        assert again.shift_reference.num_images.item() == len(images)
        assert same_weights(again, loaded)
        assert again.config.reference_distance == loaded.config.reference_distance

    def test_a_delta_that_is_saved_whole_needs_no_base(self, hub, base, shifted_images, tmp_path):
        repo_id = hub.name("foggy")
        adapted_from(base, shifted_images).push_to_hub(repo_id, delta=True)
        loaded = IT3ForImageClassification.from_pretrained(repo_id)
        loaded.save_pretrained(tmp_path)
        assert "delta_of" not in (tmp_path / "config.json").read_text()
        assert same_weights(IT3ForImageClassification.from_pretrained(tmp_path), loaded)

    def test_a_delta_of_a_local_model_is_refused(self, model, shifted_images, tmp_path):
        adapter = TestTimeAdapter(model, gate=None)
        adapter(shifted_images)
        with pytest.raises(ValueError, match="push the base model first"):
            adapter.adapted_model().save_pretrained(tmp_path, delta=True)
        with pytest.raises(ValueError, match="was not adapted"):
            model.save_pretrained(tmp_path, delta=True)

    def test_the_card_says_what_was_done(self, hub, base, shifted_images):
        adapted = adapted_from(base, shifted_images, num_steps=2, learning_rate=0.00125)
        repo_id = hub.name("foggy")
        adapted.push_to_hub(repo_id, delta=True, data_description="webcam at night")
        card = hub.read(repo_id, "README.md").decode()
        provenance = adapted.config.base_model
        for fact in (
            "adapted at test time without labels",
            f"base_model: {base}",
            f"| `{hub.commits(base)[0]}` |",
            "| data | webcam at night |",
            f"| images | {len(shifted_images)} |",
            "| optimizer steps | 2 |",
            "| learning rate | 0.00125 |",
            "| scope | batch |",
            f"| date | {provenance['date']} |",
        ):
            assert fact in card

    def test_the_card_says_which_weights_are_there_wherever_they_came_from(self, hub, base, shifted_images):
        adapted, changed, whole, again = (
            adapted_from(base, shifted_images),
            *map(hub.name, ("foggy", "whole", "again")),
        )
        adapted.push_to_hub(changed, delta=True)
        adapted.push_to_hub(whole)
        IT3ForImageClassification.from_pretrained(changed).push_to_hub(again)
        cards = [hub.read(repo_id, "README.md").decode() for repo_id in (changed, whole, again)]
        assert ["| weights in this repository | only those that changed (a delta) |" in card for card in cards] == [
            True,
            False,
            False,
        ]
        assert ["| weights in this repository | all |" in card for card in cards] == [False, True, True]

    def test_adapt_from_the_shell(self, hub, base, image_folder, tmp_path, capsys):
        repo_id, folder = hub.name("foggy"), tmp_path / "foggy"
        command = ["adapt", base, str(image_folder), "--output_dir", str(folder), "--push", repo_id, "--delta"]
        assert main([*command, "--no_gate", "--batch_size", "8"]) == 0
        assert "adapted to 16 images in 10 steps" in capsys.readouterr().out
        saved, pushed = (IT3ForImageClassification.from_pretrained(name) for name in (folder, repo_id))
        assert same_weights(saved, pushed)
        assert not same_weights(saved, IT3ForImageClassification.from_pretrained(base))
        assert pipeline(TASK, model=str(folder))(str(image_folder / "00.png"), top_k=1)
        assert str(tmp_path) not in (folder / "README.md").read_text()

    def test_it_is_said_what_changed(self, model, processor, images, image_folder, tmp_path, capsys, monkeypatch):
        """Nothing where the gate stays closed, the statistics alone where no step is taken."""
        measured_by_trainer(model, images, tmp_path / "runs")
        trained_directory = str(tmp_path / "measured")
        model.save_pretrained(trained_directory)
        processor.save_pretrained(trained_directory)
        folders = [str(tmp_path / name) for name in ("closed", "statistics")]
        with monkeypatch.context() as closed:
            closed.setattr(ShiftTest, "opens", lambda self, groups, scores: torch.zeros(1, dtype=torch.bool))
            assert main(["adapt", trained_directory, str(image_folder), "--output_dir", folders[0]]) == 0
        assert "so nothing changed; --no_gate adapts anyway" in capsys.readouterr().out
        options = ["--output_dir", folders[1], "--no_gate", "--num_steps", "0"]
        assert main(["adapt", trained_directory, str(image_folder), *options]) == 0
        printed = capsys.readouterr().out
        assert "adapted to 16 images in 0 steps" in printed
        assert "the weights took over the statistics of the images; no optimizer step was taken" in printed
        assert "nothing changed" not in printed
        model.feature_statistics.forget()
        model.save_pretrained(trained_directory)
        assert main(["adapt", trained_directory, str(image_folder), *options[:1], folders[0], "--num_steps", "0"]) == 0
        assert "settings ask for no step and for the statistics of training" in capsys.readouterr().out
        base, closed, _ = map(IT3ForImageClassification.from_pretrained, (trained_directory, *folders))
        assert same_weights(base, closed)

    def test_the_model_itself_is_not_replaced_and_another_one_not_without_a_word(
        self, trained_directory, image_folder, tmp_path, capsys
    ):
        before = Path(trained_directory, "model.safetensors").read_bytes()
        link = tmp_path / "link"
        link.symlink_to(trained_directory)
        assert main(["adapt", trained_directory, str(image_folder), "--output_dir", str(link)]) == 2
        assert "is MODEL itself, which the adapted model would replace" in capsys.readouterr().err
        assert Path(trained_directory, "model.safetensors").read_bytes() == before
        command = ["adapt", trained_directory, str(image_folder), "--output_dir", str(tmp_path / "other")]
        told = []
        for _ in range(2):
            assert main(command) == 0
            told.append("holds a model, which will be replaced at the end" in capsys.readouterr().err)
        assert told == [False, True]

    def test_where_the_base_model_lay_is_not_told(self, model, trained_directory, shifted_images, tmp_path):
        adapter = TestTimeAdapter(model, gate=None)
        adapter(shifted_images)
        adapter.adapted_model().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())["base_model"]
        assert saved["name_or_path"] == Path(trained_directory).name

    def test_adapt_needs_somewhere_to_put_the_result(self, trained_directory, image_folder, capsys):
        assert main(["adapt", trained_directory, str(image_folder)]) == 2
        assert "--output_dir DIR, --push user/name" in capsys.readouterr().err


class TestAccess:
    """The client's own exceptions: raised by a push, and the cause of what transformers raises when it loads."""

    @pytest.fixture
    def private(self, hub, hub_client, classifier):
        repo_id = hub.name("private")
        classifier.push_to_hub(repo_id, private=True)
        return repo_id

    def test_the_owner_loads_a_private_model(self, hub, private, classifier):
        assert same_weights(IT3ForImageClassification.from_pretrained(private), classifier.model)

    @pytest.mark.parametrize("token", [False, hub_fixtures.HubServer.other_token, hub_fixtures.HubServer.bad_token])
    def test_nobody_else_loads_a_private_model(self, private, token, tmp_path):
        with pytest.raises(OSError) as caught:
            IT3ForImageClassification.from_pretrained(private, token=token, cache_dir=tmp_path / "fresh")
        assert isinstance(caught.value.__cause__, HfHubHTTPError)

    def test_missing_repo_and_revision(self, base):
        with pytest.raises(OSError) as caught:
            IT3ForImageClassification.from_pretrained("user/nothing-here")
        assert isinstance(caught.value.__cause__, RepositoryNotFoundError)
        with pytest.raises(OSError) as caught:
            IT3ForImageClassification.from_pretrained(base, revision="nothing-here")
        assert isinstance(caught.value.__cause__, RevisionNotFoundError)

    @pytest.mark.parametrize("token", [hub_fixtures.HubServer.other_token, hub_fixtures.HubServer.bad_token])
    def test_nobody_else_pushes(self, hub, base, classifier, token):
        before = hub.commits(base)
        with pytest.raises(HfHubHTTPError) as caught:
            classifier.push_to_hub(base, token=token)
        assert caught.value.response.status_code in (401, 403)
        assert token not in str(caught.value)
        assert hub.commits(base) == before

    def test_a_delta_of_a_private_model_needs_a_token_for_the_base_too(self, hub, private, shifted_images, tmp_path):
        repo_id = hub.name("foggy")
        adapted_from(private, shifted_images).push_to_hub(repo_id, delta=True)
        with pytest.raises(OSError, match=private):
            IT3ForImageClassification.from_pretrained(repo_id, token=False, cache_dir=tmp_path / "fresh")


class TestTokens:
    def test_the_token_stays_out_of_what_the_trainer_saves_and_pushes(
        self, hub, hub_client, random_model, train_rows, processor, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.delenv("HF_TOKEN")
        repo_id = hub.name("model")
        arguments = IT3TrainingArguments(
            str(tmp_path), hub_model_id=repo_id, hub_token=hub.user_token, max_steps=1, use_cpu=True, disable_tqdm=True
        )
        caplog.set_level("DEBUG")
        trainer = IT3Trainer(random_model, arguments, train_dataset=train_rows[:64], processing_class=processor)
        trainer.train()
        trainer.push_to_hub()
        secret = hub.user_token.encode()
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert any(path.name == "training_args.bin" for path in written)
        assert not [path for path in written if secret in path.read_bytes()]
        assert not [name for name in hub.files(repo_id) if secret in hub.read(repo_id, name)]
        assert hub.user_token not in caplog.text

    def test_a_token_in_a_file_stops_the_push(self, hub, hub_client, classifier, tmp_path, capsys):
        classifier.save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text(f"---\nlicense: mit\n---\nLog in with {hub.user_token}\n")
        repo_id = hub.name("model")
        assert main(["push", str(tmp_path), repo_id]) == 2
        assert "contains your access token" in (error := capsys.readouterr().err)
        assert hub.user_token not in error
        assert hub.repo(repo_id) is None


class TestDatasets:
    COMMANDS = """
import sys
from hf_it3.cli import main
from hf_it3.it3.shift_test_it3 import ShiftTest

data, model, output = sys.argv[1:]
train = ["train", "--dataset", data, "--do_train", "--max_steps", "2", "--output_dir", output]
assert not main([*train, "--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--save_strategy=no"])
options = ["--corruptions", "none", "--methods", "none,batch", "--no_plots", "--no_progress"]
assert not main(["evaluate", model, "--dataset", data, *options, "--num_samples=32", "--output_dir", output + "/e"])
print('"done"')
"""

    @pytest.mark.slow
    def test_a_parquet_repo_feeds_train_and_evaluate(self, hub, hub_client, base, digits, tmp_path):
        repo_id = f"user/digits-{base.split('-')[-1]}"
        hub_client.create_repo(repo_id, repo_type="dataset")
        for split in ("train", "test"):
            digits[split].select(range(64)).to_parquet(tmp_path / f"{split}.parquet")
            hub_client.upload_file(
                path_or_fileobj=tmp_path / f"{split}.parquet",
                path_in_repo=f"data/{split}-00000-of-00001.parquet",
                repo_id=repo_id,
                repo_type="dataset",
            )
        output = tmp_path / "output"
        assert run(hub, self.COMMANDS, repo_id, base, output) == "done"
        assert IT3ForImageClassification.from_pretrained(output).config.num_labels == 10
        results = (output / "e" / "results.json").read_text()
        assert json.loads(results)["conditions"][0]["num_images"] == 32
        assert hub.user_token not in results
