"""The Hub: the only module that pushes to it and reads back what was pushed. Code that only reads uses ``find``.

Files are on disk before they are pushed. A push is one commit, on the branch's current head, of the files that the
repository lacks. After a fault or a kill, the same push therefore continues where the last one stopped, and does
nothing if that one was complete. The result is then compared by the sizes and checksums that the Hub reports.

The token is read only from the environment variable HF_TOKEN. A file that contains it is not pushed.
"""

import dataclasses
import glob
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from data_prep.runs import HUB_ID, ConfigError
from rewards import retry

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import get_session, parse_ratelimit_headers
from huggingface_hub.utils.sha import git_hash

log = logging.getLogger(__name__)
Files = dict[str, Path | bytes]  # path in the repository -> local path, or content
Additions = dict[str, CommitOperationAdd]  # by path in the repository, with checksums
T = TypeVar("T")

ATTEMPTS = 10
REACHING, REACHING_S = 3, 4.0  # attempts at the first request, and the connection timeout of each
REACHED_S = 10.0
silent: list[str] = []  # why the Hub could not be reached; empty if it never failed
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0  # each wait is twice the last; a push gives up after about six minutes
MEANING = {
    401: "the Hub does not know the token in HF_TOKEN",
    403: "the token in HF_TOKEN may not do this",
    404: "there is no such repository for the token in HF_TOKEN",
}
UNREACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)


class HubError(RuntimeError):
    """An upload to the Hub or a download from it failed. The message says what failed and why."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of the Hub: `id` is owner/name. A new repository is private unless `private` is false."""

    id: str
    kind: Literal["model", "dataset"]
    private: bool = True

    def __post_init__(self):
        if not HUB_ID.fullmatch(self.id or ""):
            raise ConfigError(f"hub_model_id is {self.id!r}; write `hub_model_id: owner/name`")


def find(id: str, load: Callable[[], T], kind: Literal["model", "dataset"] = "model", instead: str = "") -> T:
    """Return the result of ``load`` for a Hub id. If the Hub cannot be reached, this process reads only the cache from
    then on, because its clients would retry each request for half a minute. Raises FileNotFoundError, which says that
    there is no such path, what the Hub answered, and what to do ``instead``."""
    try:
        if not silent:
            HfApi().repo_info(id, repo_type=kind, timeout=REACHED_S)
    except HfHubHTTPError:
        pass  # the Hub responds; the cache may hold what `load` needs
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        silent.append(str(error).partition(". To disable")[0])
        constants.HF_HUB_OFFLINE = True
    try:
        return load()
    except OSError as error:
        said = (
            f"the Hub could not be reached ({silent[0]}), nor has its cache a copy"
            if silent
            else f"the Hub says: {str(error).strip().splitlines()[0]}"
        )
        instead = instead or f"a local {'folder' if kind == 'model' else 'file'} can be named in its place"
        raise FileNotFoundError(f"{id}: there is no such file or folder here, and {said}; {instead}") from error


def token() -> str:
    """The token of the environment. Raises ConfigError if there is none."""
    found = os.environ.get("HF_TOKEN", "").strip()
    if not found:
        raise ConfigError(
            "HF_TOKEN is not set; put a token with write access into the environment: export HF_TOKEN=..."
        )
    return found


def require_write(repository: Repository) -> None:
    """Create the repository if needed. It is called before any work and raises ConfigError within seconds if the token
    has no write access or the Hub cannot be reached."""
    api, named = HfApi(token=token()), {"repo_id": repository.id, "repo_type": repository.kind}
    try:
        _first(lambda: api.create_repo(**named, private=repository.private, exist_ok=True), "creating the repository")
        _patiently(lambda: api.auth_check(**named, write=True), "the check of write access")
    except HubError as error:
        raise ConfigError(f"{repository.id}: {error}") from error


def files_of(repository: Repository, branch: str = "main") -> dict[str, RepoFile] | None:
    """The files of a branch by path. They are empty if the branch does not exist, and None if the repository does not
    exist or is not visible to the token in HF_TOKEN, if any."""
    api = HfApi(token=os.environ.get("HF_TOKEN") or False)

    def listing() -> dict[str, RepoFile]:
        try:
            # This request comes first because the client itself retries a listing for half a minute.
            head = api.repo_info(repository.id, repo_type=repository.kind, revision=branch).sha
            return _listing(api, repository, head)
        except RevisionNotFoundError:
            return {}

    try:
        return _first(listing, "listing the files")
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise


def additions(files: Files) -> Additions:
    """The files as additions with their checksums. Raises HubError for a file that contains the token."""
    secret = os.environ.get("HF_TOKEN", "").strip().encode()
    found = {path: CommitOperationAdd(path, content) for path, content in files.items()}
    for path, addition in found.items():
        with addition.as_file() as file:
            if secret and _contains(file, secret):
                raise HubError(f"{path} contains the token of HF_TOKEN; it is not pushed")
    return found


def push(
    repository: Repository, added: Additions, message: str, branch: str = "main", delete: Collection[str] = ()
) -> str:
    """Upload the files in one commit, verify the result, and return the commit's hash.

    Only files that differ are uploaded. A new branch starts from the empty repository. Files of the repository that are
    named in `delete` are deleted. Raises HubError; the same call then continues the push.
    """
    api, named = HfApi(token=token()), {"repo_id": repository.id, "repo_type": repository.kind}

    def attempt() -> str:
        # `exist_ok` is not used because it takes any 409 to mean that the branch exists.
        if branch != "main" and branch not in {one.name for one in api.list_repo_refs(**named).branches}:
            first = api.list_repo_commits(**named)[-1].commit_id
            api.create_branch(**named, branch=branch, revision=first)
        head = api.repo_info(**named, revision=branch).sha
        there = _listing(api, repository, head)
        # `create_commit` skips unchanged files too, but a second attempt would send what a lost answer has committed.
        missing = [addition for path, addition in added.items() if not same(addition, there.get(path))]
        stale = [CommitOperationDelete(path) for path in delete if path in there]
        if not missing + stale:
            return head
        log.info("%s: %d of %d files are pushed now", repository.id, len(missing), len(added))
        done = api.create_commit(
            **named, operations=[*missing, *stale], commit_message=message, revision=branch, parent_commit=head
        )
        return done.oid

    sha = _patiently(attempt, "the push")
    there = _patiently(lambda: _listing(api, repository, sha), "listing the pushed files")
    if wrong := [path for path, addition in added.items() if not same(addition, there.get(path))]:
        raise HubError(f"{repository.id} at {sha}: these files differ from those on disk: {', '.join(wrong)}")
    return sha


def read_back(repository: Repository, sha: str, files: Collection[str], cache: Path) -> Path:
    """Download files of a commit to a folder below `cache` and return the folder."""

    def attempt() -> Path:
        folder = snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=sha,
            token=token(),
            cache_dir=cache,
            allow_patterns=[glob.escape(path) for path in files],
        )
        if lost := [path for path in files if not (Path(folder) / path).is_file()]:
            raise ConnectionError(f"{', '.join(lost)} did not arrive")  # the client has returned what its cache had
        return Path(folder)

    return _patiently(attempt, "the download")


def stated_license(kind: Literal["model", "dataset"], name: str) -> str:
    """The licence that a repository's card states, or "unknown" if it states none."""
    api = HfApi(token=os.environ.get("HF_TOKEN") or False)
    info = _first(lambda: api.repo_info(name, repo_type=kind), f"reading the card of {name}")
    stated = getattr(info.card_data, "license", None) or "unknown"
    return stated if isinstance(stated, str) else ", ".join(stated)


def _listing(api: HfApi, repository: Repository, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository.id, repo_type=repository.kind, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def same(addition: CommitOperationAdd, there: RepoFile | None) -> bool:
    """Whether a file of the repository equals the local one: LFS keeps its SHA-256, git the SHA-1 of its blob."""
    if there is None or there.size != addition.upload_info.size:
        return False
    if there.lfs:
        return there.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return there.blob_id == git_hash(file.read())


def _contains(file: BinaryIO, secret: bytes) -> bool:
    end = b""
    while block := file.read(1 << 20):
        if secret in end + block:
            return True
        end = block[-len(secret) :]
    return False


# Retries


def _patiently(work: Callable[[], T], what: str, reached: bool = True) -> T:
    """Return the result of `work`. Temporary errors are retried with growing waits, or with those that the Hub asks
    for; the client retries only transfers and listings by itself. Raises HubError for a permanent error and after the
    last attempt, which is the third if there was no connection and the Hub has not been reached before."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            passing, reason, asked = _judge(error)
            unreached = isinstance(error, UNREACHED) and not reached
            if not passing or attempt == (REACHING if unreached else ATTEMPTS):
                where = f"{constants.ENDPOINT} cannot be reached, " if unreached else ""
                raise HubError(f"{what} failed{f' {attempt} times' if passing else ''}: {where}{reason}") from error
            wait = retry.wait_s(attempt, FIRST_WAIT_S, asked, LONGEST_WAIT_S, spread=0)
            log.warning("%s failed (%s). It is tried again in %.0f s.", what, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _first(work: Callable[[], T], what: str) -> T:
    """`_patiently` for a request that may be the command's first. Without a network, minutes of waiting would not help,
    and the client itself would wait for a connection forever."""
    get_session().timeout = httpx2.Timeout(None, connect=REACHING_S)
    return _patiently(work, what, reached=False)


def _judge(error: BaseException) -> tuple[bool, str, float]:
    """Return (whether to retry, the message, the seconds that the Hub asks to wait) for a client's error."""
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            status, headers = one.response.status_code, one.response.headers
            limit = parse_ratelimit_headers(headers)
            asked = retry.asked_s(headers) or (limit.reset_in_seconds if status == 429 and limit else 0.0)
            said = str(error) if status == 400 else one.server_message or str(one).strip().splitlines()[0]
            reason = f"{MEANING[status]} ({status}: {said})" if status in MEANING else f"{status}: {said}"
            moved = status == 412  # the branch has a newer commit than the one that a push started from
            return retry.is_passing(status) or moved, reason, asked
    if isinstance(error, OfflineModeIsEnabled):
        return False, "HF_HUB_OFFLINE is set; remove it from the environment to push", 0.0
    for one in _chain(error):
        if isinstance(one, httpx2.TransportError | LocalEntryNotFoundError | ConnectionError):
            return True, f"{type(one).__name__}: {str(one).strip().splitlines()[0] if str(one).strip() else ''}", 0.0
        if isinstance(one, json.JSONDecodeError) or "Consistency check failed" in str(one):
            return True, "the Hub's answer cannot be read", 0.0
    return False, f"{type(error).__name__}: {error}", 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
