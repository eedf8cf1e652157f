"""The words that drawn signs show: one list for training, and one that training never sees."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

TRAIN_WORDS: tuple[str, ...] = tuple(
    """
    STOP OPEN EXIT SALE TAXI BUS HOTEL BANK CAFE BAR PARK SHOP FREE NEW HOT COLD IN OUT UP DOWN ON OFF YES NO PUSH
    WAIT WALK SLOW FAST GO LEFT RIGHT NORTH SOUTH EAST MEN WOMEN FIRE HELP DANGER CAUTION PRIVATE CLOSED WELCOME
    HELLO ENTER START END PLAY PAUSE NEXT BACK HOME MENU FOOD PIZZA BREAD MILK WATER JUICE COFFEE BEER WINE SOUP
    RICE FISH MEAT EGGS CAKE APPLE LEMON GRAPE PEACH SALT SUGAR BURGER SALAD LUNCH DINNER BAKERY MARKET STORE
    SCHOOL OFFICE POLICE DOCTOR LIBRARY MUSEUM CINEMA THEATER STATION AIRPORT BRIDGE ROAD STREET AVENUE MAIN CITY
    TOWN RIVER LAKE BEACH ISLAND FOREST GARDEN FARM HOUSE ROOM DOOR GATE KEY BOX BAG BOOK PAPER PEN MAP CARD GIFT
    TOY BALL GAME MUSIC RADIO PHONE PHOTO VIDEO MOVIE NEWS ART LOVE PEACE HAPPY SMILE DREAM LUCKY GOLD SILVER MONEY
    CASH PRICE CHEAP BEST SUPER MEGA EXTRA MAX MINI BIG SMALL LARGE TALL SHORT LONG DRY WET CLEAN FRESH SWEET SUN
    MOON STAR SKY RAIN SNOW WIND CLOUD STORM SPRING SUMMER WINTER MONDAY FRIDAY SUNDAY JUNE JULY MAY DAY NIGHT TODAY
    NOW LATE EARLY DOG CAT BIRD HORSE COW PIG LION TIGER BEAR WOLF FOX DUCK KING QUEEN TEAM CLUB RED BLUE GREEN
    """.split()
)

HELD_OUT_WORDS: tuple[str, ...] = tuple(
    """
    PULL WEST GRILL TEA POST GYM SPA ZOO TRAIN TUNNEL LOBBY SALON VALLEY HARBOR BUTTER HONEY PASTA ORANGE FLOWER
    WINDOW JACKET LAPTOP CAMERA PLANET ROCKET AUTUMN QUICK JUMP SHEEP VOTE
    """.split()
)


def sample_text(rng: random.Random, words: Sequence[str] = TRAIN_WORDS, *, longest: int = 7) -> str:
    """One piece of sign text: usually a word from ``words``, else a number below 100 or 2 to 4 random capitals.

    Passing any list other than :data:`TRAIN_WORDS` yields only its words, so that an evaluation of those is pure.
    """
    kind = rng.random() if words is TRAIN_WORDS else 1.0
    if kind < 0.2:
        return _random_capitals(rng, rng.randint(2, min(4, longest)))
    if kind < 0.32:
        return str(rng.randint(0, 99))
    word = rng.choice([w for w in words if len(w) <= longest])
    case = rng.random()
    if case < 0.65:
        return word
    return word.capitalize() if case < 0.85 else word.lower()


def _random_capitals(rng: random.Random, length: int) -> str:
    while True:
        text = "".join(rng.choice(string.ascii_uppercase) for _ in range(length))
        if text not in HELD_OUT_WORDS:
            return text


def text_kind(text: str) -> str:
    """What a reader would call ``text``: ``number``, ``word`` or, for capitals that spell nothing, ``letters``."""
    if text.isdigit():
        return "number"
    return "word" if text.upper() in _KNOWN else "letters"


_KNOWN = frozenset(TRAIN_WORDS) | frozenset(HELD_OUT_WORDS)
