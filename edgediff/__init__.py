"""edgediff: text-to-image latent diffusion on the edge, without torch.

import edgediff

pipe = edgediff.load()  # the built-in model; or load("path/to/bundle")
result = pipe.generate("a red apple", seed=7)
result.images[0].show()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgediff.errors import (
        BundleError,
        EdgediffError,
        ExportError,
        InputError,
        ProviderError,
    )
    from edgediff.pipeline import Pipeline, PromptReport, Result, Timings, load
    from edgediff.samplers import Step
    from edgediff.verification import verify

__version__ = "0.1.0"

_HOMES = {
    "BundleError": "errors",
    "EdgediffError": "errors",
    "ExportError": "errors",
    "InputError": "errors",
    "Pipeline": "pipeline",
    "PromptReport": "pipeline",
    "ProviderError": "errors",
    "Result": "pipeline",
    "Step": "samplers",
    "Timings": "pipeline",
    "load": "pipeline",
    "verify": "verification",
}

__all__ = [
    "BundleError",
    "EdgediffError",
    "ExportError",
    "InputError",
    "Pipeline",
    "PromptReport",
    "ProviderError",
    "Result",
    "Step",
    "Timings",
    "__version__",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module at first use: `import edgediff` itself loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgediff' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"edgediff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
