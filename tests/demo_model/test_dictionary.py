"""What is read off WordNet's files, and what it says of words."""

import pytest
from demo_model import dictionary
from demo_model.dataset import Concept

DATA = """\
00000001 05 n 01 reptile 0 001 ~ 00000002 n 0000 | cold-blooded; "a reptile"
00000002 05 n 02 snake 0 serpent 0 003 @ 00000001 n 0000 ~ 00000003 n 0 ~ 00000005 n 0 | no legs
00000003 05 n 01 python 0 001 @ 00000002 n 0000 | large Old World boas
00000004 18 n 01 snake 1 000 | a deceitful person
00000005 05 n 01 sea_snake 0 001 @ 00000002 n 0000 | swims
00000006 06 n 01 hose 0 000 | looks like a snake; but is none
""".splitlines()
INDEX = """\
snake n 2 1 @ 2 1 00000002 00000004
serpent n 1 1 @ 1 0 00000002
python n 1 1 @ 1 0 00000003
reptile n 1 0 1 0 00000001
hose n 1 0 1 0 00000006
""".splitlines()


@pytest.fixture(scope="module")
def wordnet() -> dictionary.WordNet:
    return dictionary.WordNet(DATA, INDEX)


def test_senses_are_in_order_with_what_is_above_and_below(wordnet: dictionary.WordNet) -> None:
    first, second = wordnet.of("snakes")
    assert first.lemmas == ("snake", "serpent")
    assert first.broader == (1,)
    assert first.narrower == (3, 5)
    assert second.gloss == "a deceitful person"
    assert wordnet.of("reptile")[0].gloss == "cold-blooded"
    assert wordnet.of("sakura") == []


def test_synonyms_are_surer_than_kinds_and_those_than_what_it_is_a_kind_of(
    wordnet: dictionary.WordNet,
) -> None:
    snake = Concept(emoji="🐍", names=("snake",), synonyms=(), weight=1.0, pictures=())
    found = dictionary.relate([snake], ["Animals & Nature"], wordnet)
    assert found["serpent"] == {0: 1.0}
    assert found["python"] == found["sea snake"] == {0: dictionary.NARROWER}
    assert found["sea"][0] == pytest.approx(dictionary.MODIFIER * dictionary.NARROWER)
    assert found["reptile"] == {0: dictionary.BROADER}
    assert dictionary.relate([snake], ["Food & Drink"], wordnet) == {}


def test_a_definition_names_what_is_meant(wordnet: dictionary.WordNet) -> None:
    assert dictionary.defined_by("hose", {"snake": [7]}, wordnet) == {7: dictionary.IN_DEFINITION}
    assert dictionary.defined_by("sakura", {"snake": [7]}, wordnet) == {}
