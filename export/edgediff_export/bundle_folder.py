"""A bundle's folder on disk, which appears whole or not at all."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from edgediff.bundle.folder import describe_files, write_manifest
from edgediff.bundle.manifest import Manifest
from edgediff.errors import ExportError


def write_bundle(folder: Path, manifest: Manifest) -> Manifest:
    """Write bundle.json for the files that lie in `folder`; returns it with their hashes."""
    names = [n for g in manifest.graphs.values() for n in (g.file, *g.data)]
    names += [t.file for t in manifest.tokenizers.values()]
    names += [manifest.fixtures] if manifest.fixtures else []
    manifest = replace(manifest, files=describe_files(folder, names))
    write_manifest(folder, manifest)
    return manifest


@contextlib.contextmanager
def folder_in_one_piece(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out` to work in; its subfolder `bundle` becomes `out` at the
    end.

    Whatever happens in between, even if the process is killed, `out` is either unchanged or the
    finished bundle. The next export removes the remains of one that was killed. While this one
    works, others to the same `out` are refused.

    Raises ExportError if `out` exists (unless `force`), if it cannot be written, if another process
    is exporting to it, or if the disk is full."""
    out = out.parent.resolve() / out.name  # a link at `out` is replaced, not followed
    if not out.name:
        raise ExportError(f"{out}: is not a place for a bundle: give the path of a new folder")
    work = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.replaced")
    with contextlib.ExitStack() as held, _ended_by_signals():
        try:
            _check_place(out)
            held.enter_context(_locked(out))
            if old.exists() and not out.exists():  # killed between the two renames
                old.rename(out)
            _check_out(out, force=force)
            _remove(work)
            _remove(old)
            work.mkdir()
        except OSError as e:
            raise ExportError(
                f"{out}: cannot be written ({e.strerror}): choose another folder"
            ) from e
        try:
            yield work
            finished = work / "bundle"
            if out.exists():
                out.rename(old)
            finished.rename(out)
        except OSError as e:
            raise _disk_error(out, e) from e
        except Exception as e:
            if (full := _full_disk(e, out)) is not None:
                raise full from e
            raise
        finally:
            _remove(work)
            if out.exists():
                _remove(old)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock of `out`, which ends with the process, however that ends.

    The lock's file is removed at the end; whoever opened it before then finds that the file of that
    name is another one, and tries again."""
    path = out.with_name(f".{out.name}.lock")
    try:
        while True:
            with path.open("ab") as file:
                if not _lock(file.fileno()):
                    raise ExportError(
                        f"{out}: another process is exporting to it: wait until it ends, or choose"
                        " another folder"
                    )
                if sys.platform != "win32" and not _same(file.fileno(), path):
                    continue
                try:
                    yield
                finally:
                    if sys.platform != "win32":
                        path.unlink(missing_ok=True)
            return
    finally:
        if sys.platform == "win32":  # it removes no open file, neither ours nor the next one's
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _same(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    """Take the lock of an open file, unless another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within it, SIGTERM and SIGHUP end the process as Ctrl-C does, so that it cleans up."""
    names = ("SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []

    def end(number: int, _: object) -> None:
        for other in numbers:  # a second one would end the cleaning up
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    previous = {n: signal.getsignal(n) for n in numbers}
    for number, handler in previous.items():
        if handler == signal.SIG_DFL:  # a hangup that nohup ignores stays ignored
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = ("No space left on device", "File too large", "Disk quota exceeded", "os error 28")
"""How libraries word it, which raise errors of their own."""


def _disk_error(out: Path, e: OSError) -> ExportError:
    if (full := _full_disk(e, out)) is not None:
        return full
    return ExportError(f"{e.filename or out}: {e.strerror or e}; nothing was written")


def _full_disk(e: BaseException, out: Path) -> ExportError | None:
    """The error of a full disk where a library, or one of our own errors, hides it."""
    cause: BaseException | None = e
    while cause is not None:
        full = isinstance(cause, OSError) and cause.errno in _FULL
        if full or any(words in str(cause) for words in _SAID):
            return _no_room(out)
        cause = cause.__cause__ or cause.__context__
    return None


def _no_room(out: Path) -> ExportError:
    free = shutil.disk_usage(out.parent).free
    return ExportError(
        f"{out}: the disk is full ({free / 1e9:.1f} GB free): an export needs room for the"
        " float model twice and for the bundle; nothing was written"
    )


def _check_place(out: Path) -> None:
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent}: no such folder: create it first (mkdir -p {out.parent})")
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out.parent}: not writable: choose another folder")


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out}: is a file: give the path of a folder that does not exist yet")
    if not force:
        raise ExportError(f"{out}: exists already: choose another folder, or --force to replace it")
    if any(out.iterdir()) and not (out / "bundle.json").is_file():
        raise ExportError(f"{out}: exists and is not a bundle: --force replaces bundles only")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
