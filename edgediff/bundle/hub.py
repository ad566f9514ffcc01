"""Downloads from the Hugging Face hub: bundles, and files for an export.

The hub's client keeps downloads in its own cache, goes on with a download that was interrupted, and
needs no connection for files that are there.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediff.bundle.folder import MAX_MANIFEST, Bundle
from edgediff.bundle.hub_client import agent, client, plain_errors, require_reachable, unreachable
from edgediff.bundle.hub_name import HubName, parse_hub_name
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError

_INTERVAL = 0.2
"""Seconds between two reports of progress."""

OnDownload = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in total, from a thread of its own. What it
raises reaches the caller unchanged, once the file that is being downloaded is complete."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file's size in bytes, and the name that its content has in the hub's cache: its SHA-256 in
    hex, or git's hash for a small one."""

    size: int
    blob: str


def fetch_one(name: HubName, path: str, *, limit: int | None = None) -> Path:
    """Download one file by a revision's name, which the cache then knows without a connection.

    limit: bytes; a larger file is neither downloaded nor kept. Raises BundleError."""
    with plain_errors(name, path) as hub:
        known = hub.try_to_load_from_cache(name.repository, path, revision=name.revision)
        reason = unreachable(hub)
        if reason is not None and isinstance(known, str):
            found = Path(known)
        else:
            require_reachable(name, reason)
            if limit is not None:
                _check_limit(name, path, _size_there(hub, name, path), limit)
            found = Path(
                hub.hf_hub_download(name.repository, path, revision=name.revision, **agent())
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
    with plain_errors(name, "") as hub:
        require_reachable(name, unreachable(hub))
        info = hub.HfApi(**agent()).model_info(
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
    with client(name) as hub:
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
            with client(commit) as hub:
                cache = Path(hub.constants.HF_HUB_CACHE)
            blobs = cache / ("models--" + commit.repository.replace("/", "--")) / "blobs"
            # Outside plain_errors, as what `on_download` raises is the app's.
            with (
                _watched(blobs / f"{file.blob}.incomplete", on_download, done, total),
                plain_errors(commit, path) as hub,
            ):
                hub.hf_hub_download(commit.repository, path, revision=commit.revision, **agent())
            fetched.append(path)
        done += file.size
    if on_download is not None and fetched:
        on_download(done, total)
    return fetched


def _cached(commit: HubName, file: str) -> Path | None:
    """Where a file of a commit lies in the hub's cache, or None. Raises BundleError."""
    with plain_errors(commit, file) as hub:
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
        size = hub.HfApi(**agent()).get_hf_file_metadata(url=url).size
    except Exception:  # the client and its libraries raise a dozen unrelated classes
        return None
    return size if isinstance(size, int) else None


def _check_sizes(bundle: Bundle, files: Iterable[str], name: HubName) -> None:
    """Compare the sizes of files on the hub with bundle.json. Raises BundleError."""
    commit = HubName(repository=name.repository, revision=bundle.root.name)
    with client(name) as hub:
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
