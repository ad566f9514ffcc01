"""What a provider that compiles keeps between runs: where, and whether it was there already."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Outcome = Literal["hit", "miss", "unused"]
"""Of a cache: what was asked for was there, was not, or nothing was asked for."""

ENGINE, TIMING, GRAPH = "engine", "timing", "graph"
_KINDS = {".engine": ENGINE, ".timing": TIMING, ".profile": None}
"""By suffix, of TensorRT's files; a profile goes with its engine. Others are a compiled graph."""

Listing = Mapping[Path, tuple[int, int]]
"""File → (bytes, time of its last change)."""


class Cache:
    """The cache of one graph in one set of shapes, as it was before the graph was compiled.

    A folder of its own, since TensorRT names an engine by the names in its graph alone, and takes
    that of other shapes, or of another bundle, for the one it wants. Its timing cache, which holds
    what kernels of any graph took, lies beside these folders, in `root`."""

    def __init__(self, root: Path, file: str, dimensions: Mapping[str, int]) -> None:
        self.root = root
        sizes = (str(size) for _, size in sorted(dimensions.items()))
        self.folder = root / "-".join((Path(file).stem, *sizes))
        self._before = self._listing()

    def outcomes(self) -> dict[str, Outcome]:
        """Kind ("engine" and "timing", or "graph") → what became of it up to now."""
        return outcomes(self._before, self._listing())

    def _listing(self) -> Listing:
        files = [f for f in self.folder.rglob("*") if f.is_file()]
        states = {f: f.stat() for f in (*files, *self.root.glob("*.timing"))}
        return {f: (state.st_size, state.st_mtime_ns) for f, state in states.items()}


def outcomes(before: Listing, after: Listing) -> dict[str, Outcome]:
    """What the files of a cache, before and after a graph was made ready, say of it."""
    found: dict[str, Outcome] = {}
    for kind in (ENGINE, GRAPH, TIMING):
        old, new = _of(before, kind), _of(after, kind)
        if kind == TIMING and found.get(ENGINE) == "hit":
            found[kind] = "unused"  # it is read where an engine is built
        elif kind == TIMING and new:
            found[kind] = "hit" if old else "miss"  # every build adds to it
        elif new:
            found[kind] = "hit" if old == new else "miss"
    return found


def _of(listing: Listing, kind: str) -> dict[Path, tuple[int, int]]:
    return {f: state for f, state in listing.items() if _KINDS.get(f.suffix, GRAPH) == kind}


def default_cache_dir(bundle_id: str) -> Path | None:
    """The default folder, in the user's cache, for the results of a provider that compiles this
    bundle. None if it could not be written. Creates nothing."""
    try:
        folder = _user_cache() / "edgediff" / bundle_id[:16]
        existing = next(f for f in (folder, *folder.parents) if f.exists())
    except (RuntimeError, OSError):  # a user without a home, or one that may not be looked into
        return None
    return folder if existing.is_dir() and os.access(existing, os.W_OK) else None


def _user_cache() -> Path:
    """The platform's folder for what can be made again."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG base directory specification: a relative path is to be ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"
