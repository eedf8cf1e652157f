"""Conversations about photographs made from their human captions by rules that only say what the captions support.

A photograph has several captions by different people. What is asked: what is there (yes and no equally often), who or
what it is, what somebody is doing, where, of which color, how many; and what no caption can answer, to which the answer
is :data:`CANNOT_TELL`.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from nano import caption_phrases as phrases
from nano.nouns import (
    ANIMALS,
    CLOTHES,
    COLORS,
    DETERMINERS,
    LISTED,
    MASS,
    MODIFIERS,
    NUMBERS,
    PAIRS,
    PEOPLE,
    PLACES,
    SILENT,
    SPELLINGS,
    THINGS,
    VERBS,
    also,
    perhaps,
    plural,
    singular,
)

_RARE = 1 / 2000  # nouns in the captions of a smaller share of photographs are not asked about
CANNOT_TELL = "I can't tell from this picture."


@dataclass(frozen=True)
class Mention:
    """A noun phrase of a caption: ``two brown dogs``."""

    noun: str
    number: int | None
    """How many; ``None`` where it does not say (``dogs``, ``some dogs``)."""
    colors: tuple[str, ...]
    start: int
    end: int
    text: str
    many: bool = False


@dataclass
class Facts:
    """What the captions of one photograph say."""

    captions: list[str]
    named: set[str] = field(default_factory=set)
    numbers: dict[str, set[int | None]] = field(default_factory=lambda: defaultdict(set))
    colors: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    worn: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    subjects: Counter[str] = field(default_factory=Counter)
    phrases: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    doing: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    where: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    words: set[str] = field(default_factory=set)


def tidy(caption: str) -> str:
    """A caption as a sentence: no blanks before punctuation, a capital first, a period last."""
    text = re.sub(r"\s+([.,;:!?'])", r"\1", " ".join(caption.replace("`", "'").replace('"', "").split()))
    text = re.sub(r"\.{2,}", ".", text).strip(" .,;!")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _words(caption: str) -> list[str]:
    found = re.findall(r"[a-z]+(?:[-'][a-z]+)*|[.,;]", caption.lower())
    return [SPELLINGS.get(word) or word for word in found]


def mentions(words: Sequence[str]) -> list[Mention]:
    """The noun phrases of a caption that name listed things."""
    found, i = [], 0
    while i < len(words):
        start = i
        number: int | None = None
        opened = words[i] in DETERMINERS
        if opened:
            number = NUMBERS.get(words[i], 1 if words[i] in ("a", "an") else None)
            i += 1
        colors: list[str] = []
        while i < len(words) and (
            words[i] in COLORS
            or words[i] in MODIFIERS
            or (words[i] == "and" and colors and i + 1 < len(words) and words[i + 1] in COLORS)
        ):
            following = words[i + 1] if i + 1 < len(words) else ""
            if singular(words[i]) in LISTED and not (singular(following) in LISTED or following in MODIFIERS):
                break
            if words[i] in COLORS:
                colors.append(words[i])
            i += 1
        head = None
        while i < len(words) and singular(words[i]) in LISTED:
            if head is not None and singular(words[i]) in VERBS and singular(words[head]) in PEOPLE | ANIMALS:
                break  # "children swing"
            head = i
            i += 1
        if head is not None:
            noun = singular(words[head])
            many = words[head] != noun
            if many and number == 1:
                number = None
            if noun in VERBS and head == start:
                continue
            single = 1 if opened and not many and number is None and words[start] not in ("some",) else None
            tidy_colors = tuple(dict.fromkeys(colors))
            found.append(
                Mention(noun, number if number else single, tidy_colors, start, i, " ".join(words[start:i]), many)
            )
        elif i == start:
            i += 1
    return found


_PREPOSITIONS = frozenset(
    "in on at near by through along across inside outside under over beside against behind".split()
)
_DOING_STOP = frozenset("while as and with that who which , . ;".split())


def read(captions: Sequence[str]) -> Facts:
    """Everything that rules find in captions."""
    facts = Facts([tidy(caption) for caption in captions])
    for caption in captions:
        words = _words(caption)
        facts.words |= {singular(word) for word in words}
        found = mentions(words)
        for each in found:
            facts.named.add(each.noun)
            facts.numbers[each.noun].add(each.number)
            if each.noun not in CLOTHES:
                facts.colors[each.noun].add(" and ".join(each.colors))
        _clothes(words, found, facts)
        if found and found[0].start == 0 and found[0].noun in PEOPLE | ANIMALS:
            _subject(words, found[0], found, facts)
    return facts


def _clothes(words: list[str], found: list[Mention], facts: Facts) -> None:
    owner = None
    for each in found:
        if each.noun in PEOPLE | ANIMALS:
            owner = each
        elif each.noun in CLOTHES and owner is not None and owner.number == 1:
            between = words[owner.end : each.start]
            if between in (["in"], ["wearing"], ["is", "wearing"], ["with"], ["dressed", "in"]):
                facts.worn[owner.noun, each.noun].add(" and ".join(each.colors))


def _subject(words: list[str], subject: Mention, found: list[Mention], facts: Facts) -> None:
    facts.subjects[subject.noun] += 1
    facts.phrases[subject.noun].append(subject.text)
    rest = words[subject.end :]
    doing = _verb_phrase(rest, subject, words)
    if doing:
        facts.doing[_called(subject)].append(doing)
    place = next(
        (each for each in reversed(found) if each.noun in PLACES and each.end >= len(words) - 1 and each.start > 0),
        None,
    )
    if place and words[place.start - 1] in _PREPOSITIONS:
        facts.where[_called(subject)].append(f"{words[place.start - 1]} {place.text}")


def _called(subject: Mention) -> str:
    return plural(subject.noun) if subject.many else subject.noun


def _verb_phrase(rest: list[str], subject: Mention, words: list[str]) -> str | None:
    if rest and rest[0] in ("is", "are"):
        rest = rest[1:]
    else:  # a description may come between: "a man in a red shirt is climbing"
        for i in range(1, min(len(rest) - 1, 7)):
            if rest[i] in ("is", "are") and rest[i + 1].endswith("ing"):
                rest = rest[i + 1 :]
                break
    if (
        not rest
        or not rest[0].endswith("ing")
        or rest[0] in ("wearing", "being", "during", "ring", "building", "sting")
    ):
        return None
    taken: list[str] = []
    for word in rest:
        if word in _DOING_STOP:
            break
        taken.append(word)
    while taken and (taken[-1] in _PREPOSITIONS | DETERMINERS or taken[-1] in ("of", "to", "from", "into")):
        taken.pop()
    return " ".join(taken) if 0 < len(taken) <= 9 else None


class Asker:
    """Makes conversations; knows how often each noun is named, to ask about absent things as often as about present.

    Args:
        everything: what is said of every photograph.
    """

    def __init__(self, everything: Sequence[Facts]) -> None:
        counts = Counter(
            noun for facts in everything for noun in {*facts.named, *(k for n in facts.named for k in also(n))}
        )
        # In one order, whatever order Python's sets have: the same seed asks the same questions.
        self._weights = {noun: n**0.75 for noun, n in sorted(counts.items()) if n >= _RARE * len(everything)}

    def absent(self, facts: Facts, rng: random.Random) -> str | None:
        """A noun that none of the captions names, nor implies, nor leaves open; ``None`` where there is none."""
        closed = facts.words | SILENT | {noun for named in facts.named for noun in perhaps(named)}
        nouns = [noun for noun in self._weights if noun not in closed]
        return rng.choices(nouns, [self._weights[noun] for noun in nouns])[0] if nouns else None

    def exists(self, facts: Facts, rng: random.Random) -> list[tuple[str, str]]:
        """One question about a thing that is there and one about a thing that is not."""
        there, absent = sorted({kind for noun in facts.named for kind in also(noun)}), self.absent(facts, rng)
        if not there or absent is None:
            return []
        return [(ask_for(rng.choice(there), rng), "yes"), (ask_for(absent, rng), "no")]

    def turns(self, facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
        """Questions about one photograph as (family, question, answer)."""
        turns = [("exists", question, answer) for question, answer in self.exists(facts, rng)]
        turns += _doing(facts, rng) + _where(facts, rng) + _colors(facts, rng) + _counts(facts, rng)
        turns += _who(facts, rng) + _wearing(facts, rng)
        if rng.random() < 0.25:
            turns.append(
                ("silent", rng.choice(phrases.SILENT_QUESTIONS).format(who=_main(facts) or "man"), CANNOT_TELL)
            )
        return turns


def article(noun: str) -> str:
    """``a dog``, ``an elephant``; what is not counted stands alone."""
    if noun in MASS:
        return noun
    if noun in PAIRS:
        return f"a pair of {noun}"
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith(('uni', 'us')) else 'a'} {noun}"


def ask_for(noun: str, rng: random.Random) -> str:
    """A question whether a thing is there."""
    if noun not in MASS | PAIRS and rng.random() < 0.2:
        return rng.choice(phrases.ARE_THERE).format(things=plural(noun))
    return rng.choice(phrases.IS_THERE).format(thing=article(noun))


def _main(facts: Facts) -> str | None:
    return facts.subjects.most_common(1)[0][0] if facts.subjects else None


def _doing(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    if not facts.doing:
        return []
    who = rng.choice(sorted(facts.doing))
    many = singular(who) != who
    kind = rng.random()
    question = (
        rng.choice(phrases.ANY_DOING)
        if kind < 0.25 and len(facts.doing[who]) > 1
        else rng.choice(phrases.MANY_DOING if many else phrases.DOING).format(who=who)
    )
    answer = rng.choice(facts.doing[who])
    if question in phrases.ANY_DOING:
        answer = rng.choice(facts.captions)
    return [("doing", question, answer)]


def _where(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    if not facts.where:
        return []
    who = rng.choice(sorted(facts.where))
    if singular(who) != who or rng.random() < 0.4:
        return [("where", rng.choice(phrases.ANY_WHERE), rng.choice(facts.where[who]))]
    return [("where", rng.choice(phrases.WHERE).format(who=who), rng.choice(facts.where[who]))]


def _colors(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    asked = []
    for (who, thing), colors in sorted(facts.worn.items()):
        known = colors - {""}
        others = {noun for noun in facts.named & PEOPLE if facts.numbers[noun] != {1}}
        if len(known) == 1 and not others:
            question = rng.choice(phrases.WORN_PAIR if thing in PAIRS else phrases.WORN).format(who=who, thing=thing)
            if rng.random() < 0.3:
                question = rng.choice(phrases.COLORS_OF if thing in PAIRS else phrases.COLOR).format(thing=thing)
            asked.append(("color", question, next(iter(known))))
    for thing, colors in sorted(facts.colors.items()):
        known = colors - {""}
        if len(known) == 1 and thing not in PEOPLE | PLACES and facts.numbers[thing] <= {1, None}:
            asked.append(("color", rng.choice(phrases.COLOR).format(thing=thing), next(iter(known))))
    return rng.sample(asked, min(2, len(asked)))


def _counts(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    asked = []
    for noun, numbers in sorted(facts.numbers.items()):
        if (
            len(numbers) == 1
            and None not in numbers
            and noun in PEOPLE | ANIMALS | THINGS
            and facts.subjects[noun] >= 2
        ):
            number = next(iter(numbers))
            if number != 1 or rng.random() < 0.35:
                asked.append(("count", rng.choice(phrases.HOW_MANY).format(things=plural(noun)), str(number)))
    return rng.sample(asked, min(1, len(asked)))


def _who(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    noun = _main(facts)
    if noun is None or rng.random() < 0.6:
        return []
    if noun in ANIMALS:
        kinds = {"dog"} if "dog" in also(noun) else {noun}
        return [("what", rng.choice(phrases.WHICH_ANIMAL), kinds.pop())]
    return [("who", rng.choice(phrases.WHO), rng.choice(facts.phrases[noun]))]


def _wearing(facts: Facts, rng: random.Random) -> list[tuple[str, str, str]]:
    if not facts.worn or rng.random() < 0.6:
        return []
    who, thing = rng.choice(sorted(facts.worn))
    color = next(iter(sorted(facts.worn[who, thing] - {""})), "")
    noun = thing if thing in PAIRS else f"{'an' if (color or thing)[0] in 'aeiou' else 'a'} {color} {thing}"
    noun = f"{color} {thing}".strip() if thing in PAIRS else " ".join(noun.split())
    return [("wearing", rng.choice(phrases.WEARING).format(who=who), noun)]
