"""Push an assembled payload to a Hub repository: everything is checked first, then come one commit and one tag."""

import glob
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import HfApi, get_token, metadata_load, metadata_save
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import CommitInfo, RepoFile
from huggingface_hub.utils import validate_repo_id
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from nula.publishing.integrity import PushRefused, check_payload

ATTEMPTS = 5
LONGEST_WAIT = 300.0  # seconds between two attempts; the Hub counts requests over five minutes
CARD = "README.md"
# The files of a release: one that an older release left in the repository goes. Any other is somebody's, and stays.
OWN_FILES = re.compile(
    r"README\.md|(preprocessor_)?config\.json|model\.safetensors|\w+_nula\.py|(figures|examples)/[^/]+\.png"
)
# What a card of ours says at its head. Any other field of the repository's card, such as the texts of its gate, stays.
OWN_FIELDS = ("license", "library_name", "pipeline_tag", "datasets", "metrics", "tags", "widget", "model-index")
OWN_FIELDS += ("base_model", "base_model_relation")
TAG = re.compile(r"\w[\w.+-]*", re.ASCII)
ADVICE = {  # by status
    401: "The token may not write to {}: make one with write access to it, and log in anew.",
    403: "If it is the token: make one with write access to {}, and log in anew.",
    409: "Look at {} on the Hub, and run the same command again.",
    412: "Somebody else pushed to {} meanwhile: look at it, and run the same command again.",
}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Target:
    """Where a push goes.

    Args:
        hub_id: owner/name of the repository.
        tag: of the commit, such as "v1.0.0"; the card pins it. None: no tag is made.
        private: whether the repository, where the push makes it, is private.
        remove_others: whether files of the repository go that are of no release.
    """

    hub_id: str
    tag: str | None = None
    private: bool = False
    remove_others: bool = False


def check_hub(target: Target) -> None:
    """Check that a push to `target` can succeed.

    Raises:
        PushRefused: its id is not owner/name, no token may write there, its tag cannot be made or is there already, or
            it is to be private and is there already and public.
    """
    hub_id, tag = target.hub_id, target.tag
    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise PushRefused(f"{hub_id!r} names no repository: {error}") from error
    if "/" not in hub_id:
        raise PushRefused(f"{hub_id!r} names no repository; give it as owner/name.")
    if tag is not None and (not TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock"))):
        raise PushRefused(f"{tag!r} cannot be a tag; take letters, digits and . _ - +, such as v1.0.0.")
    if get_token() is None:
        raise PushRefused("there is no Hub token; run `hf auth login` or set HF_TOKEN to one with write access.")
    api = HfApi()
    with _explained(hub_id):
        _check_token(_with_retries(lambda: api.whoami()), hub_id)
        try:
            is_private = _with_retries(lambda: api.model_info(hub_id)).private
            refs = _with_retries(lambda: api.list_repo_refs(hub_id))
        except RepositoryNotFoundError:
            return
    if target.private and not is_private:
        raise PushRefused(f"{hub_id} is there already and public; make it private on the Hub, or push it as public.")
    if tag in {ref.name for ref in refs.tags}:
        raise PushRefused(f"{hub_id} has a tag {tag} already; take the next version number.")


def _check_token(about: dict, hub_id: str) -> None:
    """PushRefused where the Hub's whoami tells that the token may not write to the repository."""
    owner, owners = hub_id.partition("/")[0], [about["name"], *(entry["name"] for entry in about.get("orgs") or [])]
    if owner not in owners:
        raise PushRefused(f"the Hub token is of {' and '.join(owners)}, not of {owner}; name a repository of theirs.")
    access = (about.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise PushRefused("the Hub token may only read; make one with write access and log in anew.")
    if access.get("role") == "fineGrained":
        rights = access.get("fineGrained") or {}
        granted = {
            right
            for scope in rights.get("scoped") or []
            if (scope.get("entity") or {}).get("name") in (owner, hub_id)
            for right in scope.get("permissions") or []
        }
        if "repo.write" not in granted | set(rights.get("global") or []):
            raise PushRefused(f"the Hub token may not write to {hub_id}; give it that right (repo.write) on the Hub.")


def push(payload: Path, golden: Path, target: Target) -> str:
    """Make the repository hold the files of `payload`, by one commit; tag it; return the commit's URL.

    `golden` is the file of images and logits that the payload is checked against. Files of an older release are
    removed. Others stay unless `target` says that they go, and fields stay that are in the head of the repository's
    card and that no card of this package has; both are said on standard error before anything is uploaded.

    Transient failures are tried again. One that lasts leaves the repository as it was, or new and empty, or, where the
    commit went through and its tag did not, with the commit alone; the same call then goes on from there.

    Raises:
        PushRefused: as `check_payload` and `check_hub` say, before anything is uploaded; or the Hub refused, or could
            not be reached.
    """
    check_payload(payload, golden)
    check_hub(target)
    api, hub_id = HfApi(), target.hub_id
    with _explained(hub_id):
        _with_retries(lambda: api.create_repo(hub_id, private=target.private or None, exist_ok=True))
        parent = _with_retries(lambda: api.model_info(hub_id)).sha
        told = _keep_fields(api, payload, hub_id)
        states = _with_retries(lambda: _states(api, target, payload))
        told += [f"{path}  {state}" for path, state in states.items() if state in ("kept", "removed")]
        print("".join(f"{line}\n" for line in told), end="", file=sys.stderr)
        commit = _with_retries(lambda: _upload(api, payload, target, parent))
        if target.tag is not None:
            _with_retries(lambda: _tag(api, target, commit.oid))
    return commit.commit_url


def _upload(api: HfApi, payload: Path, target: Target, parent: str) -> CommitInfo:
    """Commit `payload` on top of `parent`; where that was done already and only the reply was lost, do nothing."""
    hub_id = target.hub_id

    def commit(on: str) -> CommitInfo:
        removed = [path for path, state in _states(api, target, payload).items() if state == "removed"]
        return api.upload_folder(
            repo_id=hub_id,
            folder_path=payload,
            commit_message=f"Release {payload.name}",
            delete_patterns=list(map(glob.escape, removed)),
            parent_commit=on,
        )

    try:
        return commit(parent)
    except HfHubHTTPError as error:
        left = set(_states(api, target, payload).values())
        if error.response.status_code != 412 or not left <= {"unchanged", "kept"}:
            raise
        return commit(api.model_info(hub_id).sha)  # nothing differs, so this makes no commit and tells of the last


def _keep_fields(api: HfApi, payload: Path, hub_id: str) -> list[str]:
    """Write into the payload's card what the repository's says besides, and return lines that tell what it is.

    Raises:
        PushRefused: the head of the repository's card cannot be read.
    """
    theirs = _fields_there(api, hub_id)
    ours = metadata_load(payload / CARD) or {}
    kept = {name: value for name, value in theirs.items() if name not in OWN_FIELDS and name not in ours}
    lines = [f"{CARD}  keeps {', '.join(kept)}"] if kept else []
    if kept:
        metadata_save(payload / CARD, ours | kept)
    before, after = theirs.get("license"), ours.get("license")
    if after is not None and before not in (None, after):
        lines.append(f"{CARD}  has the license {after} in place of {before}")
    return lines


def _fields_there(api: HfApi, hub_id: str) -> dict[str, Any]:
    """The head of the repository's card; empty where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            card = _with_retries(lambda: api.hf_hub_download(hub_id, CARD, local_dir=folder))
        except LocalEntryNotFoundError:  # which says that the Hub could not be reached
            raise
        except (EntryNotFoundError, RepositoryNotFoundError):
            return {}
        try:
            return metadata_load(card) or {}
        except (ValueError, yaml.YAMLError) as error:
            told = " ".join(str(error).split())
            raise PushRefused(f"the head of {CARD} in {hub_id} cannot be read: {told}; mend it on the Hub.") from error


def _tag(api: HfApi, target: Target, oid: str) -> None:
    """Tag the commit; a tag that is there already must be of this very commit, as after a reply that was lost."""
    try:
        api.create_tag(target.hub_id, tag=target.tag, revision=oid)
    except HfHubHTTPError as error:
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(target.hub_id).tags}
        if error.response.status_code != 409 or tags.get(target.tag) != oid:
            raise


def pending_changes(payload: Path, target: Target) -> list[str]:
    """Return what a push would do, in lines.

    The first tells whether it makes the repository; then comes a line for each file: its size, its name, and whether it
    is new, changed, unchanged, kept or removed; then their size in all, and what else is kept, see `push`.

    Raises:
        PushRefused: the Hub could not be reached.
    """
    api, hub_id = HfApi(), target.hub_id
    with _explained(hub_id):
        there = _with_retries(lambda: api.repo_exists(hub_id))
        fields = _keep_fields(api, payload, hub_id)
        states = _with_retries(lambda: _states(api, target, payload))
    pushed = [path for path, state in states.items() if state not in ("kept", "removed")]
    sizes = {path: (payload / path).stat().st_size for path in pushed}
    lines = [f"{_size(sizes.get(path))}  {path}  {state}" for path, state in states.items()]
    made = "is there" if there else "new, private" if target.private else "new"
    return [f"repository: {hub_id}, {made}", *lines, f"{_size(sum(sizes.values()))}  in all", *fields]


def _size(count: int | None) -> str:
    return " " * 10 if count is None else f"{count:>10,}"


def _states(api: HfApi, target: Target, payload: Path) -> dict[str, str]:
    """Every path of payload and repository, and what a push makes of it."""
    there, states = _files(api, target.hub_id), {}
    there.pop(".gitattributes", None)  # the Hub's own, and left alone
    for file in sorted(file for file in payload.rglob("*") if file.is_file()):
        path = file.relative_to(payload).as_posix()
        known = there.pop(path, None)
        same = known in _hashes(file.read_bytes())
        states[path] = "new" if known is None else "unchanged" if same else "changed"
    for path in sorted(there):
        states[path] = "removed" if target.remove_others or OWN_FILES.fullmatch(path) else "kept"
    return states


def _hashes(content: bytes) -> tuple[str, str]:
    """What git and LFS call a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), hashlib.sha256(content).hexdigest()


def _files(api: HfApi, hub_id: str) -> dict[str, str]:
    """Path to hash, SHA-256 for LFS and git's for others; empty where there is no such repository."""
    try:
        tree = [entry for entry in api.list_repo_tree(hub_id, recursive=True) if isinstance(entry, RepoFile)]
    except RepositoryNotFoundError:
        return {}
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree}


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """Failures of the Hub and of the connection as PushRefused."""
    try:
        yield
    except PushRefused:
        raise
    except OfflineModeIsEnabled as error:
        raise PushRefused("HF_HUB_OFFLINE is set; unset it to reach the Hub.") from error
    except ImportError as error:  # the HTTP client lacks a package, as it does for a SOCKS proxy
        raise PushRefused(f"the Hub cannot be reached: {' '.join(str(error).split())}") from error
    except Exception as error:
        answer = _answer_of_hub(error)
        if answer is not None:
            status = answer.response.status_code
            advice = ADVICE.get(status, "Run the same command again." if _is_transient(error) else "")
            # Of a card's head that the Hub refuses, huggingface_hub says why in an error of its own.
            told = " ".join(str(error if type(error) is ValueError else answer).split()).rstrip(".")
            raise PushRefused(f"the Hub refused: {told}. {advice.format(hub_id)}".rstrip()) from error
        if isinstance(error, ValueError) and not _is_connection_error(error):  # the head of the card, or a proxy's URL
            raise PushRefused(f"the push cannot be made: {' '.join(str(error).split())}") from error
        if not _is_connection_error(error):
            raise
        raise PushRefused(f"the connection to the Hub failed: {error} Run the same command again.") from error


def _with_retries(call: Callable[[], Result]) -> Result:
    retrying = Retrying(
        retry=retry_if_exception(_is_transient), stop=stop_after_attempt(ATTEMPTS), wait=_wait, reraise=True
    )
    return retrying(call)


def _answer_of_hub(error: BaseException | None) -> HfHubHTTPError | None:
    """The Hub's answer that `error` is or comes of: huggingface_hub wraps that to the upload of a large file."""
    return error if error is None or isinstance(error, HfHubHTTPError) else _answer_of_hub(error.__cause__)


def _is_transient(error: BaseException) -> bool:
    answer = _answer_of_hub(error)
    if answer is not None:
        return answer.response.status_code == 429 or answer.response.status_code >= 500
    return _is_connection_error(error)


def _is_connection_error(error: BaseException | None) -> bool:
    """Whether the connection broke, or a reply was no JSON, as a gateway's error page is not; or that is the cause."""
    if error is None or isinstance(error, OfflineModeIsEnabled):
        return False
    # The HTTP client behind huggingface_hub is another in each of its major versions, and hf_xet has its own.
    client = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "hf_xet")
    broken = isinstance(error, (ConnectionError, TimeoutError, json.JSONDecodeError))
    return client or broken or _is_connection_error(error.__cause__)


def _wait(state: RetryCallState) -> float:
    """Seconds that the Hub asks for, by Retry-After or by RateLimit's t, or else 1, 2, 4, 8."""
    answer = _answer_of_hub(state.outcome.exception())
    headers = {} if answer is None else answer.response.headers
    asked = re.search(r"\bt=(\d+)", headers.get("RateLimit", "")) or re.fullmatch(
        r"(\d+)", headers.get("Retry-After", "")
    )
    seconds = min(float(asked.group(1)), LONGEST_WAIT) if asked else wait_exponential(max=8)(state)
    print(
        f"temporary failure of the Hub ({state.outcome.exception()}); trying again in {seconds:.0f} s", file=sys.stderr
    )
    return seconds
