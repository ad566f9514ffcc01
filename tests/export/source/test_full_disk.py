"""A disk that fills up while a checkpoint in one file is exported: one line says so, and nothing is
left."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.bundle_folder import folder_in_one_piece
from edgediff_export.source import single_file
from edgediff_export.source.open import open_source
from safetensors.torch import save_file

from edgediff.errors import ExportError


def contents(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


_CHECKPOINT = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    "first_stage_model.decoder.conv_in.bias": (4,),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (4,),
}


def test_a_full_disk_while_a_single_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of the configs that are written for it."""
    monkeypatch.setattr(single_file, "_cached_configs", lambda _: None)
    checkpoint = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in _CHECKPOINT.items()}, checkpoint)
    whole, left = Path.write_text, [0]

    def write_text(self: Path, text: str, **options: Any) -> int:
        if left[0] == 0:
            whole(self, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        left[0] -= 1
        return whole(self, text, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    out = tmp_path / "exports" / "out"
    out.parent.mkdir()

    def run() -> None:
        with folder_in_one_piece(out, force=False) as work:
            open_source(str(checkpoint), work=work)
            (work / "bundle").mkdir()

    for before in range(8):
        left[0] = before
        with pytest.raises(ExportError, match=r"the disk is full .*; nothing was written"):
            run()
        assert contents(out.parent) == set()
    left[0] = 8
    run()
    assert contents(out.parent) == {"out"}


_ONE_FILE = (
    "from pathlib import Path; from edgediff_export.source import single_file;"
    " single_file._cached_configs = lambda _: Path({configs!r}); "
)
_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); "


@pytest.mark.slow
@pytest.mark.parametrize("size", [500, 400_000, 3_000_000])
def test_a_disk_that_fills_up_under_a_single_file(
    size: int,
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """At the tokenizer, at a graph and at weights."""
    folder = small_pipeline("sd1")
    save_file(checkpoint(folder), tmp_path / "model.safetensors")
    (tmp_path / "exports").mkdir()
    code = (
        _LIMIT.format(size=size)
        + _ONE_FILE.format(configs=str(folder))
        + "from edgediff.cli import main; main()"
    )
    arguments = ["export", str(tmp_path / "model.safetensors"), str(tmp_path / "exports" / "out")]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    errors = [line for line in run.stderr.splitlines() if " s  " not in line]
    assert len(errors) == 1, run.stderr
    assert "the disk is full" in errors[0]
    assert contents(tmp_path / "exports") == set()
