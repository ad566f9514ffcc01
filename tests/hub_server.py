"""A Hugging Face hub on this machine, of the endpoints that edgediff's use needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".onnx", ".data", ".npz", ".safetensors")
"""Files of which git has only a pointer, and which lie elsewhere (Git LFS)."""
TOKEN = "hf_right"


@dataclass
class Repository:
    """readers: "all", "token" (private) or "gated" (terms to accept)."""

    files: dict[str, bytes] = field(default_factory=dict)
    readers: str = "all"
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        content = b"".join(k.encode() + v for k, v in sorted(self.files.items()))
        return hashlib.sha1(content).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(name: str, content: bytes) -> str:
    """The ETag of a file: its SHA-256, or git's hash of a small one."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return _sha256(content) if name.endswith(LARGE) else git


class HubServer:
    """repositories: by "owner/name". requests: (method, path, range) of each that came.

    breaks: path of a file → the bytes after which its next download breaks off."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.breaks: dict[str, int] = {}
        self.large: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                hub._read(self)

            def do_GET(self) -> None:
                hub._read(self)

            def do_POST(self) -> None:
                hub._write(self)

            def do_PUT(self) -> None:
                hub._write(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def running(self) -> Iterator["HubServer"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield self
        self._server.shutdown()
        self._server.server_close()
        thread.join()

    def add(self, name: str, files: dict[str, bytes], **how: Any) -> Repository:
        self.repositories[name] = Repository(files=dict(files), **how)
        return self.repositories[name]

    def fetched(self, name: str = "") -> list[str]:
        """The files whose content was sent."""
        found = []
        for method, path, _ in self.requests:
            if method == "GET" and "/resolve/" in path:
                repository, _, rest = path.lstrip("/").partition("/resolve/")
                if name in ("", repository):
                    found.append(rest.partition("/")[2])
            elif method == "GET" and path.startswith("/cdn/"):
                found.append(path.split("/", 3)[3])
        return found

    def asked(self) -> list[str]:
        """The repositories whose files were listed."""
        listed = [path for _, path, _ in self.requests if path.startswith("/api/models/")]
        return ["/".join(path.split("/")[3:5]) for path in listed]

    # Answers

    def _read(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        if self.broken:
            return _answer(request, 503, b"overloaded")
        if path.startswith("/cdn/"):
            _, _, oid, name = path.split("/", 3)
            return self._content(request, name, self.large[oid], {"ETag": f'"{oid}"'})
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            repository = self._readable(request, name, revision or "main")
            return None if repository is None else _json(request, _info(name, repository))
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repository = self._readable(request, name, revision)
        if repository is None:
            return None
        commit = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            return _answer(request, 404, b"", {**commit, "X-Error-Code": "EntryNotFound"})
        content = repository.files[file]
        blob = _blob(file, content)
        if not file.endswith(LARGE):
            return self._content(request, file, content, {**commit, "ETag": f'"{blob}"'})
        self.large[blob] = content
        linked = {
            "X-Linked-ETag": f'"{blob}"',
            "X-Linked-Size": str(len(content)),
            # Another host, as the hub's: the client follows no further on the hub's own.
            "Location": f"{self.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{blob}/{file}",
        }
        return _answer(request, 302, b"", {**commit, **linked})

    def _readable(
        self, request: BaseHTTPRequestHandler, name: str, revision: str
    ) -> Repository | None:
        """The repository, unless an error was answered."""
        repository = self.repositories.get(name)
        known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.readers == "token" and not known):
            _answer(request, 404 if known else 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repository.readers == "gated" and not known:
            _answer(request, 401, b"", {"X-Error-Code": "GatedRepo"})
        elif repository.readers == "refused":
            _answer(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        elif revision not in (*repository.revisions, repository.commit):
            _answer(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return repository
        return None

    def _content(
        self, request: BaseHTTPRequestHandler, name: str, content: bytes, headers: dict[str, str]
    ) -> None:
        status, start = 200, 0
        if given := request.headers.get("Range"):
            status, start = 206, int(given.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        rest = content[start:]
        sent = len(rest)
        if request.command == "GET" and name in self.breaks:
            sent = self.breaks.pop(name)
        _answer(request, status, rest[:sent], headers, length=len(rest))
        if sent < len(rest):
            request.close_connection = True

    def _write(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, None))
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.command == "PUT":
            self.large[path.removeprefix("/lfs/")] = body
            return _answer(request, 200, b"")
        if path == "/api/validate-yaml":
            return _json(request, {"errors": [], "warnings": []})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _answer(request, 401, b"{}")
        if path == "/api/repos/create":
            given = json.loads(body)
            self.created.append(given)
            name = f"{given['organization']}/{given['name']}"
            if name in self.repositories:
                return _answer(request, 409, b"{}")
            self.add(name, {}, readers="token" if given.get("private") else "all")
            return _json(request, {"url": f"{self.endpoint}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.endpoint}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return _json(request, {"transfer": "basic", "objects": objects})
        name, _, rest = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
        if rest == "preupload":
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return _json(request, {"files": modes})
        repository = self.repositories[name]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repository.files[value["path"]] = self.large[value["oid"]]
        url = f"{self.endpoint}/{name}/commit/{repository.commit}"
        return _json(request, {"commitUrl": url, "commitOid": repository.commit})


def _info(name: str, repository: Repository) -> dict[str, Any]:
    siblings = []
    for file, content in repository.files.items():
        entry = {"rfilename": file, "size": len(content), "blobId": _blob(file + ".txt", content)}
        if file.endswith(LARGE):
            entry["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}
        siblings.append(entry)
    return {
        "id": name,
        "modelId": name,
        "private": repository.readers == "token",
        "sha": repository.commit,
        "siblings": siblings,
    }


def _json(request: BaseHTTPRequestHandler, content: Any) -> None:
    _answer(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> None:
    request.send_response(status)
    for key, value in (headers or {}).items():
        request.send_header(key, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
