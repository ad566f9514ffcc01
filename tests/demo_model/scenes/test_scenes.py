"""Scenes by seed: one image each, nothing held out, and captions that say only what is seen."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from demo_model.scenes import colour, compose, held_out, layout, pool, wording
from demo_model.scenes.light import WORDS
from demo_model.scenes.scene import Scene, Scenes, Thing
from demo_model.scenes.surroundings import PLAIN, SURROUNDINGS

FUNCTION_WORDS = {"a", "an", "the", "some", "and", "of"}


def _thing(scenes: Scenes, name: str, **facts: object) -> Thing:
    subject = scenes.catalogue.named([name])[0]
    return Thing(subject=subject, sprite=subject.drawings["flat"][0], **facts)  # type: ignore[arg-type]


def _render(scenes: Scenes, *names: str, **facts: object) -> np.ndarray:
    things = tuple(_thing(scenes, name) for name in names)
    return compose.render(Scene(seed=3, things=things, **facts), scenes)  # type: ignore[arg-type]


def test_a_seed_gives_one_scene_one_image_and_one_caption(scenes: Scenes) -> None:
    again = Scenes(scenes.catalogue, scenes.sprites)
    for seed in range(40):
        scene = scenes.draw(seed)
        assert scene == again.draw(seed)
        image = compose.render(scene, scenes)
        assert image.shape == (128, 128, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image, compose.render(again.draw(seed), again))
        captions = [wording.caption(scene, np.random.default_rng(seed)) for _ in range(2)]
        assert captions[0] == captions[1]


def test_seeds_differ(scenes: Scenes) -> None:
    images = [compose.render(scenes.draw(seed), scenes).tobytes() for seed in range(60)]
    assert len(set(images)) == 60


def test_the_split_is_stable_and_a_twentieth() -> None:
    # Golden: were the hash another one, what earlier sittings held out would leak.
    named = [(s, p) for s in ("fox", "cat", "bee", "car") for p in SURROUNDINGS]
    found = [f"{s} {p}" for s, p in named if held_out.is_held_out(s, p, "on")]
    assert found == ["cat forest", "car grass", "car room"]
    many = [held_out.is_held_out(f"thing {k}", p, r)
            for k in range(300) for p in SURROUNDINGS for r in ("", "on", "in")]  # fmt: skip
    assert np.mean(many) == pytest.approx(0.05, abs=0.005)


def test_training_sees_nothing_that_is_held_out(scenes: Scenes) -> None:
    drawn = [scenes.any(seed) for seed in range(1500)]
    assert 10 < sum(scene.is_held_out for scene in drawn) < 150
    for scene in (scenes.draw(seed) for seed in range(1500)):
        if scene.place in SURROUNDINGS:
            for thing in scene.things:
                assert not held_out.is_held_out(thing.subject.name, scene.place, scene.relation)


def _words(*texts: str) -> Counter[str]:
    return Counter(word for text in texts for word in text.replace(",", "").split())


def test_captions_say_only_what_is_seen(scenes: Scenes) -> None:
    """Every word of a caption is one that a fact of the scene allows."""
    for seed in range(1200):
        scene = scenes.draw(seed)
        text = wording.caption(scene, np.random.default_rng(seed))
        allowed = set(FUNCTION_WORDS)
        for thing in scene.things:
            for name in thing.subject.names:
                allowed |= set(_words(name, wording.nouns.plural_of(name)))
            allowed |= {thing.colour, wording.NUMBERS.get(thing.count, "")}
            allowed |= set(_words(*wording.SIZES.get(thing.size, ())))
            allowed |= set(_words(*wording.POSES.get(thing.pose, ())))
        allowed |= set(_words(*wording.RELATION_WORDS.get(scene.relation, ())))
        if scene.place in SURROUNDINGS:
            allowed |= set(_words(*SURROUNDINGS[scene.place].words))
        else:
            words = [w.format(*scene.plain_colours) for w in PLAIN[scene.place].words]
            allowed |= set(_words(*words))
        allowed |= set(_words(*WORDS.get(scene.light, ())))
        allowed |= set(_words(scene.style, *wording.STYLED)) if scene.style else set()
        framings = {"close up": wording.CLOSE, "far away": wording.FAR, "outline": wording.OUTLINED}
        allowed |= set(_words(*framings.get(scene.framing, ())))
        assert set(_words(text)) <= allowed, (text, scene)


def test_captions_name_every_thing_colour_count_and_place(scenes: Scenes) -> None:
    for seed in range(600):
        scene = scenes.draw(seed)
        text = wording.caption(scene, np.random.default_rng(seed))
        for thing in scene.things:
            named = [*thing.subject.names, *map(wording.nouns.plural_of, thing.subject.names)]
            assert any(name in text for name in named)
            assert thing.colour in text
            assert wording.NUMBERS.get(thing.count, "") in text
        if scene.place in SURROUNDINGS:
            assert any(words in text for words in SURROUNDINGS[scene.place].words)
        assert not scene.light or any(words in text for words in WORDS[scene.light])


def test_articles_fit(scenes: Scenes) -> None:
    for seed in range(800):
        text = f" {wording.caption(scenes.draw(seed), np.random.default_rng(seed))} "
        for vowel in "aeio":
            assert f" a {vowel}" not in text
        assert " an c" not in text


@pytest.mark.parametrize("word", ["red", "green", "blue", "purple", "yellow", "brown", "black"])
def test_a_dyed_drawing_has_the_colour_that_is_said(scenes: Scenes, word: str) -> None:
    picture = scenes.sprites.image(_thing(scenes, "fox").sprite)
    dyed = colour.dyed(picture, word)
    assert dyed is not None
    assert colour.colour_of(dyed) == word


def test_grey_things_are_not_dyed(scenes: Scenes) -> None:
    picture = scenes.sprites.image(_thing(scenes, "elephant").sprite)
    grey = picture.convert("LA").convert("RGBA")
    assert colour.dyed(grey, "red") is None


def test_so_many_are_drawn_as_are_counted(scenes: Scenes) -> None:
    for count in (1, 2, 3, 4):
        scene = Scene(seed=1, things=(_thing(scenes, "cat", count=count),))
        place = PLAIN["white"].paint(np.random.default_rng(0), ())
        boxes = compose.arrange(scene, scenes, place, np.random.default_rng(0))
        assert len(boxes) == count
        for box in boxes:
            assert box.x >= -1
            assert box.x + box.width <= 129
            assert box.y >= -1
            assert box.bottom <= 129


def _boxes(scenes: Scenes, relation: str, a: str, b: str) -> tuple[layout.Box, layout.Box, bool]:
    """The boxes of a and b, and whether a is painted first."""
    function, side_a, side_b = layout.RELATIONS[relation]
    first = layout.sized(scenes.image_of(_thing(scenes, a)), side_a)
    second = layout.sized(scenes.image_of(_thing(scenes, b)), side_b)
    found = function(first, second, b, np.random.default_rng(4))
    pictures = [box.picture for box in found]
    place_a = next(k for k, p in enumerate(pictures) if p is first.picture)
    return found[place_a], found[1 - place_a], place_a == 0


def test_relations_are_seen(scenes: Scenes) -> None:
    a, b, _ = _boxes(scenes, "on", "fox", "skateboard")
    assert a.bottom < b.y + 0.3 * b.height
    a, b, _ = _boxes(scenes, "under", "fox", "umbrella")
    assert a.y > b.y + 0.4 * b.height
    a, b, first = _boxes(scenes, "in", "fox", "basket")
    assert first
    assert b.y < a.bottom < b.bottom
    a, b, first = _boxes(scenes, "behind", "fox", "car")
    assert first
    assert a.x < b.x + b.width
    a, b, first = _boxes(scenes, "holding", "fox", "apple")
    assert first
    assert b.height < a.height
    a, b, _ = _boxes(scenes, "next to", "fox", "apple")
    assert a.x + a.width < b.x + 6 or b.x + b.width < a.x + 6


def test_light_and_framing_change_the_image(scenes: Scenes) -> None:
    day = _render(scenes, "fox", place="grass").astype(float)
    night = _render(scenes, "fox", place="grass", light="night").astype(float)
    sunset = _render(scenes, "fox", place="grass", light="sunset").astype(float)
    fog = _render(scenes, "fox", place="grass", light="fog").astype(float)
    assert night.mean() < 0.7 * day.mean()
    assert (
        sunset[..., 0].mean() - sunset[..., 2].mean() > day[..., 0].mean() - day[..., 2].mean() + 30
    )
    assert fog.std() < 0.8 * day.std()
    far = _render(scenes, "fox", framing="far away")
    close = _render(scenes, "fox", framing="close up")
    assert (far < 250).any(-1).mean() < 0.12
    assert (close < 250).any(-1).mean() > 0.5


def test_an_outline_is_white_and_surrounds_the_thing(scenes: Scenes) -> None:
    facts = {"place": "plain", "plain_colours": ("blue",)}
    bare = _render(scenes, "fox", **facts)
    outlined = _render(scenes, "fox", framing="outline", **facts)
    white = (outlined > 245).all(-1).sum()
    assert white > 150 + (bare > 245).all(-1).sum()


def test_what_is_curled_up_in_leaves_is_covered_by_some(scenes: Scenes) -> None:
    thing = _thing(scenes, "fox", pose="curled up")
    scene = Scene(seed=2, things=(thing,), place="leaves")
    with_leaves = compose.render(scene, scenes)
    rng = np.random.default_rng((2, 1))
    place = SURROUNDINGS["leaves"].paint(rng)
    box = compose.arrange(scene, scenes, place, rng)[0]
    low = with_leaves[118:, int(box.x) : int(box.x + box.width)]
    fox = np.abs(low.astype(int) - (240, 120, 30)).sum(-1) < 12
    assert fox.mean() < 0.6


def test_every_surrounding_can_be_painted(scenes: Scenes) -> None:
    for place in SURROUNDINGS:
        image = _render(scenes, "cat", place=place)
        assert image.std() > 8, place
    for place, kind in PLAIN.items():
        _render(scenes, "cat", place=place, plain_colours=("blue", "red")[: kind.colours])


def test_facts_are_those_of_the_scene(scenes: Scenes) -> None:
    scene = next(s for s in map(scenes.draw, range(200)) if s.relation)
    found = pool.facts(scene, scenes)
    assert [scenes.catalogue.subjects[k] for k in found["subjects"]] == [
        t.subject for t in scene.things
    ]
    assert found["relation"] == scene.relation
    assert found["place"] == scene.place
    assert replace(scene, light="night").light == "night"
