"""Captions, drawn afresh for every step: name or synonym, with or without article and style."""

from collections.abc import Iterable, Sequence

import numpy as np

from demo_model.dataset import Concept

P_SYNONYM = 0.15
P_STYLE = 0.5
P_FIRST_NAME = 0.7  # of the several names of a concept, how often the likeliest is taken
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
    return (f"{article(name)} {name}", name, f"the {name}")


def sample(concept: Concept, style: str, rng: np.random.Generator) -> str:
    """One caption for a picture of the concept in that style."""
    if concept.synonyms and rng.random() < P_SYNONYM:
        name = concept.synonyms[rng.integers(len(concept.synonyms))]
    elif len(concept.names) == 1 or rng.random() < P_FIRST_NAME:
        name = concept.names[0]
    else:
        name = concept.names[rng.integers(1, len(concept.names))]
    text = forms(name)[rng.choice(3, p=(0.45, 0.35, 0.2))]
    return f"{text}, {style}" if rng.random() < P_STYLE else text


def corpus(concepts: Iterable[Concept]) -> list[str]:
    """Every text that the tokenizer learns its merges from."""
    texts = [form for c in concepts for name in (*c.names, *c.synonyms) for form in forms(name)]
    return [*texts, *(f"{a}, {s}" for a in ("a", "an") for s in STYLES), *EXTRA_WORDS]


class Sampler:
    """Draws (picture index, caption) pairs by the concepts' weights."""

    def __init__(self, concepts: Sequence[Concept], rng: np.random.Generator) -> None:
        self._concepts = concepts
        weights = np.array([c.weight for c in concepts])
        self._p = weights / weights.sum()
        self._rng = rng

    def batch(self, n: int, *, p_empty: float) -> tuple[list[int], list[str]]:
        """n indices into the pictures, n captions; a share p_empty of the captions is ""."""
        indices, texts = [], []
        for k in self._rng.choice(len(self._concepts), n, p=self._p):
            concept = self._concepts[k]
            index, style = concept.pictures[self._rng.integers(len(concept.pictures))]
            indices.append(index)
            empty = self._rng.random() < p_empty
            texts.append("" if empty else sample(concept, style, self._rng))
        return indices, texts
