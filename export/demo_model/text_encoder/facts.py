"""The facts of a scene as class labels, which a text must tell: the heads of the text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from demo_model.captions import STYLES
from demo_model.scenes.clipart import STYLE as CLIP_ART
from demo_model.scenes.colour import DYES
from demo_model.scenes.light import WORDS as LIGHTS
from demo_model.scenes.scene import FRAMINGS, P_POSE, RELATION_WEIGHTS
from demo_model.scenes.surroundings import COLOURS, PLAIN, SURROUNDINGS

SLOTS = 4  # things in a scene, in the order in which a caption names them
NONE = ""
SAID_COLOURS = tuple(dict.fromkeys((NONE, *DYES, *COLOURS)))


def heads(subjects: int) -> dict[str, int]:
    """The name and the number of classes of each head, with so many subjects in the catalogue."""
    found = {f"subject {k}": subjects + 1 for k in range(SLOTS)}  # the last class: none
    found |= {f"colour {k}": len(SAID_COLOURS) for k in range(SLOTS)}
    return found | {name: len(classes) for name, classes in _CLASSES.items()}


_CLASSES: dict[str, tuple[Any, ...]] = {
    "count": (1, 2, 3, 4),
    "relation": (NONE, *RELATION_WEIGHTS),
    "place": (*SURROUNDINGS, *PLAIN),
    "plain colour 0": SAID_COLOURS,
    "plain colour 1": SAID_COLOURS,
    "light": (NONE, *LIGHTS),
    "framing": (*FRAMINGS, "outline"),
    "style": (NONE, *STYLES, CLIP_ART),
    "pose": (NONE, *P_POSE),
    "size": (NONE, "tiny", "huge"),
}


def labels(facts: Mapping[str, Any], subjects: int) -> list[int]:
    """The class of each head, in the order of `heads`. facts: as `scenes.pool.facts` gives them."""

    def slot(listed: Sequence[Any], k: int, none: Any) -> Any:
        return listed[k] if k < len(listed) else none

    found = [int(slot(facts["subjects"], k, subjects)) for k in range(SLOTS)]
    found += [SAID_COLOURS.index(slot(facts["colours"], k, NONE)) for k in range(SLOTS)]
    values = {
        **facts,
        "count": facts["counts"][0],
        "plain colour 0": slot(facts["plain_colours"], 0, NONE),
        "plain colour 1": slot(facts["plain_colours"], 1, NONE),
    }
    return [*found, *(classes.index(values[name]) for name, classes in _CLASSES.items())]
