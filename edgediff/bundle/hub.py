"""The Hugging Face hub: bundles from it, `hf:owner/name` or `hf:owner/name@revision`, and to it.

The only module of the runtime that uses the network, and only for such a name or a push. The hub's
client keeps downloads in its own cache, goes on with a download that was interrupted, and
needs no connection for files that are there.
"""

import contextlib
import errno
import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff._version import __version__
from edgediff.bundle.card import CARD
from edgediff.bundle.folder import MAX_MANIFEST, Bundle
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, first_line

PREFIX = "hf:"
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)
_INTERVAL = 0.2
"""Seconds between two reports of progress."""
_BARS = "huggingface_hub"
_PATIENCE = 5.0
"""Seconds to wait until the hub's address answers."""
_RESERVED = (CARD.casefold(), ".git", ".cache", ".gitattributes")
"""Names in lower case that no file of a pushed bundle may have: the model card's and the hub's."""
_CONFLICT = 409
"""The hub's answer if a repository to be created exists."""
_REFUSED = (401, 403, 404)
"""Its answers to a token that may not write."""

OnDownload = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in total, from a thread of its own. What it
raises reaches the caller unchanged, once the file that is being downloaded is complete."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository, "owner/name", at a revision: a branch, a tag, a commit, or None for the main
    branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file's size in bytes, and the name that its content has in the hub's cache: its SHA-256 in
    hex, or git's hash for a small one."""

    size: int
    blob: str


def is_hub_name(text: object) -> bool:
    """Whether a text names a repository of the hub. A local folder of such a name is `./hf:…`, or a
    Path."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_hub_name(text: str) -> HubName:
    """owner/name or owner/name@revision, with or without `hf:`. Raises BundleError."""
    m = _NAME.fullmatch(text.removeprefix(PREFIX))
    if (
        m is None
        or ".." in text
        or text.endswith("/")
        or "--" in m["repository"]
        or m["repository"].endswith(".git")
    ):
        raise BundleError(
            f"{text}: is not a name on the hub: give hf:owner/name, or hf:owner/name@revision"
        )
    return HubName(repository=m["repository"], revision=m["revision"])


def fetch_one(name: HubName, path: str, *, limit: int | None = None) -> Path:
    """Download one file by a revision's name, which the cache then knows without a connection.

    limit: bytes; a larger file is neither downloaded nor kept. Raises BundleError."""
    with _plain_errors(name, path) as hub:
        known = hub.try_to_load_from_cache(name.repository, path, revision=name.revision)
        reason = _unreachable(hub)
        if reason is not None and isinstance(known, str):
            found = Path(known)
        else:
            _require_reachable(name, reason)
            if limit is not None:
                _check_limit(name, path, _size_there(hub, name, path), limit)
            found = Path(
                hub.hf_hub_download(name.repository, path, revision=name.revision, **_agent())
            )
        if limit is not None and (size := found.stat().st_size) > limit:
            _forget(found)
            _check_limit(name, path, size, limit)
        return found


def _check_limit(name: HubName, file: str, size: int | None, limit: int) -> None:
    if size is not None and size > limit:
        raise BundleError(
            f"hf:{name}: {file} has {size} bytes, but at most {limit} are read: its owner must push"
            " it again"
        )


def fetch_description(text: str) -> Bundle:
    """Only bundle.json of a bundle on the hub, checked; its files may be absent.

    Raises BundleError."""
    name = parse_hub_name(text)
    path = fetch_one(name, MANIFEST, limit=MAX_MANIFEST)
    try:
        return Bundle.described(path.parent)
    except BundleError:
        if _is_intact(path):
            raise
    _forget(path)
    return Bundle.described(fetch_one(name, MANIFEST, limit=MAX_MANIFEST).parent)


def fetch_bundle(text: str, on_download: OnDownload | None = None) -> Path:
    """The folder of a bundle on the hub: bundle.json first, which is checked, then the files that
    it lists and no others; those that are new are compared with their SHA-256. A file in the cache
    that does not have its size is downloaded again.

    Raises BundleError, also if a file on the hub does not have the size that bundle.json says,
    before one is downloaded."""
    name = parse_hub_name(text)
    described = fetch_description(text)
    files = {
        file: HubFile(size=spec.size, blob=spec.sha256)
        for file, spec in described.manifest.files.items()
    }
    commit = HubName(repository=name.repository, revision=described.root.name)
    damaged, absent = [], []
    for file, spec in files.items():
        path = _cached(commit, file)
        if path is None:
            absent.append(file)
        elif path.stat().st_size != spec.size:
            damaged.append(path)
            absent.append(file)
    _check_sizes(described, absent, name)
    for path in damaged:
        _forget(path)
    for file in fetch_files(commit, files, on_download):
        _check_arrived(described, file, name)
    return described.root


def list_files(name: HubName) -> tuple[HubName, dict[str, HubFile]]:
    """A repository at its present commit, and its files by their paths. Raises BundleError."""
    with _plain_errors(name, "") as hub:
        _require_reachable(name, _unreachable(hub))
        info = hub.HfApi(**_agent()).model_info(
            name.repository, revision=name.revision, files_metadata=True
        )
    files = {
        file.rfilename: HubFile(
            size=file.size or 0, blob=file.blob_id if file.lfs is None else file.lfs.sha256
        )
        for file in info.siblings or ()
    }
    return HubName(repository=name.repository, revision=info.sha), files


def cached_folder(name: HubName) -> Path | None:
    """The folder of a repository's earlier download in the hub's cache, or None."""
    with _client(name) as hub:
        try:
            return Path(
                hub.snapshot_download(
                    name.repository, revision=name.revision, local_files_only=True
                )
            )
        except (OSError, ValueError):  # LocalEntryNotFoundError is both
            return None


def fetch_files(
    commit: HubName, files: Mapping[str, HubFile], on_download: OnDownload | None = None
) -> list[str]:
    """Download those of the files that the cache does not have → their names.

    commit: with a commit's hash as its revision. Raises BundleError."""
    total, done = sum(file.size for file in files.values()), 0
    fetched = []
    for path, file in files.items():
        if _cached(commit, path) is None:
            with _client(commit) as hub:
                cache = Path(hub.constants.HF_HUB_CACHE)
            blobs = cache / ("models--" + commit.repository.replace("/", "--")) / "blobs"
            # Outside _plain_errors, as what `on_download` raises is the app's.
            with (
                _watched(blobs / f"{file.blob}.incomplete", on_download, done, total),
                _plain_errors(commit, path) as hub,
            ):
                hub.hf_hub_download(commit.repository, path, revision=commit.revision, **_agent())
            fetched.append(path)
        done += file.size
    if on_download is not None and fetched:
        on_download(done, total)
    return fetched


def parse_target(text: str) -> HubName:
    """The repository of a push, as `parse_hub_name`, without a revision. Raises BundleError."""
    name = parse_hub_name(text)
    if name.revision is not None:
        raise BundleError(f"{text}: a push goes to the main branch: leave @{name.revision} out")
    return name


def files_to_push(bundle: Bundle) -> dict[str, Path]:
    """Where bundle.json and each file that it lists lie, by their paths in the repository.

    Raises BundleError for a file that links out of the bundle, and for one that the model card
    would replace or the hub's client refuses."""
    for file in bundle.manifest.files:
        if file.casefold() in _RESERVED:
            raise BundleError(
                f"{file}: cannot be pushed, as the hub needs this name for itself: rename the file,"
                f" also in {MANIFEST}"
            )
    return {file: bundle.path(file) for file in (MANIFEST, *bundle.manifest.files)}


def push_bundle(
    bundle: Bundle, name: HubName, card: str, *, private: bool = False, show_bars: bool = False
) -> str:
    """Upload bundle.json, the files that it lists, and the model card, in one commit → its address.

    private: create the repository as a private one. show_bars: let the client show its progress on
    stderr.

    Raises BundleError, also as `files_to_push` does, for a file that differs from its hash, and if
    `private` and the repository exists and is public. Files are checked before anything is sent."""
    files = files_to_push(bundle)
    for file in bundle.manifest.files:
        bundle.check_hash(file)
    with _plain_errors(name, "", writes=True, show_bars=show_bars) as hub:
        if (reason := _unreachable(hub)) is not None:
            raise BundleError(
                f"hf:{name}: the hub cannot be reached ({reason}): check the connection"
            )
        api = hub.HfApi(**_agent())
        try:
            api.create_repo(name.repository, private=private, exist_ok=False)
        except hub.errors.HfHubHTTPError as e:
            if e.response is None or e.response.status_code != _CONFLICT:
                raise
            if private and not api.model_info(name.repository).private:
                raise BundleError(
                    f"hf:{name}: exists and is public: make it private on the hub first, or leave"
                    " --private out"
                ) from e
        operations = [
            hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(path))
            for file, path in files.items()
        ]
        operations.append(hub.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
        commit = api.create_commit(
            name.repository, operations, commit_message=f"{bundle.manifest.name} for edgediff"
        )
        return str(commit.commit_url)


def _unreachable(hub: Any) -> str | None:
    """Why the hub's address cannot be connected to, or None if it can, or if the client decides:
    behind a proxy, or offline. The client itself would try again for half a minute."""
    import socket
    import urllib.parse
    import urllib.request

    if hub.constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return None
    address = urllib.parse.urlsplit(hub.constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError as e:
        return first_line(e)
    return None


def _require_reachable(name: HubName, reason: str | None) -> None:
    if reason is not None:
        raise BundleError(f"hf:{name}: {_no_connection(reason)}")


def _no_connection(reason: str) -> str:
    return (
        f"the hub cannot be reached ({reason}), and the local cache does not have all of it: check"
        " the connection, or give a local folder"
    )


def _agent() -> dict[str, str]:
    """How the client introduces itself to the hub."""
    return {"library_name": "edgediff", "library_version": __version__}


def _cached(commit: HubName, file: str) -> Path | None:
    """Where a file of a commit lies in the hub's cache, or None. Raises BundleError."""
    with _plain_errors(commit, file) as hub:
        found = hub.try_to_load_from_cache(commit.repository, file, revision=commit.revision)
    return Path(found) if isinstance(found, str) else None


def _is_intact(path: Path) -> bool:
    """Whether a small file in the hub's cache has the hash that its content is named by there: its
    SHA-256, or git's."""
    try:
        content = path.read_bytes()
    except OSError:  # of which a download would change nothing
        return True
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return path.resolve().name in (hashlib.sha256(content).hexdigest(), git.hexdigest())


def _forget(path: Path) -> None:
    """Remove a file from the hub's cache: the content, and the link to it."""
    with contextlib.suppress(OSError):  # a cache that cannot be written, or removed meanwhile
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _size_there(hub: Any, name: HubName, file: str) -> int | None:
    """A file's size on the hub in bytes, or None if the hub does not say it; why not, the download
    finds out."""
    try:
        url = hub.hf_hub_url(name.repository, file, revision=name.revision)
        size = hub.HfApi(**_agent()).get_hf_file_metadata(url=url).size
    except Exception:  # the client and its libraries raise a dozen unrelated classes
        return None
    return size if isinstance(size, int) else None


def _check_sizes(bundle: Bundle, files: Iterable[str], name: HubName) -> None:
    """Compare the sizes of files on the hub with bundle.json. Raises BundleError."""
    commit = HubName(repository=name.repository, revision=bundle.root.name)
    with _client(name) as hub:
        for file in files:
            size, expected = _size_there(hub, commit, file), bundle.manifest.files[file].size
            if size is None:
                return
            if size != expected:
                _forget(bundle.root / MANIFEST)  # the damage may be there
                raise BundleError(
                    f"hf:{name}: {file} has {size} bytes on the hub but bundle.json says"
                    f" {expected}: try again, and if it stays so, its owner must push the bundle"
                    " again"
                )


def _check_arrived(bundle: Bundle, file: str, name: HubName) -> None:
    """Compare a downloaded file with bundle.json, and remove it from the cache if it differs, so
    that it is not found there again. Raises BundleError."""
    path = bundle.root / file
    with path.open("rb") as content:
        actual = hashlib.file_digest(content, "sha256").hexdigest()
    expected = bundle.manifest.files[file].sha256
    if actual != expected:
        _forget(path)
        _forget(bundle.root / MANIFEST)  # the damage may be there
        raise BundleError(
            f"hf:{name}: {file} has sha256 {actual[:8]}… but bundle.json says {expected[:8]}…: try"
            " again, and if it stays so, its owner must push the bundle again"
        )


@contextlib.contextmanager
def _watched(partial: Path, report: OnDownload | None, done: int, total: int) -> Iterator[None]:
    """Report the growth of a file while the block downloads it.

    done: bytes of the files before it. What `report` raises is raised here when the block has
    ended, which cannot be stopped."""
    if report is None:
        yield
        return
    ended = threading.Event()
    raised: list[BaseException] = []

    def watch() -> None:
        while not ended.wait(_INTERVAL):
            try:
                size = partial.stat().st_size
            except OSError:  # not begun, or complete
                continue
            try:
                report(done + size, total)
            except BaseException as e:
                raised.append(e)
                return

    report(done, total)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        if raised:
            raise raised[0]


@contextlib.contextmanager
def _client(name: HubName, *, show_bars: bool = False, group: str | None = _BARS) -> Iterator[Any]:
    """The module huggingface_hub, which prints nothing while the block runs, but for its progress
    if `show_bars`.

    group: of the client's progress bars; None = all, also those of uploads, which have no name.

    Raises BundleError if it is not installed."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors, utils  # noqa: F401 - read as hub.errors
    except ModuleNotFoundError as e:
        raise BundleError(
            f'hf:{name}: needs {e.name}: pip install "edgediff[hub]", or download the folder and'
            " give its path"
        ) from e
    # Imported here, as its import resets the level.
    from huggingface_hub.utils import logging

    logger = logging.get_logger()
    hides = not show_bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None

    def quieten() -> Callable[[], None]:
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        return lambda: logger.setLevel(level)

    def hide() -> Callable[[], None]:
        if utils.are_progress_bars_disabled(group):
            return lambda: None
        utils.disable_progress_bars(group)
        return lambda: utils.enable_progress_bars(group)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_shared("log", quieten))
        if hides:
            stack.enter_context(_shared(f"bars of {group}", hide))
        yield hub


_lock = threading.Lock()
_shares: dict[str, tuple[int, Callable[[], None]]] = {}
"""Setting → the blocks that need it now, and the call that restores the app's own."""


@contextlib.contextmanager
def _shared(setting: str, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Change a setting of the whole process while at least one such block runs, in any thread: the
    first changes it, the last restores it.

    change: makes the change → the call that undoes it."""
    with _lock:
        users, restore = _shares.get(setting) or (0, change())
        _shares[setting] = (users + 1, restore)
    try:
        yield
    finally:
        with _lock:
            users, restore = _shares.pop(setting)
            if users == 1:
                restore()
            else:
                _shares[setting] = (users - 1, restore)


@contextlib.contextmanager
def _plain_errors(
    name: HubName, file: str, *, writes: bool = False, show_bars: bool = False
) -> Iterator[Any]:
    """The client, see `_client`; its errors become one sentence each.

    file: the one that is asked for, "" for none. writes: whether the block uploads. Raises
    BundleError."""
    with _client(name, show_bars=show_bars, group=None if writes else _BARS) as hub:
        try:
            yield hub
        except BundleError:
            raise
        except Exception as e:  # the client and its libraries raise a dozen unrelated classes
            status = getattr(getattr(e, "response", None), "status_code", None)
            if writes and status in _REFUSED:
                reason = (
                    f"may not be written ({status}): set HF_TOKEN to a token with write access to"
                    f" {name.repository.partition('/')[0]}"
                )
            else:
                reason = explain(hub.errors, e, name, file)
            if file and reason.endswith("try again"):
                reason += ", and the download goes on where it stopped"
            raise BundleError(f"hf:{name}: {reason}") from e


def explain(errors: Any, e: Exception, name: HubName, file: str) -> str:
    """Why the hub's client failed, and the remedy.

    errors: the module huggingface_hub.errors. file: the one that was asked for, "" for none."""
    cause = e.__cause__ if isinstance(e, errors.LocalEntryNotFoundError) else e
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"is gated: accept its terms at https://huggingface.co/{name.repository} and set"
            " HF_TOKEN to a token of that account"
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            "no such repository on the hub, or a private one: check the name, or set HF_TOKEN to a"
            " token that may read it"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"has no revision {name.revision!r}: give a branch, a tag or a commit"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            "is not in the local cache, or not all of it, and HF_HUB_OFFLINE is set: unset it once,"
            " or give a local folder"
        )
    if isinstance(cause, errors.EntryNotFoundError):
        if file == MANIFEST:
            return (
                f"holds no {MANIFEST}, so it is not a bundle: `edgediff export hf:{name} OUT` makes"
                " one of a diffusers pipeline"
            )
        return f"holds no {file}, so that it is incomplete: its owner must push it again"
    if status is not None:
        return f"the hub answered {status} ({first_line(e)}): try again later, or check HF_TOKEN"
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the hub's cache is full: free some space, or set HF_HOME elsewhere"
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS):
        return f"the hub's cache cannot be written ({first_line(cause)}): set HF_HOME elsewhere"
    if isinstance(e, errors.LocalEntryNotFoundError):
        return _no_connection(first_line(cause or e))
    return f"the connection to the hub failed ({first_line(e)}): try again"
