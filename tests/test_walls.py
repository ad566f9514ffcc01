"""The runtime runs without the export stage and what that needs, starts quickly and sends nothing.

import-linter and ruff read the source; this runs it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = (
    *("edgediff_export", "torch", "onnx", "onnx_ir", "optimum", "transformers"),
    *("diffusers", "safetensors"),
)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", ["generate", "verify", "info", "providers"])
def test_a_command_imports_nothing_of_the_dev_machine(
    command: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    arguments = {
        "generate": ["generate", "a fox", "-m", str(tiny_bundle), "-o", str(tmp_path / "a.png")],
        "verify": ["verify", str(tiny_bundle)],
        "info": ["info", str(tiny_bundle)],
        "providers": ["providers"],
    }[command]
    done = run_python(
        "import sys\n"
        f"sys.argv = ['edgediff', *{arguments!r}]\n"
        "from edgediff.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as e:\n"
        "    assert e.code == 0, e.code\n"
        f"loaded = [m for m in {FORBIDDEN!r} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_wall_would_be_noticed() -> None:
    """The check above sees a forbidden import where there is one."""
    done = run_python("import sys, onnx; assert 'onnx' not in sys.modules")
    assert done.returncode == 1


def test_importing_edgediff_loads_nothing_heavy() -> None:
    done = run_python(
        "import sys, edgediff\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'PIL', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_help_loads_neither_numpy_nor_onnxruntime() -> None:
    done = run_python(
        "import sys\n"
        "sys.argv = ['edgediff', '--help']\n"
        "from edgediff.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_public_names_exist_and_are_documented() -> None:
    import edgediff

    assert dir(edgediff) == edgediff.__all__ == sorted(edgediff.__all__, key=edgediff.__all__.index)
    for name in edgediff.__all__:
        value = getattr(edgediff, name)
        assert name == "__version__" or value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = edgediff.nope


def test_onnxruntime_reports_nothing_home(tiny_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime's telemetry keeps a device id in the home folder; there must be none."""
    unset = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
    done = subprocess.run(
        [sys.executable, "-c", f"import edgediff; edgediff.load({str(tiny_bundle)!r})"],
        env={**unset, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []
