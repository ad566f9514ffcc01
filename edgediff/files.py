"""Files: only regular ones are read, or a pipe to its end; one is written whole or not at all."""

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from pathlib import Path

MAX_NAME = 255
"""Bytes of a file's name; no usual file system takes more."""
_PART = 1_000_000
"""Bytes that are read at a time."""
_NOT_REGULAR = "not a regular file"
_DEVICES = re.compile(r"(con|prn|aux|nul|(com|lpt)[1-9¹²³]) *(\.|$)", re.IGNORECASE)
"""Names that Windows gives to devices, with any suffix."""


def fingerprint(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file or its content."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def is_file_name(text: str) -> bool:
    """Whether text is the plain name of a file on every usual system: without a folder, a drive,
    wildcards, characters that are not shown, or a name that is a device on Windows."""
    plain = text not in ("", ".", "..") and not {*'/\\:*?"<>|'} & {*text}
    plain = plain and text.isprintable() and not _DEVICES.match(text)
    return plain and len(text.encode()) <= MAX_NAME


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file to read; a FIFO, which could block for ever, or a device is refused.

    Raises OSError."""
    number = _open_at_once(path)
    try:
        mode = os.fstat(number).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR)
        return io.BufferedReader(io.FileIO(number, "rb"))
    except BaseException:
        os.close(number)
        raise


def _open_at_once(path: str | os.PathLike[str]) -> int:
    """Open a file to read, also a FIFO, without waiting for its writer. Raises OSError."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except ValueError as e:  # a null byte in the path
        raise OSError(errno.EINVAL, str(e)) from e


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """A regular file's bytes. Raises OSError, also for more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        # Not `read(limit + 1)`: Python would take that much memory before it reads.
        content = file.read(size + 1)
    if len(content) > size:
        raise OSError(errno.EIO, "it grew while it was read")
    return content


def read_to_end(path: str | os.PathLike[str], limit: int) -> bytes:
    """The bytes of a file, or of a pipe until its writer closes it: `<(...)` and /dev/stdin work.

    A FIFO without a writer has no bytes; to open it would otherwise wait for one. Raises OSError,
    also for more than `limit` bytes."""
    number = _open_at_once(path)
    try:
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(number, True)  # to wait for a writer that is there
        parts, left = [], limit
        while part := os.read(number, min(left + 1, _PART)):
            parts.append(part)
            left -= len(part)
            if left < 0:
                raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        if not parts and stat.S_ISFIFO(os.fstat(number).st_mode):
            raise OSError(errno.EPIPE, "a pipe to which nothing is written")
        return b"".join(parts)
    finally:
        os.close(number)


def check_writable(path: Path) -> None:
    """Raise OSError if `write_whole` could not write to `path`, as far as that shows beforehand."""
    try:
        target = _target(path) if path.is_symlink() else path
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise
        _require(os.access(target.parent, os.W_OK), errno.EACCES)
        return
    except ValueError as e:  # a null byte
        raise OSError(errno.EINVAL, str(e)) from e
    _check_regular(mode)
    _require(os.access(target.parent, os.W_OK) and os.access(target, os.W_OK), errno.EACCES)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, then renamed.

    A link stays a link, and the file that it leads to is written. An existing file keeps its mode
    and, if this user may set it, its owner. Raises OSError."""
    target = _target(path)
    before = None
    with contextlib.suppress(FileNotFoundError):
        before = target.stat()
        _check_regular(before.st_mode)
    beside = target.with_name(f".{secrets.token_hex(8)}.partial")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    number = os.open(beside, flags, 0o666)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        if before is not None:
            if hasattr(os, "chown"):
                with contextlib.suppress(PermissionError):
                    os.chown(beside, before.st_uid, before.st_gid)
            beside.chmod(stat.S_IMODE(before.st_mode))
        beside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _target(path: Path) -> Path:
    """Where a path leads, through links that may dangle. Raises OSError."""
    try:
        return path.resolve()
    except RuntimeError as e:  # before Python 3.13, for links in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from e
    except ValueError as e:  # a null byte
        raise OSError(errno.EINVAL, str(e)) from e


def _check_regular(mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, _NOT_REGULAR)


def _require(allowed: bool, number: int) -> None:
    if not allowed:
        raise OSError(number, os.strerror(number))
