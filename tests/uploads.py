"""A server on this machine that takes uploads as the hub does: small files in commits, large ones by LFS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Uploads:
    """What has arrived: `repositories` by name, `files` of the last commit by path; `refuses` with this status."""

    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    address: str = ""
    refuses: int = 0


@contextmanager
def server() -> Iterator[Uploads]:
    held = Uploads()
    with ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: _Handler(held, *given)) as http:
        held.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield held
        http.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, held: Uploads, *given: Any):
        self.held = held
        super().__init__(*given)

    def log_message(self, *_: Any) -> None:
        """Quietly."""

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rpartition("/")[2]
        assert sha256(body).hexdigest() == oid
        self.held.large[oid] = body
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        self.held.tokens.add(self.headers.get("Authorization", ""))
        if self.held.refuses:
            self._answer({"error": "no"}, self.held.refuses)
        elif self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.held.repositories[name] = told
            self._answer({"url": f"{self.held.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {
                    "files": [
                        {"path": each["path"], "shouldIgnore": False, "uploadMode": _mode(each["path"])}
                        for each in files
                    ]
                }
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"transfer": "basic", "objects": [self._action(each) for each in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def _action(self, told: dict[str, Any]) -> dict[str, Any]:
        return {**told, "actions": {"upload": {"href": f"{self.held.address}/lfs/{told['oid']}", "header": {}}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.held.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.held.files[value["path"]] = self.held.large[value["oid"]]
        url = f"{self.held.address}/{next(iter(self.held.repositories))}/commit/{'0' * 40}"
        self._answer({"commitUrl": url, "commitOid": "0" * 40, "pullRequestUrl": None})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, told: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"
