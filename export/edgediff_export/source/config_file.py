"""The JSON files that say how a pipeline is built."""

import json
from pathlib import Path
from typing import Any

from edgediff.errors import ExportError, first_line


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a pipeline's folder. Raises ExportError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ExportError(
            f"{path}: missing: give a whole diffusers folder, the kind that"
            " pipeline.save_pretrained(folder) writes"
        ) from e
    except (OSError, ValueError) as e:
        raise ExportError(f"{path}: cannot be read ({first_line(e)}): download it again") from e
    if not isinstance(raw, dict):
        raise ExportError(f"{path}: expected a JSON object: download it again")
    return raw
