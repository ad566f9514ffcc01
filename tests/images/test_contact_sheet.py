"""Contact sheets: the positions of images and labels, and arguments that are refused."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediff.errors import InputError
from edgediff.images import contact_sheet as sheet
from edgediff.images.contact_sheet import contact_sheet


def solid(color: str, width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """The runs of True in a vector, as (start, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(int), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (5, 3, 2), (8, 4, 2), (9, 3, 3), (36, 6, 6)],
)
def test_columns_suit_the_count(count: int, columns: int, rows: int) -> None:
    made = contact_sheet([solid("#ff0000")] * count, [str(k) for k in range(count)])
    red = np.all(np.asarray(made) == (255, 0, 0), axis=-1)
    assert [e - s for s, e in spans(red.any(axis=0))] == [64] * columns
    assert [e - s for s, e in spans(red.any(axis=1))] == [64] * rows
    assert red.sum() == count * 64 * 64


@pytest.mark.parametrize(("size", "columns"), [((256, 64), 2), ((64, 256), 5)])
def test_wide_images_are_stacked_and_high_images_are_side_by_side(
    size: tuple[int, int], columns: int
) -> None:
    made = contact_sheet([solid("#ff0000", *size)] * 5, [""] * 5)
    red = np.all(np.asarray(made) == (255, 0, 0), axis=-1)
    assert len(spans(red.any(axis=0))) == columns


def test_labels_are_below_their_images_and_the_title_on_top() -> None:
    images = [solid("#ff0000"), solid("#00ff00")]
    plain = np.asarray(contact_sheet(images, ["", ""]))
    labelled = np.asarray(contact_sheet(images, ["", "seed 7"]))
    differ = (plain != labelled[: len(plain)]).any(axis=(0, 2))
    assert not differ[: differ.size // 2].any()
    titled = contact_sheet(images, ["", "seed 7"], title="a fox")
    assert titled.height > len(labelled)
    assert (np.asarray(titled)[: titled.height - len(labelled)] < 128).any()


@pytest.mark.parametrize(
    "text", ["a fox " * 200, "x" * 5000, "日本語 " * 300, "ä" * 300, "two\nlines", " ", ""]
)
def test_any_text_stays_inside_its_cell(text: str) -> None:
    made = contact_sheet([solid("#ff0000")] * 2, [text, ""], title=text)
    assert made.width == 320
    assert made.height < 300
    ink = np.asarray(made)[:, :4]
    assert (ink == 255).all()


def test_characters_that_the_font_lacks_are_replaced() -> None:
    font = sheet._font(512)
    assert sheet._writable("Bär e\u0301 日本 🦊", font) == "Bar e ?? ?"


def test_images_are_shrunk_on_large_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "MAX_SIDE", 128)
    made = contact_sheet([solid("#ff0000")] * 16, [str(k) for k in range(16)])
    red = np.all(np.asarray(made) == (255, 0, 0), axis=-1)
    assert red.sum() == 16 * 32 * 32


def test_images_of_different_sizes_are_centred_in_their_cells() -> None:
    made = contact_sheet([solid("#ff0000", 64, 64), solid("#0000ff", 32, 16)], ["", ""])
    blue = np.all(np.asarray(made) == (0, 0, 255), axis=-1)
    assert (blue.any(axis=0).sum(), blue.any(axis=1).sum()) == (32, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "no images"),
        (([solid("red")], []), "0 labels for 1 images"),
        (([solid("red")], ["a"], 0), "columns is 0"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], message: str) -> None:
    images, labels, *columns = arguments
    with pytest.raises(InputError, match=message):
        contact_sheet(images, labels, columns=columns[0] if columns else None)
