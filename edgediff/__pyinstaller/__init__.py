"""For PyInstaller: where the hook lies that packages edgediff with its model."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folders of hooks, as the entry point `pyinstaller40` gives them."""
    return [str(Path(__file__).parent)]
