"""A graph and its weights as onnxruntime is given them: checked before it sees them.

The graph is read once, into memory, and its bytes are hashed, walked for the files that they name,
and handed over. The weights stay in their files, which onnxruntime maps into memory; they are
hashed beside the loading, and must be the same files, unchanged, when that has ended. A file that
is replaced by renaming leaves a loaded model as it was; one that is overwritten in place changes
the weights of a model that has it mapped, as with any mapped file.
"""

import contextlib
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgediff.bundle.external_data import external_files
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec
from edgediff.errors import BundleError
from edgediff.files import fingerprint, open_regular, read_regular

MAX_GRAPH = 2**31 - 1
"""Bytes of a graph without its weights; protobuf reads no larger message."""


@dataclass(frozen=True, kw_only=True)
class GraphFiles:
    """model: the serialized graph. folder: where the files of its weights lie.
    linked: weights file → target of its link; onnxruntime follows no link out of the folder."""

    model: bytes = field(repr=False)
    folder: Path
    linked: Mapping[str, Path] = field(default_factory=dict)

    @contextlib.contextmanager
    def mapped(self) -> Iterator[dict[str, mmap.mmap]]:
        """The content of the linked files, by their names, while the block runs."""
        with contextlib.ExitStack() as stack:
            found = {}
            for name, path in self.linked.items():
                file = stack.enter_context(open_regular(path))
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                found[name] = stack.enter_context(contextlib.closing(view))
            yield found


def graph_files(path: Path, spec: GraphSpec) -> GraphFiles:
    """Read a graph that no bundle vouches for, with its weights beside it. Raises BundleError."""
    try:
        model = read_regular(path, MAX_GRAPH)
    except OSError as e:
        raise BundleError(f"{spec.file}: cannot be read ({e.strerror or e})") from e
    _check_locations(model, spec)
    return GraphFiles(model=model, folder=path.resolve().parent)


def bundle_graph_files(bundle: Bundle, stage: str, *, check_hashes: bool) -> GraphFiles:
    """Read a graph of a bundle, and find its weights. Raises BundleError if it is not the one that
    bundle.json lists, or names weights that it does not list."""
    spec = bundle.manifest.graphs[stage]
    model = bundle.read(spec.file, limit=MAX_GRAPH, check_hash=check_hashes)
    _check_locations(model, spec)
    for name in spec.data:
        bundle.check_size(name)
    folder = bundle.root.resolve()
    paths = {name: bundle.path(name).resolve() for name in spec.data}
    linked = {name: path for name, path in paths.items() if path.parent != folder}
    return GraphFiles(model=model, folder=folder, linked=linked)


@contextlib.contextmanager
def checked_beside(bundle: Bundle, names: Iterable[str]) -> Iterator[None]:
    """Hash files in a thread while the block loads them, and see afterwards that they are still
    those that were hashed.

    Raises BundleError, also in place of an error of the block, which a damaged file explains."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        seen = pool.submit(lambda: {name: bundle.check_hash(name) for name in names})
        try:
            yield
        except Exception:
            seen.result()
            raise
        for name, before in seen.result().items():
            try:
                now = bundle.path(name).stat()
            except OSError as e:
                raise BundleError(f"{name}: was removed while it was loaded") from e
            if fingerprint(now) != before:
                raise BundleError(f"{name}: was changed while it was loaded: load the bundle again")


def _check_locations(model: bytes, spec: GraphSpec) -> None:
    unlisted = external_files(model, spec.file) - {*spec.data}
    if unlisted:
        raise BundleError(
            f"{spec.file}: has weights in {min(unlisted)!r}, which bundle.json does not list for"
            " it: the files of two bundles were mixed, or it was altered: copy or export the bundle"
            " again"
        )
