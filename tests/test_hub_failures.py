"""What goes wrong on the way to the Hub and back: nothing is half there, nothing is lost, and the error says what."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import hub_fixtures
import pytest
import torch
from hub_fixtures import HEAD_TRIES
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_it3 import IT3Config, IT3ForImageClassification
from hf_it3.data import image_processor_for
from hf_it3.hub.push import push_directory


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

PUSH = "import sys; from hf_it3.cli import main; sys.exit(main(['push', *sys.argv[1:]]))"


@pytest.fixture
def directory(trained_directory, tmp_path):
    """A directory of the test's own with the trained model."""
    path = tmp_path / "model"
    pipeline("it3-image-classification", model=trained_directory).save_pretrained(path)
    return path


@pytest.fixture
def repo(hub, hub_client, directory):
    repo_id = hub.name("model")
    push_directory(directory, repo_id)
    return repo_id


def change(directory):
    """Other weights and another configuration than were pushed before."""
    model = IT3ForImageClassification.from_pretrained(directory)
    with torch.no_grad():
        next(model.embedder.parameters()).add_(1)
    model.config.adaptation = model.config.adaptation.replace(num_steps=9)
    model.save_pretrained(directory)


def contents(directory):
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def pushed(hub, repo_id):
    return hub.read(repo_id, "model.safetensors"), json.loads(hub.read(repo_id, "config.json"))["adaptation"]


class TestInterruptedPush:
    def test_a_conflict_without_a_repository_is_an_error(self, hub, hub_client, directory):
        with hub.fault("create", 409), pytest.raises(RepositoryNotFoundError):
            push_directory(directory, hub.name("new"))

    def test_a_branch_that_cannot_be_created_is_an_error_that_says_so(self, hub, directory, repo):
        with hub.fault("branch", 409), pytest.raises(RevisionNotFoundError, match="'a/b' could not be created"):
            push_directory(directory, repo, revision="a/b")

    def test_a_connection_lost_after_the_commit_leaves_the_new_state(self, hub, directory, repo):
        change(directory)
        with hub.fault("commit", "drop_reply"), pytest.raises(Exception):  # noqa: B017 (the client's own)
            push_directory(directory, repo)
        assert pushed(hub, repo)[1]["num_steps"] == 9
        push_directory(directory, repo)
        assert pushed(hub, repo)[1]["num_steps"] == 9

    @pytest.mark.parametrize("stage", ["lfs_put", "commit"])
    def test_a_killed_process_leaves_the_old_state(self, hub, directory, repo, stage):
        before = hub.commits(repo)
        change(directory)
        local = contents(directory)
        with hub.fault(stage, "hang"):
            process = subprocess.Popen([sys.executable, "-c", PUSH, str(directory), repo], env=hub.env())
            hub.wait_hang(stage)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert hub.commits(repo) == before
        assert contents(directory) == local
        push_directory(directory, repo)
        assert pushed(hub, repo)[0] == local["model.safetensors"]

    def test_somebody_elses_push_in_between_is_not_overwritten(self, hub, hub_client, directory, repo, monkeypatch):
        from hf_it3.hub import push as pushing

        monkeypatch.setattr(
            pushing,
            "_card_to_push",
            lambda api, *_: (
                hub_client.upload_file(path_or_fileobj=b"new", path_in_repo="NOTES.md", repo_id=repo) and None
            ),
        )
        change(directory)
        with pytest.raises(Exception, match="412"):
            push_directory(directory, repo)
        assert hub.read(repo, "NOTES.md") == b"new"


class TestImageProcessors:
    def test_one_that_cannot_be_asked_for_is_not_replaced(self, hub, hub_client, repo):
        config = IT3ForImageClassification.from_pretrained(repo).config
        with (
            hub.fault("resolve_head", "drop", times=HEAD_TRIES * 20, match="preprocessor_config.json"),
            pytest.raises(Exception, match="disconnected") as failure,
        ):
            image_processor_for(config)
        assert f"looking for the image processor of {repo}" in failure.value.__notes__[0]
        assert image_processor_for(config).image_mean == [0.3]

    def test_where_there_is_none_one_is_made(self, hub, hub_client, directory):
        for file in directory.glob("*processor_config.json"):
            file.unlink()
        repo = hub.name("model")
        push_directory(directory, repo)
        assert image_processor_for(IT3ForImageClassification.from_pretrained(repo).config).image_mean == [0.5]


class TestCards:
    EDITED = "---\nlicense: mit\nlanguage: en\n---\n# Mine\n\nI wrote this.\n"

    @pytest.fixture
    def edited(self, hub_client, repo):
        hub_client.upload_file(path_or_fileobj=self.EDITED.encode(), path_in_repo="README.md", repo_id=repo)
        return repo

    def test_text_edited_on_the_hub_is_kept_and_its_metadata_merged(self, hub, edited, directory):
        IT3ForImageClassification.from_pretrained(directory).push_to_hub(edited)
        card = ModelCard(hub.read(edited, "README.md").decode())
        assert card.text.strip() == "# Mine\n\nI wrote this."
        assert (card.data.license, card.data.language, card.data.library_name) == ("mit", "en", "hf_it3")

    @pytest.mark.parametrize("stage", ["resolve_head", "resolve_get"])
    def test_a_card_that_cannot_be_reached_is_not_replaced(self, hub, edited, directory, stage):
        before = hub.commits(edited)
        model = IT3ForImageClassification.from_pretrained(directory)
        with hub.fault(stage, 503, times=HEAD_TRIES, match="README.md"), pytest.raises(Exception):  # noqa: B017
            model.push_to_hub(edited)
        assert hub.commits(edited) == before

    def test_a_card_that_is_no_card_is_not_replaced(self, hub, hub_client, repo, directory):
        broken = b"---\nlicense: [mit\n---\n# Mine\n"
        hub_client.create_commit(repo, [_raw("README.md", broken)], commit_message="edit")
        model = IT3ForImageClassification.from_pretrained(directory)
        with pytest.raises(ValueError, match="cannot be read, so it was left as it is"):
            model.push_to_hub(repo)
        assert hub.read(repo, "README.md") == broken

    def test_an_old_card_in_the_cache_does_not_stand_in_for_the_edited_one(self, hub, hub_client, repo, directory):
        IT3ForImageClassification.from_pretrained(directory).push_to_hub(repo)
        ModelCard.load(repo)
        hub_client.upload_file(path_or_fileobj=self.EDITED.encode(), path_in_repo="README.md", repo_id=repo)
        model = IT3ForImageClassification.from_pretrained(directory)
        with hub.fault("resolve_head", 503, times=HEAD_TRIES, match="README.md"), pytest.raises(Exception):  # noqa: B017
            model.push_to_hub(repo)
        assert hub.read(repo, "README.md").decode() == self.EDITED

    def test_two_edited_cards_are_told_apart_with_a_warning(self, hub, edited, directory, caplog):
        (directory / "README.md").write_text("# Local\n")
        with caplog.at_level(logging.WARNING, "hf_it3"):
            push_directory(directory, edited)
        assert "was edited on the Hub, so its text stays" in caplog.text
        assert "I wrote this." in hub.read(edited, "README.md").decode()


def _raw(path, content):
    """A file that the client does not check: it would refuse a broken card."""
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path_in_repo=path.lower(), path_or_fileobj=content)
    operation.path_in_repo = path
    return operation


class TestBadFiles:
    """One clear error for everything that can be wrong with a saved model, when loading and when pushing."""

    def test_corrupt_weights(self, directory):
        (directory / "model.safetensors").write_bytes(b"\xff" * 1000)
        self.both_fail(directory, "corrupt or truncated")

    def test_truncated_weights(self, directory):
        whole = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        self.both_fail(directory, "corrupt or truncated")

    def test_a_missing_config(self, directory):
        (directory / "config.json").unlink()
        self.both_fail(directory, "config.json")

    def test_missing_weights(self, directory):
        (directory / "model.safetensors").unlink()
        self.both_fail(directory, "model.safetensors")

    def test_pickled_weights(self, directory):
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
        self.both_fail(directory, "can run code")
        with pytest.raises(ValueError, match="can run code"):
            IT3ForImageClassification.from_pretrained(directory, use_safetensors=False)

    def test_pickled_weights_on_the_hub(self, hub, hub_client, directory, tmp_path):
        repo_id = hub.name("pickled")
        hub_client.create_repo(repo_id)
        torch.save(load_file(directory / "model.safetensors"), tmp_path / "pytorch_model.bin")
        for file in (directory / "config.json", tmp_path / "pytorch_model.bin"):
            hub_client.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repo_id)
        with pytest.raises(OSError, match="refused because loading one can run code"):
            IT3ForImageClassification.from_pretrained(repo_id)
        assert not [entry for entry in hub.log(repo_id) if entry["method"] == "GET" and ".bin" in entry["path"]]

    def test_a_config_of_a_newer_version(self, directory):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "signal_decay": 0.5}))
        with pytest.raises(ValueError, match="IT3Config has no field 'signal_decay'"):
            IT3ForImageClassification.from_pretrained(directory)
        config["adaptation"]["warp"] = 1
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="AdaptationConfig has no field 'warp'"):
            IT3Config.from_pretrained(directory)

    def test_a_wrong_number_of_labels(self, directory):
        with pytest.raises(ValueError, match="num_labels=7.*do not fit|do not fit.*num_labels=7"):
            IT3ForImageClassification.from_pretrained(directory, num_labels=7)

    def test_missing_weights_of_the_embedder(self, directory):
        weights = load_file(directory / "model.safetensors")
        kept = {name: value for name, value in weights.items() if not name.startswith("embedder.")}
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="lacks weights of IT3ForImageClassification: embedder"):
            IT3ForImageClassification.from_pretrained(directory)

    def test_a_delta_without_its_base(self, directory):
        config = json.loads((directory / "config.json").read_text())
        config["base_model"] = {"weights": "delta"}
        (directory / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="does not name base and revision"):
            IT3ForImageClassification.from_pretrained(directory)

    @staticmethod
    def both_fail(directory, message):
        with pytest.raises((ValueError, OSError), match=message):
            IT3ForImageClassification.from_pretrained(directory)
        with pytest.raises(ValueError, match=message):
            push_directory(directory, "user/never-created")
