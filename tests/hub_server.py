"""A Hugging Face Hub on 127.0.0.1 for tests: real HTTP, everything in memory, nothing but the standard library.

It serves models and data sets: creating repositories, commits with regular and LFS files, branches, listing, downloads
with ranges.  It keeps what it was sent (`requests`, `uploaded_bytes`), and where it is told to it answers with an error
(`fail`), never, slowly, or by cutting the connection (`misbehave`).  The client must run with HF_HUB_DISABLE_XET=1.
Start it in a thread with `HubServer()` as a context manager, or alone with `python -m tests.hub_server [PORT]`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "alice-42-no-token-s-usual-shape"
USER = "alice"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".parquet")
SECONDS_PER_BYTE = 0.01
DATE = "2026-01-01T00:00:00.000Z"
PREFIXES = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


@dataclass(frozen=True)
class Blob:
    data: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        content = self.data
        if self.is_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    files: dict[str, Blob]
    message: str


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("0" * 39 + "1", {}, "initial")]})

    def commit(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((c for history in self.branches.values() for c in history if c.oid == revision), None)


@dataclass(frozen=True)
class Failure:
    method: str
    path: re.Pattern[str]
    status: int
    message: str


@dataclass
class Misbehaviour:
    method: str
    path: re.Pattern[str]
    how: str
    times: int
    """How many requests are still treated so."""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Dripping:
    """A file that is written to a byte at a time."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        for place in range(len(data)):
            self.file.write(data[place : place + 1])
            self.file.flush()
            time.sleep(SECONDS_PER_BYTE)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **named})


def error(status: int, code: str = "", message: str = "") -> Answer:
    headers = {"X_Error_Message": message or code} if code or message else {}
    return as_json({"error": message or code}, status, **({"X_Error_Code": code} if code else {}), **headers)


class HubServer:
    """The Hub itself.  `url` is its HF_ENDPOINT, TOKEN the only token that it knows, for USER."""

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.misbehaviours: list[Misbehaviour] = []
        self.witnesses: list[Callable[[str, str], None]] = []
        """Called with method and path of a request before its body is read."""
        self.is_stopped = threading.Event()
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing: the requests are kept."""

            def handle_request(self) -> None:
                parts = urllib.parse.urlsplit(self.path)
                for witness in hub.witnesses:
                    witness(self.command, parts.path)
                how = hub.misbehaviour(self.command, parts.path)
                if how == "deaf":
                    self.wait_for_the_end()
                    return
                request = Request(
                    self.command,
                    urllib.parse.unquote(parts.path),
                    dict(urllib.parse.parse_qsl(parts.query)),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.read_body(),
                )
                if how in ("cut", "silent"):
                    hub.requests.append(request)
                if how == "cut":
                    self.close_connection = True
                    return
                if how == "silent":
                    self.wait_for_the_end()
                    return
                answer = hub.answer(request)
                if how == "slow":
                    self.wfile = Dripping(self.wfile)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            def wait_for_the_end(self) -> None:
                hub.is_stopped.wait()
                self.close_connection = True

            def read_body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Be gone: later requests find nobody."""
        self.is_stopped.set()
        self.server.shutdown()
        self.server.server_close()

    # --- for tests ---------------------------------------------------------------------------------------------------

    def fail(self, method: str, path: str, status: int, message: str = "") -> None:
        """Answer requests of `method` whose path matches the regular expression `path` with `status` from now on."""
        self.failures.append(Failure(method, re.compile(path), status, message))

    def misbehave(self, method: str, path: str, how: str, times: int = 1 << 30) -> None:
        """Treat the next `times` requests of `method` whose path matches the regular expression `path` badly.

        Args:
            method: of HTTP.
            path: searched for in the request's.
            how: "silent" takes the request and never answers, "deaf" does not even read its body, "slow" answers a
                byte at a time, "cut" closes the connection in place of an answer.
            times: of requests.
        """
        self.misbehaviours.append(Misbehaviour(method, re.compile(path), how, times))

    def misbehaviour(self, method: str, path: str) -> str | None:
        with self.lock:
            for bad in self.misbehaviours:
                if bad.method == method and bad.path.search(path) and bad.times > 0:
                    bad.times -= 1
                    return bad.how
        return None

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        commit = self.repositories[kind, repo_id].commit(revision)
        assert commit is not None, f"{repo_id} has no {revision}"
        return {path: blob.data for path, blob in commit.files.items()}

    def messages(self, repo_id: str, revision: str = "main") -> list[str]:
        return [commit.message for commit in self.repositories["models", repo_id].branches[revision]]

    def put(self, repo_id: str, files: dict[str, bytes], kind: str = "models") -> None:
        """Make a repository with these files, without any request."""
        repository = self.repositories.setdefault((kind, repo_id), Repository(private=False))
        blobs = {path: Blob(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        self.append(repository, "main", blobs, "put")

    def put_folder(self, repo_id: str, folder: Path, kind: str = "models") -> None:
        self.put(
            repo_id, {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}, kind
        )

    def uploaded_bytes(self) -> Iterator[bytes]:
        """Every body that came in, and every file that is kept, decoded."""
        with self.lock:
            yield from [request.body for request in self.requests]
            yield from list(self.lfs_objects.values())
            for repository in self.repositories.values():
                for history in repository.branches.values():
                    for commit in history:
                        yield commit.message.encode()
                        yield from (blob.data for blob in commit.files.values())

    # --- answering ---------------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Answer:
        with self.lock:
            self.requests.append(request)
            for failure in self.failures:
                if failure.method == request.method and failure.path.search(request.path):
                    return error(failure.status, message=failure.message)
            for pattern, handler in ROUTES:
                if match := pattern.fullmatch(request.path):
                    return handler(self, request, **match.groupdict())
        return error(404, message=f"not served here: {request.method} {request.path}")

    def user(self, request: Request) -> str | None:
        return USER if request.headers.get("authorization") == f"Bearer {TOKEN}" else None

    def append(self, repository: Repository, branch: str, files: dict[str, Blob], message: str) -> Commit:
        parent = repository.branches[branch][-1].oid
        content = [parent, message, sorted((path, blob.git_oid) for path, blob in files.items())]
        commit = Commit(hashlib.sha1(json.dumps(content).encode()).hexdigest(), files, message)
        repository.branches[branch].append(commit)
        return commit

    def whoami(self, request: Request) -> Answer:
        if not self.user(request):
            return error(401, message="Invalid user token.")
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}}
        return as_json({"type": "user", "name": USER, "fullname": "Alice", "orgs": [], "auth": token})

    def validate_card(self, request: Request) -> Answer:
        import yaml

        content = json.loads(request.body)["content"]
        block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        metadata = yaml.safe_load(block[1]) if block else {}
        base_model = metadata.get("base_model", "a/b")
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_model):
            return as_json({"errors": [{"message": f'"base_model" is not a valid model id: {base_model}'}]}, 400)
        return as_json({"errors": [], "warnings": []})

    def create(self, request: Request) -> Answer:
        if not self.user(request):
            return error(401, message="Unauthorized")
        asked = json.loads(request.body)
        kind, repo_id = (asked.get("type") or "model") + "s", f"{asked.get('organization') or USER}/{asked['name']}"
        if not repo_id.startswith(f"{USER}/"):
            return error(403, message=f"You don't have the rights to create a model under {asked['organization']}")
        is_new = (kind, repo_id) not in self.repositories
        if is_new:
            self.repositories[kind, repo_id] = Repository(asked.get("visibility") == "private")
        content = {"url": f"{self.url}/{PREFIXES[kind]}{repo_id}", "name": repo_id}
        return as_json(
            content if is_new else {**content, "error": "You already created this repo"}, 200 if is_new else 409
        )

    def lfs_batch(self, request: Request, repo_id: str) -> Answer:
        objects = []
        for entry in json.loads(request.body)["objects"]:
            if entry["oid"] not in self.lfs_objects:
                entry = {**entry, "actions": {"upload": {"href": f"{self.url}/_lfs/{entry['oid']}"}}}
            objects.append(entry)
        return as_json({"transfer": "basic", "objects": objects})

    def lfs_object(self, request: Request, oid: str) -> Answer:
        if hashlib.sha256(request.body).hexdigest() != oid:
            return error(400, message="the content does not have this sha256")
        self.lfs_objects[oid] = request.body
        return Answer(200, headers={"ETag": oid})

    def api(self, request: Request, kind: str, repo_id: str, action: str | None, rest: str | None) -> Answer:
        repository = self.repositories.get((kind, repo_id))
        if repository is None:
            return error(404, "RepoNotFound", "Repository not found")
        if repository.private and not self.user(request):
            return error(401, "RepoNotFound", "Repository not found")
        if action in ("preupload", "commit", "branch") and not self.user(request):
            return error(401, message="Unauthorized")
        if action == "branch":
            repository.branches[rest or ""] = list(repository.branches["main"])
            return as_json({})
        if action == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": history[-1].oid}
                for name, history in repository.branches.items()
            ]
            return as_json({"branches": branches, "tags": [], "converts": []})
        revision, _, inside = (rest or "main").partition("/")
        commit = repository.commit(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "preupload":
            return self.preupload(request, commit)
        if action == "commit":
            return self.commit(request, repository, revision, f"{self.url}/{PREFIXES[kind]}{repo_id}")
        if action == "tree":
            return self.tree(commit, inside, request.query.get("recursive", "").lower() == "true")
        if action == "paths-info":
            asked = (
                json.loads(request.body) if request.body[:1] == b"{" else urllib.parse.parse_qs(request.body.decode())
            )
            return as_json([describe(path, commit.files[path]) for path in asked["paths"] if path in commit.files])
        siblings = [{"rfilename": path} for path in commit.files]
        about = {"id": repo_id, "modelId": repo_id, "_id": "0", "author": repo_id.split("/")[0], "sha": commit.oid}
        about |= {"private": repository.private, "gated": False, "disabled": False, "tags": self.tags(commit)}
        about |= {"downloads": 0, "likes": 0, "lastModified": DATE, "createdAt": DATE, "siblings": siblings}
        return as_json(about)

    def tags(self, commit: Commit) -> list[str]:
        card = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
        return [f"license:{name}" for name in re.findall(r"^license: (\S+)$", card, re.MULTILINE)]

    def preupload(self, request: Request, commit: Commit) -> Answer:
        modes = []
        for entry in json.loads(request.body)["files"]:
            blob, is_lfs = (
                commit.files.get(entry["path"]),
                entry["path"].endswith(LFS_SUFFIXES) or entry["size"] > 10 << 20,
            )
            oid = None if blob is None else blob.sha256 if blob.is_lfs else blob.git_oid
            mode = {
                "path": entry["path"],
                "uploadMode": "lfs" if is_lfs else "regular",
                "shouldIgnore": False,
                "oid": oid,
            }
            modes.append(mode)
        return as_json({"files": modes})

    def commit(self, request: Request, repository: Repository, branch: str, url: str) -> Answer:
        files, message = dict(repository.branches[branch][-1].files), ""
        for line in filter(None, request.body.split(b"\n")):
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repository.branches[branch][-1].oid):
                    return error(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    return error(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self.lfs_objects[value["oid"]], is_lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"], None)
        commit = self.append(repository, branch, files, message)
        return as_json({"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"})

    def tree(self, commit: Commit, inside: str, recursive: bool) -> Answer:
        prefix = f"{inside.rstrip('/')}/" if inside else ""
        listed: dict[str, Any] = {}
        for path, blob in sorted(commit.files.items()):
            if path.startswith(prefix):
                parts = path[len(prefix) :].split("/")
                for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                    folder = prefix + "/".join(parts[:depth])
                    listed[folder] = {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
                if recursive or len(parts) == 1:
                    listed[path] = describe(path, blob)
        if inside and not listed:
            return error(404, "EntryNotFound", f"{inside} does not exist")
        return as_json(list(listed.values()))

    def resolve(self, request: Request, kind: str | None, repo_id: str, revision: str, path: str) -> Answer:
        repository = self.repositories.get(((kind or "models/").rstrip("/"), repo_id))
        if repository is None or (repository.private and not self.user(request)):
            return error(404 if repository is None else 401, "RepoNotFound", "Repository not found")
        commit = repository.commit(revision)
        if commit is None:
            return error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        blob = commit.files.get(path)
        if blob is None:
            headers = {
                "X-Error-Code": "EntryNotFound",
                "X-Error-Message": "Entry not found",
                "X-Repo-Commit": commit.oid,
            }
            return Answer(404, b"Entry not found", headers)
        etag = blob.sha256 if blob.is_lfs else blob.git_oid
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        asked = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if asked is None:
            return Answer(200, blob.data, headers)
        start, end = int(asked[1]), int(asked[2]) if asked[2] else len(blob.data) - 1
        content_range = f"bytes {start}-{end}/{len(blob.data)}"
        return Answer(206, blob.data[start : end + 1], {**headers, "Content-Range": content_range})


def describe(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    if blob.is_lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return entry


NAME = r"(?P<repo_id>[^/]+/[^/]+)"
ACTIONS = "preupload|commit|revision|tree|paths-info|refs|branch"
ROUTES: list[tuple[re.Pattern[str], Callable[..., Answer]]] = [
    (re.compile(pattern), handler)
    for pattern, handler in (
        (r"/api/whoami-v2", HubServer.whoami),
        (r"/api/validate-yaml", HubServer.validate_card),
        (r"/api/repos/create", HubServer.create),
        (r"/_lfs/(?P<oid>[0-9a-f]{64})", HubServer.lfs_object),
        (rf"/{NAME}\.git/info/lfs/objects/batch", HubServer.lfs_batch),
        (rf"/api/(?P<kind>models|datasets|spaces)/{NAME}(?:/(?P<action>{ACTIONS})(?:/(?P<rest>.*))?)?", HubServer.api),
        (rf"/(?P<kind>datasets/|spaces/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubServer.resolve),
    )
]


if __name__ == "__main__":
    alone = HubServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    print(f"HF_ENDPOINT={alone.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1", flush=True)
    alone.server.serve_forever()
