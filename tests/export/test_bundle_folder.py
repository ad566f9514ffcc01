"""A bundle appears whole or not at all, whatever happens."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgediff_export.bundle_folder import folder_in_one_piece

from edgediff.errors import ExportError

_EXPORT = "from edgediff.cli import main; main()"


def write(out: Path, content: str, *, force: bool = False) -> None:
    with folder_in_one_piece(out, force=force) as work:
        (work / "bundle").mkdir()
        (work / "bundle" / "bundle.json").write_text(content)


def contents(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_in_one_piece(out, force=False) as work:
        assert work.parent == tmp_path
        (work / "bundle").mkdir()
        assert not out.exists()
    assert contents(tmp_path) == {"out"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_in_one_piece(tmp_path / "out", force=False) as w:
        (w / "bundle").mkdir(parents=bool(1 / 0))
    assert contents(tmp_path) == set()


def test_an_existing_bundle_is_replaced_only_when_forced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "1")
    with pytest.raises(ExportError, match="exists already: choose another folder, or --force"):
        write(out, "2")
    assert (out / "bundle.json").read_text() == "1"
    write(out, "3", force=True)
    assert (out / "bundle.json").read_text() == "3"
    assert contents(tmp_path) == {"out"}


def test_force_keeps_the_old_bundle_until_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "1")
    with pytest.raises(ZeroDivisionError), folder_in_one_piece(out, force=True):
        1 / 0  # noqa: B018
    assert (out / "bundle.json").read_text() == "1"
    assert contents(tmp_path) == {"out"}


def test_force_replaces_bundles_only(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(ExportError, match="not a bundle: --force replaces bundles only"):
        write(tmp_path / "photos", "1", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file"):
        write(tmp_path / "file", "1", force=True)


def test_a_killed_exports_leftovers_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.partial" / "float").mkdir(parents=True)
    write(out, "1")
    assert contents(tmp_path) == {"out"}


def test_killed_between_the_renames_the_old_bundle_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "1")
    out.rename(tmp_path / ".out.replaced")
    with pytest.raises(ExportError, match="exists already"):
        write(out, "2")
    assert (out / "bundle.json").read_text() == "1"
    assert contents(tmp_path) == {"out"}


def test_a_parent_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no such folder: create it first \(mkdir -p"):
        write(tmp_path / "no" / "out", "1")


def test_a_parent_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ExportError, match="not writable"):
        write(tmp_path / "locked" / "out", "1")


def test_a_file_system_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match=r"cannot be written \(Read-only file system\)"):
        write(tmp_path / "out", "1")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(number: int, tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"the disk is full \(.* GB free\).*nothing was written"),
        folder_in_one_piece(tmp_path / "out", force=False),
    ):
        raise OSError(number, os.strerror(number))
    assert contents(tmp_path) == set()


def test_other_failures_of_the_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match="x: Input/output error; nothing was written"),
        folder_in_one_piece(tmp_path / "out", force=False),
    ):
        raise OSError(errno.EIO, "Input/output error", "x")


@pytest.mark.slow
def test_kill_in_the_middle(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", _EXPORT, "export", str(small_pipeline("sd1")), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (tmp_path / ".out.partial" / "float" / "unet.onnx").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # SIGKILL leaves the file of the lock, but not the lock: the next export is not refused.
    assert contents(tmp_path) == {".out.partial", ".out.lock"}
    subprocess.run([*command, "--steps", "1"], check=True, capture_output=True)
    assert contents(tmp_path) == {"out"}


@pytest.mark.slow
def test_a_disk_that_fills_up(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); "
    command = [sys.executable, "-c", limited + _EXPORT, "export", str(small_pipeline("sd1"))]
    run = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True)
    assert run.returncode == 1
    assert "the disk is full" in run.stderr
    assert "Traceback" not in run.stderr
    assert contents(tmp_path) == set()


def test_a_second_export_to_the_same_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_in_one_piece(out, force=True) as work:
        (work / "bundle").mkdir()
        with pytest.raises(ExportError, match="another process is exporting to it"):
            write(out, "2", force=True)
        assert (work / "bundle").is_dir()
    assert contents(tmp_path) == {"out"}


def test_exports_to_two_folders_do_not_meet(tmp_path: Path) -> None:
    with folder_in_one_piece(tmp_path / "one", force=False) as work:
        (work / "bundle").mkdir()
        write(tmp_path / "two", "2")
    assert contents(tmp_path) == {"one", "two"}


_HOLD = (
    "import signal, sys, time\n"
    # A shell's background jobs ignore the signal and hand that down to the tests: undo it.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from pathlib import Path\n"
    "from edgediff_export.bundle_folder import folder_in_one_piece\n"
    "with folder_in_one_piece(Path(sys.argv[1]), force=False) as work:\n"
    "    (work / 'bundle').mkdir()\n"
    "    print('working', flush=True)\n"
    "    time.sleep(60)\n"
)


def hold(out: Path) -> "subprocess.Popen[str]":
    """A process that is at work on a bundle."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.stdout.close()
    return process


def test_a_killed_export_leaves_no_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = hold(out)
    with pytest.raises(ExportError, match="another process is exporting to it"):
        write(out, "2")
    process.kill()
    process.wait(30)
    write(out, "2")
    assert contents(tmp_path) == {"out"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_cleans_up(number: int, tmp_path: Path) -> None:
    process = hold(tmp_path / "out")
    process.send_signal(number)
    assert process.wait(30) != 0
    assert contents(tmp_path) == set()


def test_a_full_disk_that_a_library_hides(tmp_path: Path) -> None:
    def fill() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as e:
            raise ExportError("it: cannot be loaded") from e

    with (
        pytest.raises(ExportError, match="the disk is full"),
        folder_in_one_piece(tmp_path / "out", force=False),
    ):
        fill()
    with (
        pytest.raises(ExportError, match="the disk is full"),
        folder_in_one_piece(tmp_path / "out", force=False),
    ):
        raise RuntimeError("Error while serializing: I/O error: No space left on device")
    assert contents(tmp_path) == set()


class Msvcrt:
    """Locks of files as Windows has them: a second one of the same file is refused, and closing the
    file ends it. opened: files by their paths, in the order in which they were opened."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.opened: list[tuple[Path, Any]] = []
        self.locked: list[Any] = []
        self.errno = errno.EACCES

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        its = os.fstat(descriptor)
        others = [os.fstat(file.fileno()) for file in self.locked if not file.closed]
        if any(os.path.samestat(its, other) for other in others):
            raise OSError(self.errno, "Permission denied")
        open_now = [file for _, file in self.opened if not file.closed]
        self.locked += [file for file in open_now if file.fileno() == descriptor]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Msvcrt:
    """Within it, files are locked as on Windows, and no open file can be removed."""
    fake = Msvcrt()
    whole_open, whole_unlink = Path.open, Path.unlink

    def remember(self: Path, *arguments: Any, **options: Any) -> Any:
        fake.opened.append((self, whole_open(self, *arguments, **options)))
        return fake.opened[-1][1]

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if any(path == self and not file.closed for path, file in fake.opened):
            raise PermissionError(errno.EACCES, "used by another process", str(self))
        whole_unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "open", remember)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    monkeypatch.setattr(sys, "platform", "win32")
    return fake


@pytest.mark.usefixtures("windows")
def test_on_windows_the_second_export_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with folder_in_one_piece(out, force=True) as work:
        (work / "bundle").mkdir()
        with pytest.raises(ExportError, match="another process is exporting to it"):
            write(out, "2", force=True)
        assert (work / "bundle").is_dir()
        assert (tmp_path / ".out.lock").is_file()
    assert contents(tmp_path) == {"out"}
    (out / "bundle.json").write_text("1")
    write(out, "3", force=True)
    assert contents(tmp_path) == {"out"}


@pytest.mark.usefixtures("windows")
def test_on_windows_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), folder_in_one_piece(tmp_path / "out", force=False):
        1 / 0  # noqa: B018
    assert contents(tmp_path) == set()


@pytest.mark.usefixtures("windows")
def test_on_windows_the_next_export_may_have_the_lock_open_already(tmp_path: Path) -> None:
    with folder_in_one_piece(tmp_path / "out", force=False) as work:
        (work / "bundle").mkdir()
        waiting = (tmp_path / ".out.lock").open("ab")
    assert contents(tmp_path) == {"out", ".out.lock"}
    waiting.close()
    (tmp_path / "out" / "bundle.json").touch()
    write(tmp_path / "out", "2", force=True)
    assert contents(tmp_path) == {"out"}


def test_on_windows_a_lock_that_fails_otherwise(tmp_path: Path, windows: Msvcrt) -> None:
    with folder_in_one_piece(tmp_path / "out", force=False) as work:
        (work / "bundle").mkdir()
        windows.errno = errno.EIO
        with pytest.raises(ExportError, match=r"cannot be written \(Permission denied\)"):
            write(tmp_path / "out", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "phase"),
    [
        (signal.SIGTERM, "opening"),
        (signal.SIGHUP, "unet: tracing"),
        (signal.SIGTERM, "images of the float model"),
        (signal.SIGINT, "vae_decoder: tracing"),
    ],
)
def test_a_signal_cleans_up_in_each_phase(
    number: int, phase: str, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + _EXPORT
    command = [sys.executable, "-c", code, "export", str(small_pipeline("sd1"))]
    process = subprocess.Popen(
        [*command, str(tmp_path / "out"), "--steps", "50"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process.stderr as lines:
        assert any(phase in line for line in lines)
        process.send_signal(number)
        rest = lines.read()
    assert process.wait(60) == (130 if number == signal.SIGINT else 128 + number)
    assert "Traceback" not in rest
    assert contents(tmp_path) == set()


def test_a_second_signal_does_not_end_the_cleaning_up(tmp_path: Path) -> None:
    def interrupt(work: Path) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            (work / "late").touch()

    with pytest.raises(SystemExit) as e, folder_in_one_piece(tmp_path / "out", force=False) as work:
        interrupt(work)
    assert e.value.code == 128 + signal.SIGTERM
    assert contents(tmp_path) == set()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
