"""A bundle's folder: opens it, and checks its files against the manifest."""

import hashlib
import io
import os
import re
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from edgediff.arrays import AnyArray
from edgediff.bundle.manifest import MANIFEST, FileSpec, Manifest, parse_manifest
from edgediff.errors import BundleError, first_line
from edgediff.files import fingerprint, open_regular, read_regular

MAX_MANIFEST = 8_000_000
"""Bytes; that of a bundle of SDXL's shape, with a line for each weight, has under a tenth."""
MAX_FIXTURES = 2**30
"""Bytes of fixtures.npz, also once unpacked."""
_MOST_FIXTURES = 10_000


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: a folder whose manifest was parsed and whose files are all there."""

    root: Path
    manifest: Manifest
    id: str
    """SHA-256 of bundle.json, in hex. As that holds every file's hash, it identifies the bundle."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read a bundle folder; check that each file is there and has the size it should.

        Contents are not read: `check_hashes` does that. Raises BundleError."""
        bundle = cls.described(path)
        for name in bundle.manifest.files:
            bundle.check_size(name)
        return bundle

    @classmethod
    def described(cls, path: str | os.PathLike[str]) -> Self:
        """Read only bundle.json; files that it lists may be absent. Raises BundleError."""
        root = Path(path)
        try:
            exists = root.exists()
        except (OSError, ValueError) as e:
            raise BundleError(f"{path}: is not a path to a bundle ({e})") from e
        if not exists:
            raise BundleError(f"{root}: no such bundle: give a folder that `edgediff export` wrote")
        if not root.is_dir():
            raise BundleError(f"{root}: is a file: give the bundle's folder, not a file in it")
        root = root.absolute()  # found again after the working folder changes
        text = _read_manifest(root / MANIFEST)
        return cls(
            root=root,
            manifest=parse_manifest(text),
            id=hashlib.sha256(text.encode()).hexdigest(),
        )

    def path(self, name: str) -> Path:
        """The place of the file `name` of bundle.json. BundleError if it is a link that leads out
        of the bundle, other than to the blobs of the Hugging Face cache that the bundle is in."""
        path = self.root / name
        try:
            found, root = path.resolve(), self.root.resolve()
        except (OSError, RuntimeError) as e:  # links in a circle
            raise BundleError(f"{name}: cannot be found ({first_line(e)}): copy it in") from e
        if not found.is_relative_to(root) and found.parent != self._blobs():
            raise BundleError(
                f"{name}: links to a place outside the bundle {self.root}: copy it in"
            )
        return path

    def read(self, name: str, *, limit: int, check_hash: bool = True) -> bytes:
        """The bytes of the file `name`, at most `limit`, which have the size that bundle.json says
        and, with check_hash, the SHA-256. Raises BundleError."""
        self.check_size(name)
        try:
            content = read_regular(self.path(name), limit)
        except OSError as e:
            raise BundleError(f"{name}: cannot be read ({e.strerror}): copy it again") from e
        if check_hash:
            self._compare(name, hashlib.sha256(content).hexdigest())
        return content

    def check_size(self, name: str) -> None:
        """Compare a file's size on disk with the manifest's. Raises BundleError."""
        expected = self.manifest.files[name].size
        try:
            status = self.path(name).stat()
        except OSError as e:
            raise BundleError(
                f"{name}: missing from {self.root}: copy or export the bundle again"
            ) from e
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{name}: is not a regular file: copy or export the bundle again")
        if status.st_size != expected:
            raise BundleError(
                f"{name}: {status.st_size} bytes, but bundle.json says {expected}:"
                f" {self._repair(name)}"
            )

    def check_hash(self, name: str) -> tuple[int, ...]:
        """Compare a file's SHA-256 with the manifest's, reading all of it. Returns the file's
        `fingerprint` from before. Raises BundleError."""
        try:
            with open_regular(self.path(name)) as file:
                before = fingerprint(os.fstat(file.fileno()))
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise BundleError(
                f"{name}: cannot be read ({e.strerror}): check its permissions"
            ) from e
        self._compare(name, actual)
        return before

    def _compare(self, name: str, actual: str) -> None:
        expected = self.manifest.files[name].sha256
        if actual != expected:
            raise BundleError(
                f"{name}: sha256 {actual[:8]}… but bundle.json says {expected[:8]}…:"
                f" {self._repair(name)}"
            )

    def _repair(self, name: str) -> str:
        """The remedy for a damaged file."""
        path = self.path(name).resolve()
        if self._blobs() is None:
            return "copy or export the bundle again"
        return f"delete {path}, and load the bundle by its hf: name, which downloads it again"

    def _blobs(self) -> Path | None:
        """The folder of the files' contents, if the bundle is in the Hugging Face cache."""
        root = self.root.resolve()
        return root.parent.parent / "blobs" if root.parent.name == "snapshots" else None


def describe_files(root: Path, names: Iterable[str]) -> dict[str, FileSpec]:
    """Size and SHA-256 of each named file under `root`, for a manifest being written."""
    return {
        name: FileSpec(size=(root / name).stat().st_size, sha256=hash_file(root / name))
        for name in names
    }


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write bundle.json, after checking that it reads back as the same manifest. Raises BundleError
    if it does not."""
    text = manifest.to_json()
    if parse_manifest(text) != manifest:
        raise BundleError(f"{MANIFEST}: does not survive a round trip through JSON")
    (root / MANIFEST).write_text(text, encoding="utf-8")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _read_manifest(path: Path) -> str:
    try:
        return read_regular(path, MAX_MANIFEST).decode()
    except FileNotFoundError as e:
        raise BundleError(
            f"{path.parent}: holds no {MANIFEST}: give a folder that `edgediff export` wrote"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or first_line(e)
        raise BundleError(
            f"{path}: cannot be read ({reason}): copy or export the bundle again"
        ) from e


def read_fixtures(bundle: Bundle) -> dict[str, AnyArray] | None:
    """The arrays of fixtures.npz: `<stage>/<case>/in/<tensor>`, `<stage>/<case>/out/<tensor>`, and
    of each image of the fidelity report `image/<name>`, with `init/<name>` and `mask/<name>` if it
    was made from others. None if the bundle has no fixtures.

    Raises BundleError for a file that is damaged, larger than MAX_FIXTURES, or of other content."""
    name = bundle.manifest.fixtures
    if name is None:
        return None
    content = bundle.read(name, limit=MAX_FIXTURES)
    try:
        found = _unzip(content)
    except Exception as e:  # zipfile, zlib and numpy raise a dozen unrelated classes
        raise BundleError(
            f"{name}: cannot be read ({first_line(e)}): copy or export the bundle again"
        ) from e
    for key, array in found.items():
        problem = ""
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            problem = "is not an array of numbers"
        elif key.count("/") not in (1, 3):
            problem = "is not named as a fixture"
        if problem:
            raise BundleError(f"{name}: {key[:80]!r} {problem}: export the bundle again")
    # Bundles of version 1 say "picture/".
    return {re.sub("^picture/", "image/", key): array for key, array in found.items()}


def _unzip(content: bytes) -> dict[str, AnyArray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > MAX_FIXTURES or len(entries) > _MOST_FIXTURES:
        raise ValueError(f"{len(entries)} arrays of {size} bytes are more than is read")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("an array comes twice")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)
