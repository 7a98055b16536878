"""A server on the loopback that speaks the part of the hub's HTTP API that a push uses, and keeps what it is sent."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Repository:
    """A repository of the server: its files by name, as the last commit left them."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0


@dataclass
class HubServer:
    """What the server knows and has seen."""

    token: str = "hf_right"
    may_write: bool = True
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # by sha256, as LFS stores them
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    url: str = ""


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Yield a running server at `.url`."""
    hub = HubServer()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def do_PUT(self) -> None:
        self._answer(self._body())

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append((self.command, path))
        code, answer = self._route(path, body)
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(content)

    def _route(self, path: str, body: bytes) -> tuple[int, Any]:
        words = path.strip("/").split("/")
        if words[0] == "lfs":  # a signed address, without a token
            self.hub.objects[words[1]] = body
            return 200 if hashlib.sha256(body).hexdigest() == words[1] else 400, {}
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return 401, {"error": f"wrong: {self.headers.get('Authorization')}"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "ada"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, self._batch(json.loads(body))
        name = "/".join(words[2:4])
        if name not in self.hub.repositories:
            return 404, {"error": "Repository not found"}
        return self._of_repository(name, words[4:], body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        if not self.hub.may_write:
            return 403, {"error": "You don't have the rights"}
        if name in self.hub.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        self.hub.repositories[name] = Repository(asked.get("visibility", "public") == "private")
        return 200, {"url": f"{self.hub.url}/{name}"}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = lambda oid: {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}}  # noqa: E731
        return {"transfer": "basic", "objects": [each | {"actions": upload(each["oid"])} for each in asked["objects"]]}

    def _of_repository(self, name: str, words: list[str], body: bytes) -> tuple[int, Any]:
        repository = self.hub.repositories[name]
        if words[:1] == ["preupload"]:
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if words[:1] == ["tree"]:
            return 200, [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in repository.files.items()
            ]
        if words[:1] == ["commit"]:
            return self._commit(repository, body)
        siblings = [{"rfilename": path} for path in repository.files]
        return 200, {"id": name, "private": repository.private, "sha": "0" * 40, "siblings": siblings, "tags": []}

    def _commit(self, repository: Repository, body: bytes) -> tuple[int, Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        return 200, {
            "commitUrl": f"{self.hub.url}/ada/fox/commit/{repository.commits:040x}",
            "commitOid": f"{repository.commits:040x}",
        }
