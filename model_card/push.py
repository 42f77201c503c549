"""Push an assembled payload to a Hub repository: everything is checked first, then come one commit and one tag."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from nula.weights import weights_sha256

ATTEMPTS = 5
TOLERANCE = 1e-3  # of logits, on another machine than the one that measured them

# In a process of its own, which cannot import this package: what a stranger gets from the payload.
LOAD = """
import sys
sys.modules["nula"] = None
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
payload, golden, tolerance = sys.argv[1], np.load(sys.argv[2]), float(sys.argv[3])
model, processor = (kind.from_pretrained(payload, trust_remote_code=True)
                    for kind in (AutoModelForImageClassification, AutoImageProcessor))
with torch.inference_mode():
    logits = model.eval()(**processor(golden["images"], return_tensors="pt")).logits.numpy()
difference = float(np.abs(logits - golden["logits"]).max())
if not difference <= tolerance:
    sys.exit(f"logits differ by {difference:.3g} from those that were measured, allowed are {tolerance}")
"""

Result = TypeVar("Result")


class PushRefused(Exception):
    """Why nothing was pushed, and what to do about it."""


def check_payload(payload: Path, release: Path) -> None:
    """PushRefused unless the payload is of the very weights whose results it shows, and gives their logits."""
    version, results = release.name, release / "results"
    again = f"run `make evaluate VERSION={version}`"
    try:
        measured = json.loads((results / "provenance.json").read_text())["weights_sha256"]
    except FileNotFoundError as error:
        raise PushRefused(f"{results} holds no results; {again}.") from error
    if measured != weights_sha256(release):
        raise PushRefused(f"the results in {results} were measured on other weights than {release}'s; {again}.")
    if not (results / "golden.npz").is_file():
        raise PushRefused(f"{results} holds no golden.npz to check the payload against; {again}.")
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                LOAD,
                str(payload.resolve()),
                str((results / "golden.npz").resolve()),
                str(TOLERANCE),
            ],
            cwd=cache,
            env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PushRefused(f"the payload {payload} fails when it is loaded by its remote code: {lines[-1]}.")


def check_hub(api: HfApi, hub_id: str, tag: str | None) -> None:
    """PushRefused unless there is a token that may write, and `tag` is free."""
    if get_token() is None:
        raise PushRefused("there is no Hub token; run `hf auth login` or set HF_TOKEN to one with write access.")
    try:
        role = _with_retries(lambda: api.whoami())["auth"]["accessToken"].get("role")
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise PushRefused(
                "the Hub does not know this token; make one with write access and log in anew."
            ) from error
        raise
    if role == "read":
        raise PushRefused("the Hub token may only read; make one with write access and log in anew.")
    if tag is None:
        return
    try:
        refs = _with_retries(lambda: api.list_repo_refs(hub_id))
    except RepositoryNotFoundError:
        return
    if tag in {ref.name for ref in refs.tags}:
        raise PushRefused(f"{hub_id} has a tag {tag} already; take the next version number.")


def check(payload: Path, release: Path, hub_id: str, tag: str | None = None) -> None:
    """PushRefused where `push` would be, as far as can be told without a change on the Hub."""
    check_payload(payload, release)
    with _explained():
        check_hub(HfApi(), hub_id, tag)


def push(payload: Path, release: Path, hub_id: str, *, private: bool = False, tag: str | None = None) -> str:
    """Make the repository hold the files of `payload` and no others, by one commit; tag it; return the commit's URL.

    Transient failures are tried again. One that lasts leaves the repository as it was, or, where the commit went
    through and its tag did not, with the commit alone; the same call then goes on from there.

    Raises:
        PushRefused: as `check` says, before anything is uploaded; or the Hub refused, or could not be reached.
    """
    check(payload, release, hub_id, tag)
    api = HfApi()
    with _explained():
        _with_retries(lambda: api.create_repo(hub_id, private=private or None, exist_ok=True))
        # Where nothing differs from what the repository holds, as after a reply that was lost, this makes no commit.
        commit = _with_retries(
            lambda: api.upload_folder(
                repo_id=hub_id, folder_path=payload, commit_message=f"Release {payload.name}", delete_patterns="*"
            )
        )
        if tag is not None:
            _with_retries(lambda: api.create_tag(hub_id, tag=tag, revision=commit.oid))
    return commit.commit_url


def changes(payload: Path, hub_id: str) -> list[str]:
    """What a push would do, a line for each file: size, name, and whether it is new, changed, unchanged or removed.

    Raises:
        PushRefused: the Hub could not be reached.
    """
    with _explained():
        there = _with_retries(lambda: _files(HfApi(), hub_id))
    lines = []
    for file in sorted(file for file in payload.rglob("*") if file.is_file()):
        path, content = file.relative_to(payload).as_posix(), file.read_bytes()
        known = there.pop(path, None)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        same = known in (blob, hashlib.sha256(content).hexdigest())
        state = "new" if known is None else "unchanged" if same else "changed"
        lines.append(f"{len(content):>10,}  {path}  {state}")
    there.pop(".gitattributes", None)  # the Hub's own, and left alone
    return lines + [f"{'':>10}  {path}  removed" for path in sorted(there)]


def _files(api: HfApi, hub_id: str) -> dict[str, str]:
    """Path to hash, SHA-256 for LFS and git's for others; empty where there is no such repository."""
    try:
        tree = [entry for entry in api.list_repo_tree(hub_id, recursive=True) if isinstance(entry, RepoFile)]
    except RepositoryNotFoundError:
        return {}
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree}


@contextmanager
def _explained() -> Iterator[None]:
    """Failures of the Hub and of the connection as PushRefused."""
    try:
        yield
    except HfHubHTTPError as error:
        raise PushRefused(f"the Hub refused: {error}") from error
    except Exception as error:
        if not _is_connection_error(error):
            raise
        raise PushRefused(f"the connection to the Hub failed: {error} Run the same command again.") from error


def _with_retries(call: Callable[[], Result]) -> Result:
    retrying = Retrying(
        retry=retry_if_exception(_is_transient), stop=stop_after_attempt(ATTEMPTS), wait=_wait, reraise=True
    )
    return retrying(call)


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (429, 500, 502, 503, 504)
    return _is_connection_error(error)


def _is_connection_error(error: BaseException) -> bool:
    # The HTTP client behind huggingface_hub is another in each of its major versions.
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests")


def _wait(state: RetryCallState) -> float:
    """Seconds that the Hub asks for, or 1, 2, 4, 8."""
    response = getattr(state.outcome.exception(), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if asked.isdigit() else wait_exponential(max=8)(state)
