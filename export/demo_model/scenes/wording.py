"""Captions of scenes, short and long, in the words that people use. All that is said is seen.

Not all that is seen is said: a caption may be silent about a plain background, an outline, a style.
"""

import numpy as np

from demo_model.captions import article
from demo_model.scenes import nouns
from demo_model.scenes.light import WORDS as LIGHT_WORDS
from demo_model.scenes.scene import Scene, Thing, one_of
from demo_model.scenes.surroundings import COLOURS, PLAIN, SURROUNDINGS

NUMBERS = {2: "two", 3: "three", 4: "four"}
SIZES = {"tiny": ("tiny", "very small", "little"), "huge": ("huge", "very big", "giant")}
POSES = {
    "upside down": ("{} upside down", "upside down {bare}", "{} standing on its head"),
    "jumping": ("{} jumping", "jumping {bare}", "{} in the air"),
    "curled up": ("{} curled up", "{} lying", "{} hiding", "{} nestled", "curled up {bare}",
                  "{} half hidden"),
}  # fmt: skip
RELATION_WORDS = {
    "next to": ("next to", "beside", "and", "with", "together with"),
    "on": ("on", "on top of", "sitting on", "standing on"),
    "under": ("under", "below", "underneath"),
    "in": ("in", "inside", "sitting in", "looking out of"),
    "behind": ("behind", "hiding behind"),
    "holding": ("holding", "with", "carrying", "that holds"),
}
_LIVING_ONLY = frozenset(
    {"sitting on", "standing on", "sitting in", "looking out of", "hiding behind"}
)
STYLED = (
    "{}, {style} style",
    "{}, {style}",
    "{style} {bare}",
    "{} in {style} style",
    "{style} drawing of {}",
)
CLOSE = ("a close up of {}", "close up of {}", "{}, close up", "{} seen from close up")
FAR = ("{} far away", "{} in the distance", "a distant {bare}", "{}, far away")
OUTLINED = ("a sticker of {}", "{} sticker", "{}, sticker with white outline", "{} as a sticker",
            "{} with a white outline")  # fmt: skip


def noun_phrase(thing: Thing, name: str, rng: np.random.Generator) -> tuple[str, str]:
    """ "a small red cat" and "small red cat"; "three cats" twice."""
    words = [one_of(rng, SIZES[thing.size])] if thing.size else []
    if thing.colour:
        words.append(thing.colour)
    if thing.count > 1:
        phrase = " ".join([NUMBERS[thing.count], *words, nouns.plural_of(name)])
        return phrase, phrase
    bare = " ".join([*words, name])
    if name in nouns.PLURALS:
        return (f"some {bare}" if rng.random() < 0.2 else bare), bare
    if name in nouns.UNIQUE and not words:
        return f"the {bare}", bare
    if name in nouns.MASS:
        return (f"some {bare}" if rng.random() < 0.4 else bare), bare
    choice = rng.random()
    if choice < 0.12:
        return bare, bare
    return f"the {bare}" if choice < 0.2 else f"{article(bare)} {bare}", bare


def name_of(thing: Thing, rng: np.random.Generator) -> str:
    """One of the subject's names that is true of this drawing, most often the first."""
    names = [name for name in thing.subject.names if _is_true(name, thing)] or thing.subject.names[
        :1
    ]
    return names[0] if len(names) == 1 or rng.random() < 0.65 else one_of(rng, names[1:])


def _is_true(name: str, thing: Thing) -> bool:
    words = set(name.split())
    if thing.count > 1 and not nouns.can_be_counted(name):
        return False
    if thing.colour and words & {*COLOURS}:  # a "blue red car"
        return False
    # A whole cat is no "cat face".
    return not ("face" in words and thing.sprite.emoji != thing.subject.emoji)


def subject_phrase(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """All things of the scene in words, with the article and without it."""
    phrases = [noun_phrase(thing, name_of(thing, rng), rng) for thing in scene.things]
    (first, bare), others = phrases[0], [phrase for phrase, _ in phrases[1:]]
    if scene.relation:
        words = RELATION_WORDS[scene.relation]
        word = words[0] if rng.random() < 0.5 else one_of(rng, words)
        if word in _LIVING_ONLY and not scene.things[0].subject.is_living:
            word = words[0]
        return f"{first} {word} {others[0]}", f"{bare} {word} {others[0]}"
    if others:
        tail = ", ".join(others[:-1]) + f" and {others[-1]}"
        return f"{first}, {tail}", f"{bare}, {tail}"
    pose = scene.things[0].pose
    if pose:
        said = one_of(rng, POSES[pose])
        text = said.format(first, bare=bare)
        return (f"{article(text)} {text}" if said.endswith("{bare}") else text), said.format(
            bare, bare=bare
        )
    return first, bare


def place_phrase(scene: Scene, rng: np.random.Generator) -> str:
    """Where it is: always said of a place, half the time of a plain background."""
    if scene.place in SURROUNDINGS:
        words = SURROUNDINGS[scene.place].words
        return words[0] if rng.random() < 0.4 else one_of(rng, words)
    plain = PLAIN[scene.place]
    if (scene.place == "white" and rng.random() < 0.8) or rng.random() < 0.35:
        return ""
    words = one_of(rng, plain.words).format(*scene.plain_colours)
    return words.replace("a orange", "an orange")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One exact caption of the scene."""
    text, bare = subject_phrase(scene, rng)
    place = place_phrase(scene, rng)
    light = one_of(rng, LIGHT_WORDS[scene.light]) if scene.light else ""
    plain = scene.place in PLAIN
    if scene.framing == "close up":
        text = one_of(rng, CLOSE).format(text, bare=bare)
    elif scene.framing == "far away":
        text = one_of(rng, FAR).format(text, bare=bare)
    elif scene.framing == "outline" and rng.random() < 0.4:
        text = one_of(rng, OUTLINED).format(text, bare=bare)
    elif scene.style and scene.style_said:
        form = one_of(rng, STYLED)
        if plain or (form != STYLED[0] and form != STYLED[1]):
            text = form.format(text, bare=bare, style=scene.style)
        else:
            return f"{_joined(text, place, light, rng)}, {scene.style}"
    return _joined(text, place, light, rng)


def _joined(text: str, place: str, light: str, rng: np.random.Generator) -> str:
    """Things, place and light in one of the usual orders."""
    # "yellow background" follows a comma; "on yellow" does not.
    comma = place.endswith("background") and not place.startswith(("on", "in"))
    with_place = f"{text}, {place}" if place and comma else f"{text} {place}".strip()
    if not light:
        if place and not comma and rng.random() < 0.08:
            return f"{place}, {text}"
        return with_place
    follows = light.startswith(("in", "at", "by", "on"))
    choice = rng.random()
    if choice < 0.45 or not follows:
        return f"{with_place}, {light}"
    return f"{with_place} {light}" if choice < 0.85 else f"{light}, {with_place}"
