"""`shard release RUN --push ORG/NAME`: the bundle as a model repository of the Hugging Face hub, in one commit.

    the bundle                        the repository
    hf/config.json, hf/model...       config.json, model...
    README.md                         README.md, with the repository's name in its lines
    SHA256SUMS                        SHA256SUMS of these files
    all else                          where it is

`from_pretrained` looks for a model at the root of a repository. The client is huggingface_hub's: HF_ENDPOINT, HF_TOKEN
and HF_HUB_OFFLINE count, files that the hub has already are not sent again, and nothing is visible before the commit.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shard.console import Reporter
from shard.data.hub import client, endpoint
from shard.errors import ShardError, UsageError
from shard.release.card.write import render_card
from shard.run import Run
from shard.units import format_size
from shard.verify import SUMS, read_sums

CARD = "README.md"
AT_ROOT = "hf/"
"""The folder of the bundle whose files lie at the root of the repository."""


@dataclass(frozen=True)
class Upload:
    """One file of the repository: its path there, and its content."""

    path: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def check_repository(repository: str) -> None:
    """UsageError unless it is a name that the hub takes, written as ORG/NAME."""
    hub = client()
    try:
        hub.utils.validate_repo_id(repository)
        is_valid = all(repository.rpartition("/"))
    except hub.errors.HFValidationError:
        is_valid = False
    if not is_valid:
        raise UsageError(
            f"--push {repository!r:.120}: write it as ORG/NAME, of letters, digits, '-', '_' and '.', at most 96 "
            "characters"
        )


def list_uploads(run: Run, repository: str) -> list[Upload]:
    """The files of the repository, sorted by path. Only what SHA256SUMS of the bundle lists is sent."""
    bundle = run.folder / "release"
    card = render_card(run, bundle, repository).encode()
    sums, uploads = {CARD: hashlib.sha256(card).hexdigest()}, [Upload(CARD, card)]
    for name, sha256 in read_sums(bundle).items():
        if name != CARD:
            path = name.removeprefix(AT_ROOT)
            sums[path] = sha256
            uploads.append(Upload(path, bundle / name))
    lines = "".join(f"{sums[path]}  {path}\n" for path in sorted(sums))
    return sorted([*uploads, Upload(SUMS, lines.encode())], key=lambda upload: upload.path)


def push(run: Run, repository: str, private: bool, dry_run: bool, reporter: Reporter) -> dict[str, Any]:
    """Upload the bundle of a run; with `dry_run` only say what would be sent, without a word to the hub.

    Raises ShardError, one line, where the hub cannot be reached or refuses.
    """
    check_repository(repository)
    uploads = list_uploads(run, repository)
    files = [{"path": upload.path, "bytes": upload.size} for upload in uploads]
    total = sum(upload.size for upload in uploads)
    result: dict[str, Any] = {"repository": repository, "private": private, "files": files, "bytes": total}
    if dry_run:
        rows = [[upload.path, format_size(upload.size)] for upload in uploads]
        reporter.table(f"What would go to {repository}", ["file", "size"], rows)
        reporter.line(f"{len(uploads)} files, {format_size(total)}; nothing was sent")
        return {"status": "dry run", **result}
    hub = client()
    if hub.get_token() is None:
        raise ShardError(
            f"--push {repository}: there is no token: set HF_TOKEN to one of your account that may write, or run "
            "`hf auth login`"
        )
    if not reporter.console.is_terminal:
        hub.utils.disable_progress_bars()
    reporter.line(f"push: {len(uploads)} files, {format_size(total)}, to {repository}")
    commit = _upload(uploads, repository, private)
    run.record("release", pushed={"repository": repository, "commit": commit})
    reporter.line(f"push: {repository} is at commit {commit}")
    return {"status": "pushed", **result, "commit": commit}


def _upload(uploads: list[Upload], repository: str, private: bool) -> str:
    """Make the repository where there is none, and one commit of all files; the commit's hash."""
    import httpx2

    hub = client()
    hub.utils.logging.set_verbosity_error()  # its warnings of a second try show the signed addresses of the storage
    api = hub.HfApi(endpoint=endpoint())
    operations = [hub.CommitOperationAdd(upload.path, upload.content) for upload in uploads]
    try:
        # A repository that is there keeps its visibility.
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.create_commit(repository, operations, commit_message="Release by Shard")
    # RuntimeError: what the client makes of an upload of one file that failed, and of its own store's errors.
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise ShardError(_reason(error, repository)) from None
    oid: str = info.oid
    return oid


def _reason(error: BaseException, repository: str) -> str:
    """One line about what went wrong and what to do, without the address of a signed upload or a token in it."""
    errors = client().errors
    inner = error
    while not isinstance(inner, errors.HfHubHTTPError) and inner.__cause__ is not None:
        inner = inner.__cause__
    if isinstance(inner, errors.OfflineModeIsEnabled):
        return f"--push {repository}: HF_HUB_OFFLINE forbids to ask the hub: unset it"
    again = "the same command again sends what is missing"
    if not isinstance(inner, errors.HfHubHTTPError):
        if isinstance(error, ValueError):
            return f"--push {repository}: {_plain(error)}"
        return f"--push {repository}: the upload to {_plain_endpoint()} failed ({_plain(inner)}): {again}"
    status = inner.response.status_code
    if status == 401 or isinstance(inner, errors.RepositoryNotFoundError):
        return (
            f"--push {repository}: the hub does not know this token, or shows it no such repository ({status}): set "
            "HF_TOKEN to one that is valid and may write there"
        )
    if status == 403:
        return (
            f"--push {repository}: this token may not write there (403): check the name before the slash, or set "
            "HF_TOKEN to one with write access"
        )
    if status in (408, 429) or status >= 500:
        return f"--push {repository}: the hub answered {status}, also when asked again: {again} later"
    return f"--push {repository}: the hub answered {status}: {_plain(inner)}"


def _plain_endpoint() -> str:
    """The hub's address without a name and a password in it."""
    return re.sub(r"//[^/@]*@", "//", endpoint())


def _plain(error: BaseException) -> str:
    """The words of an error on one line, addresses without their queries, and no token."""
    text = " ".join(str(error).split()) or type(error).__name__
    token = client().get_token()
    if token:
        text = text.replace(token, "(token)")
    text = re.sub(r"//[^/@\s]*@", "//", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text)[:300]
