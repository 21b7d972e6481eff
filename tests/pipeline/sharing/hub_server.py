"""A stand-in of Hugging Face's hub on this machine: the part of its HTTP protocol that a push and a pull use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors", ".arrow", ".faiss", ".bin")  # these go by LFS, as the hub's preupload says of large files


class HubServer(ThreadingHTTPServer):
    """Repositories by name: a list of commits, each the files' contents by name."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail_commits = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def commit_id(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()  # noqa: S324 - as git names a commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.server.repositories:
                self._answer({"error": "it exists", "url": f"{self.server.endpoint}/{name}"}, 409)
            else:
                self.server.repositories[name] = [{".gitattributes": b""}]
                self._answer({"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/[^/]+", self.path):
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
                for f in files
            ]
            self._answer({"files": modes})
        elif found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", self.path):
            objects = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    "actions": {"upload": {"href": f"{self.server.endpoint}/upload/{o['oid']}"}},
                }
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/[^/]+", self.path):
            self._commit(found[1], body)
        else:
            self._answer({"error": f"not in this stand-in: {self.path}"}, 501)

    def _commit(self, name: str, body: bytes) -> None:
        commits = self.server.repositories[name]
        if self.server.fail_commits:
            self._answer({"error": "the disk is full"}, 500)
            return
        files = dict(commits[-1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif value.get("parentCommit") not in {None, commit_id(len(commits) - 1)}:
                self._answer({"error": "another commit came in between"}, 412)
                return
        commits.append(files)
        sha = commit_id(len(commits) - 1)
        self._answer({"commitUrl": f"{self.server.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def do_PUT(self) -> None:
        self.server.requests.append(f"PUT {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.removeprefix("/upload/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, *, head: bool = False) -> None:
        self.server.requests.append(f"{'HEAD' if head else 'GET'} {self.path}")
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            number = self._number(found[1], found[2])
            if number is not None:
                files = [{"rfilename": name} for name in self.server.repositories[found[1]][number]]
                self._answer(
                    {"id": found[1], "sha": commit_id(number), "siblings": files, "tags": [], "private": False}, head=head
                )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            number = self._number(found[1], found[2])
            if number is not None:
                content = self.server.repositories[found[1]][number].get(found[3])
                if content is None:
                    self._answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"}, head=head)
                else:
                    etag = hashlib.sha256(content).hexdigest()
                    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit_id(number)}
                    self._send(content, 200, headers | {"Content-Type": "application/octet-stream"}, head=head)
        else:
            self._answer({"error": f"not in this stand-in: {path}"}, 501, head=head)

    def _number(self, name: str, revision: str | None) -> int | None:
        commits = self.server.repositories.get(name)
        if commits is None:
            self._answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        if revision in {None, "main"}:
            return len(commits) - 1
        for number in range(len(commits)):
            if commit_id(number) == revision:
                return number
        self._answer({"error": "no such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return None

    def _answer(self, document: Any, status: int = 200, headers: dict[str, str] | None = None, *, head: bool = False) -> None:
        self._send(json.dumps(document).encode(), status, {"Content-Type": "application/json"} | (headers or {}), head=head)

    def _send(self, content: bytes, status: int, headers: dict[str, str], *, head: bool) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not head and self.command != "HEAD":
            self.wfile.write(content)
