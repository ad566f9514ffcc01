"""A bundle's folder on disk, which appears whole or not at all."""

import contextlib
import errno
import os
import shutil
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
    finished bundle. The next export removes the remains of one that was killed.

    Raises ExportError if `out` exists (unless `force`), if it cannot be written, or if the disk is
    full."""
    out = out.parent.resolve() / out.name  # a link at `out` is replaced, not followed
    if not out.name:
        raise ExportError(f"{out}: is not a place for a bundle: give the path of a new folder")
    work = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.replaced")
    try:
        if old.exists() and not out.exists():  # killed between the two renames
            old.rename(out)
        _check_out(out, force=force)
        _remove(work)
        _remove(old)
        work.mkdir()
    except OSError as e:
        raise ExportError(f"{out}: cannot be written ({e.strerror}): choose another folder") from e
    try:
        yield work
        finished = work / "bundle"
        if out.exists():
            out.rename(old)
        finished.rename(out)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(out.parent).free
            raise ExportError(
                f"{out}: the disk is full ({free / 1e9:.1f} GB free): an export needs room for the"
                " float model twice and for the bundle; nothing was written"
            ) from e
        raise ExportError(f"{e.filename or out}: {e.strerror or e}; nothing was written") from e
    finally:
        _remove(work)
        if out.exists():
            _remove(old)


def _check_out(out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent}: no such folder: create it first (mkdir -p {out.parent})")
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out.parent}: not writable: choose another folder")
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
