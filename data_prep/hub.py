"""The Hub: the one module that pushes, and reads back what it pushed. ``find`` is the door for whoever only reads.

Files lie on disk before they are pushed. A push is one commit of what the repository does not have yet, made on the
head that was just looked at; so the same push again, after a fault or a kill, goes on where the last one stopped, and
does nothing where it had arrived. What is there afterwards is compared by the sizes and checksums that the Hub tells.

The token comes from the environment variable HF_TOKEN alone. A file that contains it is not pushed.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from data_prep.runs import HUB_ID, ConfigError

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

log = logging.getLogger(__name__)
Files = dict[str, Path | bytes]  # path in the repository -> where its content is, or the content
Additions = dict[str, CommitOperationAdd]  # by their paths in the repository, with their checksums
T = TypeVar("T")

ATTEMPTS = 10
REACHING, REACHING_S = 3, 4.0  # attempts at the first request, and the seconds in which each must be connected
REACHED_S = 10.0
silent: list[str] = []  # why the Hub could not be reached, once it could not
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 120.0  # each wait twice the last: about six minutes until a push gives up
PASSING = {408, 409, 412, 425, 429}  # and 5xx: statuses that another try may not meet
MEANING = {
    401: "the Hub does not know the token in HF_TOKEN",
    403: "the token in HF_TOKEN may not do this",
    404: "there is no such repository for the token in HF_TOKEN",
}
UNREACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)


class HubError(RuntimeError):
    """The Hub has not taken, or not given back, what it should. The message says what and why."""


class _Incomplete(OSError):
    """A download ended without an error and without all of its files."""


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of the Hub: `id` is owner/name. One that has to be made is made private, unless told otherwise."""

    id: str
    kind: Literal["model", "dataset"]
    private: bool = True

    def __post_init__(self):
        if not HUB_ID.fullmatch(self.id or ""):
            raise ConfigError(f"hub_model_id is {self.id!r}; write `hub_model_id: owner/name`")


def find(id: str, load: Callable[[], T], kind: Literal["model", "dataset"] = "model") -> T:
    """What ``load`` makes of a Hub id. Where the Hub cannot be reached, this process reads only the cache from then on:
    its clients would try each of their requests for half a minute. Raises FileNotFoundError, which says both that no
    such path is here and what the Hub said."""
    try:
        if not silent:
            HfApi().repo_info(id, repo_type=kind, timeout=REACHED_S)
    except HfHubHTTPError:
        pass  # the Hub answers; `load` may have what it needs in the cache
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
        raise FileNotFoundError(f"{id}: there is no such file or folder here, and {said}") from error


def token() -> str:
    """The token of the environment. Raises ConfigError where there is none."""
    found = os.environ.get("HF_TOKEN", "").strip()
    if not found:
        raise ConfigError(
            "HF_TOKEN is not set; put a token with write access into the environment: export HF_TOKEN=..."
        )
    return found


def require_write(repository: Repository) -> None:
    """Make the repository if need be. Raises ConfigError where the token cannot write to it, or the Hub cannot be
    reached: before any work, and within seconds."""
    api, named = HfApi(token=token()), {"repo_id": repository.id, "repo_type": repository.kind}
    try:
        _first(lambda: api.create_repo(**named, private=repository.private, exist_ok=True), "making the repository")
        _patiently(lambda: api.auth_check(**named, write=True), "asking for write access")
    except HubError as error:
        raise ConfigError(f"{repository.id}: {error}") from error


def files_of(repository: Repository, branch: str = "main") -> dict[str, RepoFile] | None:
    """The files of a branch, by their paths; none where the branch is not there yet, None where there is no such
    repository for the token, if any, in HF_TOKEN."""
    api = HfApi(token=os.environ.get("HF_TOKEN") or False)

    def listing() -> dict[str, RepoFile]:
        try:
            # This request first: the client itself repeats that of a listing, for half a minute.
            head = api.repo_info(repository.id, repo_type=repository.kind, revision=branch).sha
            return _listing(api, repository, head)
        except RevisionNotFoundError:
            return {}

    try:
        return _first(listing, "looking at what is there")
    except HubError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise


def additions(files: Files) -> Additions:
    """The files, read once for their checksums. Raises HubError for one that contains the token."""
    secret = os.environ.get("HF_TOKEN", "").strip().encode()
    for path, content in files.items():
        if secret and _contains(content, secret):
            raise HubError(f"{path} contains the token of HF_TOKEN; it is not pushed")
    sources = {path: content if isinstance(content, bytes) else str(content) for path, content in files.items()}
    return {path: CommitOperationAdd(path, source) for path, source in sources.items()}


def push(
    repository: Repository, added: Additions, message: str, branch: str = "main", delete: Collection[str] = ()
) -> str:
    """Bring the files there, in one commit, and compare what is there then; returns the commit's hash.

    Only what differs is uploaded. A branch that is not there starts from the empty repository. Of the repository's
    other files, those named in `delete` are deleted. Raises HubError, after which the same call goes on.
    """
    api, named = HfApi(token=token()), {"repo_id": repository.id, "repo_type": repository.kind}

    def attempt() -> str:
        # Looked for rather than `exist_ok`, for which any 409 says that the branch is there.
        if branch != "main" and branch not in {one.name for one in api.list_repo_refs(**named).branches}:
            first = api.list_repo_commits(**named)[-1].commit_id
            api.create_branch(**named, branch=branch, revision=first)
        head = api.repo_info(**named, revision=branch).sha
        there = _listing(api, repository, head)
        missing = [addition for path, addition in added.items() if not same(addition, there.get(path))]
        stale = [CommitOperationDelete(path) for path in delete if path in there]
        if not missing + stale:
            return head
        log.info("%s: pushing %d of %d files", repository.id, len(missing), len(added))
        done = api.create_commit(
            **named, operations=[*missing, *stale], commit_message=message, revision=branch, parent_commit=head
        )
        return done.oid

    sha = _patiently(attempt, "pushing")
    there = _patiently(lambda: _listing(api, repository, sha), "looking at what was pushed")
    if wrong := [path for path, addition in added.items() if not same(addition, there.get(path))]:
        raise HubError(f"{repository.id} at {sha}: not as on disk: {', '.join(wrong)}")
    return sha


def read_back(repository: Repository, sha: str, files: Collection[str], cache: Path) -> Path:
    """Download files of a commit to a folder below `cache`; returns the folder."""

    def attempt() -> Path:
        folder = snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=sha,
            token=token(),
            cache_dir=cache,
            allow_patterns=[re.sub(r"([\[*?])", r"[\1]", path) for path in files],
        )
        if lost := [path for path in files if not (Path(folder) / path).is_file()]:
            raise _Incomplete(f"{', '.join(lost)} did not arrive")
        return Path(folder)

    return _patiently(attempt, "reading back")


def stated_license(kind: Literal["model", "dataset"], name: str) -> str:
    """The licence that a repository's card states, "unknown" where it states none."""
    api = HfApi(token=os.environ.get("HF_TOKEN") or False)
    info = _first(lambda: api.repo_info(name, repo_type=kind), f"reading the card of {name}")
    stated = getattr(info.card_data, "license", None) or "unknown"
    return stated if isinstance(stated, str) else ", ".join(stated)


def _listing(api: HfApi, repository: Repository, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository.id, repo_type=repository.kind, revision=revision, recursive=True)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def same(addition: CommitOperationAdd, there: RepoFile | None) -> bool:
    """Whether a file of the repository is that of the disk: LFS keeps its SHA-256, git the SHA-1 of its blob."""
    if there is None or there.size != addition.upload_info.size:
        return False
    if there.lfs:
        return there.lfs.sha256 == addition.upload_info.sha256.hex()
    with addition.as_file() as file:
        return there.blob_id == hashlib.sha1(b"blob %d\0" % there.size + file.read()).hexdigest()


def _open(content: Path | bytes) -> io.BufferedIOBase:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _contains(content: Path | bytes, secret: bytes) -> bool:
    with _open(content) as file:
        end = b""
        while block := file.read(1 << 20):
            if secret in end + block:
                return True
            end = block[-len(secret) :]
    return False


# Patience


def _patiently(work: Callable[[], T], what: str, reached: bool = True) -> T:
    """What `work` returns, tried again with growing waits, or those that the Hub asks for, while its faults may pass.
    Raises HubError for one that will not, and after the last attempt: the third, where no connection was made and the
    Hub has not been reached before."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return work()
        except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
            passing, reason, asked = _judge(error)
            unreached = isinstance(error, UNREACHED) and not reached
            if not passing or attempt == (REACHING if unreached else ATTEMPTS):
                where = f"{constants.ENDPOINT} cannot be reached, " if unreached else ""
                raise HubError(f"{what} failed{f' {attempt} times' if passing else ''}: {where}{reason}") from error
            wait = max(asked, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
            log.warning("%s: %s; again in %.0f s", what, reason, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _first(work: Callable[[], T], what: str) -> T:
    """As `_patiently`, for what may be a command's first request: where there is no network, minutes of waiting would
    not bring one. The client itself would wait for a connection for ever."""
    get_session().timeout = httpx2.Timeout(None, connect=REACHING_S)
    return _patiently(work, what, reached=False)


def _judge(error: BaseException) -> tuple[bool, str, float]:
    """(may it pass, what to say of it, the seconds that the Hub asks to wait) of a client's error."""
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError) and one.response is not None:
            status, headers = one.response.status_code, one.response.headers
            after = headers.get("Retry-After", "")
            limit = parse_ratelimit_headers(headers)
            asked = float(after) if after.isdigit() else limit.reset_in_seconds if status == 429 and limit else 0.0
            said = str(error) if status == 400 else one.server_message or str(one).strip().splitlines()[0]
            reason = f"{MEANING[status]} ({status}: {said})" if status in MEANING else f"{status}: {said}"
            return status in PASSING or status >= 500, reason, asked
    if isinstance(error, OfflineModeIsEnabled):
        return False, "HF_HUB_OFFLINE is set; take it out of the environment to push", 0.0
    for one in _chain(error):
        if isinstance(one, httpx2.TransportError | LocalEntryNotFoundError | _Incomplete | ConnectionError):
            return True, f"{type(one).__name__}: {str(one).strip().splitlines()[0] if str(one).strip() else ''}", 0.0
        if isinstance(one, json.JSONDecodeError) or "Consistency check failed" in str(one):
            return True, "an answer that cannot be read", 0.0
    return False, f"{type(error).__name__}: {error}", 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
