"""What the demo model draws: which emoji are kept, what they are called, how often each is shown.

Everything here is a plain table, so that the choices that shape the model can be read in one place.
"""

# Groups of the Unicode emoji list that are kept whole. "Smileys & Emotion" holds the hearts too.
GROUPS = frozenset(
    {
        "Activities",
        "Animals & Nature",
        "Food & Drink",
        "Objects",
        "Smileys & Emotion",
        "Travel & Places",
    }
)

# From "Symbols" and "People & Body" only what is a drawing of something: no letters, signs of the
# zodiac, buttons, people, professions or skin tones.
EXTRA_NAMES = frozenset(
    {
        "anatomical heart", "biohazard", "black circle", "black large square", "blue circle",
        "blue square", "bone", "brain", "brown circle", "brown square", "check mark button",
        "clapping hands", "cross mark", "down arrow", "ear", "eye", "eyes", "flexed biceps",
        "footprints", "green circle", "green square", "infinity", "large blue diamond",
        "large orange diamond", "left arrow", "lungs", "mouth", "musical note", "musical notes",
        "no entry", "orange circle", "orange square", "peace symbol", "prohibited",
        "purple circle", "purple square", "radioactive", "recycling symbol", "red circle",
        "red exclamation mark", "red question mark", "red square", "red triangle pointed up",
        "right arrow", "thumbs up", "tongue", "tooth", "up arrow", "warning", "waving hand",
        "white circle", "yellow circle", "yellow square", "yin yang",
    }
)  # fmt: skip

# Left out although their group is kept: 24 clock faces that differ by their hands alone.
DROPPED_WORDS = ("o’clock", "thirty", "o'clock")

# Keywords that are trade marks rather than words for what is drawn.
BRANDS = frozenset({"mac", "iphone", "ios", "android", "apple_inc", "google", "facebook"})

# Everyday nouns, shown several times as often as the rest: emoji -> what people call it, likeliest
# name first. A name given here replaces the Unicode name, which is kept as a rarer synonym.
CORE: dict[str, tuple[str, ...]] = {
    "🍎": ("apple", "red apple"), "🍏": ("green apple",), "🍌": ("banana",), "🍓": ("strawberry",),
    "🍒": ("cherries", "cherry"), "🍇": ("grapes",), "🍊": ("orange fruit", "tangerine"),
    "🍋": ("lemon",), "🍉": ("watermelon",), "🍍": ("pineapple",), "🍐": ("pear",),
    "🍑": ("peach",), "🥕": ("carrot",), "🌽": ("corn",), "🍅": ("tomato",), "🍄": ("mushroom",),
    "🍞": ("bread",), "🧀": ("cheese",), "🍕": ("pizza",), "🍔": ("burger", "hamburger"),
    "🍟": ("french fries", "fries"), "🌭": ("hot dog",), "🍩": ("donut", "doughnut"),
    "🍪": ("cookie",), "🎂": ("birthday cake", "cake"), "🧁": ("cupcake",), "🍦": ("ice cream",),
    "🍫": ("chocolate bar", "chocolate"), "🍭": ("lollipop",), "🥚": ("egg",),
    "☕": ("coffee", "cup of coffee"), "🍺": ("beer",), "🍷": ("wine", "glass of wine"),
    "🦊": ("fox", "fox face"), "🐱": ("cat", "cat face"), "🐶": ("dog", "dog face"),
    "🐭": ("mouse", "mouse face"), "🐰": ("rabbit", "bunny", "rabbit face"),
    "🐻": ("bear", "bear face"), "🐼": ("panda", "panda face"), "🐨": ("koala", "koala face"),
    "🐯": ("tiger", "tiger face"), "🦁": ("lion", "lion face"), "🐮": ("cow", "cow face"),
    "🐷": ("pig", "pig face"), "🐸": ("frog", "frog face"), "🐵": ("monkey", "monkey face"),
    "🐺": ("wolf", "wolf face"), "🐴": ("horse", "horse face"), "🦄": ("unicorn", "unicorn face"),
    "🐔": ("chicken",), "🐧": ("penguin",), "🦉": ("owl",), "🦆": ("duck",), "🐦": ("bird",),
    "🐟": ("fish",), "🐠": ("tropical fish",), "🐬": ("dolphin",), "🐳": ("whale",),
    "🐙": ("octopus",), "🦀": ("crab",), "🐢": ("turtle",), "🐍": ("snake",), "🐘": ("elephant",),
    "🐝": ("bee", "honeybee"), "🦋": ("butterfly",), "🐌": ("snail",), "🐞": ("ladybug",),
    "🐛": ("caterpillar", "bug"), "🌳": ("tree", "green tree"),
    "🌲": ("pine tree", "evergreen tree"), "🌴": ("palm tree",), "🌵": ("cactus",),
    "🌹": ("rose", "red rose"), "🌻": ("sunflower",), "🌷": ("tulip",), "🌼": ("flower", "blossom"),
    "🍁": ("maple leaf",), "🍀": ("four leaf clover", "clover"), "☀️": ("sun",),
    "🌞": ("sun with face",), "🌙": ("moon", "crescent moon"), "⭐": ("star", "yellow star"),
    "☁️": ("cloud",), "🌈": ("rainbow",), "❄️": ("snowflake",), "⛄": ("snowman",),
    "🔥": ("fire", "flame"), "💧": ("droplet", "water drop"), "⚡": ("lightning",),
    "🌍": ("earth", "globe", "planet earth"), "🌋": ("volcano",), "🏔️": ("mountain",),
    "🏠": ("house",), "🏰": ("castle",), "⛺": ("tent",), "🚗": ("car", "red car"),
    "🚕": ("taxi",), "🚌": ("bus",), "🚚": ("truck", "delivery truck"), "🚲": ("bicycle", "bike"),
    "🚂": ("train", "locomotive"), "✈️": ("airplane", "plane"), "🚁": ("helicopter",),
    "🚀": ("rocket",), "⛵": ("sailboat", "boat"), "🚢": ("ship",),
    "⚽": ("soccer ball", "football"), "🏀": ("basketball",), "🎾": ("tennis ball", "tennis"),
    "🎈": ("balloon",),
    "🎁": ("gift", "present", "wrapped gift"), "🎄": ("christmas tree",), "🎃": ("pumpkin",),
    "🏆": ("trophy",), "🎸": ("guitar",), "🥁": ("drum",), "📱": ("phone", "mobile phone"),
    "💻": ("laptop", "computer"), "📷": ("camera",), "📚": ("books",), "📖": ("book", "open book"),
    "✏️": ("pencil",), "✂️": ("scissors",), "🔑": ("key",), "🔒": ("lock",), "💡": ("light bulb",),
    "🔔": ("bell",), "⏰": ("alarm clock", "clock"), "☂️": ("umbrella",), "👑": ("crown",),
    "👓": ("glasses",), "👟": ("shoe",), "🎩": ("top hat", "hat"), "💎": ("diamond", "gem"),
    "💰": ("money bag",), "🛏️": ("bed",), "🪑": ("chair",), "🔨": ("hammer",),
    "❤️": ("red heart", "heart"), "💙": ("blue heart",), "💚": ("green heart",),
    "💛": ("yellow heart",), "😀": ("smiley face", "happy face", "smiley"),
    "😢": ("sad face", "crying face"), "😡": ("angry face",), "👻": ("ghost",), "💀": ("skull",),
    "🤖": ("robot",), "👽": ("alien",),
}  # fmt: skip

# The ten that the recipe promises and its contact sheet shows.
PROMISED = ("🍎", "🦊", "❤️", "☀️", "🏠", "🐟", "🌳", "🚗", "🐱", "⭐")
PROMPTS = (
    "a red apple",
    "a fox",
    "a red heart",
    "the sun",
    "a house",
    "a fish",
    "a tree",
    "a car",
    "a cat",
    "a star",
)

# Whole animals and other second drawings of a word in CORE. Their plain name belongs to the drawing
# above, since a small model that is told both draws neither.
RENAMED: dict[str, tuple[str, ...]] = {
    "🐈": ("walking cat",), "🐈‍⬛": ("black cat",), "🐕": ("walking dog",), "🐁": ("white mouse",),
    "🐇": ("sitting rabbit",), "🐅": ("walking tiger",), "🐄": ("walking cow",),
    "🐖": ("walking pig",), "🐒": ("sitting monkey",), "🐎": ("running horse",),
    "🐋": ("blue whale",), "🚘": ("front of a car",), "🚙": ("blue car",),
    "🏡": ("house with a garden",),
    "🚆": ("front of a train",), "🛳️": ("passenger ship",), "🖊️": ("pen",), "📕": ("red book",),
    "🐥": ("front of a chick",), "🐉": ("whole dragon",), "⚾": ("baseball",),
    "♥️": ("heart suit",),
}  # fmt: skip

WEIGHT_PROMISED = 20.0
WEIGHT_CORE = 6.0
WEIGHT_SMILEY = 0.2  # they are many and alike
WEIGHT_REST = 0.5
