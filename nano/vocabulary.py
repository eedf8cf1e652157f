"""The embedded model's tokenizer: byte-level BPE in which words of capitals and numbers are spelled.

A sign's text is read letter by letter, so each capital of an all-capital word and each digit is a token of its own and
no word has to be known to be read; ordinary words are merged as usual.
"""

from __future__ import annotations

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
