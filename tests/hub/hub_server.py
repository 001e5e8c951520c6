"""A Hub on loopback: the part of its HTTP protocol that the stock clients use, with accounts, branches, LFS and faults.

Blobs are known by their SHA-256, commits form one line a branch. A file is LFS by its name, as a fresh repository's
`.gitattributes` says; its content goes to and comes from a second host name, which must never see a token.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import yaml

LFS = (".parquet", ".safetensors", ".bin", ".pt", ".pth", ".png", ".arrow", ".gz", ".zst")
WRITER, READER, STRANGER = "hf_writertokenWRITERTOKEN", "hf_readertokenREADERTOKEN", "hf_strangertokenSTRANGER"
ACCOUNTS = {WRITER: ("me", "write"), READER: ("me", "read"), STRANGER: ("somebody", "write")}
HISTORY_MOVED = "A commit has happened since. Please refresh and try again."


@dataclass(frozen=True)
class File:
    sha256: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    sha: str
    title: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repo:
    kind: str  # "models" or "datasets"
    name: str  # "owner/name"
    private: bool
    branches: dict[str, str]
    commits: dict[str, Commit]
    stored: set[str] = field(default_factory=set)  # SHA-256 of what was uploaded to its storage

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        if sha not in self.commits:
            raise Refused(404, "Invalid rev id: " + revision, "RevisionNotFound")
        return self.commits[sha]


class Refused(Exception):
    """An answer that is an error: status, words, the Hub's own code for it, further headers, more of a body."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None, **more: Any):
        super().__init__(message)
        self.status, self.body = status, {"error": message} | more
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


class Cut(Exception):
    """The connection ends here."""


@dataclass
class Hub:
    """The state of the server. `fail` makes the next requests to a place go wrong; places are the names in ROUTES."""

    tokens: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(ACCOUNTS))  # token -> (account, role)
    organisations: tuple[str, ...] = ()
    slowness_s: float = 0.6
    retry_after_s: int = 7
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # (place, what of it)
    unknown: list[str] = field(default_factory=list)  # what the server does not speak
    leaks: list[str] = field(default_factory=list)  # requests to the storage host that carried a token
    faults: list[tuple[str, str | int, int]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    url: str = ""

    def fail(self, place: str, fault: str | int, after: int = 0) -> None:
        """The next request to `place`, or the one `after` so many more, gets a status code, is "cut" in the middle,
        is "lost" (done, but the answer never arrives), "slow", or "stuck" for a minute."""
        self.faults.append((place, fault, after))

    def fault(self, place: str) -> str | int | None:
        for number, (where, fault, after) in enumerate(self.faults):
            if where == place:
                if after:
                    self.faults[number] = (where, fault, after - 1)
                    return None
                del self.faults[number]
                return fault
        return None

    def count(self, place: str) -> int:
        return Counter(where for where, _ in self.asked)[place]

    def repo(self, kind: str, name: str) -> Repo:
        return self.repos[kind, name]

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        return {path: self.blobs[file.sha256] for path, file in self.repo(kind, name).at(revision).files.items()}

    def keep(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return sha256

    def commit(self, repo: Repo, branch: str, title: str, files: dict[str, File]) -> Commit:
        parent = repo.branches.get(branch)
        sha = hashlib.sha1(f"{repo.kind}{repo.name}{branch}{parent}{title}{time.time_ns()}".encode()).hexdigest()
        repo.commits[sha] = Commit(sha, title, parent, files)
        repo.branches[branch] = sha
        return repo.commits[sha]


def header_of(card: str) -> Any:
    """What the YAML at the head of a README.md says."""
    header = re.match(r"---\n(.*?)\n---", card, re.S)
    return yaml.safe_load(header[1]) if header else None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


ROUTES = [
    (place, method, re.compile(pattern))
    for place, method, pattern in [
        ("whoami", "GET", r"/api/whoami-v2"),
        ("create", "POST", r"/api/repos/create"),
        ("validate", "POST", r"/api/validate-yaml"),
        ("auth_check", "GET", r"/api/(models|datasets)/([^/]+/[^/]+)/auth-check(/write)?"),
        ("info", "GET", r"/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?"),
        ("refs", "GET", r"/api/(models|datasets)/([^/]+/[^/]+)/refs"),
        ("commits", "GET", r"/api/(models|datasets)/([^/]+/[^/]+)/commits/(.+)"),
        ("branch", "POST", r"/api/(models|datasets)/([^/]+/[^/]+)/branch/(.+)"),
        ("preupload", "POST", r"/api/(models|datasets)/([^/]+/[^/]+)/preupload/(.+)"),
        ("commit", "POST", r"/api/(models|datasets)/([^/]+/[^/]+)/commit/(.+)"),
        ("tree", "GET", r"/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?"),
        ("paths", "POST", r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/(.+)"),
        ("batch", "POST", r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch"),
        ("upload", "PUT", r"/storage/(models|datasets)/([^/]+/[^/]+)/(\w+)"),
        ("verify", "POST", r"/verify/(.+)"),
        ("download", "GET", r"/storage/(models|datasets)/([^/]+/[^/]+)/(\w+)"),
        ("resolve", "GET", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"),
        ("head", "HEAD", r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)"),
    ]
]
WRITES = {"create", "branch", "preupload", "commit", "batch"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms between its headers and its body
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Quiet: `Hub.asked` is the log."""

    def serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = dict(parse_qsl(parts.query))
        found = [(place, pattern.fullmatch(path)) for place, method, pattern in ROUTES if method == self.command]
        place, match = next((one for one in found if one[1]), (None, None))
        if place is None:
            self.body()
            self.hub.unknown.append(f"{self.command} {self.path}")
            return self.answer(404, {"error": "no such page"}, {"X-Error-Code": "EntryNotFound"})
        with self.hub.lock:
            fault = self.hub.fault(place)
            self.hub.asked.append((place, "/".join(filter(None, match.groups()))))
        try:
            if fault == "cut" and place == "upload":
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
            if fault == "cut" and place not in ("download", "resolve"):
                raise Cut
            body = self.body()
            if fault in ("slow", "stuck"):
                time.sleep(self.hub.slowness_s if fault == "slow" else 60)
            self.check_token(place, match)
            if isinstance(fault, int):
                self.refuse(place, fault)
            self.half = fault == "cut"
            with self.hub.lock:
                result = getattr(self, place)(body, *match.groups())
            if fault == "lost":
                raise Cut
            if result is not None:
                self.answer(200, result)
        except Refused as refused:
            self.answer(refused.status, refused.body, refused.headers)
        except (Cut, ConnectionError):
            self.close_connection = True
            self.connection.close()

    do_GET = do_POST = do_PUT = do_HEAD = serve

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw))}.items():
            if name not in (headers or {}):
                self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def refuse(self, place: str, status: int) -> None:
        if status == 404:
            raise Refused(404, "Repository not found", "RepoNotFound")
        if status == 401:
            raise Refused(401, "Invalid credentials in Authorization header")
        if status == 429:
            raise Refused(429, "Too many requests", headers={"Retry-After": str(self.hub.retry_after_s)})
        if status == 409 and place == "create":
            raise Refused(409, "Cannot create repo: another conflicting operation is in progress")
        raise Refused(status, {409: HISTORY_MOVED, 412: HISTORY_MOVED}.get(status, "as asked by the test"))

    def check_token(self, place: str, match: re.Match) -> None:
        """The storage host takes anybody who knows the address, and must not be shown a token; a token has to be one
        that there is; writing needs one that may write; a private repository is not there for a stranger."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if place in ("upload", "download", "verify"):
            if given and place != "verify":
                self.hub.leaks.append(self.path)
            return
        self.account, self.role = self.hub.tokens.get(given, (None, None))
        if given and self.account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        if self.account is None and place in WRITES | {"whoami"}:
            raise Refused(401, "Invalid username or password.")
        if match.re.groups >= 2:
            kind, name = (match[1] or "models").rstrip("/"), match[2]
            repo = self.hub.repos.get((kind, name))
            if repo is None or (repo.private and not self.owns(name)):
                if self.account is None:
                    raise Refused(401, "Invalid username or password.", "RepoNotFound")
                raise Refused(404, "Repository not found", "RepoNotFound")
            self.repo = repo
            if place in WRITES or (place == "auth_check" and match[3]):
                self.require_write(name)

    def owns(self, name: str) -> bool:
        return name.split("/")[0] in (self.account, *self.hub.organisations)

    def require_write(self, name: str) -> None:
        if self.role != "write" or not self.owns(name):
            raise Refused(403, f"You don't have the rights to write to {name}")

    # One method a place. What it returns is the answer; None where it has answered itself.

    def whoami(self, body: bytes) -> dict:
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.role}}
        organisations = [{"name": name, "roleInOrg": "write"} for name in self.hub.organisations]
        return {"type": "user", "name": self.account, "fullname": self.account, "orgs": organisations, "auth": access}

    def create(self, body: bytes) -> dict:
        asked = json.loads(body)
        kind = asked.get("type", "model") + "s"
        name = f"{asked.get('organization') or self.account}/{asked['name']}"
        self.require_write(name)
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repos:
            raise Refused(409, "You already created this repo", url=url)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = self.hub.repos[kind, name] = Repo(kind, name, private, {}, {})
        attributes = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LFS)
        first = {".gitattributes": File(self.hub.keep(attributes.encode()), lfs=False)}
        self.hub.commit(repo, "main", "initial commit", first)
        return {"url": url, "name": name, "id": name}

    def validate(self, body: bytes) -> dict:
        """As the Hub does: a card's YAML header must be a mapping, and its licences must be identifiers."""
        found = header_of(json.loads(body)["content"])
        errors = [] if found is None or isinstance(found, dict) else [{"message": "the header is no mapping"}]
        stated = found.get("license", []) if isinstance(found, dict) else []
        for one in stated if isinstance(stated, list) else [stated]:
            if not re.fullmatch(r"[a-z0-9.+-]+", str(one)):
                errors.append({"message": '"license" must be one of [apache-2.0, mit, ...]'})
        if stated == "other" and not re.fullmatch(r"[a-z0-9.-]+", str(found.get("license_name"))):
            errors.append({"message": '"license_name" must be an identifier'})
        if errors:
            return self.answer(400, {"errors": errors, "warnings": []})
        return {"errors": [], "warnings": []}

    def auth_check(self, body: bytes, kind: str, name: str, write: str | None) -> dict:
        return {}

    def info(self, body: bytes, kind: str, name: str, revision: str | None) -> dict:
        commit = self.repo.at(revision or "main")
        found = {"id": name, "_id": "0", "sha": commit.sha, "private": self.repo.private, "gated": False}
        found |= {"disabled": False, "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"}
        if card := commit.files.get("README.md"):
            found["cardData"] = header_of(self.hub.blobs[card.sha256].decode())
        return found | {"siblings": [{"rfilename": path} for path in commit.files]}

    def refs(self, body: bytes, kind: str, name: str) -> dict:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": sha}
            for branch, sha in self.repo.branches.items()
        ]
        return {"branches": branches, "tags": [], "converts": []}

    def commits(self, body: bytes, kind: str, name: str, revision: str) -> list:
        found, commit = [], self.repo.at(revision)
        while commit:
            date, who = "2026-01-01T00:00:00.000Z", [{"user": "me"}]
            found.append({"id": commit.sha, "title": commit.title, "message": "", "date": date, "authors": who})
            commit = self.repo.commits.get(commit.parent)
        return found

    def branch(self, body: bytes, kind: str, name: str, branch: str) -> dict:
        if branch in self.repo.branches:
            raise Refused(409, "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint") or "main"
        self.repo.branches[branch] = self.repo.at(start).sha
        return {}

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> dict:
        files = self.repo.at(revision).files
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(files[file["path"]]) if file["path"] in files else None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _oid(self, file: File) -> str:
        return file.sha256 if file.lfs else git_oid(self.hub.blobs[file.sha256])

    def batch(self, body: bytes, kind: str | None, name: str) -> dict:
        objects = []
        for one in json.loads(body)["objects"]:
            found = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.repo.stored:
                upload = {"href": self._storage(one["oid"]), "header": {}}
                found["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/verify/{one['oid']}"}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def _storage(self, oid: str) -> str:
        return f"{self.hub.url.replace('127.0.0.1', 'localhost')}/storage/{self.repo.kind}/{self.repo.name}/{oid}"

    def upload(self, body: bytes, kind: str, name: str, oid: str) -> dict:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the content has another checksum")
        self.hub.repo(kind, name).stored.add(self.hub.keep(body))
        return {}

    def verify(self, body: bytes, oid: str) -> dict:
        if oid not in self.hub.blobs:
            raise Refused(404, "no such object")
        return {}

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> dict:
        head = self.repo.at(revision)
        files, title = dict(head.files), ""
        for line in filter(None, body.splitlines()):
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise Refused(412, HISTORY_MOVED)
            elif part["key"] == "file":
                files[value["path"]] = File(self.hub.keep(base64.b64decode(value["content"])), lfs=False)
            elif part["key"] == "lfsFile":
                if value["oid"] not in self.repo.stored:
                    raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = File(value["oid"], lfs=True)
            elif part["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif part["key"] == "deletedFolder":
                files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
        commit = self.hub.commit(self.repo, revision, title, files)
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{name}/commit/{commit.sha}"
        return {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}

    def _entry(self, path: str, file: File) -> dict:
        content = self.hub.blobs[file.sha256]
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        return entry | ({"lfs": {"oid": file.sha256, "size": len(content), "pointerSize": 134}} if file.lfs else {})

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None) -> list:
        files = self.repo.at(revision).files
        above = folder.rstrip("/") + "/" if folder else ""
        if above and not any(path.startswith(above) for path in files):
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive, folders, entries = self.query.get("recursive", "").lower() in ("1", "true"), {}, []
        for path, file in sorted(files.items()):
            if path.startswith(above):
                below = path.removeprefix(above).split("/")
                for depth in range(1, len(below)) if recursive else range(1, min(2, len(below))):
                    place = above + "/".join(below[:depth])
                    folders[place] = {"type": "directory", "path": place, "oid": "0" * 40, "size": 0}
                if recursive or len(below) == 1:
                    entries.append(self._entry(path, file))
        return [*folders.values(), *entries]

    def paths(self, body: bytes, kind: str, name: str, revision: str) -> list:
        files, found = self.repo.at(revision).files, []
        asked = (
            json.loads(body)["paths"]
            if "json" in self.headers.get("Content-Type", "")
            else [value for key, value in parse_qsl(body.decode()) if key == "paths"]
        )
        for path in [asked] if isinstance(asked, str) else asked:
            if path in files:
                found.append(self._entry(path, files[path]))
            elif any(file.startswith(path.rstrip("/") + "/") for file in files):
                found.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return found

    def resolve(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> None:
        commit = self.repo.at(revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.sha})
        file = commit.files[path]
        content = self.hub.blobs[file.sha256]
        headers = {"ETag": f'"{self._oid(file)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self.send(content, headers)
        headers |= {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(content))}
        return self.answer(302, b"", headers | {"Location": self._storage(file.sha256)})

    head = resolve

    def download(self, body: bytes, kind: str, name: str, sha256: str) -> None:
        self.send(self.hub.blobs[sha256], {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})

    def send(self, content: bytes, headers: dict[str, str]) -> None:
        status, asked = 200, re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and self.command == "GET":
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers = headers | {"Content-Range": f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"}
            content, status = content[first : last + 1], 206
        headers = headers | {"Content-Type": "application/octet-stream", "Content-Length": str(len(content))}
        self.answer(status, content[: len(content) // 2] if self.half else content, headers)
        if self.half:
            raise Cut


def start(hub: Hub) -> ThreadingHTTPServer:
    """Serve `hub` on a free port of loopback, in a thread; its `url` is then known."""
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    text = "A Hub on loopback, in memory until Ctrl-C. It writes the line that points the clients of a shell to it."
    argparse.ArgumentParser(description=text).parse_args()
    server = start(Hub())
    address = f"http://127.0.0.1:{server.server_port}"
    sys.stdout.write(f"export HF_ENDPOINT={address} HF_TOKEN={WRITER} HF_HUB_DISABLE_XET=1\n")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
