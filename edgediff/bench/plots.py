"""Three plots as SVG text: bars of stages, lines over time, points of quality against latency."""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#a463f2", "#97bbf5", "#9c6b4e", "#3ca951")
_WIDTH = 720
_RIGHT, _TOP, _BOTTOM = 70, 10, 38
_LETTER = 6.6
"""Approximate width of a letter."""
_ROW = 26


def bars(rows: Mapping[str, Mapping[str, float]], unit: str) -> str:
    """label → part → amount, as one stacked bar per label, with its sum."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    most = max((sum(row.values()) for row in rows.values()), default=0.0) or 1.0
    left = min(_WIDTH // 2, round(16 + _LETTER * max(map(len, rows), default=0)))
    scale = (_WIDTH - left - _RIGHT) / most
    body = []
    for k, (label, row) in enumerate(rows.items()):
        y, x = _TOP + k * _ROW, float(left)
        body.append(_text(left - 8, y + 15, label, anchor="end"))
        for part in parts:
            width = row.get(part, 0.0) * scale
            title = f"{part}: {row.get(part, 0.0):.4g} {unit}"
            body.append(
                f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{_ROW - 7}"'
                f' fill="{_colour(parts.index(part))}"><title>{escape(title)}</title></rect>'
            )
            x += width
        body.append(_text(x + 6, y + 15, f"{sum(row.values()):.3g} {unit}"))
    legend, end = _legend(parts, _TOP + _ROW * len(rows) + 14)
    return _svg(end, body + legend, "stacked bars")


def lines(series: Mapping[str, Sequence[Sequence[float]]], x_unit: str, y_unit: str) -> str:
    """label → (x, y) points, as one line per label; both axes start at zero."""
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    height = 280
    x_most, y_most = max(p[0] for p in points) or 1.0, max(p[1] for p in points) or 1.0
    frame = _Frame(0.0, x_most, 0.0, y_most * 1.05, height)
    body = frame.axes(x_unit, y_unit)
    for k, line in enumerate(series.values()):
        path = " ".join(f"{frame.x(p[0]):.1f},{frame.y(p[1]):.1f}" for p in line)
        body.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(k)}" stroke-width="1.6"/>'
        )
    legend, end = _legend(list(series), height + 14)
    return _svg(end, body + legend, "lines")


def scatter(points: Mapping[str, tuple[float, float]], x_unit: str, y_unit: str) -> str:
    """label → (x, y), as one labelled point each."""
    if not points:
        return ""
    height = 280
    xs, ys = [p[0] for p in points.values()], [p[1] for p in points.values()]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.15 or 1.0
    frame = _Frame(0.0, max(xs) * 1.15 or 1.0, low - margin, high + margin, height)
    body = frame.axes(x_unit, y_unit)
    for k, (label, (x, y)) in enumerate(points.items()):
        body.append(
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="5" fill="{_colour(k)}">'
            f"<title>{escape(f'{label}: {x:.4g} {x_unit}, {y:.4g} {y_unit}')}</title></circle>"
        )
    legend, end = _legend(list(points), height + 14)
    return _svg(end, body + legend, "points")


class _Frame:
    """A plot's area and its two linear axes."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float, height: int) -> None:
        self._x0, self._x1, self._y0, self._y1 = x0, x1, y0, y1
        self._height = height
        self._left = 64

    def x(self, value: float) -> float:
        span = _WIDTH - self._left - 20
        return self._left + (value - self._x0) / (self._x1 - self._x0) * span

    def y(self, value: float) -> float:
        span = self._height - _TOP - _BOTTOM
        return self._height - _BOTTOM - (value - self._y0) / (self._y1 - self._y0) * span

    def axes(self, x_unit: str, y_unit: str) -> list[str]:
        """Ticks, their values and the units."""
        body = []
        for k in range(5):
            x = self._x0 + (self._x1 - self._x0) * k / 4
            y = self._y0 + (self._y1 - self._y0) * k / 4
            body.append(
                f'<line x1="{self._left}" x2="{_WIDTH - 20}" y1="{self.y(y):.1f}"'
                f' y2="{self.y(y):.1f}" class="grid"/>'
            )
            body.append(_text(self._left - 6, self.y(y) + 4, f"{y:.3g}", anchor="end"))
            body.append(_text(self.x(x), self._height - _BOTTOM + 16, f"{x:.3g}", anchor="middle"))
        body.append(_text(_WIDTH - 20, self._height - 6, x_unit, anchor="end"))
        body.append(_text(self._left + 4, _TOP + 4, y_unit))
        return body


def _legend(names: Sequence[str], y: float) -> tuple[list[str], float]:
    """The legend from `y` down, in as many lines as it needs, and the y at its end."""
    body, x = [], 8.0
    for k, name in enumerate(names):
        width = 26 + _LETTER * len(name)
        if x > 8.0 and x + width > _WIDTH:
            x, y = 8.0, y + 18
        body.append(
            f'<rect x="{x:.0f}" y="{y - 9:.0f}" width="10" height="10" fill="{_colour(k)}"/>'
        )
        body.append(_text(x + 14, y, name))
        x += width
    return body, y + 14


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: float, body: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}"'
        ' xmlns="http://www.w3.org/2000/svg">' + "".join(body) + "</svg>"
    )
