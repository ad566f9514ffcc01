"""Captions, drawn afresh for every step: name or synonym, with or without article and style."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from demo_model.dataset import Concept

P_SYNONYM = 0.3
P_FRAME = 0.1
P_FIRST_NAME = 0.65  # of the several names of a concept, how often the likeliest is taken
STYLES = ("3d", "flat", "shaded", "retro", "simple", "cartoon")
# Words that no emoji is called but that people type; they only widen the tokenizer's vocabulary.
EXTRA_WORDS = """
    a an the of on in with and at to for from photo picture drawing painting illustration icon
    emoji sticker style cute small little big old new happy funny beautiful bright dark light
    red orange yellow green blue purple pink brown black white grey gray gold silver golden
    background portrait realistic detailed colorful vector logo art cartoon glossy
""".split()  # noqa: SIM905 (a list of literals would be one word a line)


def article(noun: str) -> str:
    """Return "a" or "an", by the first letters."""
    return "an" if noun.startswith(tuple("aeiou")) and not noun.startswith("uni") else "a"


def forms(name: str) -> tuple[str, ...]:
    """A name with and without articles, likeliest first."""
    if name.startswith(("two ", "three ")):
        return (name,) * 3
    return (f"{article(name)} {name}", name, f"the {name}")


# What people put around the thing itself, and that changes nothing.
FRAMES = (
    "{} emoji", "{} sticker", "{} icon", "an icon of {}", "a sticker of {}", "a picture of {}",
    "a drawing of {}", "an emoji of {}",
)  # fmt: skip
# Ways to ask for a style, likeliest first.
STYLED = ("{form}, {style}", "{style} {name}", "{form}, {style} style", "{form} in {style} style")


def frame(text: str, rng: np.random.Generator) -> str:
    """The text, seldom inside one of the frames."""
    return FRAMES[rng.integers(len(FRAMES))].format(text) if rng.random() < P_FRAME else text


def draw_name(concept: Concept, rng: np.random.Generator) -> str:
    """One of the concept's names or synonyms."""
    if concept.synonyms and rng.random() < P_SYNONYM:
        return concept.synonyms[rng.integers(len(concept.synonyms))]
    if len(concept.names) == 1 or rng.random() < P_FIRST_NAME:
        return concept.names[0]
    return concept.names[rng.integers(1, len(concept.names))]


def caption(name: str, style: str | None, rng: np.random.Generator) -> str:
    """One way to ask for it, in that style or, with None, without a word about style."""
    form = forms(name)[rng.choice(3, p=(0.5, 0.35, 0.15))]
    if style is None:
        return frame(form, rng)
    styled = STYLED[rng.choice(len(STYLED), p=(0.4, 0.3, 0.15, 0.15))]
    return styled.format(form=form, name=name, style=style)


def corpus(concepts: Iterable[Concept]) -> list[str]:
    """Every text that the tokenizer learns its merges from."""
    texts = [form for c in concepts for name in (*c.names, *c.synonyms) for form in forms(name)]
    framed = [text.format("") for text in FRAMES]
    return [*texts, *framed, *(f"{a}, {s}" for a in ("a", "an") for s in STYLES), *EXTRA_WORDS]


def widened(concepts: Iterable[Concept], words: Mapping[str, Sequence[str]]) -> list[Concept]:
    """The concepts with further words for each emoji, for the drawings as published."""
    return [
        c if c.variant else replace(c, synonyms=(*c.synonyms, *words.get(c.emoji, ())))
        for c in concepts
    ]


def some(concepts: Iterable[Concept]) -> list[str]:
    """One caption of every concept with each of its styles, and one without."""
    rng = np.random.default_rng(0)
    return [
        caption(c.names[0], style, rng)
        for c in concepts
        for style in (None, *(style for _, style in c.pictures))
    ]


class Sampler:
    """Draws (picture index, caption) pairs by the concepts' weights, to the power of `focus`."""

    def __init__(
        self, concepts: Sequence[Concept], rng: np.random.Generator, *, focus: float = 1.0
    ) -> None:
        self._concepts = concepts
        weights = np.array([c.weight for c in concepts]) ** focus
        self._p = weights / weights.sum()
        self._rng = rng

    def batch(self, n: int, *, p_empty: float) -> tuple[list[int], list[str]]:
        """n indices into the pictures, n captions; a share p_empty of the captions is "".

        Every other caption names a style: what is drawn where none is named, `words` decides.
        """
        indices, texts = [], []
        for k in self._rng.choice(len(self._concepts), n, p=self._p):
            concept = self._concepts[k]
            index, style = concept.pictures[self._rng.integers(len(concept.pictures))]
            empty = self._rng.random() < p_empty
            name = draw_name(concept, self._rng)
            indices.append(index)
            texts.append("" if empty else caption(name, style, self._rng))
        return indices, texts
