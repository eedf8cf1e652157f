"""Records as tokens. Which tokens are supervised is decided here, and nowhere else.

:meth:`~mobillama_v.prompt.Template.encode` marks the answers of a conversation. The mark is kept as one bit of each
token's flags, and :func:`labels_of` makes the labels from it. Labels are aligned with the inputs. Only the model shifts
them: :func:`mobillama_v.hf.modeling.supervised_loss`.

Nothing here imports torch: worker processes start fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mobillama_v.chat_templates import get_template
from mobillama_v.config import ModelConfig
from mobillama_v.errors import RecipeError
from mobillama_v.prompt import IGNORE_INDEX, Encoded, Tokenizer
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.records import Record, RecordError

TOO_LONG, UNLEARNED = "no answer within the length", "nothing is learned"
SUPERVISED, IMAGE = 1, 2  # bits of a token's flags
_CACHED_SEGMENTS = 1 << 16  # system sentences, common questions and answers


@dataclass(frozen=True)
class Encoding:
    """How records become tokens; every process opens the ``tokenizer.json`` itself."""

    tokenizer: Path
    bos_id: int
    eos_id: int
    pad_id: int
    template: str
    tokens_per_image: int
    max_length: int

    @classmethod
    def of(
        cls,
        folder: Path,
        spec: ModelConfig,
        *,
        template: str | None,
        max_length: int | None,
        key: str,
    ) -> Encoding:
        """That of the model in ``folder``, which need not be loaded.

        Args:
            folder: holds the ``tokenizer.json``.
            spec: of the model.
            template: None means the model's.
            max_length: None means the model's context.
            key: what a user calls ``max_length``.

        Raises:
            RecipeError: a length that is more than the context.
            ConfigError: no such template, or a spec whose images make no whole number of tokens.
        """
        get_template(template or spec.template)
        context = spec.decoder.max_position_embeddings
        if max_length is not None and max_length > context:
            raise RecipeError(f"{key} is {max_length} and the model's context {context}; lower {key}.")
        return cls(
            tokenizer=folder / "tokenizer.json",
            bos_id=spec.decoder.bos_token_id,
            eos_id=spec.decoder.eos_token_id,
            pad_id=spec.decoder.pad_token_id,
            template=template or spec.template,
            tokens_per_image=spec.tokens_per_image(),
            max_length=max_length or context,
        )

    def open(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        return TextTokenizer.from_file(self.tokenizer, bos_id=self.bos_id, eos_id=self.eos_id, pad_id=self.pad_id)


class Tokens(NamedTuple):
    """A record as tokens: ``ids`` [T] int32 and ``flags`` [T] uint8, of the bits SUPERVISED and IMAGE."""

    ids: np.ndarray
    flags: np.ndarray
    images: int
    """How many of the record's images have slots among the tokens; the first ones."""
    shortened: bool
    """Whether its end was left out to fit ``max_length``."""


def encode_record(record: Record, encoding: Encoding) -> Tokens:
    """The longest run of whole leading exchanges that fits ``encoding.max_length``.

    A first exchange that is too long loses the end of its answer, as in LLaVA's own loader.

    Raises:
        RecordError: the first answer does not begin within the length, or no answer is learned.
    """
    tokenizer = _tokenizer(encoding, encoding.tokenizer.stat().st_mtime_ns)
    template = get_template(encoding.template)
    for used in range(len(record.messages), 1, -2):
        messages = record.messages[:used]
        encoded = template.encode(list(messages), tokenizer, tokens_per_image=encoding.tokens_per_image)
        if len(encoded.input_ids) <= encoding.max_length:
            break
    ids, flags = np.asarray(encoded.input_ids, np.int32)[: encoding.max_length], _flags_of(encoded)
    cut = used < len(record.messages) or len(ids) < len(flags)
    if not (flags & SUPERVISED).any() and not cut:
        reason = f"{record.where} has no answer that is learned, all have the weight 0; remove it or the weights."
        raise RecordError(reason, UNLEARNED)
    if not (flags[: len(ids)] & SUPERVISED).any() or (flags[len(ids) :] & IMAGE).any():
        raise RecordError(
            f"{record.where} has no answer within max_length={encoding.max_length} tokens, its first exchange has "
            f"{len(flags)}; shorten or remove it, or raise max_length.",
            TOO_LONG,
        )
    return Tokens(ids, flags[: len(ids)], sum(message.images for message in messages), cut)


def _flags_of(encoded: Encoded) -> np.ndarray:
    supervised = np.asarray(encoded.labels) != IGNORE_INDEX
    return (supervised * np.uint8(SUPERVISED) + np.asarray(encoded.image_mask) * np.uint8(IMAGE)).astype(np.uint8)


def labels_of(ids: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """The labels [T] int64 of one sample, aligned with its ``ids`` [T].

    They are the ids of supervised tokens and -100 elsewhere. The first token is never supervised: nothing comes before
    it that could predict it. In a pack, the token before it belongs to another sample.
    """
    labels = np.where(flags & SUPERVISED, ids, IGNORE_INDEX).astype(np.int64)
    labels[:1] = IGNORE_INDEX
    return labels


class _CachingTokenizer:
    """A tokenizer that keeps the ids of what it has lately encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos_id, self.eos_id, self.longest_token = tokenizer.bos_id, tokenizer.eos_id, tokenizer.longest_token
        self.encode: Callable[[str], list[int]] = functools.lru_cache(_CACHED_SEGMENTS)(tokenizer.encode)
        self.special_id = tokenizer.special_id


@functools.lru_cache(1)
def _tokenizer(encoding: Encoding, modified: int) -> _CachingTokenizer:
    return _CachingTokenizer(encoding.open())
