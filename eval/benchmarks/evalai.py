"""EvalAI's normalization of short answers and its soft accuracy, as TextVQA and the VQA challenges judge by.

The effect is that of M4C's ``EvalAIAnswerProcessor`` and ``TextVQAAccuracyEvaluator`` (facebookresearch/mmf, which
LLaVA's ``llava/eval/m4c_evaluator.py`` uses), oddities included, for scores are compared digit by digit:

- commas and question marks go first, so that what the original says of commas between digits never happens;
- ``'s`` is set apart as a word of its own, so that "let's" and "she's" never meet the list of contractions;
- a mark of punctuation is deleted where the answer has it beside a space anywhere, and turns into a space elsewhere;
- a full stop stays only before a digit (what should have protected one after a digit is mistyped there), and only the
  first 32 go: ``re.UNICODE``, which is 32, stands where the number of replacements is expected;
- "none" is 0; articles go; and contractions get their apostrophe, but only those of the list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_MARKS = ';/[]"{}()=+\\_-><@`!'
_STOP = re.compile(r"\.(?!\d)")
_STOPS_REMOVED = int(re.UNICODE)
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset(("a", "an", "the"))

# Words that get an apostrophe back: each is known by its spellings that lack one of its apostrophes.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _lacking_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


_CONTRACTIONS = {spelling: word for word in _CONTRACTED for spelling in _lacking_one(word)}
_CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round in the original


def normalize(answer: str) -> str:
    """The form in which two answers are compared."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    out = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space else " ")
    return _STOP.sub("", out, count=_STOPS_REMOVED)


def soft_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Agreement of an answer with those of ten people, 0 to 1: the mean over leaving each out of min(1, matches / 3).

    With fewer than four people the three is the number of the others, and with one person it is a plain comparison, so
    that a set of one's own with one answer a question can be judged, too.
    """
    given, known = normalize(answer), Counter(normalize(each) for each in answers)
    matches, people = known[given], len(answers)
    if people == 1:
        return float(matches)
    enough = min(3, people - 1)
    scores = [min(1.0, (matches - 1) / enough)] * matches + [min(1.0, matches / enough)] * (people - matches)
    return sum(scores) / people if matches else 0.0
