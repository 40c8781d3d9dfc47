"""Files of dataset repositories: of the Hugging Face hub, or of a local mirror that has the hub's layout.

The hub is asked through `huggingface_hub`: its session (proxies, redirects, offline mode), its token and its words for
what went wrong; HF_ENDPOINT and HF_TOKEN are honoured. The bytes are written here all the same, because its own
download deletes what it has whenever it fails and begins anew: here a partial file stays, and any later start asks for
the rest only. Repositories on Xet storage are read over plain HTTP too, which the hub serves for files up to 50 GB.

A mirror is a folder with DIR/datasets/<owner>/<name>/<path>: its files are read where they lie.
"""

import difflib
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from shard.errors import ShardError
from shard.files import sha256_of, sync_folder

MIRROR = "mirror"
"""What stands for the revision of a mirror, which has none."""
LONGEST_WAIT = 600.0  # seconds; the hub's own rate limits are over after 300

Result = TypeVar("Result")
Patterns = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `sha256` where it is stored with Git LFS, which all large ones are."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a repository, sorted by path, at a commit: `revision` is its hash, or "mirror"."""

    revision: str
    files: list[RemoteFile]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """What is done about lost connections, 408, 429 and 5xx: exponential back-off with jitter."""

    attempts: int = 8
    """Failures in a row after which to give up; bytes that arrive end a row."""
    base_delay: float = 1.0
    """Seconds before the first repetition, then twice as many each time; less by chance, up to a half."""
    max_delay: float = 60.0
    """Seconds, at most; a server that asks for more by Retry-After gets it."""
    sleep: Callable[[float], object] = time.sleep
    """How to wait: `threading.Event().wait` is one that another thread can end."""


class _Failures:
    """The failures of one task in a row: raises what ends it, waits before what may be tried again."""

    def __init__(self, repository: str, revision: str, path: str | None, retry: Retry) -> None:
        self.repository, self.revision, self.path, self.retry = repository, revision, path, retry
        self.in_a_row = 0

    def add(self, error: Exception) -> None:
        """Wait before the next try, or raise ShardError where there should be none."""
        reason = _permanent_reason(error, self.repository, self.revision, self.path)
        if reason is not None:
            raise ShardError(reason) from error
        self.in_a_row += 1
        if self.in_a_row >= self.retry.attempts:
            what = f"{self.repository}: {self.path}" if self.path else self.repository
            raise ShardError(
                f"{what}: {self.in_a_row} tries in a row failed ({_first_line(error)}): check the connection to "
                f"{endpoint()} and start again, which continues where this stopped"
            ) from error
        delay = min(self.retry.max_delay, self.retry.base_delay * 2 ** (self.in_a_row - 1))
        delay *= random.uniform(0.5, 1)  # many clients that failed together should not come back together
        self.retry.sleep(max(delay, min(_asked_delay(error), LONGEST_WAIT)))


def list_files(
    repository: str, revision: str | None, pattern: Patterns, mirror: Path | None = None, *, retry: Retry | None = None
) -> Listing:
    """The files of a repository that match a pattern, or any of several.

    In a pattern `*` and `?` stay within a folder and `**` does not. `revision` is a branch, a tag or a commit, None
    the main branch; what is listed belongs to the commit that it names now. Raises ShardError where the repository or
    the revision does not exist, is not open to this token, or has no such files.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or ".." in repository:
        raise ShardError(f"{repository!r} is not a dataset repository: write it as owner/name")
    if mirror is not None:
        listing = _list_mirror(repository, mirror)
    else:
        listing = _list_hub(repository, revision or "main", retry or Retry())
    matchers = [_compile(one) for one in ([pattern] if isinstance(pattern, str) else pattern)]
    files = [file for file in listing.files if any(matcher.fullmatch(file.path) for matcher in matchers)]
    if not files:
        _fail_no_match(repository, listing, pattern)
    return Listing(listing.revision, files)


def fetch(
    repository: str,
    revision: str,
    file: RemoteFile,
    folder: Path,
    mirror: Path | None = None,
    *,
    retry: Retry | None = None,
    on_bytes: Callable[[int], object] = lambda num_bytes: None,
) -> Path:
    """The path of a file of `list_files`: downloaded to folder/<path> unless it is there, or in the mirror as it is.

    Size and SHA-256 are checked; content that differs is deleted and downloaded once more. A partial file is
    continued, also by a later process. Threads may fetch different files at the same time. `on_bytes` is called with
    the size of every piece that arrives; what it raises ends the download, and the partial file stays.
    Raises ShardError where the file is gone, stays wrong, or cannot be had after many tries.
    """
    if not _is_below(file.path):
        raise ShardError(f"{repository}: the file name {file.path!r} leads out of the folder: choose others by pattern")
    if mirror is not None:
        return _find_in_mirror(repository, file, mirror)
    target = folder / file.path
    # The revision is in the name: a partial file is never continued with other content.
    partial = target.with_name(f".{target.name}.{revision[:12]}.part")
    try:
        if target.exists() and _difference(target, file) is None:
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(repository, revision, file, partial, retry or Retry(), on_bytes)
        if difference := _difference(partial, file):
            partial.unlink()  # a start before this one may have left what was damaged: from zero, once
            _download(repository, revision, file, partial, retry or Retry(), on_bytes)
            if difference := _difference(partial, file):
                partial.unlink()
                raise ShardError(
                    f"{repository}: {file.path} at {revision} came {difference}, twice: something between here and "
                    f"{endpoint()} changes it; try another network, or again later"
                )
        partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise ShardError(
            f"{repository}: cannot keep {file.path} in {folder} ({error.strerror or error}): make room and start again"
        ) from error
    return target


# The hub


def client() -> Any:
    """The client, imported when it is needed: the command line has to start fast."""
    import huggingface_hub.constants
    import huggingface_hub.errors
    import huggingface_hub.utils

    # Else a request tells of what is installed, and the first one asks the hub for a list of coding agents.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    return huggingface_hub


def endpoint() -> str:
    """Of the environment as it is now: the client knows it only as it was when it was imported."""
    return (os.environ.get("HF_ENDPOINT") or str(client().constants.ENDPOINT)).rstrip("/")


def _list_hub(repository: str, revision: str, retry: Retry) -> Listing:
    api = client().HfApi(endpoint=endpoint())
    timeout = client().constants.HF_HUB_DOWNLOAD_TIMEOUT
    failures = _Failures(repository, revision, None, retry)
    info = _with_retries(lambda: api.dataset_info(repository, revision=revision, timeout=timeout), failures)
    # Not api.list_repo_tree: it waits for an answer for ever.
    url: str | None = f"{endpoint()}/api/datasets/{repository}/tree/{info.sha}?recursive=true&expand=false"
    files: list[RemoteFile] = []
    while url is not None:
        page = _with_retries(lambda url=url: _get(url), failures)  # type: ignore[misc]
        for entry in page.json():
            if entry["type"] == "file":
                files.append(RemoteFile(entry["path"], entry["size"], (entry.get("lfs") or {}).get("oid")))
        url = page.links.get("next", {}).get("url")
    return Listing(info.sha, sorted(files, key=lambda file: file.path))


def _get(url: str) -> Any:
    hub = client()
    headers, timeout = hub.utils.build_hf_headers(), hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    response = hub.utils.get_session().get(url, headers=headers, timeout=timeout)
    hub.utils.hf_raise_for_status(response)
    return response


def _with_retries(action: Callable[[], Result], failures: _Failures) -> Result:
    import httpx2

    while True:
        try:
            result = action()
        except (httpx2.HTTPError, OSError, ValueError) as error:  # ValueError: what the client says of odd names
            failures.add(error)
        else:
            failures.in_a_row = 0
            return result


def _download(
    repository: str,
    revision: str,
    file: RemoteFile,
    partial: Path,
    retry: Retry,
    on_bytes: Callable[[int], object],
) -> None:
    """Append to `partial` what is missing, over as many connections as it takes."""
    import httpx2

    offline = client().errors.OfflineModeIsEnabled
    url = f"{endpoint()}/datasets/{repository}/resolve/{revision}/" + quote(file.path)
    failures = _Failures(repository, revision, file.path, retry)
    partial.touch()
    while (done := partial.stat().st_size) < file.size:
        try:
            _append(url, partial, done, on_bytes)
            if partial.stat().st_size < file.size:
                raise httpx2.RemoteProtocolError("the connection ended early")
        except (httpx2.HTTPError, offline) as error:
            if partial.stat().st_size > done:
                failures.in_a_row = 0
            failures.add(error)
    with partial.open("rb+") as content:
        os.fsync(content.fileno())


def _append(url: str, partial: Path, done: int, on_bytes: Callable[[int], object]) -> None:
    hub = client()
    headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}  # ranges count bytes of what is sent
    if done:
        headers["Range"] = f"bytes={done}-"
    timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    with hub.utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hub.utils.hf_raise_for_status(response)
        # A server that knows no ranges answers 200 and sends the whole.
        with partial.open("ab" if response.status_code == 206 else "wb") as content:
            for piece in response.iter_bytes():  # of no certain size: what came before a cut is not lost
                content.write(piece)
                on_bytes(len(piece))


def _difference(path: Path, file: RemoteFile) -> str | None:
    """How a file on the disk differs from what the hub says of it; None where it does not."""
    size = path.stat().st_size
    if size != file.size:
        return f"with {size} bytes instead of {file.size}"
    if file.sha256 is not None and (digest := sha256_of(path)) != file.sha256:
        return f"with SHA-256 {digest} instead of {file.sha256}"
    return None


def _permanent_reason(error: Exception, repository: str, revision: str, path: str | None) -> str | None:
    """One line where trying again is of no use, else None."""
    errors = client().errors
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repository} is on the hub, and HF_HUB_OFFLINE forbids to ask it: unset it, or use a mirror"
    if isinstance(error, errors.GatedRepoError):
        page = f"{endpoint()}/datasets/{repository}"
        return f"{repository} is gated: accept its conditions at {page} and set HF_TOKEN to a token of that account"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no dataset {repository} at {endpoint()}, or it is private: check the name, or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}: name a branch, a tag or a commit of it"
    if not isinstance(error, errors.HfHubHTTPError):
        return f"{repository}: {_first_line(error)}" if isinstance(error, ValueError) else None
    status = error.response.status_code
    if status == 404 and path is not None:
        return (
            f"{repository} no longer has the file {path} at revision {revision}: "
            "set another revision, or another pattern of files"
        )
    if status in (401, 403):
        return f"{repository}: access refused ({status}): set HF_TOKEN to a token that may read it"
    if status in (408, 429) or status >= 500:
        return None
    return f"{repository}: {endpoint()} answered {status} for {path or 'the list of files'}: {_first_line(error)}"


def _asked_delay(error: Exception) -> float:
    """Seconds that the server asks to wait, 0 where it does not say."""
    headers: Any = getattr(getattr(error, "response", None), "headers", {})
    limit = client().utils.parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdigit() else 0.0  # the other form, a date, is not used by the hub


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# Mirrors


def _mirror_folder(repository: str, mirror: Path) -> Path:
    folder = mirror / "datasets" / repository
    if not folder.is_dir():
        there = sorted(path.relative_to(mirror / "datasets").as_posix() for path in mirror.glob("datasets/*/*"))
        raise ShardError(f"the mirror {mirror} has no datasets/{repository}, only {_some(there)}: put its files there")
    return folder


def _list_mirror(repository: str, mirror: Path) -> Listing:
    folder = _mirror_folder(repository, mirror)
    files = [
        RemoteFile(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    ]
    return Listing(MIRROR, sorted(files, key=lambda file: file.path))


def _find_in_mirror(repository: str, file: RemoteFile, mirror: Path) -> Path:
    path = _mirror_folder(repository, mirror) / file.path
    if not path.is_file():
        raise ShardError(f"the mirror {mirror} no longer has datasets/{repository}/{file.path}: put it back")
    if difference := _difference(path, file):
        raise ShardError(f"{path} has changed, it is there {difference}: put back what it was, or start a new run")
    return path


# Patterns


def _compile(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression. (fnmatch lets `*` cross folders; glob.translate comes with Python 3.13.)"""
    return re.compile("".join(map(_as_expression, re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\])", pattern))))


def _as_expression(part: str) -> str:
    match part:
        case "**/":
            return r"(?:.*/)?"
        case "**":
            return r".*"
        case "*":
            return r"[^/]*"
        case "?":
            return r"[^/]"
    if len(part) > 2 and part.startswith("[") and part.endswith("]"):
        excluded, characters = part[1] == "!", part[1:-1].removeprefix("!")
        return f"[{'^' * excluded}{re.escape(characters).replace(chr(92) + '-', '-')}]"
    return re.escape(part)


def _fail_no_match(repository: str, listing: Listing, pattern: Patterns) -> NoReturn:
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    names = [file.path for file in listing.files]
    near = list(dict.fromkeys(_near(patterns, names)))
    raise ShardError(
        f"{repository} has no files {' or '.join(map(repr, patterns))} at revision {listing.revision}, "
        f"only such as {_some(near)}: change the pattern"
    )


def _near(patterns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from difflib.get_close_matches(pattern, names, n=4, cutoff=0.5)
    yield from names


def _some(names: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "nothing") + more


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path
