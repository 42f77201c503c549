"""A Hub on localhost, in memory: as much of its HTTP interface as pushing, tagging, listing and loading a model need.

Nothing here is checked against the Hub itself. `faults` makes chosen requests fail once each, as a real network would.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_write": "write", "hf_read": "read", "hf_oauth": "oauth", "hf_fine": "fineGrained"}  # token to role
ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)  # of a repository or data set
LARGE = (".safetensors", ".png")  # what the Hub keeps as LFS


@dataclass
class Fault:
    """Answer the `nth` request whose "METHOD path" holds `pattern` (a regular expression) with `status`.

    0 hangs up in the middle of the request; -1 does what was asked for and hangs up without a reply.
    """

    pattern: str
    status: int = 0
    nth: int = 1
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "fault on demand"}'
    seen: int = 0

    def strikes(self, request: str) -> bool:
        if not re.search(self.pattern, request):
            return False
        self.seen += 1
        return self.nth <= self.seen < self.nth + self.times


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[Commit]
    tags: dict[str, str] = field(default_factory=dict)
    stale: bool = False  # information is of the commit before the last

    def at(self, revision: str) -> Commit | None:
        oid = self.tags.get(revision, revision)
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == oid), None)


class Hub:
    """`with Hub() as hub:` serves at `hub.url`; `repositories`, `faults` and `requests` may be read and changed."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        serve = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        serve.start()  # which looks so often, in seconds, whether it is to stop
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def state(self) -> dict:
        """What a visitor could see, to tell whether anything changed."""
        return {
            name: ([(commit.oid, sorted(commit.files)) for commit in repository.commits], dict(repository.tags))
            for name, repository in self.repositories.items()
        }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    silent = False
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds the body of a reply back for 40 ms

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        fault = next((fault for fault in self.hub.faults if fault.strikes(request)), None)
        if fault is not None and fault.status == 0:  # in the middle of the body
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        self.silent = fault is not None and fault.status == -1
        if fault is not None and not self.silent:
            self.answer(fault.body, fault.status, fault.headers)
            return
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                getattr(self, name)(body, **match.groupdict())
                return
        self.answer({"error": f"no route for {request}"}, 404)

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self, content: dict | list | bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.silent:
            self.close_connection = True
            self.connection.close()
            return
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(payload)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def role(self) -> str | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def may_write(self) -> bool:
        role = self.role()
        if role in ("write", "oauth", "fineGrained"):
            return True
        self.answer({"error": "forbidden" if role else "unauthorized"}, 403 if role else 401)
        return False

    def found(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.role() is None):
            self.refuse(404 if self.role() else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def whoami(self, body: bytes) -> None:
        role = self.role()
        if role is None:
            self.answer({"error": "Invalid credentials"}, 401)
            return
        access = {} if role == "oauth" else {"accessToken": {"role": role}}
        if role == "fineGrained":
            scope = {
                "entity": {"type": "model", "name": "owner/mine"},
                "permissions": ["repo.content.read", "repo.write"],
            }
            access["accessToken"]["fineGrained"] = {"global": [], "scoped": [scope]}
        self.answer({"type": "user", "name": "owner", "orgs": [], "auth": access})

    def create(self, body: bytes) -> None:
        if not self.may_write():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        link = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self.answer({**link, "error": "You already created this model repo"}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        first = Commit(hashlib.sha1(name.encode()).hexdigest(), "initial commit", {".gitattributes": b"* -text\n"})
        self.hub.repositories[name] = Repository(private=private, commits=[first])
        self.answer(link)

    def validate_yaml(self, body: bytes) -> None:
        asked = json.loads(body)
        head = re.match(r"---\n(.*?)\n---", asked["content"], re.DOTALL)
        fields = (yaml.safe_load(head.group(1)) if head else None) or {}
        ids = [*(fields.get("datasets") or []), *filter(None, [fields.get("base_model")])]
        wrong = [{"message": f'"{name}" is no id of a repository'} for name in ids if not ID.fullmatch(name)]
        self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (repository := self.found(name)) is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            content = repository.commits[-1].files.get(file["path"])
            large = file["path"].endswith(LARGE)
            oid = None if content is None else _oid(content, large)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        if not self.may_write() or self.found(name) is None:
            return
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.answer({"error": "wrong content"}, 400)
            return
        self.hub.objects[oid] = body
        self.answer(b"")

    def lfs_verify(self, body: bytes, oid: str) -> None:
        self.answer({}, 200 if oid in self.hub.objects else 404)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (repository := self.found(name)) is None:
            return
        last = repository.commits[-1]
        files, message = dict(last.files), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, last.oid):
                    self.answer({"error": "the branch has moved on"}, 412)
                    return
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(f"unknown operation {entry['key']}")
        oid = hashlib.sha1(body + last.oid.encode()).hexdigest()
        repository.commits.append(Commit(oid, message, files))
        self.answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        if not self.may_write() or (repository := self.found(name)) is None:
            return
        tag, commit = json.loads(body)["tag"], repository.at(revision)
        if tag in repository.tags:
            self.answer({"error": "tag exists"}, 409)
        elif commit is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            repository.tags[tag] = commit.oid
            self.answer({})

    def refs(self, body: bytes, name: str) -> None:
        if (repository := self.found(name)) is None:
            return
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commits[-1].oid}]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in repository.tags.items()]
        self.answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if (repository := self.found(name)) is None:
            return
        commit = repository.commits[-2] if repository.stale else repository.at(revision or "main")
        if commit is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        siblings = [{"rfilename": path} for path in commit.files]
        about = {"id": name, "modelId": name, "private": repository.private, "sha": commit.oid, "siblings": siblings}
        self.answer({**about, "tags": [], "pipeline_tag": "image-classification", "library_name": "transformers"})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if (repository := self.found(name)) is None:
            return
        entries = []
        for path, content in (repository.at(revision) or repository.commits[-1]).files.items():
            large = path.endswith(LARGE)
            entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, large=False)}
            if large:
                entry["lfs"] = {"oid": _oid(content, large=True), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.answer(entries)

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if (repository := self.found(name)) is None:
            return
        commit = repository.at(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        if file not in commit.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        content, large = commit.files[file], file.endswith(LARGE)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{_oid(content, large)}"'}
        if large:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        self.answer(content, headers=headers)


def _oid(content: bytes, large: bool) -> str:
    """As git names a blob, or LFS an object."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME, _REVISION = r"(?P<name>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/models/{_NAME}/preupload/{_REVISION}", "preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", "lfs_verify"),
    ("POST", f"/api/models/{_NAME}/commit/{_REVISION}", "commit"),
    ("POST", f"/api/models/{_NAME}/tag/{_REVISION}", "tag"),
    ("GET", f"/api/models/{_NAME}/refs", "refs"),
    ("GET", f"/api/models/{_NAME}", "info"),
    ("GET", f"/api/models/{_NAME}/revision/{_REVISION}", "info"),
    ("GET", f"/api/models/{_NAME}/tree/{_REVISION}", "tree"),
    ("GET|HEAD", f"/{_NAME}/resolve/{_REVISION}/(?P<file>.+)", "resolve"),
]
