"""Nouns that are not counted by the rule, and their plurals."""

from demo_model import variants

# Names that are plural as they stand, that have no plural, and of which there is only one.
PLURALS = frozenset({
    "grapes", "cherries", "peanuts", "pancakes", "french fries", "glasses", "jeans", "pants",
    "socks", "books", "scissors", "headphones", "autumn leaves", "lips", "paw prints",
    "tears of joy", "heart eyes", "sunglasses", "blueberries", "sparkles", "fries", "cobwebs",
})  # fmt: skip
MASS = frozenset({
    "bread", "cheese", "bacon", "popcorn", "sushi", "corn", "broccoli", "garlic", "coffee",
    "wine", "beer", "milk", "honey", "soda", "ice", "fire", "lightning", "noodle soup", "ramen",
    "spaghetti", "luggage",
})  # fmt: skip
UNIQUE = frozenset({"sun", "moon", "earth", "sun with face"})
IRREGULAR = {
    "mouse": "mice", "fish": "fish", "tropical fish": "tropical fish", "sheep": "sheep",
    "deer": "deer", "goose": "geese", "knife": "knives", "wolf": "wolves",
    "fallen leaf": "fallen leaves", "maple leaf": "maple leaves",
    "four leaf clover": "four leaf clovers", "tooth": "teeth", "glass of milk": "glasses of milk",
    "squid": "squid", "shrimp": "shrimp", "dice": "dice", "mango": "mangoes",
    "potato": "potatoes", "tomato": "tomatoes", "volcano": "volcanoes", "flamingo": "flamingos",
    "thumbs up": "thumbs up", "poop": "poops",
}  # fmt: skip


def can_be_counted(name: str) -> bool:
    """Whether "three" can stand before it."""
    return name not in PLURALS | MASS | UNIQUE


def plural_of(name: str) -> str:
    """ "cat" → "cats", "goose" → "geese"."""
    return IRREGULAR.get(name) or variants.plural(name)
