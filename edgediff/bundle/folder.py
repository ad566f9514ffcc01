"""A bundle's folder: opens it, and checks its files against the manifest."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from edgediff.arrays import AnyArray
from edgediff.bundle.manifest import MANIFEST, FileSpec, Manifest, parse_manifest
from edgediff.errors import BundleError


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
        root = Path(path)
        try:
            exists = root.exists()
        except (OSError, ValueError) as e:
            raise BundleError(f"{path}: is no path to a bundle ({e})") from e
        if not exists:
            raise BundleError(f"{root}: no such bundle: give a folder that `edgediff export` wrote")
        if not root.is_dir():
            raise BundleError(f"{root}: is a file: give the bundle's folder, not a file in it")
        text = _read_manifest(root / MANIFEST)
        bundle = cls(
            root=root,
            manifest=parse_manifest(text),
            id=hashlib.sha256(text.encode()).hexdigest(),
        )
        for name in bundle.manifest.files:
            bundle.check_size(name)
        return bundle

    def path(self, name: str) -> Path:
        """Where the file `name` of bundle.json lies; BundleError if outside the bundle."""
        path = self.root / name
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise BundleError(
                f"{name}: links to a place outside the bundle {self.root}: copy it in"
            )
        return path

    def check_size(self, name: str) -> None:
        """Compare a file's size on disk with the manifest's. Raises BundleError."""
        expected = self.manifest.files[name].size
        try:
            size = self.path(name).stat().st_size
        except OSError as e:
            raise BundleError(
                f"{name}: missing from {self.root}: copy or export the bundle again"
            ) from e
        if size != expected:
            raise BundleError(
                f"{name}: {size} bytes, but bundle.json says {expected}:"
                " copy or export the bundle again"
            )

    def check_hash(self, name: str) -> None:
        """Compare a file's SHA-256 with the manifest's, reading all of it. Raises BundleError."""
        expected = self.manifest.files[name].sha256
        try:
            actual = hash_file(self.path(name))
        except OSError as e:
            raise BundleError(
                f"{name}: cannot be read ({e.strerror}): check its permissions"
            ) from e
        if actual != expected:
            raise BundleError(
                f"{name}: sha256 {actual[:8]}… but bundle.json says {expected[:8]}…:"
                " copy or export the bundle again"
            )


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
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as e:
        raise BundleError(
            f"{path.parent}: holds no {MANIFEST}: give a folder that `edgediff export` wrote"
        ) from e
    except (OSError, UnicodeDecodeError) as e:
        raise BundleError(f"{path}: cannot be read ({e}): copy or export the bundle again") from e


def read_fixtures(bundle: Bundle) -> dict[str, AnyArray] | None:
    """The arrays of fixtures.npz: `<stage>/<case>/in/<tensor>`, `<stage>/<case>/out/<tensor>`, and
    of each image of the fidelity report `image/<name>`, with `init/<name>` and `mask/<name>` if it
    was made from others. None if the bundle has no fixtures."""
    name = bundle.manifest.fixtures
    if name is None:
        return None
    with np.load(bundle.path(name), allow_pickle=False) as arrays:
        # Bundles of version 1 say "picture/".
        return {re.sub("^picture/", "image/", key): array for key, array in arrays.items()}
