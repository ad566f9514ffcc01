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

# The everyday nouns that come to mind first: emoji -> what people call it, likeliest name first. A
# name given here replaces the Unicode name, which is kept as a rarer synonym.
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

# With CORE, the 300 that people ask for most, by our own judgement: no frequency list of emoji is
# under a licence that allows using it here.
MORE: dict[str, tuple[str, ...]] = {
    "😂": ("tears of joy", "laughing face"), "😍": ("heart eyes", "face in love"),
    "😎": ("cool face", "smiling face with sunglasses"), "🤔": ("thinking face",),
    "😴": ("sleeping face",),
    "🤯": ("exploding head",), "🥳": ("partying face", "party face"), "😱": ("scared face",),
    "🤡": ("clown", "clown face"), "💩": ("poop", "pile of poo"), "😈": ("devil", "purple devil"),
    "💔": ("broken heart",), "🧡": ("orange heart",), "💜": ("purple heart",),
    "🖤": ("black heart",), "💋": ("kiss mark", "lips"), "💥": ("explosion", "collision"),
    "💬": ("speech bubble", "speech balloon"), "👍": ("thumbs up",), "💪": ("muscle", "strong arm"),
    "🧠": ("brain",), "🦷": ("tooth",), "🦴": ("bone",),
    "🦍": ("gorilla",), "🐩": ("poodle",), "🦝": ("raccoon",),
    "🐆": ("leopard",), "🦓": ("zebra",), "🦌": ("deer",), "🐑": ("sheep",), "🐐": ("goat",),
    "🐪": ("camel",), "🦙": ("llama",), "🦒": ("giraffe",), "🦏": ("rhinoceros", "rhino"),
    "🦛": ("hippopotamus", "hippo"), "🐹": ("hamster",), "🐿️": ("squirrel", "chipmunk"),
    "🦔": ("hedgehog",), "🦇": ("bat",), "🦘": ("kangaroo",), "🐾": ("paw prints",),
    "🦃": ("turkey",), "🐓": ("rooster",), "🐣": ("hatching chick", "chick"),
    "🕊️": ("dove",), "🦅": ("eagle",), "🦢": ("swan",), "🦩": ("flamingo",), "🦚": ("peacock",),
    "🦜": ("parrot",), "🐊": ("crocodile",), "🦎": ("lizard",), "🐲": ("dragon", "dragon face"),
    "🦖": ("dinosaur", "t rex"), "🦈": ("shark",),
    "🦞": ("lobster",), "🦐": ("shrimp",), "🦑": ("squid",), "🐜": ("ant",), "🕷️": ("spider",),
    "🕸️": ("spider web", "cobweb"), "🦂": ("scorpion",), "🌸": ("cherry blossom",),
    "🌺": ("hibiscus",), "💐": ("bouquet",), "🌱": ("seedling", "sprout"),
    "🍂": ("fallen leaf", "autumn leaves"), "🥭": ("mango",),
    "🥝": ("kiwi", "kiwi fruit"), "🥥": ("coconut",), "🥑": ("avocado",), "🍆": ("eggplant",),
    "🥔": ("potato",), "🌶️": ("hot pepper", "chili pepper"), "🥒": ("cucumber",),
    "🥦": ("broccoli",), "🧄": ("garlic",), "🧅": ("onion",), "🥜": ("peanuts",),
    "🥐": ("croissant",), "🥖": ("baguette", "baguette bread"),
    "🥨": ("pretzel",), "🥯": ("bagel",), "🥞": ("pancakes",), "🧇": ("waffle",),
    "🍗": ("chicken leg", "poultry leg"), "🥩": ("steak", "cut of meat"), "🥓": ("bacon",),
    "🥪": ("sandwich",), "🌮": ("taco",), "🌯": ("burrito",), "🍳": ("fried egg", "frying pan"),
    "🍿": ("popcorn",), "🍜": ("noodle soup", "ramen"), "🍣": ("sushi",), "🍬": ("candy",),
    "🍯": ("honey pot", "honey"), "🥛": ("glass of milk", "milk"),
    "🍸": ("cocktail", "cocktail glass"), "🥤": ("soda", "cup with straw"),
    "🧊": ("ice cube", "ice"), "🥄": ("spoon",), "🔪": ("knife", "kitchen knife"),
    "🧭": ("compass",), "🏝️": ("island", "desert island"),
    "⛲": ("fountain",), "🎡": ("ferris wheel",),
    "🚑": ("ambulance",), "🚒": ("fire truck", "fire engine"), "🚓": ("police car",),
    "🚜": ("tractor",), "🏎️": ("racing car", "race car"), "🏍️": ("motorcycle", "motorbike"),
    "🛵": ("scooter", "motor scooter"), "🛹": ("skateboard",), "⛽": ("gas pump", "fuel pump"),
    "🚦": ("traffic light",), "🛑": ("stop sign",), "⚓": ("anchor",), "🛸": ("ufo", "spaceship"),
    "🧳": ("suitcase", "luggage"), "⌚": ("watch", "wristwatch"), "⌛": ("hourglass",),
    "🪐": ("planet", "saturn"), "🌊": ("wave", "ocean wave"), "🎀": ("ribbon", "pink bow"),
    "🏈": ("american football",),
    "🎯": ("bullseye", "target"), "🎲": ("dice", "game die"),
    "🧸": ("teddy bear",), "🎨": ("palette", "artist palette"),
    "👕": ("shirt", "t shirt"), "👖": ("jeans", "pants"), "🧦": ("socks",), "👗": ("dress",),
    "🎒": ("backpack",), "👠": ("high heel", "high heeled shoe"), "💍": ("ring",),
    "🎤": ("microphone",), "🎧": ("headphones", "headphone"), "🎻": ("violin",),
    "🔋": ("battery",), "📺": ("television", "tv"), "🕯️": ("candle",), "📦": ("package", "box"),
    "✉️": ("envelope", "letter"), "💣": ("bomb",), "🧲": ("magnet",), "🚪": ("door",),
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

# How often a concept is shown, all its styles together. The 300 get three quarters.
WEIGHT_PROMISED = 2.0
WEIGHT_COMMON = 1.0
WEIGHT_SMILEY = 0.1  # the other faces: they are many and alike
WEIGHT_REST = 0.15
WEIGHT_COLOUR, WEIGHT_NUMBER = 0.03, 0.08  # of one recoloured, or one repeated, drawing of it

# What drawings are recoloured in: the word, and the hue in turns.
COLOURS: dict[str, float] = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.145,
    "green": 0.35,
    "blue": 0.6,
    "purple": 0.76,
    "pink": 0.91,
}
NUMBERS = ("two", "three", "tiny")  # drawings that are made of one
