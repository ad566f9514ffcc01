"""See that lowest.txt pins what pyproject.toml names, and that this environment has it."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

CI = Path(__file__).parent
project = tomllib.loads((CI.parent / "pyproject.toml").read_text())["project"]
bounds = dict(re.fullmatch(r"([a-z-]+)>=([0-9.]+)", d).groups() for d in project["dependencies"])
lines = (CI / "lowest.txt").read_text().splitlines()
pins = dict(line.split("==") for line in lines if not line.startswith("#"))


def padded(version: str) -> tuple[int, ...]:
    parts = tuple(map(int, version.split(".")))
    return parts + (0,) * (3 - len(parts))


for name, bound in bounds.items():
    installed = importlib.metadata.version(name)
    if installed != pins[name]:
        raise SystemExit(f"{name} is {installed}, expected {pins[name]}")
    # A release that was never made counts as the first after it: there is no onnxruntime 1.24.0.
    if padded(pins[name])[:2] != padded(bound)[:2]:
        raise SystemExit(f"{name}: lowest.txt pins {pins[name]}, pyproject.toml says {bound}")
sys.stdout.write(", ".join(f"{name} {version}" for name, version in pins.items()) + "\n")
