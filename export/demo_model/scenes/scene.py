"""A scene's contents, drawn at random by seed: things, their relation, place, light, framing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image

from demo_model.scenes import catalogue as tables
from demo_model.scenes import colour as colours
from demo_model.scenes.catalogue import Catalogue, Subject
from demo_model.scenes.held_out import is_held_out
from demo_model.scenes.sprites import Sprite, Sprites
from demo_model.scenes.surroundings import COLOURS, PLAIN, SURROUNDINGS

Chosen = TypeVar("Chosen")

# How often a scene shows one thing, several of a kind, two in a relation, or three or four things.
KINDS = {"one": 0.44, "count": 0.14, "relation": 0.34, "group": 0.08}
P_PLAIN = {"one": 0.55, "count": 0.5, "relation": 0.3, "group": 0.4}
P_REST = 0.12  # of single things: one beyond the 300
P_DYED, P_NATURAL = 0.16, 0.15  # a colour is changed; the colour that it has is said
P_LIGHT, P_SPOTLIGHT = 0.42, 0.15
P_STYLE_SAID = 0.3
FRAMINGS = {"": 0.76, "close up": 0.1, "far away": 0.08}
P_OUTLINE = 0.3  # on plain backgrounds
P_POSE = {"upside down": 0.03, "jumping": 0.04, "curled up": 0.3}  # the last where one can hide
RELATION_WEIGHTS = {
    "next to": 1.2,
    "on": 1.2,
    "under": 0.8,
    "in": 1.0,
    "behind": 0.9,
    "holding": 1.1,
}
COVERED = ("leaves", "grass", "flowers", "snow")  # what stands before things covers them


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One subject in a scene. A caption may say `colour`; `dye` is the colour that it was given."""

    subject: Subject
    sprite: Sprite
    count: int = 1
    dye: str = ""
    colour: str = ""
    size: str = ""  # "tiny" or "huge"
    pose: str = ""  # of P_POSE
    flipped: bool = False
    turn: float = 0.0  # degrees


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is seen. `relation` is between the first thing and the second."""

    seed: int
    things: tuple[Thing, ...]
    relation: str = ""
    place: str = "white"  # of SURROUNDINGS or PLAIN
    plain_colours: tuple[str, ...] = ()
    light: str = ""
    framing: str = ""  # of FRAMINGS, or "outline"
    style: str = ""  # of every drawing in it; "" if they differ
    style_said: bool = False

    @property
    def is_held_out(self) -> bool:
        """Whether training never sees it."""
        return self.place in SURROUNDINGS and any(
            is_held_out(thing.subject.name, self.place, self.relation) for thing in self.things
        )


def pick(rng: np.random.Generator, weights: Mapping[Chosen, float]) -> Chosen:
    """One of the keys, by weight."""
    values = np.fromiter(weights.values(), float)
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def one_of(rng: np.random.Generator, items: Sequence[Chosen]) -> Chosen:
    """One of the items, all alike."""
    return items[int(rng.integers(len(items)))]


class Scenes:
    """Scenes by seed, from a catalogue and its sprites."""

    def __init__(self, catalogue: Catalogue, sprites: Sprites) -> None:
        self.catalogue = catalogue
        self.sprites = sprites
        self._colour = lru_cache(maxsize=None)(lambda s: colours.colour_of(sprites.image(s)))
        self._dyed = lru_cache(maxsize=512)(lambda s, w: colours.dyed(sprites.image(s), w))
        self._supports = catalogue.named(tables.SUPPORTS)
        self._containers = catalogue.named(tables.CONTAINERS)
        self._covers = catalogue.named(tables.COVERS)
        self._held = catalogue.named(tables.HELD)
        self._riders = [s for s in catalogue.on_ground if s.name not in tables.LARGE]

    def draw(self, seed: int) -> Scene:
        """The scene of that seed for training: the first of its tries that is not held out."""
        scene = self.any(seed)
        tries = 1
        while scene.is_held_out:
            scene = self.any(seed, tries)
            tries += 1
        return scene

    def any(self, seed: int, tries: int = 0) -> Scene:
        """The scene of that seed, held out or not, after so many others that were refused."""
        rng = np.random.default_rng((seed, tries) if tries else seed)
        kind = pick(rng, KINDS)
        plain = rng.random() < P_PLAIN[kind]
        relation = ""
        if kind == "one":
            subjects = [self._single(rng, plain)]
        elif kind == "count":
            subjects = [one_of(rng, self.catalogue.countable)]
        elif kind == "relation":
            relation = pick(rng, RELATION_WEIGHTS)
            subjects = list(self._pair(rng, relation))
        else:
            subjects = self._different(rng, int(rng.integers(3, 5)))
        style = self._shared_style(rng, subjects)
        count = int(rng.choice((2, 3, 4), p=(0.45, 0.35, 0.2))) if kind == "count" else 1
        things = [self._thing(rng, s, style, count) for s in subjects]
        styles = {thing.sprite.style for thing in things}
        place, plain_colours, light = self._place(rng, plain, things)
        framing = ""
        if kind == "one":
            framing = pick(rng, FRAMINGS)
            things = [self._posed(rng, things[0], place, framing)]
        if plain and not framing and rng.random() < P_OUTLINE:
            framing = "outline"
        return Scene(
            seed=seed,
            things=tuple(things),
            relation=relation,
            place=place,
            plain_colours=plain_colours,
            light=light,
            framing=framing,
            style=styles.pop() if len(styles) == 1 else "",
            style_said=bool(rng.random() < P_STYLE_SAID),
        )

    def image_of(self, thing: Thing) -> Image.Image:
        """The thing's drawing, RGBA, dyed, flipped and turned."""
        picture = (
            self._dyed(thing.sprite, thing.dye) if thing.dye else self.sprites.image(thing.sprite)
        )
        if thing.flipped:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if thing.pose == "upside down":
            picture = picture.transpose(Image.Transpose.ROTATE_180)
        if thing.turn:
            picture = picture.rotate(thing.turn, Image.Resampling.BILINEAR, expand=True)
            box = picture.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
            picture = picture.crop(box)
        return picture

    def _single(self, rng: np.random.Generator, plain: bool) -> Subject:
        if not plain:
            return one_of(rng, self.catalogue.in_scenes)
        few = self.catalogue.rest if rng.random() < P_REST else self.catalogue.everyday
        return one_of(rng, few)

    def _pair(self, rng: np.random.Generator, relation: str) -> tuple[Subject, Subject]:
        living, any_ = self.catalogue.living, self._riders
        firsts, seconds = {
            "next to": (self.catalogue.on_ground, self.catalogue.on_ground),
            "on": (living if rng.random() < 0.6 else any_, self._supports),
            "under": (living if rng.random() < 0.6 else any_, self._covers),
            "in": (living if rng.random() < 0.7 else any_, self._containers),
            "behind": (living if rng.random() < 0.6 else any_, self.catalogue.on_ground),
            "holding": (living, self._held),
        }[relation]
        # Half of all seconds from everything, so that a model learns relations, not pairs.
        if relation == "on" and rng.random() < 0.3:
            seconds = self.catalogue.on_ground
        first = one_of(rng, firsts)
        second = one_of(rng, seconds)
        while second.name == first.name:
            second = one_of(rng, seconds)
        return first, second

    def _different(self, rng: np.random.Generator, count: int) -> list[Subject]:
        chosen = rng.choice(len(self.catalogue.on_ground), count, replace=False)
        return [self.catalogue.on_ground[int(k)] for k in chosen]

    def _shared_style(self, rng: np.random.Generator, subjects: Sequence[Subject]) -> str:
        """A style in which all of them are drawn, if there is one."""
        shared = sorted(set.intersection(*(set(s.drawings) for s in subjects)))
        return one_of(rng, shared) if shared else ""

    def _thing(self, rng: np.random.Generator, subject: Subject, style: str, count: int) -> Thing:
        drawings = (
            subject.drawings.get(style) or subject.drawings[one_of(rng, list(subject.drawings))]
        )
        sprite = one_of(rng, drawings)
        dye = colour = ""
        coloured = set(subject.name.split()) & {*COLOURS}
        choice = rng.random()
        word = one_of(rng, list(colours.DYES))
        if not coloured and choice < P_DYED:
            if self._dyed(sprite, word) is not None:
                dye = colour = word
        elif not coloured and choice < P_DYED + P_NATURAL:
            colour = self._colour(sprite)
        return Thing(
            subject=subject,
            sprite=sprite,
            count=count,
            dye=dye,
            colour=colour,
            flipped=bool(rng.random() < 0.5) and subject.kind not in ("sign", "thing"),
            turn=round(float(rng.uniform(-9, 9)), 1) if rng.random() < 0.25 else 0.0,
        )

    def _place(
        self, rng: np.random.Generator, plain: bool, things: Sequence[Thing]
    ) -> tuple[str, tuple[str, ...], str]:
        """The place, the colours of a plain one, and the light."""
        words: tuple[str, ...] = ()
        if plain:
            seen = {thing.colour or self._colour(thing.sprite) for thing in things}
            kinds = {key: value.weight for key, value in PLAIN.items()}
            if "white" in seen:  # it would not be seen on white
                del kinds["white"]
            name = pick(rng, kinds)
            free = [word for word in COLOURS if word not in seen]
            chosen = rng.choice(len(free), PLAIN[name].colours, replace=False)
            words = tuple(free[int(k)] for k in chosen)
            lights = PLAIN[name].lights
        else:
            name = pick(rng, {key: value.weight for key, value in SURROUNDINGS.items()})
            lights = SURROUNDINGS[name].lights
        light = (
            one_of(rng, lights)
            if lights and rng.random() < (P_SPOTLIGHT if plain else P_LIGHT)
            else ""
        )
        return name, words, light

    def _posed(self, rng: np.random.Generator, thing: Thing, place: str, framing: str) -> Thing:
        """A single thing may lie in what covers the ground, jump, be upside down, tiny or huge."""
        if framing:
            return thing
        living = thing.subject.is_living
        if place in COVERED and living and rng.random() < P_POSE["curled up"]:
            return replace(thing, pose="curled up", turn=round(float(rng.uniform(-28, 28)), 1))
        if rng.random() < P_POSE["upside down"] and thing.subject.kind in (
            "animal",
            "face",
            "vehicle",
        ):
            return replace(thing, pose="upside down", turn=0.0)
        grounded = place in SURROUNDINGS and place not in ("sky", "space", "underwater", "sea")
        if grounded and living and rng.random() < P_POSE["jumping"] / 0.5:
            return replace(thing, pose="jumping", turn=round(float(rng.uniform(-14, 14)), 1))
        if rng.random() < 0.12:
            return replace(thing, size="tiny" if rng.random() < 0.5 else "huge")
        return thing
