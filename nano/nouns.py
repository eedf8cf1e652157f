"""Words for what captions name: which nouns are people, animals, clothes, things and places, and what they imply.

The lists hold what people name in photographs of daily life; a noun that is not listed is asked about by no rule.
"""

from __future__ import annotations

PEOPLE = frozenset(
    """
    man woman boy girl child person kid baby toddler guy lady adult teenager player skateboarder snowboarder rider skier
    surfer hiker cyclist bicyclist racer motorcyclist wrestler bride friend runner cowboy goalie worker officer mother
    father cheerleader swimmer jockey skater clown photographer referee driver catcher athlete dancer student musician
    policeman climber biker performer gymnast pitcher batter soldier singer spectator pedestrian fisherman family
    """.split()
)
ANIMALS = frozenset(
    """
    dog puppy horse bird cat duck bull cow sheep goat camel pigeon monkey swan bear elephant tiger fish poodle greyhound
    retriever terrier collie shepherd spaniel bulldog seagull turtle rabbit squirrel insect butterfly
    """.split()
)
CLOTHES = frozenset(
    """
    shirt hat jacket dress helmet shorts uniform coat suit pants jeans cap costume vest sweater skirt scarf trunks
    sweatshirt swimsuit bikini sunglasses glasses goggles boot glove jersey apron robe headband mask shoe tie hoodie
    bandanna wetsuit outfit overalls backpack
    """.split()
)
THINGS = frozenset(
    """
    ball stick toy frisbee bike bicycle motorcycle car truck bus train boat kayak canoe raft sled skateboard
    surfboard snowboard scooter guitar flag rope ramp bench fence chair table bed umbrella bag purse slide swing
    trampoline leash collar hurdle racket bat ski bucket box bottle cup book newspaper sign balloon kite tent cart wagon
    stroller wheelchair statue fountain ladder drum violin microphone paddle net bone tire cellphone phone couch pillow
    blanket cake sandwich flower tree bush pole railing window door hoop tunnel obstacle sprinkler hose cigarette gun
    sword trumpet piano computer laptop television banana apple pizza airplane plane helicopter parachute bubble
    snowball log rock stone tattoo necklace basket shovel unicycle tricycle motorbike jeep van canopy candle painting
    """.split()
)
PLACES = frozenset(
    """
    street road sidewalk beach mountain hill field park pool yard lawn grass snow sand water ocean lake river stream
    pond forest woods city playground track court stage room kitchen store restaurant bridge cliff trail path dirt mud
    ice stadium garden gym waterfall desert puddle wall building house stairs steps bar subway dock pier backyard
    market parking-lot rink shore hillside slope alley deck porch crowd air ground floor
    """.split()
)
MASS = frozenset("grass snow sand water dirt mud ice air woods stairs steps".split())
"""Things that take no article."""
PAIRS = frozenset("shorts pants jeans trunks sunglasses glasses goggles overalls".split())
"""Clothes that are named in the plural only."""
SILENT = frozenset("ground floor air crowd wall building window tree rock person friend family".split())
"""What captions often leave out though it is there: nothing is denied of these."""

COLORS = frozenset("black white red blue green yellow orange pink purple brown gray tan beige gold silver".split())
SPELLINGS = {"grey": "gray", "colored": "", "golden": "gold"}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
DETERMINERS = frozenset("a an the his her their its this that another some".split()) | NUMBERS.keys()
MODIFIERS = frozenset(
    """
    young little small large big old older elderly tall tiny long short dark light bright striped plaid colorful wooden
    metal plastic snowy grassy sandy rocky muddy wet dirty empty blond blonde bald asian african american indian
    shirtless smiling happy beautiful cute fluffy furry brown-haired dark-haired blond-haired blond-headed soccer
    football baseball basketball tennis hockey bicycle bike dirt street tricolored spotted toy rubber stuffed bathing
    swimming hula picnic parking brick stone concrete snow sand water beach female male teenage huge shaggy curly
    """.split()
)

VERBS = frozenset(
    "stick slide swing tie ski train bat paddle fish duck bear park store track sign boot cup log book".split()
)
"""Nouns that are also verbs: they count only after an article, a number or an adjective, or as plurals."""

IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "puppies": "puppy", "babies": "baby",
    "ladies": "lady", "families": "family", "benches": "bench", "boxes": "box", "buses": "bus", "bushes": "bush",
    "beaches": "beach", "dresses": "dress", "couches": "couch", "branches": "branch", "leashes": "leash",
    "bodies": "body", "fishermen": "fisherman", "policemen": "policeman", "skis": "ski", "knives": "knife",
}  # fmt: skip
LISTED = PEOPLE | ANIMALS | CLOTHES | THINGS | PLACES

_IMPLIED = {
    "man": "adult", "woman": "adult", "guy": "man", "lady": "woman", "mother": "woman", "father": "man",
    "boy": "child", "girl": "child", "kid": "child", "toddler": "child", "baby": "child", "child": "kid",
    "bride": "woman", "cowboy": "man", "policeman": "officer", "fisherman": "man",
    "puppy": "dog", "poodle": "dog", "greyhound": "dog", "retriever": "dog", "terrier": "dog", "collie": "dog",
    "shepherd": "dog", "spaniel": "dog", "bulldog": "dog", "duck": "bird", "pigeon": "bird", "swan": "bird",
    "seagull": "bird", "bicycle": "bike", "bike": "bicycle", "motorbike": "motorcycle", "motorcycle": "motorbike",
    "skateboarder": "skateboard", "snowboarder": "snowboard", "surfer": "surfboard", "jeep": "car",
    "cyclist": "bicycle", "bicyclist": "bicycle", "motorcyclist": "motorcycle", "skier": "ski",
    "plane": "airplane", "airplane": "plane", "cellphone": "phone", "stone": "rock", "backyard": "yard",
    "stream": "water", "lake": "water", "ocean": "water", "river": "water", "pond": "water", "pool": "water",
    "puddle": "water", "waterfall": "water", "sandwich": "food", "cake": "food", "jersey": "shirt",
    "hoodie": "sweatshirt",
    "lawn": "grass", "woods": "forest", "forest": "tree", "beach": "sand", "hillside": "hill", "sidewalk": "street",
    "street": "road", "road": "street", "trail": "path", "track": "path", "steps": "stairs", "stairs": "steps",
    "cap": "hat", "van": "car", "biker": "bike", "racer": "helmet", "swimsuit": "bikini", "bikini": "swimsuit",
    "wetsuit": "suit", "uniform": "jersey", "jeans": "pants", "sunglasses": "glasses", "goggles": "glasses",
    "outfit": "costume", "costume": "outfit", "coat": "jacket", "jacket": "coat", "hill": "mountain",
    "mountain": "hill",
    "rock": "cliff", "cliff": "rock", "sword": "stick", "log": "stick", "bush": "plant", "playground": "slide",
    "mud": "dirt", "dirt": "mud", "shore": "beach", "city": "building", "store": "building", "phone": "cellphone",
    "performer": "adult", "bat": "stick",
}  # fmt: skip
"""What may be there too when a thing is named: said yes to only along :data:`_KINDS`, denied never."""
_KINDS = frozenset(
    "dog bird child man woman adult bicycle bike motorcycle plane airplane phone rock street road".split()
)


def singular(word: str) -> str:
    """The singular of a listed noun, or the word itself."""
    if word in LISTED:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    stem = word[:-1] if word.endswith("s") else word
    return stem if stem in LISTED else word


def plural(noun: str) -> str:
    """The plural of a listed noun."""
    for many, one in IRREGULAR.items():
        if one == noun:
            return many
    return noun if noun in MASS | PAIRS | {"sheep", "fish"} else f"{noun}s"


def also(noun: str) -> set[str]:
    """What is certainly there where ``noun`` is: its kinds (``puppy``: dog, animal)."""
    found, kind = {noun}, _IMPLIED.get(noun)
    while kind in _KINDS and kind not in found:
        found.add(kind)
        kind = _IMPLIED.get(kind)
    if noun in PEOPLE:
        found.add("person")
    if noun in ANIMALS:
        found.add("animal")
    return found


def perhaps(noun: str) -> set[str]:
    """What cannot be denied where ``noun`` is: :func:`also`, what it may be a kind of, and what is a kind of it."""
    found = also(noun)
    above = _IMPLIED.get(noun)
    if above:
        found |= {above, *also(above)}
    found |= {other for other, kind in _IMPLIED.items() if kind in found}
    if noun in PEOPLE:  # captions call the same person by many names
        found |= {"adult", "guy", "lady", "player", "friend", "person", "athlete", "performer", "teenager"}
    return found
