"""The client of the Hugging Face hub: quiet, and with errors of one sentence.

The only module of the runtime that uses the network, and only for a bundle on the hub or a push."""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edgediff._version import __version__
from edgediff.bundle.hub_name import HubName
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError, first_line

_BARS = "huggingface_hub"
_PATIENCE = 5.0
"""Seconds to wait until the hub's address answers."""
_REFUSED = (401, 403, 404)
"""The hub's answers to a token that may not write."""


@contextlib.contextmanager
def client(name: HubName, *, show_bars: bool = False, group: str | None = _BARS) -> Iterator[Any]:
    """The module huggingface_hub, which prints nothing while the block runs, but for its progress
    if `show_bars`.

    group: of the client's progress bars; None = all, also those of uploads, which have no name.

    Raises BundleError if it is not installed."""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants, errors, utils  # noqa: F401 - read as hub.errors
    except ModuleNotFoundError as e:
        raise BundleError(
            f'hf:{name}: needs {e.name}: pip install "edgediff[hub]", or download the folder and'
            " give its path"
        ) from e
    # Imported here, as its import resets the level.
    from huggingface_hub.utils import logging

    logger = logging.get_logger()
    hides = not show_bars and constants.HF_HUB_DISABLE_PROGRESS_BARS is None

    def quieten() -> Callable[[], None]:
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        return lambda: logger.setLevel(level)

    def hide() -> Callable[[], None]:
        if utils.are_progress_bars_disabled(group):
            return lambda: None
        utils.disable_progress_bars(group)
        return lambda: utils.enable_progress_bars(group)

    with contextlib.ExitStack() as stack:
        stack.enter_context(_shared("log", quieten))
        if hides:
            stack.enter_context(_shared(f"bars of {group}", hide))
        yield hub


_lock = threading.Lock()
_shares: dict[str, tuple[int, Callable[[], None]]] = {}
"""Setting → the blocks that need it now, and the call that restores the app's own."""


@contextlib.contextmanager
def _shared(setting: str, change: Callable[[], Callable[[], None]]) -> Iterator[None]:
    """Change a setting of the whole process while at least one such block runs, in any thread: the
    first changes it, the last restores it.

    change: makes the change → the call that undoes it."""
    with _lock:
        users, restore = _shares.get(setting) or (0, change())
        _shares[setting] = (users + 1, restore)
    try:
        yield
    finally:
        with _lock:
            users, restore = _shares.pop(setting)
            if users == 1:
                restore()
            else:
                _shares[setting] = (users - 1, restore)


@contextlib.contextmanager
def plain_errors(
    name: HubName, file: str, *, writes: bool = False, show_bars: bool = False
) -> Iterator[Any]:
    """The client, see `client`; its errors become one sentence each.

    file: the one that is asked for, "" for none. writes: whether the block uploads. Raises
    BundleError."""
    with client(name, show_bars=show_bars, group=None if writes else _BARS) as hub:
        try:
            yield hub
        except BundleError:
            raise
        except Exception as e:  # the client and its libraries raise a dozen unrelated classes
            status = getattr(getattr(e, "response", None), "status_code", None)
            if writes and status in _REFUSED:
                reason = (
                    f"may not be written ({status}): set HF_TOKEN to a token with write access to"
                    f" {name.repository.partition('/')[0]}"
                )
            else:
                reason = explain(hub.errors, e, name, file)
            if file and reason.endswith("try again"):
                reason += ", and the download goes on where it stopped"
            raise BundleError(f"hf:{name}: {reason}") from e


def explain(errors: Any, e: Exception, name: HubName, file: str) -> str:
    """Why the hub's client failed, and the remedy.

    errors: the module huggingface_hub.errors. file: the one that was asked for, "" for none."""
    cause = e.__cause__ if isinstance(e, errors.LocalEntryNotFoundError) else e
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.GatedRepoError):
        return (
            f"is gated: accept its terms at https://huggingface.co/{name.repository} and set"
            " HF_TOKEN to a token of that account"
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            "no such repository on the hub, or a private one: check the name, or set HF_TOKEN to a"
            " token that may read it"
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"has no revision {name.revision!r}: give a branch, a tag or a commit"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return (
            "is not in the local cache, or not all of it, and HF_HUB_OFFLINE is set: unset it once,"
            " or give a local folder"
        )
    if isinstance(cause, errors.EntryNotFoundError):
        if file == MANIFEST:
            return (
                f"holds no {MANIFEST}, so it is not a bundle: `edgediff export hf:{name} OUT` makes"
                " one of a diffusers pipeline"
            )
        return f"holds no {file}, so that it is incomplete: its owner must push it again"
    if status is not None:
        return f"the hub answered {status} ({first_line(e)}): try again later, or check HF_TOKEN"
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk of the hub's cache is full: free some space, or set HF_HOME elsewhere"
    if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EROFS):
        return f"the hub's cache cannot be written ({first_line(cause)}): set HF_HOME elsewhere"
    if isinstance(e, errors.LocalEntryNotFoundError):
        return _no_connection(first_line(cause or e))
    return f"the connection to the hub failed ({first_line(e)}): try again"


def unreachable(hub: Any) -> str | None:
    """Why the hub's address cannot be connected to, or None if it can, or if the client decides:
    behind a proxy, or offline. The client itself would try again for half a minute."""
    import socket
    import urllib.parse
    import urllib.request

    if hub.constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return None
    address = urllib.parse.urlsplit(hub.constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError as e:
        return first_line(e)
    return None


def require_reachable(name: HubName, reason: str | None) -> None:
    if reason is not None:
        raise BundleError(f"hf:{name}: {_no_connection(reason)}")


def _no_connection(reason: str) -> str:
    return (
        f"the hub cannot be reached ({reason}), and the local cache does not have all of it: check"
        " the connection, or give a local folder"
    )


def agent() -> dict[str, str]:
    """How the client introduces itself to the hub."""
    return {"library_name": "edgediff", "library_version": __version__}
