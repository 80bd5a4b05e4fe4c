"""What the loopback Hub of `hub_server` holds: repositories, their commits and their contents.

Repositories live in ``repos.json``, contents under their sha256 in ``objects/``; both are only ever replaced as a
whole, so that neither a reader nor a killed server meets half of a state.
"""

import base64
import hashlib
import json
import os
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


class HubError(Exception):
    """A refusal, with the status and the X-Error-Code from which the client picks its exception class."""

    def __init__(self, status, message, code=None, **headers):
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        header = message.encode("ascii", "replace").decode()
        self.reply = Reply({"error": message}, status, {"X-Error-Message": header, **codes, **headers})


@dataclass
class Reply:
    """What is sent back: bytes as they are, anything else as JSON."""

    body: object = b""
    status: int = 200
    headers: dict = field(default_factory=dict)


def git_sha1(data):
    """The id git gives a file of this content; the client compares it with its own to skip unchanged files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def write_whole(path, data):
    """Write a file so that a reader, or a killed server, sees either the old content or the new."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


class Store:
    """Repositories, their commits and their contents."""

    def __init__(self, root):
        self.file, self.objects = Path(root) / "repos.json", Path(root) / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.repos = json.loads(self.file.read_text()) if self.file.exists() else {}

    def save(self):
        write_whole(self.file, json.dumps(self.repos).encode())

    def add_object(self, data):
        sha256 = hashlib.sha256(data).hexdigest()
        write_whole(self.objects / sha256, data)
        return sha256

    def read(self, entry):
        return (self.objects / entry["sha256"]).read_bytes()

    def find(self, key, user, write=False, content=False):
        """The repo, if this user may see it, write to it (`write`) or read its files (`content`)."""
        repo, name = self.repos.get(key), user[0] if user else None
        owner = key.split("/")[-2]
        if repo is None or (repo["private"] and name != owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if content and repo["gated"] and name not in (owner, *repo["granted"]):
            raise HubError(403 if user else 401, f"Access to {key} is restricted to its authorized list", "GatedRepo")
        if write and user != (owner, "write"):
            raise HubError(403 if user else 401, f"This token may not write to {key}")
        return repo

    @staticmethod
    def ref(repo, rev):
        """The full name of a branch, tag or pull request; None if there is no such one."""
        return next((ref for ref in (rev, f"refs/heads/{rev}", f"refs/tags/{rev}") if ref in repo["refs"]), None)

    def sha(self, repo, rev):
        sha = repo["refs"].get(self.ref(repo, rev), rev)
        if sha not in repo["commits"]:
            raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return sha

    @staticmethod
    def history(repo, sha):
        """Commits from `sha` back to the first, as (sha, commit) pairs."""
        while sha:
            yield sha, repo["commits"][sha]
            sha = repo["commits"][sha]["parent"]

    def add_commit(self, repo, parent, files, title, message, author):
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        commit = {"parent": parent, "files": files, "title": title, "message": message, "author": author, "date": date}
        sha = hashlib.sha1(json.dumps(commit).encode()).hexdigest()
        repo["commits"][sha] = commit
        return sha

    def entry(self, data):
        return {"oid": git_sha1(data), "size": len(data), "sha256": self.add_object(data), "lfs": None}

    def lfs_entry(self, repo, value):
        """The entry of an uploaded object: git holds a pointer, whose own id and size the listings show."""
        if value["oid"] not in repo["lfs"]:
            raise HubError(400, f"LFS object {value['oid']} was never uploaded to this repository")
        size = (self.objects / value["oid"]).stat().st_size
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n".encode()
        lfs = {"oid": value["oid"], "sha256": value["oid"], "size": size, "pointerSize": len(pointer)}
        return {"oid": git_sha1(pointer), "size": size, "sha256": value["oid"], "lfs": lfs}

    def apply(self, repo, files, operations):
        """The files that result from a commit's operations; refuses the whole commit if one of them cannot be done."""
        files = dict(files)
        for key, value in operations:
            if key == "file":
                files[value["path"]] = self.entry(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                files[value["path"]] = self.lfs_entry(repo, value)
            elif key in ("deletedFile", "deletedFolder"):
                folder = value["path"].rstrip("/") + "/"
                gone = [path for path in files if path == value["path"] or path.startswith(folder)]
                if not gone or (key == "deletedFile" and value["path"] not in files):
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for path in gone:
                    del files[path]
            else:
                raise HubError(400, f"unknown commit operation {key!r}")
        return files
