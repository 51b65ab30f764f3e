"""A hub of models on this machine: a real HTTP server that speaks the protocol of the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repository:
    folder: Path
    gated: bool = False
    token: str = ""
    """Without which it is not to be seen."""

    @property
    def commit(self) -> str:
        return sha1(str(self.folder).encode()).hexdigest()

    @property
    def files(self) -> dict[str, Path]:
        return {str(file.relative_to(self.folder)): file for file in sorted(self.folder.rglob("*")) if file.is_file()}


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of every request."""
    breaks: dict[str, int] = field(default_factory=dict)
    """File -> bytes after which the line is cut, once."""
    broken: bool = False
    """Whether every answer is an error of the server."""
    endpoint: str = ""

    def fetched(self) -> list[str]:
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE say, in a process that has imported the library already."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Tests read `asked`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.broken:
            return self._fail(500, "InternalError")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        asked = api or file
        repository = self.hub.repositories.get(asked[1]) if asked else None
        if asked is None or repository is None or not self._may_see(repository):
            return self._fail(401 if asked else 404, "RepoNotFound")
        revision = (api[3] if api else asked[2]) or "main"
        if revision not in ("main", "v1", repository.commit):
            return self._fail(404, "RevisionNotFound")
        if api:
            return self._json(self._tree(repository) if api[2] == "tree" else self._about(api[1], repository))
        if repository.gated:
            return self._fail(403, "GatedRepo")
        return self._file(repository, asked[3])

    def _may_see(self, repository: Repository) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") == repository.token or not repository.token

    def _about(self, name: str, repository: Repository) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in repository.files.items()]
        return {"id": name, "modelId": name, "sha": repository.commit, "private": False, "tags": [], "downloads": 0,
                "gated": "auto" if repository.gated else False, "siblings": siblings}  # fmt: skip

    def _tree(self, repository: Repository) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": file.stat().st_size, "oid": sha1(file.read_bytes()).hexdigest()}
            for name, file in repository.files.items()
        ]

    def _file(self, repository: Repository, name: str) -> None:
        if name not in repository.files:
            return self._fail(404, "EntryNotFound")
        data = repository.files[name].read_bytes()
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])  # type: ignore[index]
        self.send_response(206 if start else 200)
        for key, value in {
            "ETag": f'"{sha256(data).hexdigest()}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
            "Content-Length": len(data) - start,
            **({"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if (end := self.hub.breaks.pop(name, None)) is not None:
            self.wfile.write(data[start:end])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command == "GET" else b"")

    def _fail(self, code: int, kind: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", kind)
        self.send_header("X-Error-Message", kind)
        self.send_header("Content-Length", "0")
        self.end_headers()
