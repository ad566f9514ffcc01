"""Reading regular files only, and writing them whole or not at all."""

import errno
import os
import stat
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from edgediff.files import (
    check_writable,
    is_file_name,
    open_regular,
    read_regular,
    read_to_end,
    write_whole,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        *((name, True) for name in ("fox.png", "日本.png", "console.png", "com.png", "a.con")),
        *((name, True) for name in ("com10.png", "nulls", "aux-1.png", "unet.onnx.data")),
        *((name, False) for name in ("", "..", "a/b", "a\\b", "a:b.png", "a\x1b", "a\nb")),
        *((name, False) for name in ("CON", "con.png", "Aux.tar.gz", "COM1.png", "lpt9", "nul .a")),
        ("x" * 256, False),
    ],
)
def test_names_of_files(text: str, plain: bool) -> None:
    assert is_file_name(text) is plain


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"
    assert read_regular(tmp_path / "a", 3) == b"abc"
    with pytest.raises(OSError, match="larger than 2 bytes"):
        read_regular(tmp_path / "a", 2)


def test_reading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    tracemalloc.start()
    try:
        read_regular(tmp_path / "a", 2**31)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    measure = os.fstat

    def measure_and_grow(number: int) -> os.stat_result:
        found = measure(number)
        with path.open("ab") as file:
            file.write(b"d")
        return found

    monkeypatch.setattr(os, "fstat", measure_and_grow)
    with pytest.raises(OSError, match="it grew while it was read"):
        read_regular(path, 100)


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(OSError, match="null byte"):
        open_regular("a\0b")


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert read_to_end(tmp_path / "file", 3_000_000) == b"x" * 3_000_000
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as file:
            for _ in range(3):
                time.sleep(0.05)
                file.write(b"ab" * 100_000)

    writing = threading.Thread(target=write)
    writing.start()
    assert read_to_end(f"/dev/fd/{reader}", 1_000_000) == b"ab" * 300_000
    writing.join()
    os.close(reader)


def test_reading_to_the_end_always_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, number in (
        (tmp_path / "fifo", errno.EPIPE),
        (Path("/dev/zero"), errno.EFBIG),
        (tmp_path, errno.EISDIR),
        (tmp_path / "absent", errno.ENOENT),
        (Path("a\0"), errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
            read_to_end(path, 5_000_000)
        assert caught.value.errno == number, path
    assert read_to_end("/dev/null", 1) == b""


def test_no_descriptor_is_left_open_by_a_refusal(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(tmp_path / "fifo")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("middle")
    (tmp_path / "middle").symlink_to("folder/target")
    check_writable(tmp_path / "link")
    for content in (b"first", b"second"):
        write_whole(tmp_path / "link", content)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "middle").is_symlink()
        assert (tmp_path / "folder" / "target").read_bytes() == content
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["target"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_an_existing_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.touch()
    path.chmod(mode)
    write_whole(path, b"x")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"x"


def test_a_new_file_gets_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_an_existing_file_keeps_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.touch()
    given: list[tuple[int, int]] = []

    def chown(_: object, user: int, group: int) -> None:
        given.append((user, group))
        raise PermissionError  # as for a user who may not

    monkeypatch.setattr(os, "chown", chown)
    write_whole(path, b"x")
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    assert path.read_bytes() == b"x"


def test_fifos_devices_folders_and_loops_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for path, number in (
        (tmp_path / "fifo", errno.EINVAL),
        (Path("/dev/null"), errno.EINVAL),
        (tmp_path / "folder", errno.EISDIR),
        (tmp_path / "loop", errno.ELOOP),
        (tmp_path / "absent" / "a", errno.ENOENT),
    ):
        for act in (check_writable, lambda p: write_whole(p, b"x")):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
                act(path)
            assert caught.value.errno == number, path
    assert (tmp_path / "fifo").is_fifo()
    assert sorted([p.name for p in tmp_path.iterdir()]) == ["fifo", "folder", "loop"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
