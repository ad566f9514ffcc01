"""Options of a session: provider, threads, caches, and records for measurements."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgediff.backend.providers import check_provider_name
from edgediff.checks import check_whole
from edgediff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Observe:
    """What sessions record while they run, for benchmarks; it costs time.

    placement: which provider each node got. profile: a folder for onnxruntime's own profiles."""

    placement: bool = False
    profile: Path | None = None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How sessions run. `threads`: intra-op CPU threads, None = one per core; at most
    `cores.usable_cores` run.

    `cache_dir`: folder for the results of a provider that compiles, made with the first session;
    None = nowhere. `provider_options` are handed to the provider as they are, and override what
    edgediff would set. `shrink_arena`: give the work space back after every run, on the CPU; the
    next run then takes a third longer for large images."""

    provider: str = "cpu"
    threads: int | None = None
    cache_dir: Path | None = None
    provider_options: Mapping[str, str] = field(default_factory=dict)
    shrink_arena: bool = False
    observe: Observe = Observe()

    def __post_init__(self) -> None:
        check_provider_name(self.provider)
        if self.provider == "cpu" and self.provider_options:
            names = ", ".join(self.provider_options)
            raise InputError(f"`provider_options` {names}: the provider cpu takes none")
        if self.threads is not None:
            object.__setattr__(self, "threads", check_whole("threads", self.threads))
