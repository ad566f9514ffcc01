"""edgediff: text-to-image latent diffusion on edge devices, without torch.

import edgediff

pipe = edgediff.load()  # the built-in model; or load("path/to/bundle")
result = pipe.generate("a red apple", seed=7)
result.images[0].show()
"""

from typing import TYPE_CHECKING, Any

from edgediff._version import __version__

if TYPE_CHECKING:
    from edgediff.batch import Outcome, prepare_jobs, run_jobs
    from edgediff.errors import (
        BundleError,
        Cancelled,
        DeadlineExceeded,
        EdgediffError,
        ExportError,
        InputError,
        ProviderError,
    )
    from edgediff.images.canny import edges
    from edgediff.pipeline import Pipeline, load
    from edgediff.prompt_file import Job, read_jobs
    from edgediff.request.control import Control
    from edgediff.request.options import Options
    from edgediff.request.record import Recorded, recorded
    from edgediff.request.request import Request
    from edgediff.result import Progress, Result, Timings
    from edgediff.run import Run
    from edgediff.sampling.samplers import Step
    from edgediff.text.tokenizer import PromptReport
    from edgediff.verification import verify

_HOMES = {
    "BundleError": "errors",
    "Cancelled": "errors",
    "Control": "request.control",
    "DeadlineExceeded": "errors",
    "EdgediffError": "errors",
    "ExportError": "errors",
    "InputError": "errors",
    "Job": "prompt_file",
    "Options": "request.options",
    "Outcome": "batch",
    "Pipeline": "pipeline",
    "Progress": "result",
    "PromptReport": "text.tokenizer",
    "ProviderError": "errors",
    "Recorded": "request.record",
    "Request": "request.request",
    "Result": "result",
    "Run": "run",
    "Step": "sampling.samplers",
    "Timings": "result",
    "edges": "images.canny",
    "load": "pipeline",
    "prepare_jobs": "batch",
    "read_jobs": "prompt_file",
    "recorded": "request.record",
    "run_jobs": "batch",
    "verify": "verification",
}

__all__ = [
    "BundleError",
    "Cancelled",
    "Control",
    "DeadlineExceeded",
    "EdgediffError",
    "ExportError",
    "InputError",
    "Job",
    "Options",
    "Outcome",
    "Pipeline",
    "Progress",
    "PromptReport",
    "ProviderError",
    "Recorded",
    "Request",
    "Result",
    "Run",
    "Step",
    "Timings",
    "__version__",
    "edges",
    "load",
    "prepare_jobs",
    "read_jobs",
    "recorded",
    "run_jobs",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use, so that `import edgediff` is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgediff' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"edgediff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
