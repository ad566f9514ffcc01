from dataclasses import dataclass
from typing import Any, Literal

import pytest

from edgediff.bundle.schema import parse
from edgediff.errors import BundleError


@dataclass(frozen=True, kw_only=True)
class Circle:
    type: Literal["circle"] = "circle"
    radius: float


@dataclass(frozen=True, kw_only=True)
class Square:
    type: Literal["square"] = "square"
    side: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Circle | Square
    frame: Circle | Square | None = None


def drawing(**raw: Any) -> Any:
    return parse(Drawing, raw, "drawing", BundleError)


def test_emoji_that_this_python_does_not_know_are_text() -> None:
    assert parse(str, "\U0001fae8 \U0003fffd", "name", BundleError) == "\U0001fae8 \U0003fffd"


def test_the_type_chooses_the_member_of_a_union() -> None:
    circle = {"type": "circle", "radius": 2}
    assert drawing(shape=circle) == Drawing(shape=Circle(radius=2.0))
    assert drawing(shape={"type": "square"}, frame=circle) == Drawing(
        shape=Square(), frame=Circle(radius=2.0)
    )
    assert drawing(shape=circle, frame=None).frame is None


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"radius": 1.0}, "drawing: shape: type is missing"),
        ({"type": "line"}, 'drawing: shape: type: expected one of circle, square, found "line"'),
        ({"type": ["circle"]}, "drawing: shape: type: expected one of circle, square, found ["),
        ({"type": None}, "drawing: shape: type: expected one of circle, square, found null"),
        ({"type": "circle", "side": 1.0}, "drawing: shape: unknown key 'side'"),
        ({"type": "circle"}, "drawing: shape: radius is missing"),
        ({"type": "square", "side": "1"}, "drawing: shape: side: expected a number"),
        ("circle", "drawing: shape: expected an object"),
        (None, "drawing: shape: expected an object"),
        ([], "drawing: shape: expected an object"),
    ],
)
def test_bad_members_of_a_union(shape: Any, message: str) -> None:
    with pytest.raises(BundleError) as e:
        drawing(shape=shape)
    assert message in str(e.value)
