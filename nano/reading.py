"""Questions about words in a picture that a library has read: they stand in the prompt as "Reference OCR token".

The decoder learns to pick the right ones: the whole text, a number, a price, a title. The texts are made up, so they
are shown with any picture; what matters is the line of tokens. Without tokens it says that it cannot read any.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from mobillama_v.ocr import tokens_line
from nano.branches import Turn
from nano.lexicon import TRAIN_WORDS

CANNOT_READ = "I can't read any text in this picture."
_SAYS = (
    "What does it say?", "What does the sign say?", "What is written in the picture?", "Read the text.",
    "What text is in the image?", "What words are in the picture?", "What is written on the sign?",
    "What does the text say?", "What is written here?", "Can you read it?",
)  # fmt: skip
_NUMBERS = ("What number is shown?", "What is the number?", "Which number can you see?", "What number is on it?")
_FIRST = ("What is the first word?", "What word comes first?")
_LAST = ("What is the last word?", "What word comes last?")
_SHOPS = ("What is the name of the shop?", "What is the name of the store?", "What is the place called?")
_TITLES = ("What is the title of the book?", "What is the book called?", "What is the title?")
_AUTHORS = ("Who is the author?", "Who wrote the book?", "What is the name of the author?")
_TOTALS = ("What is the total?", "How much is the total?", "How much was paid in total?", "What is the total amount?")
_PRICES = ("How much is the {item}?", "What is the price of the {item}?", "What does the {item} cost?")
_TIMES = ("When does it open?", "What is the opening time?", "At what time does it open?")
_DATES = ("What is the date?", "Which date is shown?", "What date is on it?")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec January March April June July August October".split()
_NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mary Noah Olga Paul Rosa Sam Tina Walter Moore "
    "Smith Brown Miller Jones Garcia Lopez Wilson Khan Novak Berg Rossi Silva Tanaka Kim Adams Baker Cole Ford King"
).split()
_SHOP_KINDS = "Cafe Hotel Bakery Market Books Pizza Bar Grill Shop Store Pharmacy Cinema Bank Garage".split()

Page = tuple[list[str], list[Turn]]
"""Tokens in reading order, and questions about them with their answers."""


def turns(rng: random.Random) -> list[Turn]:
    """Questions about one made-up text; each holds the line of its tokens."""
    tokens, asked = page(rng)
    line = tokens_line(tokens)
    return [(f"{question}{line}", answer) for question, answer in asked]


def page(rng: random.Random) -> Page:
    """A made-up text and questions about it."""
    return rng.choices(tuple(_PAGES), tuple(_PAGES.values()))[0](rng)


def described(caption: str, rng: random.Random) -> Turn:
    """What follows a request for a description: the caption, and what the tokens say; now and then there are none."""
    tokens = _words(rng, rng.randint(0, 3))
    if not tokens:
        return tokens_line(tokens), caption
    return tokens_line(tokens), f'{caption} The text says "{" ".join(tokens)}".'


def _word(rng: random.Random) -> str:
    """A known word, a name, or letters that spell nothing; in capitals, or with a capital, or in small letters."""
    kind = rng.random()
    if kind < 0.7:
        word = rng.choice(TRAIN_WORDS)
    elif kind < 0.85:
        word = rng.choice(_NAMES)
    else:
        word = "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
        word += rng.choice(("", "n", "r", "s", "t", "ll", "ck"))
    return rng.choice((str.upper, str.upper, str.capitalize, str.lower))(word)


def _words(rng: random.Random, count: int) -> list[str]:
    return [_word(rng) for _ in range(count)]


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 4)))


def _price(rng: random.Random) -> str:
    return rng.choice(("", "", "$")) + f"{rng.randrange(60)}.{rng.randrange(100):02d}"


def _sign(rng: random.Random) -> Page:
    tokens = _words(rng, rng.choices((1, 2, 3, 4), (4, 4, 2, 1))[0])
    asked = [(rng.choice(_SAYS), " ".join(tokens))]
    if len(tokens) > 1:
        asked += [(rng.choice(_FIRST), tokens[0]), (rng.choice(_LAST), tokens[-1])]
    there, absent = rng.choice(tokens), _word(rng)
    if absent.lower() not in (token.lower() for token in tokens):
        asked += [(f'Is there the word "{there}"?', "yes"), (f'Is there the word "{absent}"?', "no")]
    return tokens, asked


def _with_number(rng: random.Random) -> Page:
    tokens = [*_words(rng, rng.randint(1, 4)), _number(rng)]
    rng.shuffle(tokens)
    number = next(token for token in tokens if token.isdigit())
    return tokens, [(rng.choice(_NUMBERS), number), (rng.choice(_SAYS), " ".join(tokens))]


def _receipt(rng: random.Random) -> Page:
    items, prices = _words(rng, rng.randint(1, 4)), [_price(rng) for _ in range(4)]
    tokens = [token for pair in zip(items, prices, strict=False) for token in pair]
    total = _price(rng)
    heading = _words(rng, rng.randint(0, 2))
    which = rng.randrange(len(items))
    asked = [(rng.choice(_TOTALS), total)]
    asked.append((rng.choice(_PRICES).format(item=items[which].lower()), prices[which]))
    return [*heading, *tokens, rng.choice(("TOTAL", "Total", "total", "TOTAL:", "Total:")), total], asked


def _book(rng: random.Random) -> Page:
    title, author = _words(rng, rng.randint(1, 4)), rng.sample(_NAMES, 2)
    shape = rng.choice((str.upper, str.capitalize))
    title, author = [shape(each) for each in title], [shape(each) for each in author]
    by = [rng.choice(("by", "BY", "By"))]
    asked = [(rng.choice(_TITLES), " ".join(title)), (rng.choice(_AUTHORS), " ".join(author))]
    return [*title, *by, *author], asked


def _shop(rng: random.Random) -> Page:
    name = [_word(rng).capitalize(), rng.choice(_SHOP_KINDS)]
    opens = f"{rng.randint(6, 11)}:{rng.choice(('00', '30'))}"
    closes = f"{rng.randint(13, 22)}:{rng.choice(('00', '30'))}"
    tokens = [*name, rng.choice(("Open", "OPEN", "Hours")), opens, "-", closes]
    return tokens, [(rng.choice(_SHOPS), " ".join(name)), (rng.choice(_TIMES), opens)]


def _slip(rng: random.Random) -> Page:
    date = rng.choice(
        (
            f"{rng.randint(1, 28)}.{rng.randint(1, 12)}.{rng.randint(1990, 2030)}",
            f"{rng.randint(1, 12):02d}/{rng.randint(1, 28):02d}/{rng.randint(1990, 2030)}",
            f"{rng.randint(1990, 2030)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        )
    )
    code = "".join(rng.choice(string.ascii_uppercase + string.digits) for _ in range(5))
    tokens = [*_words(rng, rng.randint(1, 2)), date, *([code] if rng.random() < 0.5 else [])]
    month = [str(rng.randint(1, 28)), rng.choice(_MONTHS)]
    if rng.random() < 0.3:
        return [*_words(rng, 2), *month], [(rng.choice(_DATES), " ".join(month))]
    return tokens, [(rng.choice(_DATES), date)]


def _nothing(rng: random.Random) -> Page:
    questions = (*_SAYS, *_NUMBERS, *_TITLES, *_TOTALS, *_SHOPS)
    return [], [(question, CANNOT_READ) for question in rng.sample(questions, 3)]


_PAGES: dict[Callable[[random.Random], Page], float] = {
    _sign: 0.32, _with_number: 0.15, _receipt: 0.18, _book: 0.13, _shop: 0.08, _slip: 0.07, _nothing: 0.07,
}  # fmt: skip


def unread(rng: random.Random) -> Turn:
    """A question about words where nothing was read for the model: no line of tokens stands in the prompt."""
    return rng.choice((*_TITLES, *_TOTALS, *_SHOPS, "Read the text.", "What does the sign say?")), CANNOT_READ
