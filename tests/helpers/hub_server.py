"""Serve repositories in a folder on 127.0.0.1, in place of the Hugging Face hub."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

BRANCH = "main"
# A file with this name makes a repository gated.
GATED = ".gated"
# A README.md with this text has invalid metadata.
INVALID = "license: mine"
# The only token that may write, and the only owner whose repositories it may write.
TOKEN, OWNER = "hf_stand_in", "me"


class HubServer:
    """A server of `root/models/<owner>/<name>/` and `root/datasets/<owner>/<name>/`.

    `requests` lists "METHOD path" of each request. `private` says for each new repository whether
    it is private. Uploads are regular files: neither LFS nor Xet is imitated. Python code run by
    `run` sees only this hub, with the cache `root/home`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.private: dict[str, bool] = {}
        self.stopped = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop answering: close open connections, and refuse new ones."""
        self.stopped = True
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def repo(self, name: str, kind: str = "models") -> Path:
        """Return the folder of a repository, created if missing; its files are served."""
        folder = self.root / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def env(self, *, offline: bool = False, home: str = "home") -> dict[str, str]:
        """Return an environment for processes that use this hub."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.root / home),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def run(
        self, code: str, *arguments: str, offline: bool = False, home: str = "home"
    ) -> subprocess.Popen[str]:
        """Start Python code with these arguments; its outputs are text pipes."""
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=self.env(offline=offline, home=home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if hub.stopped:
                self.close_connection = True
                return
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.requests.append(f"{self.command} {path}")
            self._send(_answer(hub.root, path.strip("/").split("/")))

        def do_POST(self) -> None:
            path = urlsplit(self.path).path
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_valid = self.headers["Authorization"] == f"Bearer {TOKEN}"
            parts = path.strip("/").split("/")
            self._send(_change(hub, parts, body) if is_valid else _error(401, "", "Invalid token"))

        def _send(self, answer: Answer) -> None:
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 (the name is the base class's)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing; `requests` lists the requests."""

    return Handler


Answer = tuple[int, dict[str, str], bytes]


def _answer(root: Path, parts: list[str]) -> Answer:
    api = parts[0] == "api"
    parts = parts[1:] if api else parts
    kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
    repo, rest = root / kind / "/".join(parts[:2]), parts[2:]
    if len(parts) < 2 or not repo.is_dir():
        return _error(401, "RepoNotFound", "Invalid username or password.")
    if (repo / GATED).exists():
        return _error(403, "GatedRepo", f"Access to {repo.name} is restricted")
    commit = _commit(repo)
    verb, revision, *path = [*rest, *([BRANCH, BRANCH][len(rest) :])]
    if revision not in (BRANCH, commit):
        return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    target = repo.joinpath(*path)
    if not api:
        if not target.is_file():
            return _error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        body = target.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}
        return 200, headers, body
    if verb == "tree":
        if not target.is_dir():
            return _error(404, "EntryNotFound", f"{'/'.join(path)} does not exist")
        return _json(_tree(repo, target))
    info = {
        "id": "/".join(parts[:2]),
        "sha": commit,
        "private": False,
        "gated": False,
        "tags": [],
        "siblings": [{"rfilename": entry["path"]} for entry in _tree(repo, repo)],
    }
    return _json(info)


def _change(hub: HubServer, parts: list[str], body: bytes) -> Answer:
    lines = [json.loads(line) for line in body.splitlines()]
    if parts == ["api", "repos", "create"]:
        owner, name = lines[0]["organization"], lines[0]["name"]
        if owner != OWNER:
            return _error(403, "", f"You don't have the rights to create a model in {owner}")
        if (hub.root / "models" / owner / name).exists():
            return _error(409, "", "You already created this model repo")
        hub.repo(f"{owner}/{name}")
        # huggingface_hub 1 sends the first name, and version 2 the second one.
        private = lines[0].get("private") or lines[0].get("visibility") == "private"
        hub.private[f"{owner}/{name}"] = bool(private)
        return _json({"url": f"{hub.url}/{owner}/{name}"})
    if parts[-1] == "validate-yaml":
        errors = [{"message": INVALID}] if INVALID in lines[0]["content"] else []
        return (400 if errors else 200), *_json({"errors": errors, "warnings": []})[1:]
    repo = hub.root / "models" / parts[2] / parts[3]
    if not repo.is_dir():
        return _error(404, "RepoNotFound", "Repository not found")
    if parts[4] == "preupload":
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                 for file in lines[0]["files"]]  # fmt: skip
        return _json({"files": files})
    for line in lines:
        if line["key"] == "file":
            file = repo / line["value"]["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(base64.b64decode(line["value"]["content"]))
        elif line["key"] == "deletedFile":
            (repo / line["value"]["path"]).unlink()
    commit = _commit(repo)
    return _json(
        {"commitUrl": f"{hub.url}/{parts[2]}/{parts[3]}/commit/{commit}", "commitOid": commit}
    )


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _tree(repo: Path, folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": path.relative_to(repo).as_posix(),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _commit(repo: Path) -> str:
    return hashlib.sha1(json.dumps(_tree(repo, repo)).encode()).hexdigest()


def _error(status: int, code: str, message: str, more: dict[str, str] | None = None) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message, **(more or {})}, b""
