"""The loopback Hub as tests use it: `HubServer`, which runs it in a process of its own, and three fixtures.

`hub` is one server for the whole session; give every test its own repos with ``hub.name("mnist")``. `hub_client` is
an `HfApi` of user "user", and points huggingface_hub and transformers in the test's own process at the server, with an
empty cache. Client processes take ``env=hub.env(token=...)`` instead. `packages_without_hf_it3` is for those that
cannot import the package.
"""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import types
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import certifi
import pytest
from hub_server import BAD_TOKEN, OTHER_TOKEN, USER_TOKEN


# How often the client sends a request before it gives up: create and commit once, the other stages of an upload
# CLIENT_TRIES times, the HEAD of a file that is not in its cache HEAD_TRIES times. A download of bytes ends at a 5xx
# status, and goes on when the connection breaks.
CLIENT_TRIES, HEAD_TRIES = 6, 7


class HubServer:
    """A Hub in a process of its own; a context manager that starts and stops it.

    Repos are named by web path: "user/name", "datasets/user/name", "spaces/user/name". The tokens of its two users are
    `user_token` (writes to repos of "user") and `other_token` (only reads); `bad_token` belongs to nobody.
    """

    user_token, other_token, bad_token = USER_TOKEN, OTHER_TOKEN, BAD_TOKEN

    def __init__(self, root=None):
        self.folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.root = Path(root or self.folder.name)
        self.counter = itertools.count(1)
        self.process = self.endpoint = None
        # One instead of a hundred, which every client would read for 80 ms: the Hub here has none to check.
        self.certificate = Path(self.folder.name) / "certificate.pem"
        first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
        self.certificate.write_text(first + end)

    def start(self):
        script = Path(__file__).with_name("hub_server.py")
        command = [sys.executable, str(script), "--root", str(self.root / "hub"), "--until-stdin-closes"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the hub server ended with {self.process.wait()} before it listened")
        self.endpoint = json.loads(line)["endpoint"]
        return self

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None
        self.folder.cleanup()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def name(self, stem):
        """A repo id that no other test uses: "user/stem-1"."""
        return f"user/{stem}-{next(self.counter)}"

    def env(self, token=USER_TOKEN, hf_home=None, **extra):
        """The whole environment for a client process, with an empty cache unless `hf_home` names one.

        `token=None` is a process of somebody who never logged in.
        """
        dropped = ("HF_", "HUGGING", "TRANSFORMERS_")
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(dropped) and not key.lower().endswith("_proxy")
        }
        return {
            **kept,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(hf_home or tempfile.mkdtemp(prefix="home-", dir=self.folder.name)),
            **({"HF_TOKEN": token} if token else {}),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "SSL_CERT_FILE": str(self.certificate),
            "OMP_NUM_THREADS": "1",
            **extra,
        }

    def control(self, action, **query):
        url = f"{self.endpoint}/_control/{action}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=120) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from None

    def fault(self, stage, kind, times=1, match=""):
        """Let the next `times` requests of a stage whose path contains `match` fail.

        Stages: create, preupload, lfs_batch, lfs_put, lfs_verify, commit, resolve_head, resolve_get, and the others
        that `log` shows. Kinds: a status such as 503; "drop", the connection ends before the request has any effect;
        "drop_reply", it ends after the effect; "truncate", half of the reply's body; "hang", no answer until `clear`,
        for a client that is to be killed (`wait_hang` tells when). As a context manager it clears what is left.
        """
        self.control("fault", stage=stage, kind=kind, times=times, match=match)
        cleanup = contextlib.ExitStack()
        cleanup.callback(self.clear)
        return cleanup

    def pending(self):
        """Faults that have not struck yet: empty once everything armed was met by a request."""
        return json.loads(self.control("pending"))

    def clear(self):
        """Disarm every fault and cut off the requests that hang."""
        self.control("clear")

    def wait_hang(self, stage, timeout=60):
        """Return once a request hangs at `stage`; its client can be killed there."""
        if not json.loads(self.control("wait", stage=stage, timeout=timeout)):
            raise TimeoutError(f"no request reached {stage!r} within {timeout} s")

    def log(self, match=""):
        """Requests whose path contains `match`, oldest first: method, path, port, stage, authorized, status, fault."""
        return json.loads(self.control("log", match=match))

    def repo(self, repo):
        """Everything the server knows of a repo: private, gated, refs, commits; None if there is no such repo."""
        return json.loads(self.control("repos")).get(repo)

    def commits(self, repo, rev="main"):
        """Shas of a branch, tag or sha and what came before it, newest first."""
        state, shas = self.repo(repo), []
        sha = self.sha(state, rev)
        while sha:
            shas.append(sha)
            sha = state["commits"][sha]["parent"]
        return shas

    def files(self, repo, rev="main"):
        """The files of a revision: {path: {"size", "sha256", "oid", "lfs"}}."""
        state = self.repo(repo)
        return state["commits"][self.sha(state, rev)]["files"]

    def read(self, repo, path, rev="main"):
        """The bytes of a file as the server holds them."""
        return self.control("object", sha256=self.files(repo, rev)[path]["sha256"])

    @staticmethod
    def sha(state, rev):
        names = (rev, f"refs/heads/{rev}", f"refs/tags/{rev}")
        return next((state["refs"][name] for name in names if name in state["refs"]), rev)


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """The Hub of this session, in its own process."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture
def hub_client(hub, tmp_path, monkeypatch):
    """An `HfApi` of user "user", with huggingface_hub and transformers of this process bound to the loopback Hub.

    The cache is empty, `HF_TOKEN` is the user's, xet is off, and retries do not wait. Code downloaded with
    trust_remote_code, and `datasets`, keep the paths from when they were imported: run those in a process with
    ``hub.env()``.
    """
    import transformers.utils.hub
    from huggingface_hub import constants, file_download, hf_api
    from huggingface_hub.utils import _http

    environment = hub.env(hf_home=tmp_path / "hf_home")
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf_home" / "token"))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    patient = types.SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in _http, file_download:
        monkeypatch.setattr(module, "time", patient)
    _http.close_session()
    yield hf_api.HfApi(endpoint=hub.endpoint, token=hub.user_token)
    _http.close_session()
    hub.clear()


@pytest.fixture(scope="module")
def packages_without_hf_it3(tmp_path_factory):
    """A folder with all installed packages but ours. Processes start with -S, so that no other is on their path."""
    folder = tmp_path_factory.mktemp("packages")
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if not re.match(r"hf_it3|__editable__", entry.name) and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder
