"""The caches of providers that compile: their folders, and whether a lookup was a hit or a miss."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Outcome = Literal["hit", "miss", "unused"]
"""Of a cache: it had the entry, it did not, or it was not looked up."""

ENGINE, TIMING, GRAPH = "engine", "timing", "graph"
_KINDS = {".engine": ENGINE, ".timing": TIMING, ".profile": None}
"""TensorRT's files by suffix; a profile goes with its engine. All other files are a compiled graph.
"""

Listing = Mapping[Path, tuple[int, int]]
"""File → (size in bytes, time of its last change in ns)."""


class Cache:
    """The cache of one graph with one set of shapes; remembers its state before the graph is
    compiled.

    Each has its own folder, because TensorRT names an engine only by the names in its graph, and
    would take an engine for other shapes, or of another bundle, for this one. Its timing cache,
    which holds kernel timings of any graph, is next to these folders, in `root`."""

    def __init__(self, root: Path, file: str, dimensions: Mapping[str, int]) -> None:
        self.root = root
        sizes = (str(size) for _, size in sorted(dimensions.items()))
        self.folder = root / "-".join((Path(file).stem, *sizes))
        self._before = self._listing()

    def outcomes(self) -> dict[str, Outcome]:
        """Kind of cache ("engine" and "timing", or "graph") → its outcome up to now."""
        return outcomes(self._before, self._listing())

    def _listing(self) -> Listing:
        files = [f for f in self.folder.rglob("*") if f.is_file()]
        states = {f: f.stat() for f in (*files, *self.root.glob("*.timing"))}
        return {f: (state.st_size, state.st_mtime_ns) for f, state in states.items()}


def outcomes(before: Listing, after: Listing) -> dict[str, Outcome]:
    """Kind of cache → its outcome, from the cache's files before and after a graph was compiled."""
    found: dict[str, Outcome] = {}
    for kind in (ENGINE, GRAPH, TIMING):
        old, new = _of(before, kind), _of(after, kind)
        if kind == TIMING and found.get(ENGINE) == "hit":
            found[kind] = "unused"  # it is only read when an engine is built
        elif kind == TIMING and new:
            found[kind] = "hit" if old else "miss"  # every build adds to it
        elif new:
            found[kind] = "hit" if old == new else "miss"
    return found


def _of(listing: Listing, kind: str) -> dict[Path, tuple[int, int]]:
    return {f: state for f, state in listing.items() if _KINDS.get(f.suffix, GRAPH) == kind}


def default_cache_dir(bundle_id: str) -> Path | None:
    """The default cache of a bundle: a folder of its own in the user's cache, or None if that is
    not writable. Creates nothing."""
    try:
        folder = _user_cache() / "edgediff" / bundle_id[:16]
        existing = next(f for f in (folder, *folder.parents) if f.exists())
    except (RuntimeError, OSError):  # a user without a home, or with one that cannot be read
        return None
    return folder if existing.is_dir() and os.access(existing, os.W_OK) else None


def _user_cache() -> Path:
    """The platform's cache folder."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    # The XDG base directory specification says to ignore a relative path.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return xdg if xdg.is_absolute() else Path.home() / ".cache"
