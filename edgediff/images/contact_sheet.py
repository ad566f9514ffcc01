"""Contact sheets: many images on one sheet, each with its label."""

import math
import unicodedata
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from edgediff.errors import InputError

MAX_SIDE = 8192
"""About the most pixels of a sheet's longer side; images are shrunk if it would be longer."""

_MARGIN = 8
_MIN_WIDTH = 320  # below it a title has no room
_MAX_LINES = 3
_MAX_TEXT = 1000  # more than three lines hold, in characters
_WIDEST = 3
_INK, _FAINT, _PAPER = "#333333", "#dddddd", "white"


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    title: str = "",
    columns: int | None = None,
) -> Image.Image:
    """One RGB image with a title, and below it the images row by row, each above its label.

    Labels and title are in pillow's own font, which has little more than ASCII: accents are
    dropped, and any other character becomes "?". Text is broken into at most three lines; longer
    text ends in "…".
    columns: None = by count and size: square images go 2 in one row, 5 in rows of three, 36 in rows
        of six.

    Raises InputError if there are no images, if their number is not that of the labels, or if
    `columns` is below 1."""
    if not images:
        raise InputError("a contact sheet of no images: give at least one")
    if len(labels) != len(images):
        raise InputError(f"{len(labels)} labels for {len(images)} images: give one for each")
    width, height = max(p.width for p in images), max(p.height for p in images)
    if columns is None:
        columns = _columns(len(images), width, height)
    if columns < 1:
        raise InputError(f"columns is {columns}: expected 1 or more")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    shrink = min(1.0, MAX_SIDE / (columns * width), MAX_SIDE / (rows * height))
    if shrink < 1:
        images = [_shrunk(p, shrink) for p in images]
        width, height = max(p.width for p in images), max(p.height for p in images)

    font = _font(min(width, height))
    line = font.size * 1.3
    broken = [_lines(label, font, width) for label in labels]
    below = round(max(map(len, broken)) * line + _MARGIN / 2)
    cell = (width + _MARGIN, height + below + _MARGIN)
    sheet_width = max(columns * cell[0] + _MARGIN, _MIN_WIDTH)
    heading = _font(min(sheet_width, 2 * width))
    title_lines = _lines(title, heading, sheet_width - 2 * _MARGIN)
    above = round(len(title_lines) * heading.size * 1.3 + (_MARGIN if title_lines else 0))

    sheet = Image.new("RGB", (sheet_width, above + rows * cell[1] + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(title_lines):
        top = _MARGIN + k * heading.size * 1.3
        draw.text((sheet_width / 2, top), text, _INK, heading, anchor="ma")
    indent = (sheet_width - columns * cell[0] + _MARGIN) // 2
    for k, image in enumerate(images):
        left = indent + (k % columns) * cell[0] + (width - image.width) // 2
        top = above + _MARGIN + (k // columns) * cell[1] + (height - image.height) // 2
        sheet.paste(image, (left, top))
        outline = (left - 1, top - 1, left + image.width, top + image.height)
        draw.rectangle(outline, outline=_FAINT)
        bottom = above + _MARGIN + (k // columns) * cell[1] + height + _MARGIN / 2
        for i, text in enumerate(broken[k]):
            middle = (left + image.width / 2, bottom + i * line)
            draw.text(middle, text, _INK, font, anchor="ma")
    return sheet


def _columns(count: int, width: int, height: int) -> int:
    """The number of columns that leaves the fewest cells empty, among those that make the sheet at
    least as wide as high, and at most _WIDEST times as wide. width, height: of a cell, in pixels.
    """
    squarest = max(1, min(count, math.ceil(math.sqrt(count * height / width))))

    def rows(columns: int) -> int:
        return math.ceil(count / columns)

    fitting = [c for c in range(squarest, count + 1) if c * width <= _WIDEST * rows(c) * height]
    return min(fitting, key=lambda c: (rows(c) * c, c), default=squarest)


def _shrunk(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _font(side: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, at a size that suits cells of `side` pixels."""
    font = ImageFont.load_default(size=min(18, max(11, side // 28)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("this pillow has no FreeType, which labels need: install pillow's wheel")
    return font


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels, broken between words if possible."""
    lines: list[str] = []
    rest = _writable(" ".join(text.split())[:_MAX_TEXT], font)
    while rest:
        if len(lines) == _MAX_LINES - 1 and font.getlength(rest) > width:
            return [*lines, rest[: _fitting(rest, font, width, "…")].rstrip() + "…"]
        end = _fitting(rest, font, width)
        if end < len(rest):
            end = rest.rfind(" ", 1, end + 1) if " " in rest[1 : end + 1] else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int, end: str = "") -> int:
    """How many characters of a text fit, with `end` after them; at least one."""
    fits = 1
    for count in range(1, len(text) + 1):
        if font.getlength(text[:count] + end) > width:
            break
        fits = count
    return fits


def _writable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """A text in characters that the font has: other letters lose their accents or become "?"."""
    absent = bytes(font.getmask("\uffff"))

    def has(character: str) -> bool:
        return bytes(font.getmask(character)) != absent

    def write(character: str) -> str:
        if has(character):
            return character
        return "".join(filter(has, unicodedata.normalize("NFKD", character))) or "?"

    return "".join(map(write, unicodedata.normalize("NFC", text)))
