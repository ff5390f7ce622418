"""A Hub on this machine, in memory: enough of its HTTP protocol for the real client to push and load.

    with LocalHub() as hub:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **hub.environment(cache)}, check=True)
    hub.files("datasets", "user/name")  # {"README.md": b"...", ...}

Repositories have branches, tags and a commit with a SHA for each change; large files go through LFS. Private ones
exist only for requests with the token. The client reads `HF_ENDPOINT` when it is imported, so it belongs in a process
of its own.

Faults are injected by method and path:

    hub.fail("POST", "/api/models/user/name/commit/.*", Fault(status=500), times=2)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_dummy"
USER = "user"

Tree = dict[str, bytes]
"""The content of a commit by path."""


@dataclass
class Repository:
    private: bool
    commits: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, tree: Tree, message: str) -> str:
        self.messages.append(message)
        sha = hashlib.sha1(repr((len(self.messages), sorted(tree), self.messages)).encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request.

    Attributes:
        status: of the error that is the answer instead, with `headers`.
        seconds: by which the answer is late.
        lost: the request is carried out, but the connection is cut before the answer.
        half: the connection is cut in the middle of the answer's content.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    lost: bool = False
    half: bool = False


class NotFoundError(Exception):
    """`args[0]` is the code that the client turns into an exception."""


class LocalHub:
    """A server on a free port of 127.0.0.1, which stops at the end of the `with` block."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self._faults: list[tuple[str, str, list[Fault]]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables by which a process uses this Hub, with its caches in a folder."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
        }

    def make(self, kind: str, repo_id: str, tree: Tree, private: bool) -> None:
        """Makes a repository with these files, as if somebody had pushed them before."""
        repository = self.repositories[kind, repo_id] = Repository(private)
        repository.commit("main", dict(tree), "as it was")

    def fail(self, method: str, path: str, fault: Fault, times: int) -> None:
        """The next requests of this method to paths that match the pattern go wrong."""
        self._faults.append((method, path, [fault] * times))

    def next_fault(self, method: str, path: str) -> Fault | None:
        for failing_method, pattern, left in self._faults:
            if left and method == failing_method and re.fullmatch(pattern, path):
                return left.pop()
        return None

    def files(self, kind: str, repo_id: str, revision: str = "main") -> Tree:
        """The files of a repository; `kind` is "models", "datasets" or "spaces"."""
        repository = self.repositories[kind, repo_id]
        return repository.commits[repository.branches.get(revision, revision)]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = "GET" if self.command == "HEAD" else self.command
        self.fault = self.hub.next_fault(self.command, url.path)
        if self.fault is not None:
            time.sleep(self.fault.seconds)
            if self.fault.status is not None:
                self._send(self.fault.status, b"{}", self.fault.headers)
                return
        for route_method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, url.path)
            if found and route_method == method:
                try:
                    answer(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
                except NotFoundError as error:
                    self._send(404, b"{}", {"X-Error-Code": str(error), "X-Error-Message": str(error)})
                return
        self._send(404, b"{}", {"X-Error-Code": "NoSuchRoute"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.fault is not None and self.fault.lost:
            self._cut()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault is not None and self.fault.half:
            self.wfile.write(content[: len(content) // 2])
            self._cut()
        elif self.command != "HEAD":
            self.wfile.write(content)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send_json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _repository(self, kind: str, repo: str) -> Repository:
        repository = self.hub.repositories.get((kind or "models", repo))
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not authorised):
            raise NotFoundError("RepoNotFound")
        return repository

    def _tree(self, kind: str, repo: str, revision: str) -> tuple[str, Tree]:
        repository = self._repository(kind, repo)
        sha = (repository.tags | repository.branches).get(revision, revision)
        if sha not in repository.commits:
            raise NotFoundError("RevisionNotFound")
        return sha, repository.commits[sha]

    # What the client asks for

    def who_am_i(self) -> None:
        self._send_json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate_yaml(self) -> None:
        self._send_json({"errors": [], "warnings": []})

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted.get('organization') or USER}/{wanted['name']}"
        kind = f"{wanted.get('type') or 'model'}s"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}"
        if (kind, repo) in self.hub.repositories:
            self._send_json({"error": "You already created this repo", "url": url}, status=409)
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))  # newer and older clients
        repository = self.hub.repositories[kind, repo] = Repository(private)
        repository.commit("main", {}, "initial commit")
        self._send_json({"url": url, "name": repo, "id": repo})

    def info(self, kind: str, repo: str, revision: str) -> None:
        sha, tree = self._tree(kind, repo, revision or "main")
        private = self.hub.repositories[kind, repo].private
        siblings = [{"rfilename": path} for path in sorted(tree)]
        self._send_json({"id": repo, "sha": sha, "private": private, "siblings": siblings, "tags": [], "downloads": 0})

    def branch(self, kind: str, repo: str, revision: str) -> None:
        repository = self._repository(kind, repo)
        if revision in repository.branches:
            self._send_json({"error": "Reference already exists"}, status=409)
            return
        repository.branches[revision] = repository.branches["main"]
        self._send_json({})

    def tag(self, kind: str, repo: str, revision: str) -> None:
        sha, _ = self._tree(kind, repo, revision)
        name = json.loads(self.body)["tag"]
        tags = self._repository(kind, repo).tags
        if name in tags:
            self._send_json({"error": "Tag reference exists already"}, status=409)
            return
        tags[name] = sha
        self._send_json({})

    def list_tree(self, kind: str, repo: str, revision: str, path: str) -> None:
        _, tree = self._tree(kind, repo, revision)
        folder = f"{path}/" if path else ""
        inside = sorted(file for file in tree if file.startswith(folder))
        if path and not inside:
            raise NotFoundError("EntryNotFound")
        entries = {}
        for file in inside:
            name, _, deeper = file[len(folder) :].partition("/")
            if deeper and self.query.get("recursive", ["False"])[0].lower() != "true":
                entries[folder + name] = _folder_entry(folder + name)
            else:
                entries[file] = _file_entry(file, tree[file])
        self._send_json(list(entries.values()))

    def paths_info(self, kind: str, repo: str, revision: str) -> None:
        _, tree = self._tree(kind, repo, revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        found = [_file_entry(path, tree[path]) for path in paths if path in tree]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in tree)]
        self._send_json([*found, *map(_folder_entry, folders)])

    def preupload(self, kind: str, repo: str, revision: str) -> None:
        _, tree = self._tree(kind, repo, revision)
        answers = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "regular" if path.endswith((".md", ".json", ".txt", ".py", ".yaml")) else "lfs"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in tree:  # what is the same already is not uploaded again
                answer["oid"] = _git_id(tree[path]) if mode == "regular" else hashlib.sha256(tree[path]).hexdigest()
            answers.append(answer)
        self._send_json({"files": answers})

    def lfs_batch(self, kind: str, repo: str) -> None:
        self._repository(kind.rstrip("/"), repo)
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(self.body)["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._send_json({"error": "the content has another hash"}, status=400)
            return
        self.hub.large_files[oid] = self.body
        self._send(200, b"")

    def commit(self, kind: str, repo: str, revision: str) -> None:
        _, tree = self._tree(kind, repo, revision)
        tree, message = dict(tree), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                tree[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                del tree[value["path"]]
            else:
                self._send_json({"error": f"what is {entry['key']}?"}, status=400)
                return
        sha = self._repository(kind, repo).commit(revision, tree, message)
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        sha, tree = self._tree(kind.rstrip("/"), repo, revision)
        if path not in tree:
            raise NotFoundError("EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_git_id(tree[path])}"', "Accept-Ranges": "bytes"}
        content, status = tree[path], 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers)


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _git_id(content)}


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _git_id(path.encode())}


_KIND = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
_URL = r"/(?P<kind>(?:datasets/|spaces/)?)(?P<repo>[^/]+/[^/]+)"

_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.who_am_i),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", _KIND + r"(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    ("POST", _KIND + r"/branch/(?P<revision>[^/]+)", _Handler.branch),
    ("POST", _KIND + r"/tag/(?P<revision>[^/]+)", _Handler.tag),
    ("GET", _KIND + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.list_tree),
    ("POST", _KIND + r"/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    ("POST", _KIND + r"/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", _KIND + r"/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", _URL + r"\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", _Handler.lfs_upload),
    ("GET", _URL + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
