"""The loopback Hub against the real huggingface_hub client: every call of the protocol, every fault, every refusal."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import hub_fixtures
import pytest
from hub_fixtures import CLIENT_TRIES, HEAD_TRIES, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import fix_hf_endpoint_in_url


hub, hub_client = hub_fixtures.hub, hub_fixtures.hub_client

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    """A model folder: two small files, one of them nested, and one that is stored as a large file."""
    path = tmp_path / "model"
    (path / "extra").mkdir(parents=True)
    (path / "config.json").write_text('{"hidden_size": 4}')
    (path / "extra" / "notes.txt").write_text("clear weather")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


@pytest.fixture
def repo(hub, hub_client, folder):
    """A public model repo that holds `folder`."""
    repo_id = hub.name("model")
    hub_client.create_repo(repo_id)
    hub_client.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


def other(hub, token="other"):
    """The client of the second user, or of somebody without a token (`None`) or with a made-up one ("bad")."""
    tokens = {"other": hub.other_token, "bad": hub.bad_token, None: False}
    return HfApi(endpoint=hub.endpoint, token=tokens[token])


def stages(hub, repo_id):
    return [entry["stage"] for entry in hub.log(repo_id)]


def run(hub, code, *args, **env):
    """Run Python code in a process of its own and return what it printed as JSON."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env=hub.env(**env), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class TestRepos:
    def test_whoami_names_the_user_of_the_token(self, hub, hub_client):
        assert hub_client.whoami()["name"] == "user"
        assert other(hub).whoami()["name"] == "other"
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            other(hub, "bad").whoami()

    @pytest.mark.parametrize(("repo_type", "prefix"), [("model", ""), ("dataset", "datasets/"), ("space", "spaces/")])
    def test_create_makes_an_empty_repo_of_each_type(self, hub, hub_client, repo_type, prefix):
        repo_id = hub.name("fresh")
        url = hub_client.create_repo(repo_id, repo_type=repo_type, space_sdk="gradio" if prefix == "spaces/" else None)
        assert url == f"{hub.endpoint}/{prefix}{repo_id}"
        assert (url.repo_id, url.repo_type) == (repo_id, repo_type)
        assert hub_client.list_repo_files(repo_id, repo_type=repo_type) == [".gitattributes"]
        assert set(hub.files(prefix + repo_id)) == {".gitattributes"}

    def test_create_twice_is_refused_unless_allowed(self, hub, hub_client):
        repo_id = hub.name("twice")
        first = hub_client.create_repo(repo_id)
        with pytest.raises(HfHubHTTPError) as refusal:
            hub_client.create_repo(repo_id)
        assert refusal.value.response.status_code == 409
        assert hub_client.create_repo(repo_id, exist_ok=True) == first

    def test_only_the_owner_with_a_write_token_creates_and_writes(self, hub, repo):
        for client, status in ((other(hub), 403), (other(hub, None), 401), (other(hub, "bad"), 401)):
            for call in (
                lambda client=client: client.create_repo(hub.name("intruder")),
                lambda client=client: client.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo),
            ):
                with pytest.raises(HfHubHTTPError) as refusal:
                    call()
                assert refusal.value.response.status_code == status
        assert len(hub.commits(repo)) == 2

    def test_delete_removes_the_repo(self, hub, hub_client, repo):
        with pytest.raises(HfHubHTTPError):
            other(hub).delete_repo(repo)
        assert hub_client.repo_exists(repo)
        hub_client.delete_repo(repo)
        assert not hub_client.repo_exists(repo)
        assert hub.repo(repo) is None
        with pytest.raises(RepositoryNotFoundError):
            hub_client.delete_repo(repo)

    def test_listing_shows_public_repos_only(self, hub, hub_client, repo):
        hidden = hub.name("hidden")
        hub_client.create_repo(hidden, private=True)
        assert {repo, hidden} <= {model.id for model in hub_client.list_models(author="user")}
        seen = {model.id for model in other(hub).list_models(author="user")}
        assert repo in seen
        assert hidden not in seen


class TestUploads:
    def test_upload_folder_stores_small_and_large_files(self, hub, hub_client, repo, folder):
        files = hub.files(repo)
        assert set(files) == {".gitattributes", "config.json", "extra/notes.txt", "model.safetensors"}
        assert files["model.safetensors"]["lfs"]
        assert not files["config.json"]["lfs"]
        for name in ("config.json", "extra/notes.txt", "model.safetensors"):
            assert hub.read(repo, name) == (folder / name).read_bytes()
        sent = [stage for stage in stages(hub, repo) if stage in ("preupload", "lfs_batch", "lfs_verify", "commit")]
        assert sent == ["preupload", "lfs_batch", "lfs_verify", "commit"]
        assert [entry["port"] for entry in hub.log(repo) if entry["stage"] == "lfs_put"] == ["storage"]

    def test_unchanged_files_are_not_committed_again(self, hub, hub_client, repo, folder):
        before = hub.commits(repo)
        assert hub_client.upload_folder(repo_id=repo, folder_path=folder).oid == before[0]
        assert hub.commits(repo) == before

    def test_stored_large_files_are_not_sent_again(self, hub, hub_client, repo):
        hub_client.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="copy.safetensors", repo_id=repo)
        assert stages(hub, repo).count("lfs_put") == 1
        assert hub.read(repo, "copy.safetensors") == WEIGHTS

    def test_a_file_replaces_the_one_of_its_name(self, hub, hub_client, repo):
        done = hub_client.upload_file(
            path_or_fileobj=b"fog", path_in_repo="extra/notes.txt", repo_id=repo, commit_message="Turn to fog"
        )
        assert hub.commits(repo)[0] == done.oid
        assert hub.read(repo, "extra/notes.txt") == b"fog"
        assert [commit.title for commit in hub_client.list_repo_commits(repo)][0] == "Turn to fog"

    def test_files_named_by_gitignore_stay_out(self, hub, hub_client, repo, folder):
        (folder / ".gitignore").write_text("checkpoint-*/\n")
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"\0old")
        hub_client.upload_folder(repo_id=repo, folder_path=folder)
        assert ".gitignore" in hub.files(repo)
        assert not any(path.startswith("checkpoint-1") for path in hub.files(repo))

    def test_one_commit_adds_and_deletes(self, hub, hub_client, repo):
        operations = [
            CommitOperationAdd("new.txt", b"new"),
            CommitOperationDelete("config.json"),
            CommitOperationDelete("extra/"),
        ]
        hub_client.create_commit(repo, operations, commit_message="Rearrange")
        assert set(hub.files(repo)) == {".gitattributes", "model.safetensors", "new.txt"}
        assert len(hub.commits(repo)) == 3

    @pytest.mark.parametrize("path", ["absent.txt", "absent/"])
    def test_a_commit_that_cannot_be_done_in_full_changes_nothing(self, hub, hub_client, repo, path):
        before = hub.commits(repo)
        operations = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete(path)]
        with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
            hub_client.create_commit(repo, operations, commit_message="Impossible")
        assert hub.commits(repo) == before

    def test_a_commit_on_an_outdated_parent_is_refused(self, hub, hub_client, repo):
        first, second = hub.commits(repo)[::-1]
        upload = {"path_or_fileobj": b"x", "path_in_repo": "x.txt", "repo_id": repo}
        with pytest.raises(HfHubHTTPError) as refusal:
            hub_client.upload_file(**upload, parent_commit=first)
        assert refusal.value.response.status_code == 412
        assert hub.commits(repo)[0] == second
        hub_client.upload_file(**upload, parent_commit=second)
        assert hub.commits(repo)[1:] == [second, first]

    def test_delete_file_and_folder(self, hub, hub_client, repo):
        hub_client.delete_file("config.json", repo)
        hub_client.delete_folder("extra", repo)
        assert set(hub.files(repo)) == {".gitattributes", "model.safetensors"}

    def test_metadata_that_is_not_closed_is_refused(self, hub, hub_client, repo):
        with pytest.raises(ValueError, match="not closed"):
            hub_client.upload_file(path_or_fileobj=b"---\ntags: x\n", path_in_repo="README.md", repo_id=repo)
        assert "README.md" not in hub.files(repo)


class TestDownloads:
    def test_snapshot_holds_every_file_as_it_was_sent(self, repo, folder):
        snapshot = Path(snapshot_download(repo))
        for name in ("config.json", "extra/notes.txt", "model.safetensors"):
            assert (snapshot / name).read_bytes() == (folder / name).read_bytes()

    def test_large_files_come_from_the_storage_port_without_the_token(self, hub, repo):
        with open(hf_hub_download(repo, "model.safetensors"), "rb") as file:
            assert file.read() == WEIGHTS
        head, get = [entry for entry in hub.log(repo) if entry["stage"] in ("resolve_head", "resolve_get")]
        assert (head["port"], head["status"], head["authorized"]) == ("hub", 302, True)
        assert (get["port"], get["status"], get["authorized"]) == ("storage", 200, False)

    def test_an_interrupted_download_continues_where_it_stopped(self, hub, repo, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
        with hub.fault("resolve_get", "truncate"):
            path = hf_hub_download(repo, "model.safetensors")
            assert not hub.pending()
        with open(path, "rb") as file:
            assert file.read() == WEIGHTS
        assert [entry["status"] for entry in hub.log(repo) if entry["stage"] == "resolve_get"] == [200, 206]

    def test_missing_things_have_their_own_exceptions(self, hub, hub_client, repo):
        with pytest.raises(EntryNotFoundError):
            hf_hub_download(repo, "absent.json")
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(repo, "config.json", revision="absent")
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("user/absent", "config.json")
        with pytest.raises(RevisionNotFoundError):
            snapshot_download(repo, revision="absent")
        with pytest.raises(RepositoryNotFoundError):
            snapshot_download("user/absent")
        assert hub_client.file_exists(repo, "config.json")
        assert not hub_client.file_exists(repo, "absent.json")

    def test_without_the_hub_only_the_cache_is_left(self, hub, repo):
        hf_hub_download(repo, "config.json")
        with hub.fault("resolve_head", 503, times=1 + HEAD_TRIES):
            assert hf_hub_download(repo, "config.json")
            with pytest.raises(LocalEntryNotFoundError):
                hf_hub_download(repo, "extra/notes.txt")
            assert not hub.pending()

    def test_listings_describe_files_and_folders(self, hub, hub_client, repo):
        top = {item.path: item for item in hub_client.list_repo_tree(repo)}
        assert set(top) == {".gitattributes", "config.json", "extra", "model.safetensors"}
        assert top["model.safetensors"].lfs.size == top["model.safetensors"].size == len(WEIGHTS)
        assert top["config.json"].lfs is None
        assert [item.path for item in hub_client.list_repo_tree(repo, "extra")] == ["extra/notes.txt"]
        assert "extra/notes.txt" in {item.path for item in hub_client.list_repo_tree(repo, recursive=True)}
        with pytest.raises(RemoteEntryNotFoundError):
            list(hub_client.list_repo_tree(repo, "absent"))
        found = hub_client.get_paths_info(repo, ["config.json", "extra", "absent"])
        assert [type(item).__name__ for item in found] == ["RepoFile", "RepoFolder"]

    def test_info_reports_sha_files_and_card(self, hub, hub_client, repo):
        card = b"---\npipeline_tag: image-classification\nlibrary_name: hf_it3\ntags:\n- it3\n- 'fog'\n---\n# Model\n"
        hub_client.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repo)
        info = hub_client.model_info(repo, files_metadata=True)
        assert info.sha == hub.commits(repo)[0]
        assert {item.rfilename: item.size for item in info.siblings}["model.safetensors"] == len(WEIGHTS)
        assert (info.pipeline_tag, info.library_name, info.tags) == ("image-classification", "hf_it3", ["it3", "fog"])


class TestRevisions:
    def test_branches_keep_their_own_files(self, hub, hub_client, repo):
        hub_client.create_branch(repo, branch="foggy")
        hub_client.upload_file(path_or_fileobj=b"fog", path_in_repo="fog.txt", repo_id=repo, revision="foggy")
        assert "fog.txt" in hub.files(repo, "foggy")
        assert "fog.txt" not in hub.files(repo)
        assert hub.commits(repo, "foggy")[1:] == hub.commits(repo)
        assert {branch.name for branch in hub_client.list_repo_refs(repo).branches} == {"main", "foggy"}
        with pytest.raises(HfHubHTTPError) as refusal:
            hub_client.create_branch(repo, branch="foggy")
        assert refusal.value.response.status_code == 409
        hub_client.create_branch(repo, branch="foggy", exist_ok=True)
        hub_client.delete_branch(repo, branch="foggy")
        assert not hub_client.revision_exists(repo, "foggy")

    def test_a_push_to_a_missing_branch_is_refused(self, hub_client, repo):
        with pytest.raises(RevisionNotFoundError):
            hub_client.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision="absent")

    def test_tags_and_shas_stay_where_they_are(self, hub, hub_client, repo):
        old = hub.commits(repo)[0]
        hub_client.create_tag(repo, tag="v1.0")
        hub_client.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo)
        for revision in ("v1.0", old):
            with open(hf_hub_download(repo, "config.json", revision=revision)) as file:
                assert file.read() == '{"hidden_size": 4}'
        with open(hf_hub_download(repo, "config.json")) as file:
            assert file.read() == "{}"
        (tag,) = hub_client.list_repo_refs(repo).tags
        assert (tag.name, tag.target_commit) == ("v1.0", old)
        for revision in ("v1.0", old):
            with pytest.raises(BadRequestError, match="not a branch"):
                hub_client.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision=revision)
        hub_client.delete_tag(repo, tag="v1.0")
        assert not hub_client.list_repo_refs(repo).tags

    def test_a_pull_request_leaves_main_alone(self, hub, hub_client, repo):
        upload = {"path_or_fileobj": b"fog", "repo_id": repo}
        done = hub_client.upload_file(**upload, path_in_repo="fog.txt", create_pr=True)
        assert (done.pr_revision, done.pr_num) == ("refs/pr/1", 1)
        hub_client.upload_file(**upload, path_in_repo="more.txt", revision="refs/pr/1")
        assert {"fog.txt", "more.txt"} <= set(hub.files(repo, "refs/pr/1"))
        assert "fog.txt" not in hub.files(repo)
        assert hf_hub_download(repo, "fog.txt", revision="refs/pr/1")
        (pull,) = hub_client.list_repo_refs(repo, include_pull_requests=True).pull_requests
        assert pull.ref == "refs/pr/1"


class TestAccess:
    def test_a_private_repo_does_not_exist_for_strangers(self, hub, hub_client, repo, tmp_path):
        hub_client.update_repo_settings(repo, private=True)
        assert hf_hub_download(repo, "config.json", cache_dir=tmp_path / "owner")
        for token in ("other", None):
            for call in (
                lambda token=token: other(hub, token).hf_hub_download(repo, "config.json", cache_dir=tmp_path / "new"),
                lambda token=token: other(hub, token).snapshot_download(repo, cache_dir=tmp_path / "new"),
                lambda token=token: other(hub, token).model_info(repo),
                lambda token=token: other(hub, token).auth_check(repo),
            ):
                with pytest.raises(RepositoryNotFoundError):
                    call()

    def test_a_repo_created_private_is_private(self, hub, hub_client):
        repo_id = hub.name("closed")
        hub_client.create_repo(repo_id, private=True)
        assert hub_client.model_info(repo_id).private
        assert not other(hub).repo_exists(repo_id)

    def test_a_made_up_token_is_refused_even_for_public_repos(self, hub, repo, tmp_path):
        with pytest.raises(HfHubHTTPError) as refusal:
            other(hub, "bad").hf_hub_download(repo, "config.json", cache_dir=tmp_path / "new")
        assert type(refusal.value) is HfHubHTTPError
        assert refusal.value.response.status_code == 401

    def test_a_gated_repo_shows_its_files_to_granted_users_only(self, hub, hub_client, repo, tmp_path):
        hub_client.update_repo_settings(repo, gated="manual")
        assert other(hub).model_info(repo).gated == "manual"
        for token in ("other", None):
            with pytest.raises(GatedRepoError):
                other(hub, token).hf_hub_download(repo, "config.json", cache_dir=tmp_path / "new")
            with pytest.raises(GatedRepoError):
                other(hub, token).auth_check(repo)
        assert hub_client.hf_hub_download(repo, "config.json", cache_dir=tmp_path / "owner")
        hub_client.grant_access(repo, "other")
        assert other(hub).hf_hub_download(repo, "config.json", cache_dir=tmp_path / "new")
        other(hub).auth_check(repo)

    def test_the_log_holds_no_token(self, hub, repo):
        log = hub.log()
        assert any(entry["authorized"] for entry in log)
        for token in (hub.user_token, hub.other_token, hub.bad_token):
            assert token not in json.dumps(log)


PUSH = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(sys.argv[1], exist_ok=True)
api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2])
"""
STAGES = ("create", "preupload", "lfs_batch", "lfs_put", "lfs_verify", "commit")
RETRIED = ("preupload", "lfs_batch", "lfs_put", "lfs_verify")


def push(client, repo_id, folder):
    client.create_repo(repo_id, exist_ok=True)
    return client.upload_folder(repo_id=repo_id, folder_path=folder)


def change(folder):
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    (folder / "config.json").write_text('{"hidden_size": 8}')


class TestFaults:
    @pytest.mark.parametrize("kind", [500, 503, "drop", "truncate"])
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_failed_push_leaves_the_branch_and_the_next_one_finishes(
        self, hub, hub_client, repo, folder, stage, kind
    ):
        """Whatever the stage: the old state whole, or, where only the reply to the commit was cut, the new one."""
        before = hub.commits(repo)
        change(folder)
        with hub.fault(stage, kind, times=CLIENT_TRIES if stage in RETRIED else 1):
            with pytest.raises(Exception) as failure:
                push(hub_client, repo, folder)
            assert not hub.pending()
        cause = failure.value.__cause__ if stage in ("lfs_put", "lfs_verify") else failure.value
        assert type(cause).__name__ == ("HfHubHTTPError" if isinstance(kind, int) else "RemoteProtocolError")
        if (stage, kind) == ("commit", "truncate"):
            assert hub.commits(repo)[1:] == before
        else:
            assert hub.commits(repo) == before
        push(hub_client, repo, folder)
        assert hub.commits(repo)[1:] == before
        assert hub.read(repo, "model.safetensors") == WEIGHTS[::-1]
        assert hub.read(repo, "config.json") == b'{"hidden_size": 8}'

    @pytest.mark.parametrize("stage", RETRIED)
    def test_the_client_retries_a_single_failure_by_itself(self, hub, hub_client, repo, folder, stage):
        before = hub.commits(repo)
        change(folder)
        with hub.fault(stage, 503):
            push(hub_client, repo, folder)
            assert not hub.pending()
        assert hub.commits(repo)[1:] == before

    def test_a_commit_whose_reply_is_lost_is_done(self, hub, hub_client, repo, folder):
        before = hub.commits(repo)
        change(folder)
        with hub.fault("commit", "drop_reply"), pytest.raises(Exception, match="disconnected"):
            push(hub_client, repo, folder)
        after = hub.commits(repo)
        assert after[1:] == before
        assert push(hub_client, repo, folder).oid == after[0]
        assert hub.commits(repo) == after

    def test_what_was_stored_before_the_failure_is_not_sent_again(self, hub, hub_client, repo, folder):
        change(folder)
        with hub.fault("commit", "drop"), pytest.raises(Exception, match="disconnected"):
            push(hub_client, repo, folder)
        sent = stages(hub, repo).count("lfs_put")
        push(hub_client, repo, folder)
        assert stages(hub, repo).count("lfs_put") == sent

    def test_a_download_fault_strikes_the_bytes_not_the_redirect_to_them(self, hub, repo):
        with hub.fault("resolve_get", 503):
            url = f"{hub.endpoint}/{repo}/resolve/main/model.safetensors"
            assert get_session().get(url, follow_redirects=True).status_code == 503
        struck = [(entry["port"], entry["fault"]) for entry in hub.log(repo) if entry["stage"] == "resolve_get"]
        assert struck == [("hub", None), ("storage", 503)]

    @pytest.mark.parametrize("stage", ["lfs_put", "commit"])
    def test_a_killed_push_leaves_the_branch(self, hub, hub_client, repo, folder, stage):
        before = hub.commits(repo)
        change(folder)
        with hub.fault(stage, "hang"):
            process = subprocess.Popen([sys.executable, "-c", PUSH, repo, str(folder)], env=hub.env())
            hub.wait_hang(stage)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert hub.commits(repo) == before
        push(hub_client, repo, folder)
        assert hub.commits(repo)[1:] == before

    def test_a_fault_can_be_kept_to_one_file(self, hub, repo):
        with hub.fault("resolve_head", 500, times=HEAD_TRIES, match="notes.txt"):
            assert hf_hub_download(repo, "config.json")
            with pytest.raises(LocalEntryNotFoundError):
                hf_hub_download(repo, "extra/notes.txt")

    def test_a_download_fails_when_the_storage_keeps_failing(self, hub, repo):
        with hub.fault("resolve_get", 500), pytest.raises(HfHubHTTPError, match="500"):
            hf_hub_download(repo, "model.safetensors")
        assert hf_hub_download(repo, "model.safetensors")

    def test_unknown_faults_are_refused(self, hub):
        with pytest.raises(ValueError, match="no such fault.*lfs_put.*truncate"):
            hub.fault("lfs_pat", 500)
        with pytest.raises(ValueError, match="no such fault"):
            hub.fault("lfs_put", "explode")


class TestStorage:
    def test_large_files_need_a_signed_address_and_no_token(self, hub, hub_client, repo):
        address = hub_client.get_hf_file_metadata(url=f"{hub.endpoint}/{repo}/resolve/main/model.safetensors").location
        with urllib.request.urlopen(address) as reply:
            assert reply.read() == WEIGHTS
        with_token = urllib.request.Request(address, headers={"Authorization": f"Bearer {hub.user_token}"})
        for refused, status in ((with_token, 400), (address.split("?")[0], 403)):
            with pytest.raises(urllib.error.HTTPError) as refusal:
                urllib.request.urlopen(refused)
            assert refusal.value.code == status

    def test_a_commit_cannot_name_an_object_that_was_never_sent(self, hub, hub_client, repo):
        before = hub.commits(repo)
        operation = CommitOperationAdd("phantom.safetensors", b"never sent")
        operation._upload_mode, operation._is_uploaded = "lfs", True
        with pytest.raises(BadRequestError, match="never uploaded"):
            hub_client.create_commit(repo, [operation], commit_message="Phantom")
        assert hub.commits(repo) == before

    def test_an_object_must_have_its_announced_sha256(self, hub, hub_client, repo):
        info = UploadInfo.from_bytes(b"announced")
        (item,), _, _ = post_lfs_batch_info([info], hub.user_token, "model", repo, endpoint=hub.endpoint)
        put = urllib.request.Request(item["actions"]["upload"]["href"], data=b"something else", method="PUT")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(put)
        assert refusal.value.code == 400

    def test_repositories_survive_the_server(self, hub_client, tmp_path):
        with HubServer(tmp_path) as first:
            HfApi(endpoint=first.endpoint, token=first.user_token).create_repo("user/kept")
            commits = first.commits("user/kept")
        with HubServer(tmp_path) as second:
            assert second.commits("user/kept") == commits


class TestLibraries:
    def test_a_card_is_pushed_and_loaded(self, hub, hub_client, repo, monkeypatch):
        # Before 2.2, the client asks the public Hub whether a card is valid, whatever the endpoint.
        post = get_session().post
        session = SimpleNamespace(post=lambda url, **kw: post(fix_hf_endpoint_in_url(url, hub.endpoint), **kw))
        monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: session)
        card = ModelCard("---\nlibrary_name: hf_it3\ntags:\n- it3\n---\n# A card\n")
        card.push_to_hub(repo)
        assert ModelCard.load(repo).data.tags == ["it3"]
        assert hub.read(repo, "README.md") == str(card).encode()
        with pytest.raises(ValueError, match="not closed"):
            hub_client.upload_file(path_or_fileobj=b"---\nlicense: mit\n", path_in_repo="README.md", repo_id=repo)

    def test_datasets_loads_a_parquet_repo(self, hub, hub_client, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        repo_id = hub.name("digits")
        hub_client.create_repo(repo_id, repo_type="dataset")
        for split, labels in (("train", [0, 1, 2]), ("test", [3])):
            pq.write_table(pa.table({"label": labels}), tmp_path / f"{split}.parquet")
            hub_client.upload_file(
                path_or_fileobj=tmp_path / f"{split}.parquet",
                path_in_repo=f"data/{split}-00000-of-00001.parquet",
                repo_id=repo_id,
                repo_type="dataset",
            )
        code = "import datasets, json, sys; data = datasets.load_dataset(sys.argv[1]);" + (
            "print(json.dumps({split: data[split]['label'][:] for split in data}))"
        )
        assert run(hub, code, repo_id, token=None) == {"train": [0, 1, 2], "test": [3]}

    def test_transformers_loads_in_a_fresh_process_what_it_pushed(self, hub, hub_client):
        import torch
        from transformers import ResNetConfig, ResNetForImageClassification

        repo_id = hub.name("resnet")
        config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_channels=1, num_labels=3)
        model = ResNetForImageClassification(config).eval()
        model.push_to_hub(repo_id, private=True)
        assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files(repo_id))
        code = "\n".join(
            (
                "import json, sys, torch",
                "from transformers import AutoModelForImageClassification",
                "model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()",
                "print(json.dumps(model(torch.ones(1, 1, 8, 8)).logits.tolist()))",
            )
        )
        with torch.no_grad():
            expected = model(torch.ones(1, 1, 8, 8)).logits
        torch.testing.assert_close(torch.tensor(run(hub, code, repo_id)), expected)
