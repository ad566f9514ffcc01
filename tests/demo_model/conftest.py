"""Lets the recipe, which no wheel carries, be imported as `demo_model`."""

import sys
from pathlib import Path

_EXPORT = str(Path(__file__).parents[2] / "export")
if _EXPORT not in sys.path:
    sys.path.append(_EXPORT)
