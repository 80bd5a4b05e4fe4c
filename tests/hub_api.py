"""The requests that the loopback Hub of `hub_server` answers: one handler for each, in `ROUTES`.

A handler takes the hub (its `store`, `endpoint` and `signed` addresses) and the `Call`, and returns a `Reply` or
raises a `HubError`. It checks everything before it changes anything: a request is carried out whole or not at all.
"""

import base64
import fnmatch
import functools
import hashlib
import itertools
import json
import re
import urllib.parse
from dataclasses import dataclass

from hub_store import HubError, Reply


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".parquet", ".arrow", ".npy", ".npz", ".zip")
LFS_THRESHOLD = 10 * 1024 * 1024


@dataclass
class Call:
    """One request, after its route is known: `key` is the repo's web path, `user` a (name, role) pair or None."""

    method: str
    args: dict
    query: dict
    body: bytes
    headers: dict
    user: tuple | None

    @property
    def key(self):
        kind = self.args.get("kind")
        return self.args["id"] if kind in (None, "models") else f"{kind}/{self.args['id']}"

    @property
    def rev(self):
        return self.args.get("rev") or "main"

    @functools.cached_property
    def json(self):
        return json.loads(self.body or b"{}")


REPO = r"(?P<id>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{REPO}"
WEB = rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}"
REV = r"(?P<rev>refs/[^/]+/[^/]+|[^/]+)"
ROUTES = []


def route(stage, methods, pattern):
    """Register a handler; `stage` is the name by which faults and the log refer to its requests."""

    def register(function):
        ROUTES.append((stage, methods.split(), re.compile(pattern), function))
        return function

    return register


@route("whoami", "GET", "/api/whoami-v2")
def whoami(hub, call):
    if not call.user:
        raise HubError(401, "Invalid username or password.")
    name, role = call.user
    token = {"accessToken": {"displayName": "test", "role": role}}
    return Reply({"type": "user", "id": name, "name": name, "fullname": name, "orgs": [], "auth": token})


@route("validate_yaml", "POST", "/api/validate-yaml")
def validate_yaml(hub, call):
    if re.match(r"---\s*\n(?!(.*\n)?---\s*(\n|\Z))", call.json["content"], re.S):
        errors = [{"message": "the metadata block at the top of README.md is not closed by ---"}]
        return Reply({"errors": errors, "warnings": []}, 400)
    return Reply({"errors": [], "warnings": []})


def named_in(call):
    """Owner and web path of the repo that a create or delete request names in its body."""
    prefix = {"dataset": "datasets/", "space": "spaces/"}.get(call.json.get("type"), "")
    owner = call.json.get("organization") or (call.user[0] if call.user else None)
    return owner, f"{prefix}{owner}/{call.json['name']}"


@route("create", "POST", "/api/repos/create")
def create(hub, call):
    owner, key = named_in(call)
    if call.user != (owner, "write"):
        raise HubError(403 if call.user else 401, f"This token may not create a repository under {owner}")
    if key in hub.store.repos:
        error = "You already created this repo"
        return Reply({"error": error, "url": f"{hub.endpoint}/{key}"}, 409, {"X-Error-Message": error})
    private = call.json.get("visibility") == "private"
    repo = {"private": private, "gated": False, "granted": [], "lfs": [], "refs": {}, "commits": {}, "pulls": 0}
    attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
    files = {".gitattributes": hub.store.entry(attributes.encode())}
    repo["refs"]["refs/heads/main"] = hub.store.add_commit(repo, None, files, "initial commit", "", owner)
    hub.store.repos[key] = repo
    hub.store.save()
    return Reply({"url": f"{hub.endpoint}/{key}", "name": f"{owner}/{call.json['name']}", "private": private})


@route("delete", "DELETE", "/api/repos/delete")
def delete(hub, call):
    _, key = named_in(call)
    hub.store.find(key, call.user, write=True)
    del hub.store.repos[key]
    hub.store.save()
    return Reply({})


@route("settings", "PUT", API + "/settings")
def settings(hub, call):
    repo = hub.store.find(call.key, call.user, write=True)
    repo["gated"] = call.json.get("gated", repo["gated"])
    if "visibility" in call.json:
        repo["private"] = call.json["visibility"] == "private"
    hub.store.save()
    return Reply({})


@route("grant", "POST", API + "/user-access-request/grant")
def grant(hub, call):
    hub.store.find(call.key, call.user, write=True)["granted"].append(call.json["user"])
    hub.store.save()
    return Reply({})


@route("auth_check", "GET", API + "/auth-check(?P<write>/write)?")
def auth_check(hub, call):
    hub.store.find(call.key, call.user, write=bool(call.args["write"]), content=True)
    return Reply({})


def card_fields(text):
    """Task, library and tags of a card: the plain lines of its metadata from which the Hub fills its own fields."""
    header = re.match(r"---\s*\n(.*?)\n---", text, re.S)
    lines = header[1].splitlines() if header else []
    fields = dict(re.findall(r"^(pipeline_tag|library_name):\s*['\"]?([^'\"\s]+)", "\n".join(lines), re.M))
    tags = []
    if "tags:" in lines:
        below = lines[lines.index("tags:") + 1 :]
        items = itertools.takewhile(lambda line: line.lstrip().startswith("-"), below)
        tags = [line.strip("- '\"") for line in items]
    return {**fields, "tags": tags}


def info_of(hub, key, repo, rev, blobs=False):
    sha = hub.store.sha(repo, rev)
    files, dates = repo["commits"][sha]["files"], [commit["date"] for _, commit in hub.store.history(repo, sha)]
    siblings = [{"rfilename": path} for path in sorted(files)]
    if blobs:
        for item in siblings:
            entry = files[item["rfilename"]]
            item.update(size=entry["size"], blobId=entry["oid"], lfs=entry["lfs"])
    card = hub.store.read(files["README.md"]).decode() if "README.md" in files else ""
    name = "/".join(key.split("/")[-2:])
    fixed = {"id": name, "modelId": name, "author": name.split("/")[0], "disabled": False, "downloads": 0, "likes": 0}
    access = {"private": repo["private"], "gated": repo["gated"], "createdAt": dates[-1], "lastModified": dates[0]}
    return {**fixed, **access, "sha": sha, "siblings": siblings, **card_fields(card)}


@route("list", "GET", "/api/(?P<kind>models|datasets|spaces)")
def list_repos(hub, call):
    prefix = "" if call.args["kind"] == "models" else call.args["kind"] + "/"
    author, search = call.query.get("author", [""])[0], call.query.get("search", [""])[0]
    found = []
    for key, repo in hub.store.repos.items():
        name = key.removeprefix(prefix)
        owner = name.split("/")[0]
        visible = not repo["private"] or (call.user and call.user[0] == owner)
        if key.startswith(prefix) and name.count("/") == 1 and visible and author in ("", owner) and search in name:
            found.append(info_of(hub, key, repo, "main"))
    return Reply(found)


@route("info", "GET", API + f"(?:/revision/{REV})?")
def info(hub, call):
    repo = hub.store.find(call.key, call.user)
    return Reply(info_of(hub, call.key, repo, call.rev, blobs="blobs" in call.query))


@route("preupload", "POST", API + f"/preupload/{REV}")
def preupload(hub, call):
    repo = hub.store.find(call.key, call.user, write=True)
    files = repo["commits"][hub.store.sha(repo, call.rev)]["files"]
    stored = hub.store.read(files[".gitignore"]).decode() if ".gitignore" in files else ""
    patterns = [line.strip().rstrip("/") for line in call.json.get("gitIgnore", stored).splitlines()]
    answers = []
    for item in call.json["files"]:
        path, entry = item["path"], files.get(item["path"])
        large = item["size"] > LFS_THRESHOLD or b"\0" in base64.b64decode(item["sample"])
        parts = [path, *path.split("/"), *("/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1))]
        ignored = any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns if pattern)
        mode = "lfs" if large or path.endswith(LFS_SUFFIXES) else "regular"
        oid = entry and (entry["sha256"] if entry["lfs"] else entry["oid"])
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
    return Reply({"files": answers})


@route("lfs_batch", "POST", WEB + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub, call):
    repo = hub.store.find(call.key, call.user, write=True)
    objects = [{"oid": item["oid"], "size": item["size"]} for item in call.json["objects"]]
    for item in objects:
        if item["oid"] not in repo["lfs"]:
            upload = hub.signed("PUT", f"/lfs/{call.key}/{item['oid']}/upload")
            verify = f"{hub.endpoint}/{call.key}.git/info/lfs/objects/verify"
            item["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
    return Reply({"transfer": "basic", "objects": objects})


@route("lfs_verify", "POST", WEB + r"\.git/info/lfs/objects/verify")
def lfs_verify(hub, call):
    repo, oid = hub.store.find(call.key, call.user, write=True), call.json["oid"]
    if oid not in repo["lfs"] or (hub.store.objects / oid).stat().st_size != call.json["size"]:
        raise HubError(422, f"LFS object {oid} is not stored with this size")
    return Reply({})


@route("lfs_put", "PUT", r"/lfs/(?P<id>.+)/(?P<oid>[0-9a-f]{64})/upload")
def lfs_put(hub, call):
    if hashlib.sha256(call.body).hexdigest() != call.args["oid"]:
        raise HubError(400, "the content does not have the announced sha256")
    hub.store.repos[call.args["id"]]["lfs"].append(hub.store.add_object(call.body))
    hub.store.save()
    return Reply({})


@route("commit", "POST", API + f"/commit/{REV}")
def commit(hub, call):
    repo, store = hub.store.find(call.key, call.user, write=True), hub.store
    lines = [json.loads(line) for line in call.body.splitlines()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    parent, ref = store.sha(repo, call.rev), store.ref(repo, call.rev)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(400, f"{call.rev} is not a branch")
    if not parent.startswith(header.get("parentCommit", "")):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    operations = [(line["key"], line["value"]) for line in lines if line["key"] != "header"]
    files = store.apply(repo, repo["commits"][parent]["files"], operations)
    sha = store.add_commit(repo, parent, files, header["summary"], header.get("description", ""), call.user[0])
    answer = {"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{call.key}/commit/{sha}"}
    if "create_pr" in call.query:
        repo["pulls"] += 1
        ref = f"refs/pr/{repo['pulls']}"
        answer["pullRequestUrl"] = f"{hub.endpoint}/{call.key}/discussions/{repo['pulls']}"
    repo["refs"][ref] = sha
    store.save()
    return Reply(answer)


def ranged(data, headers, extra):
    """The bytes, or the part of them that a Range header asks for."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or "")
    if not match:
        return Reply(data, 200, extra)
    first, last = match.groups()
    start = int(first) if first else max(len(data) - int(last), 0)
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= stop:
        return Reply(b"", 416, {**extra, "Content-Range": f"bytes */{len(data)}"})
    return Reply(data[start:stop], 206, {**extra, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


@route("resolve_head", "HEAD", WEB + f"/resolve/{REV}/(?P<path>.+)")
@route("resolve_get", "GET", WEB + f"/resolve/{REV}/(?P<path>.+)")
def resolve(hub, call):
    repo = hub.store.find(call.key, call.user, content=True)
    sha = hub.store.sha(repo, call.rev)
    entry, path = repo["commits"][sha]["files"].get(call.args["path"]), call.args["path"]
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "ETag": f'"{entry["oid"]}"'}
    if not entry["lfs"]:
        return ranged(hub.store.read(entry), call.headers, headers)
    name = urllib.parse.quote(path.split("/")[-1])
    linked = {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
    location = hub.signed("GET", f"/lfs/{call.key}/{entry['sha256']}/{name}")
    return Reply(b"", 302, {**headers, **linked, "Location": location})


@route("resolve_get", "GET HEAD", r"/lfs/(?P<id>.+)/(?P<oid>[0-9a-f]{64})/(?P<path>[^/]+)")
def lfs_get(hub, call):
    data = hub.store.read({"sha256": call.args["oid"]})
    return ranged(data, call.headers, {"ETag": f'"{call.args["oid"]}"', "Accept-Ranges": "bytes"})


def listing(repo, sha, paths):
    """Entries of the files and folders among `paths`, in the form that tree and paths-info share."""
    files, result = repo["commits"][sha]["files"], []
    for path in paths:
        below = [name for name in files if name == path or name.startswith(path + "/")]
        if path in files:
            entry = files[path]
            lfs = {"lfs": entry["lfs"]} if entry["lfs"] else {}
            result.append({"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"], **lfs})
        elif below:
            oid = hashlib.sha1(json.dumps([files[name] for name in below]).encode()).hexdigest()
            result.append({"type": "directory", "path": path, "oid": oid, "size": 0})
    return Reply(result)


@route("tree", "GET", API + f"/tree/{REV}(?:/(?P<path>.+))?")
def tree(hub, call):
    repo = hub.store.find(call.key, call.user)
    sha, folder = hub.store.sha(repo, call.rev), call.args["path"] + "/" if call.args["path"] else ""
    names = [path.removeprefix(folder) for path in repo["commits"][sha]["files"] if path.startswith(folder)]
    if folder and not names:
        raise HubError(404, f"{folder} does not exist on {call.rev}", "EntryNotFound")
    if call.query.get("recursive") == ["true"]:
        found = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
    else:
        found = {name.split("/")[0] for name in names}
    return listing(repo, sha, sorted(folder + name for name in found))


@route("paths_info", "POST", API + f"/paths-info/{REV}")
def paths_info(hub, call):
    repo = hub.store.find(call.key, call.user)
    paths = [path.strip("/") for path in urllib.parse.parse_qs(call.body.decode()).get("paths", [])]
    return listing(repo, hub.store.sha(repo, call.rev), paths)


@route("refs", "GET", API + "/refs")
def refs(hub, call):
    repo = hub.store.find(call.key, call.user)
    groups = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/", "pullRequests": "refs/pr/"}
    answer = {group: [] for group in groups}
    for ref, sha in repo["refs"].items():
        group = next(group for group, start in groups.items() if ref.startswith(start))
        answer[group].append({"name": ref.removeprefix(groups[group]), "ref": ref, "targetCommit": sha})
    return Reply(answer)


@route("commits", "GET", API + f"/commits/{REV}")
def commits(hub, call):
    repo = hub.store.find(call.key, call.user)
    history = hub.store.history(repo, hub.store.sha(repo, call.rev))
    return Reply([{"id": sha, "authors": [{"user": item["author"]}], **item, "files": None} for sha, item in history])


@route("branch", "POST DELETE", API + "/branch/(?P<name>.+)")
def branch(hub, call):
    return change_ref(hub, call, f"refs/heads/{call.args['name']}", call.json.get("startingPoint", "main"))


@route("tag", "POST", API + f"/tag/{REV}")
def tag(hub, call):
    return change_ref(hub, call, f"refs/tags/{call.json['tag']}", call.rev)


@route("tag", "DELETE", API + f"/tag/{REV}")
def delete_tag(hub, call):
    return change_ref(hub, call, f"refs/tags/{call.rev}", None)


def change_ref(hub, call, ref, start):
    """Create a branch or tag at `start`, or delete it."""
    repo = hub.store.find(call.key, call.user, write=True)
    if call.method == "POST":
        sha = hub.store.sha(repo, start)
        if ref in repo["refs"]:
            raise HubError(409, f"Reference already exists: {ref}")
        repo["refs"][ref] = sha
    elif ref == "refs/heads/main":
        raise HubError(403, "The default branch cannot be deleted")
    elif repo["refs"].pop(ref, None) is None:
        raise HubError(404, f"Reference does not exist: {ref}", "RevisionNotFound")
    hub.store.save()
    return Reply({})
