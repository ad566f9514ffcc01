"""onnxruntime's version and log, and the providers that work here."""

import contextlib
import functools
import importlib
import importlib.util
import io
from typing import Any

import onnxruntime as ort

from edgediff.backend.providers import PROVIDERS, Provider
from edgediff.errors import first_line


def silence_log() -> None:
    """Keep onnxruntime's log off stderr, in a process that is edgediff's own. Errors come back as
    exceptions; an app's log is as the app set it."""
    ort.set_default_logger_severity(4)


def version() -> str:
    """onnxruntime's version."""
    return str(ort.__version__)


def is_installed(name: str) -> bool:
    """Whether the provider's package is installed; `why_missing` says whether it also works."""
    provider = PROVIDERS[name]
    return built_in(provider) or (
        provider.plugin is not None and importlib.util.find_spec(provider.plugin) is not None
    )


def why_missing(name: str) -> str | None:
    """Why the provider `name` cannot be used here, and the remedy; None if it can be used."""
    provider = PROVIDERS[name]
    if built_in(provider):
        return None
    if provider.plugin is None:
        return f"this onnxruntime ({ort.__version__}) was built without it: {provider.install}"
    if not is_installed(name):
        return f"not installed: {provider.install}"
    try:
        devices = plugin_devices(provider)
    except Exception as e:  # the plug-in's own loader may raise anything
        return (
            f"its plug-in {_version(provider.plugin)} does not load in onnxruntime"
            f" {ort.__version__} ({first_line(e)}): {provider.upgrade}"
        )
    return None if devices else "installed, but it finds no device here that it supports"


def _version(package: str) -> str:
    """A package's name on the index and its version."""
    import importlib.metadata  # slow to import, and seldom needed

    name = package.replace("_", "-")
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:  # on the path without having been installed
        return f"{name} (of unknown version)"


@functools.cache
def load_cuda() -> None:
    """Load CUDA and cuDNN if they were installed as Python packages, which onnxruntime does not do
    by itself. It prints the libraries that it cannot load; if the provider then does not start,
    creating the session raises."""
    if hasattr(ort, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def built_in(provider: Provider) -> bool:
    return provider.onnxruntime_name in ort.get_available_providers()


@functools.cache  # a library may be registered once a process
def _register(provider: Provider) -> None:
    plugin = importlib.import_module(provider.plugin or "")
    ort.register_execution_provider_library(provider.onnxruntime_name, plugin.get_library_path())


def plugin_devices(provider: Provider) -> list[Any]:
    """The plug-in's CPU device, or else its first; empty if it supports no device here."""
    _register(provider)
    devices = [d for d in ort.get_ep_devices() if d.ep_name == provider.onnxruntime_name]
    cpus = [d for d in devices if d.device.type == ort.OrtHardwareDeviceType.CPU]
    return (cpus or devices)[:1]
