"""Uploads of bundles to the Hugging Face hub."""

from pathlib import Path

from edgediff.bundle.card import CARD
from edgediff.bundle.folder import Bundle
from edgediff.bundle.hub_client import agent, plain_errors, unreachable
from edgediff.bundle.hub_name import HubName
from edgediff.bundle.manifest import MANIFEST
from edgediff.errors import BundleError

_RESERVED = (CARD.casefold(), ".git", ".cache", ".gitattributes")
"""Names in lower case that no file of a pushed bundle may have: the model card's and the hub's."""
_CONFLICT = 409
"""The hub's answer if a repository to be created exists."""


def files_to_push(bundle: Bundle) -> dict[str, Path]:
    """Where bundle.json and each file that it lists lie, by their paths in the repository.

    Raises BundleError for a file that links out of the bundle, and for one that the model card
    would replace or the hub's client refuses."""
    for file in bundle.manifest.files:
        if file.casefold() in _RESERVED:
            raise BundleError(
                f"{file}: cannot be pushed, as the hub needs this name for itself: rename the file,"
                f" also in {MANIFEST}"
            )
    return {file: bundle.path(file) for file in (MANIFEST, *bundle.manifest.files)}


def push_bundle(
    bundle: Bundle, name: HubName, card: str, *, private: bool = False, show_bars: bool = False
) -> str:
    """Upload bundle.json, the files that it lists, and the model card, in one commit → its address.

    private: create the repository as a private one. show_bars: let the client show its progress on
    stderr.

    Raises BundleError, also as `files_to_push` does, for a file that differs from its hash, and if
    `private` and the repository exists and is public. Files are checked before anything is sent."""
    files = files_to_push(bundle)
    for file in bundle.manifest.files:
        bundle.check_hash(file)
    with plain_errors(name, "", writes=True, show_bars=show_bars) as hub:
        if (reason := unreachable(hub)) is not None:
            raise BundleError(
                f"hf:{name}: the hub cannot be reached ({reason}): check the connection"
            )
        api = hub.HfApi(**agent())
        try:
            api.create_repo(name.repository, private=private, exist_ok=False)
        except hub.errors.HfHubHTTPError as e:
            if e.response is None or e.response.status_code != _CONFLICT:
                raise
            if private and not api.model_info(name.repository).private:
                raise BundleError(
                    f"hf:{name}: exists and is public: make it private on the hub first, or leave"
                    " --private out"
                ) from e
        operations = [
            hub.CommitOperationAdd(path_in_repo=file, path_or_fileobj=str(path))
            for file, path in files.items()
        ]
        operations.append(hub.CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=card.encode()))
        commit = api.create_commit(
            name.repository, operations, commit_message=f"{bundle.manifest.name} for edgediff"
        )
        return str(commit.commit_url)
