"""Text to token ids and back, over the ``tokenizers`` library; no special token can be typed by a user.

transformers' tokenizers read the same ``tokenizer.json``; this one needs no import of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError, ConfigError, PromptError


class TextTokenizer:
    """A ``tokenizer.json`` with the ids of its special tokens.

    Segments of a prompt are encoded one by one and concatenated. Sentencepiece-style tokenizers (LLaMA's) put a word
    boundary before every text they are given: there, the space that starts a segment is that boundary, and is not
    encoded twice.
    """

    def __init__(self, tokenizer: Tokenizer, *, bos_id: int, eos_id: int, pad_id: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # `</s>` in a text is four characters, not the end of the sequence
        self.bos_id, self.eos_id, self.pad_id = bos_id, eos_id, pad_id
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        """Ids are smaller than this."""
        with _refusing_damage():
            letter = tokenizer.encode("a", add_special_tokens=False).tokens
        self._adds_boundary = bool(letter) and letter[0].startswith("▁")
        self.longest_token = max((len(token.encode()) for token in vocabulary), default=1)
        """Bytes of the longest token."""

    @classmethod
    def from_file(cls, path: Path, *, bos_id: int, eos_id: int, pad_id: int) -> TextTokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            CheckpointError: no such file, or not a tokenizer.
        """
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; a model folder needs its tokenizer.json.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer that can be read ({error}); copy it again.") from error
        return cls(tokenizer, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)

    @classmethod
    def of_decoder(cls, path: Path, config: DecoderConfig) -> TextTokenizer:
        """The ``tokenizer.json`` of a decoder, with the special tokens that its configuration names.

        Raises:
            CheckpointError: no such file, not a tokenizer, or more tokens than the decoder has embeddings.
        """
        ids = {"bos_id": config.bos_token_id, "eos_id": config.eos_token_id, "pad_id": config.pad_token_id}
        tokenizer = cls.from_file(path, **ids)
        check_vocabulary(path, tokenizer.vocab_size, config)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without special tokens and whatever it spells.

        Raises:
            PromptError: it holds half a character.
            CheckpointError: the tokenizer is damaged.
        """
        if self._adds_boundary and text.startswith(" "):
            text = text[1:]
        with _refusing_damage():
            return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def special_id(self, text: str) -> int:
        """Id of the special token ``text``.

        Raises:
            ConfigError: the tokenizer has none.
        """
        found = self._tokenizer.token_to_id(text)
        if found is None:
            raise ConfigError(
                f"the tokenizer has no token {text}, which the model's template needs; choose another one."
            )
        return found

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; special tokens are left out."""
        with _refusing_damage():
            return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """What one token adds to a text: with the blank before a word, which :meth:`decode` drops at a text's start."""
        letter = self.encode("a")
        return self.decode([*letter, token])[len(self.decode(letter)) :]

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of what one token adds to a text; part of a character's, where the token is part of a character."""
        text = self.token_text(token)
        if "\ufffd" not in text:
            return text.encode()
        piece = self._tokenizer.id_to_token(token) or ""
        fallback = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        return bytes.fromhex(fallback[1]) if fallback else bytes(_BYTES.get(letter, 0xFF) for letter in piece)


def _byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level vocabularies (GPT-2's ``encoder.py``)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_letters()


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except TypeError:  # texts of Rust are UTF-8
        raise PromptError("a text holds half a character (one of U+D800 to U+DFFF alone); remove it.") from None
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"tokenizer.json is damaged ({error}); copy it from the model again.") from error


def check_vocabulary(name: str | Path, tokens: int, config: DecoderConfig) -> None:
    """Refuse a tokenizer that gives ids for which a decoder has no embedding; it may give fewer.

    Raises:
        CheckpointError: the tokenizer called ``name`` has more ``tokens`` than that.
    """
    if tokens > config.vocab_size:
        raise CheckpointError(
            f"{name} has {tokens} tokens and the decoder {config.vocab_size} embeddings; "
            "copy tokenizer.json and config.json from the same model."
        )
