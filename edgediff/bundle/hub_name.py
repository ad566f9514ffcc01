"""Names on the Hugging Face hub: `hf:owner/name`, or `hf:owner/name@revision`."""

import re
from dataclasses import dataclass

from edgediff.errors import BundleError

PREFIX = "hf:"
_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?)"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A repository, "owner/name", at a revision: a branch, a tag, a commit, or None for the main
    branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def is_hub_name(text: object) -> bool:
    """Whether a text names a repository of the hub. A local folder of such a name is `./hf:…`, or a
    Path."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_hub_name(text: str) -> HubName:
    """owner/name or owner/name@revision, with or without `hf:`. Raises BundleError."""
    m = _NAME.fullmatch(text.removeprefix(PREFIX))
    if (
        m is None
        or ".." in text
        or text.endswith("/")
        or "--" in m["repository"]
        or m["repository"].endswith(".git")
    ):
        raise BundleError(
            f"{text}: is not a name on the hub: give hf:owner/name, or hf:owner/name@revision"
        )
    return HubName(repository=m["repository"], revision=m["revision"])


def parse_target(text: str) -> HubName:
    """The repository of a push, as `parse_hub_name`, without a revision. Raises BundleError."""
    name = parse_hub_name(text)
    if name.revision is not None:
        raise BundleError(f"{text}: a push goes to the main branch: leave @{name.revision} out")
    return name
