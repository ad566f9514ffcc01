"""FILE[:VALUE] on the command line, and files that are no safetensors."""

from pathlib import Path

import pytest
from edgediff_export.source.safetensors_file import open_tensors, split_argument

from edgediff.errors import ExportError


@pytest.mark.parametrize(
    ("text", "file", "value"),
    [
        ("a.safetensors", "a.safetensors", None),
        ("a.safetensors:0.5", "a.safetensors", "0.5"),
        ("a.safetensors:", "a.safetensors", ""),
        ("a.safetensors:b:c", "a.safetensors", "b:c"),
        ("d:b.safetensors", "d:b.safetensors", None),
        ("d:b.safetensors:<x>", "d:b.safetensors", "<x>"),
        ("d:b.safetensors:1:2", "d:b.safetensors:1", "2"),
        ("absent.safetensors:2", "absent.safetensors", "2"),
        ("C:\\absent.safetensors", "C:\\absent.safetensors", None),
        ("C:\\absent.safetensors:2", "C:\\absent.safetensors", "2"),
        ("absent.pt:2", "absent.pt", "2"),
        ("absent:2", "absent:2", None),
        ("", "", None),
        (":", ":", None),
    ],
)
def test_file_and_value(
    text: str, file: str, value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.safetensors", "d:b.safetensors", "d:b.safetensors:1"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert split_argument(text) == (Path(file), value)


def test_what_is_not_there_or_not_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--lora .*absent: no such file"):
        open_tensors(tmp_path / "absent", flag="--lora")
    with pytest.raises(ExportError, match=r"is a folder: give the \.safetensors file"):
        open_tensors(tmp_path, flag="--lora")
    pickle = tmp_path / "a.pt"
    pickle.write_bytes(b"\x80\x02")
    with pytest.raises(ExportError, match=r"a pickle.*safetensors only"):
        open_tensors(pickle, flag="--lora")
    renamed = pickle.rename(tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"a pickle under another name"):
        open_tensors(renamed, flag="--lora")
    renamed.write_bytes(bytes(range(100, 180)))
    with pytest.raises(ExportError, match=r"not a safetensors file.*download it again"):
        open_tensors(renamed, flag="--lora")
