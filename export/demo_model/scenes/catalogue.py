"""What can be drawn: subjects with their names, kinds and drawings, and what goes with what.

The tables are literal, by first name, so that the choices that shape the scenes can be read in one
place.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo_model import dataset
from demo_model.dataset import Concept, without_selector
from demo_model.scenes import nouns
from demo_model.scenes.sprites import Sprite, Sprites

# Whole animals: further drawings of a subject that is otherwise a head.
WHOLE = {
    "dog": "🐕", "cat": "🐈", "mouse": "🐁", "rabbit": "🐇", "tiger": "🐅", "cow": "🐄",
    "pig": "🐖", "monkey": "🐒", "horse": "🐎",
}  # fmt: skip
# Subjects beyond the 300 that scenes need: things to be in, on and under, and a few companions.
FURTHER = (
    "bathtub", "basket", "bucket", "shopping cart", "teapot", "treasure chest", "couch and lamp",
    "canoe", "kite", "magic wand", "telescope", "scarf", "sunglasses", "otter", "polar bear",
    "goose", "beaver", "sloth", "jellyfish", "seal", "potted plant", "sled", "sparkles",
    "blueberries", "lime", "bell pepper", "spaghetti", "pie", "jar", "trumpet", "broom", "ladder",
    "parachute", "crystal ball", "roller skate", "toilet", "mirror", "coin", "musical note",
    "spiral shell",
)  # fmt: skip
PLANTS = frozenset({
    "bouquet", "cherry blossom", "rose", "hibiscus", "sunflower", "flower", "tulip", "seedling",
    "pine tree", "tree", "palm tree", "cactus", "four leaf clover", "maple leaf", "fallen leaf",
    "mushroom", "christmas tree", "potted plant", "pumpkin",
})  # fmt: skip
VEHICLES = frozenset({
    "train", "bus", "ambulance", "fire truck", "police car", "taxi", "car", "truck", "tractor",
    "racing car", "motorcycle", "scooter", "bicycle", "skateboard", "sailboat", "ship", "airplane",
    "helicopter", "rocket", "ufo", "canoe", "sled", "roller skate", "parachute",
})  # fmt: skip
SKY = frozenset({
    "moon", "sun", "sun with face", "planet", "star", "cloud", "rainbow", "lightning", "snowflake",
    "earth",
})  # fmt: skip
# Drawn in the air if the scene has a ground.
FLIERS = SKY | {
    "airplane", "helicopter", "rocket", "ufo", "balloon", "kite", "bat", "dove", "eagle",
    "butterfly", "bee", "parachute", "bird", "parrot",
}  # fmt: skip
# Neither animals nor faces, but with somebody inside: they hold, ride and hide.
CREATURES = frozenset(
    {"robot", "ghost", "alien", "clown", "teddy bear", "snowman", "devil", "skull"}
)
# Signs and fragments: fine as stickers, odd in a landscape.
FLAT = frozenset({
    "kiss mark", "explosion", "speech bubble", "paw prints", "spider web", "stop sign", "brain",
    "tooth", "wave", "bullseye", "droplet", "thumbs up", "muscle", "tears of joy", "heart eyes",
    "exploding head", "sparkles", "musical note",
})  # fmt: skip
SUPPORTS = (
    "skateboard", "bed", "chair", "couch and lamp", "horse", "elephant", "turtle", "whale", "camel",
    "package", "gift", "car", "truck", "bus", "taxi", "train", "sailboat", "motorcycle", "tractor",
    "scooter", "suitcase", "books", "drum", "television", "pizza", "birthday cake", "pancakes",
    "watermelon", "pumpkin", "cheese", "cloud", "mushroom", "soccer ball", "treasure chest", "sled",
    "house", "island", "rocket", "dolphin", "cow", "laptop", "burger", "waffle", "donut", "book",
)  # fmt: skip
CONTAINERS = (
    "bathtub", "basket", "bucket", "shopping cart", "coffee", "top hat", "backpack", "package",
    "tent", "canoe", "sailboat", "suitcase", "gift", "jar", "bed", "toilet", "car", "taco",
    "hot dog", "noodle soup", "popcorn", "potted plant", "teapot", "ufo", "racing car",
    "treasure chest",
)  # fmt: skip
COVERS = (
    "umbrella", "tree", "palm tree", "rainbow", "cloud", "moon", "sun", "mushroom", "balloon",
    "ufo", "lightning", "pine tree", "chair", "helicopter", "airplane", "parachute", "star",
    "bell", "maple leaf", "christmas tree", "elephant", "giraffe", "kite", "dragon",
)  # fmt: skip
HELD = (
    "balloon", "umbrella", "flower", "rose", "tulip", "sunflower", "bouquet", "apple", "banana",
    "carrot", "ice cream", "lollipop", "donut", "cookie", "cupcake", "pizza", "red heart", "star",
    "gift", "book", "key", "lemon", "strawberry", "guitar", "trophy", "candle", "teddy bear",
    "camera", "phone", "pencil", "hammer", "bell", "coffee", "beer", "fish", "crown", "diamond",
    "soccer ball", "basketball", "spoon", "microphone", "trumpet", "kite", "magic wand", "broom",
    "mushroom", "corn", "magnet", "popcorn",
)  # fmt: skip
LARGE = frozenset({
    "house", "castle", "ferris wheel", "mountain", "volcano", "island", "tree", "pine tree",
    "palm tree", "train", "bus", "ship", "whale", "elephant", "giraffe", "fountain", "tent",
    "rainbow", "dinosaur", "dragon", "christmas tree", "truck", "fire truck", "airplane",
    "sailboat", "rocket",
})  # fmt: skip
SMALL = frozenset({
    "ant", "bee", "ladybug", "spider", "butterfly", "caterpillar", "snail", "mouse", "key",
    "ring", "cherries", "strawberry", "egg", "cookie", "candy", "dice", "shrimp", "scorpion",
    "spoon", "coin", "seedling", "four leaf clover", "bone", "peanuts", "garlic", "lizard",
    "hatching chick",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A thing that can be drawn: its names, likeliest first, its kind, its drawings by style."""

    emoji: str
    names: tuple[str, ...]
    kind: str  # animal, plant, food, vehicle, place, sky, face, heart, sign or thing
    common: bool  # one of the 300 everyday ones
    drawings: Mapping[str, tuple[Sprite, ...]]

    @property
    def name(self) -> str:
        """The first name, which the tables here use."""
        return self.names[0]

    @property
    def is_living(self) -> bool:
        """Whether it can hold, ride or hide."""
        return self.kind in ("animal", "face") or self.name in CREATURES


def kind_of(name: str, group: str) -> str:
    """The kind of the subject of that first name in that group of the Unicode list."""
    literal = {"plant": PLANTS, "vehicle": VEHICLES, "sky": SKY, "sign": FLAT, "thing": CREATURES}
    for kind, names in literal.items():
        if name in names:
            return kind
    if group == "Smileys & Emotion":
        return "heart" if "heart" in name else "face"
    by_group = {"Animals & Nature": "animal", "Food & Drink": "food", "Travel & Places": "place",
                "Symbols": "sign"}  # fmt: skip
    return by_group.get(group, "thing")


class Catalogue:
    """Every subject, and lists of those that scenes choose from."""

    def __init__(
        self, concepts: Sequence[Concept], groups: Mapping[str, str], sprites: Sprites
    ) -> None:
        """concepts: as `dataset.name_concepts` gives them; groups: of each emoji."""
        drawn: dict[str, dict[str, list[Sprite]]] = defaultdict(lambda: defaultdict(list))
        for sprite in sprites.sprites:
            drawn[sprite.emoji][sprite.style].append(sprite)
        self.subjects: list[Subject] = []
        for concept in concepts:
            styles = {style: list(found) for style, found in drawn[concept.emoji].items()}
            whole = WHOLE.get(concept.names[0])
            if whole is not None:
                for style, found in drawn[whole].items():
                    styles.setdefault(style, []).extend(found)
            if not styles:
                continue
            # A whole tiger is a tiger too: it has no name of its own here.
            if without_selector(concept.emoji) in {without_selector(e) for e in WHOLE.values()}:
                continue
            self.subjects.append(
                Subject(
                    emoji=concept.emoji,
                    names=concept.names,
                    kind=kind_of(concept.names[0], groups[concept.emoji]),
                    common=concept.is_common,
                    drawings={style: tuple(found) for style, found in styles.items()},
                )
            )
        self.everyday = [s for s in self.subjects if s.common]
        self.rest = [s for s in self.subjects if not s.common]
        self._index = {s.emoji: k for k, s in enumerate(self.subjects)}
        self._by_name = {s.name: s for s in reversed(self.subjects)}
        companions = [self._by_name[name] for name in FURTHER if name in self._by_name]
        self.in_scenes = [
            s for s in (*self.everyday, *companions) if s.kind not in ("sign", "heart")
        ]
        self.living = [s for s in self.in_scenes if s.is_living]
        self.countable = [
            s for s in self.in_scenes if nouns.can_be_counted(s.name) and s.name not in LARGE
        ]
        self.on_ground = [s for s in self.in_scenes if s.name not in FLIERS and s.kind != "place"]

    def named(self, names: Sequence[str]) -> list[Subject]:
        """The subjects of these first names; those without drawings are left out."""
        return [self._by_name[name] for name in names if name in self._by_name]

    def index(self, subject: Subject) -> int:
        """The place of a subject in the list, which is its class for those that judge."""
        return self._index[subject.emoji]


def load(packages: Path, cache: Path) -> tuple[Catalogue, Sprites]:
    """The catalogue of the sprites in `cache`, named by the packages in `packages`."""
    archives = {
        name: dataset.Archive(packages, dataset.named_package(name))
        for name in ("unicode-emoji-json", "emojilib")
    }
    by_emoji = archives["unicode-emoji-json"].json("data-by-emoji.json")
    keywords = archives["emojilib"].json("dist/emoji-en-US.json")
    sprites = Sprites(cache)
    groups = {emoji: entry["group"] for emoji, entry in by_emoji.items()}
    return Catalogue(dataset.name_concepts(by_emoji, keywords), groups, sprites), sprites
