"""The embedded model's tokenizer: byte-level BPE in which words of capitals and numbers are spelled.

A sign's text is read letter by letter, so each capital of an all-capital word and each digit is a token of its own and
no word has to be known to be read; ordinary words are merged as usual.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")

_PIECES = (
    r" ?(?:USER|ASSISTANT):"  # the template's roles are one token each
    r"| ?\p{Lu}\p{Ll}+"
    r"| ?\p{Ll}+"
    r"| ?\p{L}"
    r"| ?\p{N}"
    r"| ?[^\s\p{L}\p{N}]+"
    r"|\s"
)


def train_tokenizer(texts: Iterable[str], path: Path, *, vocab_size: int) -> Tokenizer:
    """Train on ``texts`` and write ``tokenizer.json``; special tokens are :data:`PAD`, :data:`BOS`, :data:`EOS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return tokenizer


def extend_tokenizer(old: Path, texts: Iterable[str], path: Path, *, count: int) -> list[tuple[int, int, int]]:
    """Continue the merges of a tokenizer on other texts, and write it to ``path``.

    Texts that the old merges make whole words of keep their tokens; a model goes on from its old embeddings, a new
    token's being the mean of its two parts' (which the result names).

    Args:
        old: a ``tokenizer.json`` of :func:`train_tokenizer`.
        texts: what to learn from.
        path: where to write.
        count: new tokens.

    Returns:
        Ids of each new token and of its two parts, in order.
    """
    content, tokenizer = json.loads(old.read_text(encoding="utf-8")), Tokenizer.from_file(str(old))
    counts = Counter(piece for text in texts for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    spelled = {piece: [token.value for token in tokenizer.model.tokenize(piece)] for piece in counts}
    pairs: Counter[tuple[str, str]] = Counter()
    holders: dict[tuple[str, str], set[str]] = defaultdict(set)

    def tally(piece: str, sign: int) -> None:
        for pair in zip(spelled[piece], spelled[piece][1:], strict=False):
            pairs[pair] += sign * counts[piece]
            holders[pair].add(piece)

    for piece in counts:
        tally(piece, 1)
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    added: list[tuple[int, int, int]] = []
    while len(added) < count and pairs:
        first, second = pair = max(pairs, key=lambda each: (pairs[each], each))
        if pairs[pair] < 1:
            break
        whole = first + second
        merges.append([first, second])
        if whole not in vocabulary:
            vocabulary[whole] = len(vocabulary)
            added.append((vocabulary[whole], vocabulary[first], vocabulary[second]))
        for piece in holders.pop(pair):
            tally(piece, -1)
            spelled[piece] = _merged(spelled[piece], pair)
            tally(piece, 1)
        del pairs[pair]
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return added


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    i = 0
    while i < len(tokens):
        both = tuple(tokens[i : i + 2]) == pair
        joined.append("".join(pair) if both else tokens[i])
        i += 2 if both else 1
    return joined
